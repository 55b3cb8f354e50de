"""Rows are laid out as upstream's packer lays them out, and a step may be cut in any way."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_material import DIM, HOP, PATCH, SmallVae, bytes_of, row_of, small_encode
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxtrain.batch import Draws, MicroBatch
from voxtrain.data.draws import training_draws
from voxtrain.data.packing import PackedRow, collate, cut_step, pack_row, packed_rows, position_count
from voxtrain.fault import InputError

Clip = tuple[list[int], np.ndarray, np.ndarray | None]  # text tokens, target and reference waves


def wave_of(seed: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def packer_of_upstream() -> Any:
    """Imported late: it brings `datasets` along, and with it seconds of imports."""
    from voxcpm.training.packers import AudioFeatureProcessingPacker

    return AudioFeatureProcessingPacker


def upstream_batch(clips: list[Clip], with_references: bool) -> dict[str, Tensor]:
    """What the installed packer makes of the clips, fed as its own collator feeds it (data.py: collate_fn)."""
    packer = packer_of_upstream()(1, 8192, PATCH, DIM, SmallVae())
    pad = torch.nn.utils.rnn.pad_sequence
    references = None
    if with_references:
        waves = [torch.tensor([-100.0]) if ref is None else torch.from_numpy(ref) for _, _, ref in clips]
        references = pad(waves, batch_first=True, padding_value=-100.0)
    return packer(
        audio_tokens=pad([torch.from_numpy(wave) for _, wave, _ in clips], batch_first=True, padding_value=-100.0),
        text_tokens=pad(
            [torch.tensor(t, dtype=torch.int32) for t, _, _ in clips], batch_first=True, padding_value=-100
        ),
        task_ids=torch.ones(len(clips), dtype=torch.int32),
        dataset_ids=torch.zeros(len(clips), dtype=torch.int32),
        is_prompts=[False] * len(clips),
        ref_audio_tokens=references,
    )


def our_rows(clips: list[Clip]) -> list[PackedRow]:
    return [
        pack_row(f"row {k}", tokens, small_encode(wave), None if ref is None else small_encode(ref))
        for k, (tokens, wave, ref) in enumerate(clips)
    ]


def our_batch(clips: list[Clip]) -> MicroBatch:
    rows = our_rows(clips)
    draws = [training_draws(1, n, row.loss_positions, PATCH, DIM, 0.1) for n, row in enumerate(rows)]
    return collate(rows, draws, range(len(rows)))


def assert_same(ours: MicroBatch, theirs: dict[str, Tensor]) -> None:
    """Every field that reaches the loss, exactly."""
    pairs = {
        "text_tokens": ours.text_tokens,
        "audio_feats": ours.audio_feats,
        "text_mask": ours.text_mask,
        "audio_mask": ours.audio_mask,
        "loss_mask": ours.loss_mask,
        "labels": ours.stop_labels,
    }
    for name, tensor in pairs.items():
        assert torch.equal(tensor.to(theirs[name].dtype), theirs[name]), name
    assert ours.audio_feats.dtype == torch.float32
    assert ours.text_tokens.dtype == ours.stop_labels.dtype == torch.int64


SAMPLES = st.integers(1, 12 * HOP * PATCH)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 9), SAMPLES), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_equal_to_upstreams_packer(sizes: list[tuple[int, int]], seed: int) -> None:
    clips: list[Clip] = [([5 + k] * t, wave_of(seed + k, n), None) for k, (t, n) in enumerate(sizes)]
    assert_same(our_batch(clips), upstream_batch(clips, with_references=False))


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(1, 9), SAMPLES, st.none() | SAMPLES), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_equal_to_upstreams_packer_with_reference_audio(sizes: list[tuple[int, int, int | None]], seed: int) -> None:
    """Also where some rows of a batch have reference audio and others do not."""
    clips: list[Clip] = [
        ([5 + k] * t, wave_of(seed + k, n), None if r is None else wave_of(seed - k - 1 + 1000, r))
        for k, (t, n, r) in enumerate(sizes)
    ]
    assert_same(our_batch(clips), upstream_batch(clips, with_references=True))


@pytest.mark.slow
def test_equal_to_upstreams_packer_with_the_tiny_models_own_vae(tiny_folder: Path) -> None:
    from voxtrain.model.upstream import load_encoder, load_tokenizer, load_vae

    encode, tokenize, vae = load_encoder(tiny_folder), load_tokenizer(tiny_folder), load_vae(tiny_folder)
    tokens, wave, reference = tokenize("The old ferry."), wave_of(1, 7001), wave_of(2, 5120)
    packer = packer_of_upstream()(1, 8192, 4, 16, vae)
    text = torch.tensor(tokens, dtype=torch.int32)
    fields = ("text_tokens", "audio_feats", "text_mask", "audio_mask", "loss_mask", "labels")
    theirs = packer.process_tts_data_with_ref(torch.from_numpy(reference), torch.from_numpy(wave), text)
    row = pack_row("row", tokens, encode(wave), encode(reference))
    draws = training_draws(1, 0, row.loss_positions, 4, 16, 0.1)
    assert_same(collate([row], [draws], [0]), {k: v[None] for k, v in zip(fields, theirs, strict=False)})
    assert row.loss_positions == 3
    assert row.positions == len(tokens) + 3 + 2 + 4


@given(st.integers(0, 9), st.integers(1, 9), st.none() | st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_position_count(tokens: int, audio: int, reference: int | None) -> None:
    heard = None if reference is None else torch.ones(reference, PATCH, DIM)
    row = pack_row("row", [7] * tokens, torch.ones(audio, PATCH, DIM), heard)
    assert row.positions == position_count(tokens, audio, reference)
    assert row.loss_positions == audio
    assert row.stop_labels.nonzero().tolist() == row.loss_mask.nonzero()[-1:].tolist()


def test_a_row_without_a_loss_position_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to learn") as caught:
        pack_row("x", [5, 6], torch.zeros(0, PATCH, DIM), None)
    assert [fault.where for fault in caught.value.faults] == ["row x"]


def test_packed_rows_use_tokens_and_latents_of_each_row() -> None:
    latents = {Path("/a.wav"): torch.full((2, PATCH, DIM), 1.0), Path("/b.wav"): torch.full((3, PATCH, DIM), 2.0)}
    rows = [row_of(Path("/a.wav"), "hi", ref_audio=Path("/b.wav")), row_of(Path("/b.wav"), "you")]
    first, second = packed_rows(rows, bytes_of, latents.__getitem__)
    assert (first.id, second.id) == ("row_a", "row_b")
    assert first.text_tokens.tolist() == [103, 0, 0, 0, 104, *bytes_of("hi"), 101, 0, 0, 102]
    assert second.text_tokens.tolist() == [*bytes_of("you"), 101, 0, 0, 0, 102]
    assert first.audio_feats[1:4].eq(2).all()
    assert first.audio_feats[first.loss_mask].eq(1).all()


LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(LENGTHS, st.integers(50, 400))
@settings(max_examples=100, deadline=None)
def test_a_cut_holds_every_row_once_and_keeps_its_bound(lengths: list[int], most: int) -> None:
    cut = cut_step(lengths, 3, most)
    assert sorted(row for part in cut for row in part) == list(range(len(lengths)))
    padded = [len(part) * max(lengths[row] for row in part) for part in cut]
    assert max(padded) <= most
    for part, following in pairwise(cut):  # no row more would have fitted
        longest = max(lengths[row] for row in part)
        assert (len(part) + 1) * longest > most
        assert max(lengths[row] for row in following) <= min(lengths[row] for row in part)


@given(LENGTHS, st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_without_a_bound_a_cut_has_batch_size_rows(lengths: list[int], batch_size: int) -> None:
    cut = cut_step(lengths, batch_size, None)
    assert sorted(row for part in cut for row in part) == list(range(len(lengths)))
    assert all(len(part) == batch_size for part in cut[:-1])
    assert 1 <= len(cut[-1]) <= batch_size


def test_a_row_over_the_bound_is_an_error() -> None:
    with pytest.raises(ValueError, match="51 positions"):
        cut_step([3, 51], 1, 50)


def test_collate_pairs_each_row_with_its_draws_and_place() -> None:
    rows = [pack_row(f"r{a}", [9] * a, torch.ones(a, PATCH, DIM), None) for a in (2, 3, 1)]
    draws = [
        Draws(torch.full((a,), float(a)), torch.full((a, PATCH, DIM), float(a)), torch.ones(a, dtype=torch.bool))
        for a in (2, 3, 1)
    ]
    batch = collate(rows, draws, [20, 30, 10])
    assert (batch.ids, batch.places) == (("r2", "r3", "r1"), (20, 30, 10))
    row_of_loss = batch.loss_mask.nonzero()[:, 0]
    assert batch.draws.t.tolist() == [[2.0, 3.0, 1.0][row] for row in row_of_loss.tolist()]
    assert not (batch.text_mask & batch.audio_mask).any()
    assert (batch.text_mask | batch.audio_mask).sum(dim=1).tolist() == [row.positions for row in rows]
