"""A data folder as `voxtrain.manifest` leaves it, made by hand: what the audit page and --diff are tested on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from manifest_material import option

from voxtrain.durable import write_json, write_jsonl
from voxtrain.manifest.distributions import distributions
from voxtrain.run_folder import SPLITS, DataFolder

RULES = ("empty_text", "boilerplate", "missing_audio", "unreadable_audio", "too_short", "too_long", "chars_per_second")
RULES += ("silent", "clipped", "duplicate", "excluded")
REJECTS = {
    "empty_text": 31,
    "boilerplate": 4,
    "missing_audio": 2,
    "unreadable_audio": 1,
    "too_short": 5,
    "chars_per_second": 3,
    "duplicate": 1,
}
KEPT = {"train": (120, 20), "validation": (8, 2), "test": (6, 1)}  # rows, groups
ALSO = {"empty_text": ["too_short"], "too_short": ["silent"]}  # of the first row under the rule


def data_folder(root: Path, **changed: Any) -> DataFolder:
    """A complete folder with few tones, every kind of finding, and `changed` keys of the audit."""
    folder = DataFolder(root)
    tones = _tones(root / "clips")
    kept = [record for name in SPLITS for record in _rows(name, tones)]
    rejects = _rejects(tones, len(kept))
    for name in SPLITS:
        write_jsonl(folder.rows(name), [record for record in kept if record["split"] == name])
    write_jsonl(folder.rejects, rejects)
    reported = _reported(kept)
    write_jsonl(folder.reported, reported)
    write_json(folder.split, _certificate(kept))
    write_json(folder.audit, {**_audit(kept, rejects, reported, root), **changed})
    return folder


def _tones(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    paths = []
    for number in range(6):
        seconds = (0.02, 0.6, 1.0, 2.0, 3.5, 12.0)[number]
        time_s = np.arange(round(seconds * 16000)) / 16000
        wave = 0.2 * np.sin(2 * np.pi * (180 + 60 * number) * time_s) * (1 + np.sin(12 * time_s)) / 2
        paths.append(folder / f"tone_{number}.wav")
        soundfile.write(paths[-1], wave.astype(np.float32), 16000)
    (folder / "damaged.wav").write_bytes(b"RIFF but nothing more")
    return paths


def _rows(name: str, tones: list[Path]) -> list[dict[str, Any]]:
    rows, groups = KEPT[name]
    made = []
    for number in range(rows):
        group = f"{name}_chapter_{min(int(groups * (number / rows) ** 1.5), groups - 1):02d}"
        made.append(
            {
                "id": f"{name}-{number:04d}",
                "audio": str(tones[1 + number % 5]),
                "text": f"It was the {number}th bright cold day of the {name} in April.",
                "duration": round(1.5 + 9 * abs(math.sin(number)) ** 2, 3),
                "group": group,
                "line": len(made) + 1 + 1000 * SPLITS.index(name),
                "samples": f"{SPLITS.index(name)}{number:031x}",
                "split": name,
            }
        )
    return made


def _rejects(tones: list[Path], before: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for rule, rows in REJECTS.items():
        for number in range(rows):
            value, threshold, text, audio = _finding(rule, number, tones)
            made.append(
                {
                    "line": before + len(made) + 1,
                    "id": f"{rule}-{number:04d}",
                    "rule": rule,
                    "value": value,
                    "threshold": threshold,
                    "also": ALSO.get(rule, []) if number == 0 else [],
                    "audio": audio,
                    "text": text,
                    "seconds": None if rule in ("missing_audio", "unreadable_audio") else 0.02 + 0.1 * number,
                }
            )
    return made


def _finding(rule: str, number: int, tones: list[Path]) -> tuple[Any, Any, str, str]:  # noqa: PLR0911
    audio, text = str(tones[number % 6]), f"sentence {number} of {rule}"
    if rule == "empty_text":
        return None if number % 3 else " ... ", None, "" if number % 3 else " ... ", audio
    if rule == "boilerplate":
        said = ("Thanks for watching!", "[Music]", "Please subscribe to my channel", "Thanks for watching!")[number]
        return said, "(thanks|thank you)( for (watching|listening))?", said, audio
    if rule == "missing_audio":
        return f"{tones[0].parent}/gone_{number}.wav", None, text, f"{tones[0].parent}/gone_{number}.wav"
    if rule == "unreadable_audio":
        damaged = f"{tones[0].parent}/damaged.wav"
        return f"{damaged}: Format not recognised", None, text, damaged
    if rule == "too_short":
        return 0.02 + 0.01 * number, 0.1, text, str(tones[0])
    if rule == "chars_per_second":
        return (44.0, 0.7, 31.5)[number], (30.0, 2.0, 30.0)[number], text * (number + 1), audio
    return str(tones[2]), None, text, str(tones[2])


def _reported(kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [("tail_silence", 1.0, number, 1.1 + 0.13 * number) for number in range(9)]
    found += [("upsampled", 6400.0, 20 + number, 4000.0 - 200 * number) for number in range(2)]
    return [
        {name: kept[number][name] for name in ("line", "id", "audio", "text")}
        | {"rule": rule, "value": value, "threshold": threshold, "also": [], "seconds": kept[number]["duration"]}
        for rule, threshold, number, value in found
    ]


def _certificate(kept: list[dict[str, Any]]) -> dict[str, Any]:
    pairs = ("train+validation", "train+test", "validation+test")
    splits = {}
    expected = {"train": 0.9, "validation": 0.05, "test": 0.05}
    total = sum(record["duration"] for record in kept)
    groups = {record["group"]: record["split"] for record in kept}
    for name in SPLITS:
        rows = [record for record in kept if record["split"] == name]
        own = sorted({record["group"] for record in rows})
        sizes = [(group, [row["duration"] for row in rows if row["group"] == group]) for group in own]
        sizes.sort(key=lambda entry: -len(entry[1]))
        seconds = round(sum(record["duration"] for record in rows), 3)
        splits[name] = {
            "groups": len(own),
            "rows": len(rows),
            "seconds": seconds,
            "expected_share": expected[name],
            "share_of_groups": len(own) / len(groups),
            "share_of_rows": len(rows) / len(kept),
            "share_of_seconds": seconds / total,
            "group_names": own,
            "largest_groups": [
                {"group": group, "rows": len(lengths), "seconds": round(sum(lengths), 3)} for group, lengths in sizes
            ],
        }
    return {
        "group_by": "parent",
        "seed": 1,
        "splits": splits,
        "overlaps": {pair: [] for pair in pairs},
        "shared_audio": {pair: _crossing(pair) for pair in pairs},
        "same_samples": {pair: _crossing(pair) for pair in pairs},
        "neighbours": {
            **{pair: {**_crossing(pair), "adjacent_rows": 0} for pair in pairs},
            "train+validation": {
                **_crossing("train+validation", "stem", "clips/tone_"),
                "adjacent_rows": 1,
            },
            "numbered_through": [],
        },
        "near_text": {
            "score": 90,
            **{pair: _crossing(pair) for pair in pairs},
        },
        "moved_groups": [{"group": "test_chapter_00", "from": "train", "to": "test"}],
    }


def _crossing(pair: str, key: str = "audio", value: str | None = None) -> dict[str, Any]:
    """What two splits share of one kind: nothing, or one `value`."""
    met = {split: {"id": f"{split}-0001", "line": 2 + 1000 * SPLITS.index(split)} for split in pair.split("+")}
    shared = int(value is not None)
    examples = [{key: value, **met}] if shared else []
    return {"shared": shared, "rows": dict.fromkeys(met, shared), "examples": examples}


def _audit(
    kept: list[dict[str, Any]], rejects: list[dict[str, Any]], reported: list[dict[str, Any]], root: Path
) -> dict[str, Any]:
    rows_in = len(kept) + len(rejects)
    by_rule = {rule: sum(record["rule"] == rule for record in rejects) for rule in RULES}
    seconds = {rule: round(sum(r["seconds"] or 0.0 for r in rejects if r["rule"] == rule), 3) for rule in RULES}
    lengths = sorted(record["duration"] for record in kept)
    fired_rules = [rule for rule in RULES if by_rule[rule] or rule == "silent"]
    sets = [(record["rule"], *record["also"]) for record in rejects]
    fired = {a: {b: sum(a in one and b in one for one in sets) for b in fired_rules} for a in fired_rules}
    kept_s = round(sum(lengths), 3)
    share = len(rejects) / rows_in
    splits = _certificate(kept)["splits"]
    return {
        "manifest": str(root.parent / "rows.jsonl"),
        "group_by": "parent",
        "seed": 1,
        "clean": option("clean", "standard", max_reject_share=0.5),
        "split": option("split", "grouped"),
        "rows_in": rows_in,
        "rows_kept": len(kept),
        "rejects_by_rule": by_rule,
        "reject_share": share,
        "seconds_in": kept_s + sum(seconds.values()),
        "seconds_kept": kept_s,
        "seconds_rejected_by_rule": seconds,
        "examples": {},
        "fired": fired,
        "kept_duration_s": {"shortest": lengths[0], "median": lengths[len(lengths) // 2], "longest": lengths[-1]},
        "contamination": {"reject_share": share, "rows_per_step": 8, "steps_touched": 1 - (1 - share) ** 8},
        "splits": {n: {k: size[k] for k in ("groups", "rows", "seconds")} for n, size in splits.items()},
        "warnings": ["validation has 2 groups: under 5 there are no confidence intervals; add recordings"],
        "refused": [],
        "reported": {rule: sum(r["rule"] == rule for r in reported) for rule in ("tail_silence", "upsampled")},
        "excluded": 0,
        "repeated_lines": [{"text": "Chapter end.", "rows": 4}, {"text": "Good morning.", "rows": 2}],
        "distributions": _distributions(kept, rejects),
    }


def _distributions(kept: list[dict[str, Any]], rejects: list[dict[str, Any]]) -> dict[str, Any]:
    codes = [1 + SPLITS.index(record["split"]) for record in kept] + [0] * len(rejects)
    seconds = np.array([r["duration"] for r in kept] + [r["seconds"] or np.nan for r in rejects], dtype=np.float32)
    place = np.arange(len(codes), dtype=np.float32)
    characters = np.array([len(record["text"]) for record in (*kept, *rejects)], dtype=np.float32)
    measures = {
        "seconds": seconds,
        "characters": characters,
        "chars_per_second": 14 + 4 * np.sin(place),
        "rms_dbfs": -24 + 6 * np.cos(1.7 * place),
        "peak": 0.6 + 0.4 * np.sin(0.9 * place),
        "leading_silence_s": 0.2 + 0.15 * np.sin(2.1 * place),
        "tail_silence_s": 0.5 + 0.5 * np.sin(place) ** 3,
    }
    return distributions(np.array(codes, dtype=np.uint8), {n: m.astype(np.float32) for n, m in measures.items()})
