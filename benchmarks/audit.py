"""How fast manifests are audited, side by side with upstream's validation and with bare decoding of the same files.

    python -m benchmarks.audit SPEECH [--rows 20000] [--million 1000000] [--folder DIR]

SPEECH is a folder with manifest.jsonl and its audio. Its clips are linked again and again into a folder of their own,
so that every row has its own file. What is compared takes turns in this process, and the best time of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.process_tree import Tree, run_watched

ROUNDS = 3
TOGETHER = 16  # files that a thread decodes in one go: one by one costs a tenth more
ALL = ("split=small", "clean.max_reject_share=1", "clean.duplicates=false")  # linked clips are duplicates, all of them


def main(arguments: Sequence[str]) -> int:
    """Print every figure and the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description="How fast manifests are audited.")
    parser.add_argument("speech", type=Path, help="a folder with manifest.jsonl and its audio")
    parser.add_argument("--rows", type=int, default=20_000, help="of the manifest in which each has its own file")
    parser.add_argument("--clips", type=int, default=20_000, help="of the manifest whose files are decoded")
    parser.add_argument("--million", type=int, default=1_000_000, help="rows of the large manifest; 0: leave it out")
    parser.add_argument("--folder", type=Path, help="where files are linked and caches kept; emptied at the end")
    given = parser.parse_args(arguments)
    if not (given.speech / "manifest.jsonl").is_file():
        print(f"There is no {given.speech / 'manifest.jsonl'}: name a folder with speech.", file=sys.stderr)
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="audit_benchmark_", dir=given.folder))
    try:
        print(json.dumps(machine()))
        rows = [json.loads(line) for line in (given.speech / "manifest.jsonl").read_text("utf-8").splitlines()]
        for row in rows:
            row["audio"] = str((given.speech / row["audio"]).resolve())
        manifest, files = own_files(rows, scratch / "own_files", given.rows)
        headers(manifest, scratch, given.rows)
        manifest, files = own_files(rows, scratch / "own_sound", given.clips)
        everything(manifest, files, scratch)
        if given.million:
            large(rows, scratch, given.million)
        from benchmarks.latents import latents

        latents(given.speech, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def own_files(rows: Sequence[dict[str, object]], folder: Path, count: int) -> tuple[Path, list[str]]:
    """A manifest of `count` rows, each with a file of its own, and these files."""
    folder.mkdir(parents=True)
    files = []
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as lines:
        for number, row in enumerate(islice(cycle(rows), count)):
            source = Path(str(row["audio"]))
            target = folder / f"{number:07d}_{source.name}"
            try:
                os.link(source, target)
            except OSError:  # another file system
                shutil.copyfile(source, target)
            lines.write(json.dumps({**row, "id": f"{number}", "audio": target.name}) + "\n")
            files.append(str(target))
    return folder / "manifest.jsonl", files


def headers(manifest: Path, scratch: Path, rows: int) -> None:
    """Rules that need headers alone, against upstream's validation of the same manifest."""
    from voxcpm.training.validate import validate_manifest

    times: dict[str, list[float]] = {"upstream": [], "cold": [], "warm": []}
    for turn in range(ROUNDS):
        cache = scratch / f"headers_{turn}"
        times["upstream"].append(seconds(lambda: validate_manifest(str(manifest))))
        for which in ("cold", "warm"):
            out = scratch / f"headers_{turn}_{which}"
            times[which].append(audit(manifest, cache, out, "headers"))
    best = {which: min(found) for which, found in times.items()}
    for which, took_s in best.items():
        print(f"header rules, {which}: {took_s:.3f} s, {rows / took_s:,.0f} rows/s")
    print(f"ratio cold {best['upstream'] / best['cold']:.2f} (goal 3)")
    print(f"ratio warm {best['upstream'] / best['warm']:.2f} (goal 10)")


def everything(manifest: Path, files: Sequence[str], scratch: Path) -> None:
    """All rules, against decoding each file and doing nothing with it, on all cores."""
    times: dict[str, list[float]] = {"decoding": [], "all rules": []}
    for turn in range(ROUNDS):
        times["decoding"].append(seconds(lambda: decode(files)))
        cache, out = scratch / f"all_{turn}", scratch / f"all_{turn}_out"
        times["all rules"].append(audit(manifest, cache, out, "standard"))
    best = {which: min(found) for which, found in times.items()}
    for which, took_s in best.items():
        print(f"{which}: {took_s:.2f} s, {len(files) / took_s:,.0f} clips/s")
    print(f"ratio all rules {best['decoding'] / best['all rules']:.2f} (goal 0.8)")


def decode(files: Sequence[str]) -> None:
    """Decode every file on all cores: soundfile lets other threads run while it does."""
    parts = [files[first : first + TOGETHER] for first in range(0, len(files), TOGETHER)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(_decode_some, parts):
            pass


def _decode_some(files: Sequence[str]) -> None:
    import soundfile

    for path in files:
        soundfile.read(path, dtype="float32")


def audit(manifest: Path, cache: Path, out: Path, clean: str) -> float:
    """What `python -m voxtrain.manifest` does once Python has started and settings are read; seconds."""
    # late, as in the command itself: worker processes import this module
    from voxtrain.manifest.prepare import prepare
    from voxtrain.run_folder import DataFolder
    from voxtrain.settings import compose

    settings = compose([f"data.manifest={manifest}", f"data.cache_dir={cache}", *ALL, f"clean={clean}"])
    began_s = time.perf_counter()
    prepare(
        manifest,
        settings.data.columns,
        settings.data.group_by,
        settings.clean,
        settings.split,
        settings.seed,
        DataFolder(out),
        settings.data.sound_memory(),
        rows_per_step=settings.train.rows_per_step(),
        force_write=True,
    )
    return time.perf_counter() - began_s


def large(rows: Sequence[dict[str, object]], scratch: Path, count: int) -> None:
    """A manifest of very many rows over few files, by its own command: time and memory of all its processes."""
    manifest = scratch / "large.jsonl"
    with manifest.open("w", encoding="utf-8") as lines:
        for number, row in enumerate(islice(cycle(rows), count)):
            lines.write(json.dumps({**row, "id": f"{number}", "parent": f"{row['parent']}/{number // 40}"}) + "\n")
    command = [sys.executable, "-m", "voxtrain.manifest", f"data.manifest={manifest}", f"out={scratch / 'large'}"]
    tree: Tree = run_watched([*command, f"data.cache_dir={scratch / 'large_cache'}", *ALL])
    print(f"{count:,} rows ({manifest.stat().st_size / 2**20:,.0f} MiB): {tree.seconds:.1f} s, exit {tree.exit_code}")
    print(f"peak {tree.peak_gib:.3f} GiB over {tree.processes} processes (goal: under 1)")


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
