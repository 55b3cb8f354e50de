"""From a manifest to the batches that Lightning gets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from data_material import DIM, HOP, PATCH, bytes_of, small_encode
from latent_material import assert_tight, index_file
from manifest_material import clean_rules, columns, grouped_split

from voxtrain.batch import StepBatch
from voxtrain.data.audio import read_wave
from voxtrain.data.datamodule import SpeechDataModule
from voxtrain.data.packing import packed_rows
from voxtrain.data.source import ManifestSource
from voxtrain.fault import InputError
from voxtrain.manifest.clean import CleanRules
from voxtrain.manifest.prepare import read_split
from voxtrain.run_folder import DataFolder

Make = Callable[..., SpeechDataModule]


@pytest.fixture
def manifest(clips: list[tuple[Path, str, str]], tmp_path: Path) -> Path:
    """The eight clips over four parents, and one row that must go."""
    rows = [{"id": path.stem, "audio": str(path), "text": text, "parent": parent} for path, text, parent in clips]
    rows.append(rows[0] | {"id": "empty", "text": ""})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(manifest: Path, tmp_path: Path) -> Make:
    """Builds the data module, with settings changed by name."""

    def build(**changed: Any) -> SpeechDataModule:
        fields: dict[str, Any] = {
            "source": ManifestSource(
                manifest=manifest, group_by="parent", columns=columns(), cache_dir=tmp_path / "cache"
            ),
            "clean": clean_rules(max_reject_share=0.5, boilerplate=()),
            "split": grouped_split(validation_share=0.2, test_share=0.1),
            "seed": 1,
            "batch_size": 2,
            "grad_accum": 2,
            "max_positions": None,
            "first_step": 0,
            "total_steps": 3,
            "folder": DataFolder(tmp_path / "data"),
            "tokenize": bytes_of,
            "encode": small_encode,
            "vae_key": "small",
            "cfg_rate": 0.1,
        }
        return SpeechDataModule(**fields | changed)

    return build


def ready(data: SpeechDataModule) -> SpeechDataModule:
    data.prepare_data()
    data.setup("fit")
    return data


def places(batches: list[StepBatch]) -> list[int]:
    return sorted(place for batch in batches for micro_batch in batch.micro_batches for place in micro_batch.places)


def test_one_batch_a_step(make: Make) -> None:
    data = ready(make())
    batches = list(data.train_dataloader())
    assert [batch.step for batch in batches] == [1, 2, 3]
    assert all(isinstance(batch, StepBatch) and batch.rows == 4 for batch in batches)
    assert places(batches) == list(range(12))
    learnt = {name for batch in batches for micro_batch in batch.micro_batches for name in micro_batch.ids}
    assert learnt <= {row.id for row in data.rows("train")}
    assert not learnt & {row.id for split in ("validation", "test") for row in data.rows(split)}
    assert [batch.step for batch in ready(make(first_step=2)).train_dataloader()] == [3]


def test_batches_hold_what_the_files_hold(make: Make) -> None:
    data = ready(make())
    rows = {row.id: row for row in data.rows("train")}
    looked_at = 0
    for batch in data.train_dataloader():
        for part in batch.micro_batches:
            for k, row_id in enumerate(part.ids):
                live = small_encode(read_wave(rows[row_id].audio))
                assert torch.equal(part.audio_feats[k][part.loss_mask[k]], live)
                tokens = bytes_of(rows[row_id].text)
                assert part.text_tokens[k][: len(tokens)].tolist() == tokens
                looked_at += 1
    assert looked_at == 12


@pytest.fixture
def movable(manifest: Path, tmp_path: Path) -> list[Path]:
    """The clips of the manifest, copied to where they may be removed."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    copies = []
    for row in rows[:-1]:
        copies.append(tmp_path / Path(row["audio"]).name)
        shutil.copy(row["audio"], copies[-1])
        row["audio"] = copies[-1].name
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copies


def test_training_opens_no_audio_file(make: Make, movable: list[Path]) -> None:
    before, data = list(ready(make()).train_dataloader()), ready(make())
    for path in movable:
        path.unlink()
    after = list(data.train_dataloader())
    assert len(before) == len(after) == 3
    for one, other in zip(before, after, strict=True):
        for part, same in zip(one.micro_batches, other.micro_batches, strict=True):
            assert torch.equal(part.audio_feats, same.audio_feats)
    assert data.validation_rows()
    later = make(encode=None)  # a run that goes on when the recordings have been put away: the audit hashed them
    later.setup("fit")
    assert torch.equal(next(iter(later.train_dataloader())).micro_batches[0].audio_feats, part_of(before))


def part_of(batches: list[StepBatch]) -> torch.Tensor:
    return batches[0].micro_batches[0].audio_feats


def test_audio_that_changed_since_the_audit_is_told(make: Make, movable: list[Path]) -> None:
    data = make()
    data.prepare_data()
    soundfile.write(movable[3], soundfile.read(movable[3])[0][:-1], 16_000)
    with pytest.raises(InputError, match="changed since the audit") as caught:
        data.setup("fit")
    assert [fault.where for fault in caught.value.faults] == [str(movable[3])]


def test_cut_tails_are_neither_learnt_nor_counted(make: Make, movable: list[Path]) -> None:
    for path in movable:
        wave = soundfile.read(path)[0]
        soundfile.write(path, [*wave, *[0.0] * 16_000], 16_000)
    whole = ready(make(grad_accum=1, batch_size=5, total_steps=1))
    cut = ready(make(grad_accum=1, batch_size=5, total_steps=1, clean=trimming(0.25)))
    [long], [short] = whole.train_dataloader(), cut.train_dataloader()
    assert long.audio_seconds - short.audio_seconds == pytest.approx(5 * 0.75, abs=5 * 0.01)
    assert long.loss_positions - short.loss_positions == pytest.approx(5 * 0.75 * 16_000 / (HOP * PATCH), abs=5 * 8)


def trimming(keep_s: float) -> CleanRules:
    return clean_rules(max_reject_share=0.5, boilerplate=(), trim_tail_silence=keep_s)


def test_training_starts_only_under_a_certificate(make: Make, tmp_path: Path) -> None:
    data = make()
    data.prepare_data()
    (tmp_path / "data" / "split.json").write_text("{}")
    with pytest.raises(InputError, match=r"split\.json"):
        data.setup("fit")
    assert not (tmp_path / "cache" / "latents").exists(), "nothing is encoded before"


def test_preparing_and_setting_up_twice_does_it_once(make: Make, tmp_path: Path) -> None:
    data = ready(make())
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    assert len(stamps) == 8

    def never(*_: Any) -> Any:
        raise AssertionError("this was done already")

    data.prepare_data()
    data._tokenize = data._encode = never
    data.setup("fit")
    ready(make(encode=never))  # a later process finds latents too
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == stamps


def test_latents_of_every_split_are_cached(make: Make, tmp_path: Path) -> None:
    data = ready(make())
    assert assert_tight(tmp_path / "cache" / "latents", "small") == 8
    held_out = data.validation_rows()
    rows = read_split(DataFolder(tmp_path / "data"), "validation")
    assert held_out
    again = packed_rows(rows, bytes_of, lambda path: small_encode(read_wave(path)))
    assert [row.id for row in held_out] == [row.id for row in again]
    assert all(torch.equal(a.audio_feats, b.audio_feats) for a, b in zip(held_out, again, strict=True))


def test_positions_of_a_row(make: Make) -> None:
    data = ready(make())
    rows = list(data.rows("train"))
    assert rows
    assert [data.positions(row) for row in rows] == [data.pack(row).positions for row in rows]


def test_rows_that_do_not_fit_are_named(make: Make) -> None:
    everything = ready(make())
    lengths = {
        row.id: everything.positions(row) for split in ("train", "validation", "test") for row in everything.rows(split)
    }
    longest = max(lengths, key=lengths.__getitem__)
    most = lengths[longest] - 1
    data = make(max_positions=most)
    data.prepare_data()
    for _ in range(2):  # a second call is no way around it
        with pytest.raises(InputError, match=f"{longest} .*{lengths[longest]}") as caught:
            data.setup("fit")
    assert caught.value.faults[0].where == f"memory.max_positions = {most}"
    assert f"memory.max_positions={lengths[longest]} holds the longest" in caught.value.faults[0].remedy
    batches = list(ready(make(max_positions=lengths[longest])).train_dataloader())
    padded = [part.text_tokens.numel() for batch in batches for part in batch.micro_batches]
    assert max(padded) <= lengths[longest]


def test_a_manifest_that_changed_is_refused(make: Make, manifest: Path) -> None:
    make().prepare_data()
    with manifest.open("a") as lines:
        lines.write(json.dumps({"id": "new", "audio": "new.wav", "text": "new", "parent": "new"}) + "\n")
    for first_step in (0, 2):
        with pytest.raises(InputError, match="has changed since"):
            make(first_step=first_step).prepare_data()


def test_a_run_that_goes_on_keeps_its_rows(make: Make, manifest: Path, tmp_path: Path) -> None:
    """Also where the manifest is gone, or other rules would now reject other rows."""
    ready(make())
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    stricter = clean_rules(min_seconds=1.0, max_reject_share=1, boilerplate=())
    make(first_step=2, clean=stricter).prepare_data()
    manifest.unlink()
    make(first_step=2).prepare_data()
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


def test_reference_audio_reaches_the_batch(
    make: Make, manifest: Path, clips: list[tuple[Path, str, str]], tmp_path: Path
) -> None:
    reference = tmp_path / "reference.flac"
    wave, rate_hz = soundfile.read(clips[7][0])
    soundfile.write(reference, wave[:3000], rate_hz)
    rows = [json.loads(line) | {"ref_audio": str(reference)} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part = next(iter(ready(make()).train_dataloader())).micro_batches[0]
    heard = len(small_encode(read_wave(reference)))
    assert heard == 3000 // (5 * PATCH)
    assert part.text_tokens[:, 0].eq(103).all()
    assert part.text_tokens[:, heard + 1].eq(104).all()
    assert part.audio_feats.shape[2:] == (PATCH, DIM)
    assert torch.equal(part.audio_feats[0, 1 : heard + 1], small_encode(read_wave(reference)))
    assert not part.loss_mask[:, : heard + 2].any()


def test_the_key_of_the_encoder_is_asked_for_late(make: Make, tmp_path: Path) -> None:
    asked: list[int] = []
    data = make(vae_key=lambda: asked.append(1) or "late")
    data.prepare_data()
    assert asked == []
    data.setup("fit")
    assert asked == [1]
    assert index_file(tmp_path / "cache" / "latents", "late").is_file()


def test_audio_that_broke_after_preparation_is_told(make: Make, manifest: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    shutil.copy(rows[0]["audio"], tmp_path / "broken.wav")
    rows[0]["audio"] = "broken.wav"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = make()
    data.prepare_data()
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match=r"broken\.wav"):
        data.setup("fit")
