"""Upstream's training loop, as in its scripts/train_voxcpm_finetune.py: its own collator, packer, forward and AdamW.

It is given what its defaults give it: one row at a time (`batch_size` 1), a step accumulated over as many as a step has
rows, AdamW as torch makes it by default, gradients clipped to norm 1 (as in its conf/voxcpm_v2), a cosine schedule.
Decoding and resampling, which its loader does again in each epoch, are done beforehand and not counted. Nothing is
logged, validated or saved.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.clock import Clock
from voxtrain.data.audio import SAMPLE_RATE_HZ, read_wave
from voxtrain.manifest.row import Row
from voxtrain.model.upstream import VoxCPM2Model, load_tokenizer, quiet

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-5, 0.01, 1.0
TOTAL_STEPS = 1000


class UpstreamLoop:
    """A run of upstream's: its model, which others may train too, and its steps."""

    def __init__(self, folder: Path, rows: Sequence[Row], clock: Clock) -> None:
        with quiet():
            from transformers import get_cosine_schedule_with_warmup
            from voxcpm.training import Accelerator, BatchProcessor
            from voxcpm.training.data import HFVoxCPMDataset

            model = VoxCPM2Model.from_local(str(folder), optimize=False, training=True)
            self.accelerator = Accelerator(amp=True)
            self.processor = BatchProcessor(
                config=model.config, audio_vae=model.audio_vae, dataset_cnt=1, device=self.accelerator.device
            )
            del model.audio_vae
            self.model = self.accelerator.prepare_model(model).train()
        tokenize = load_tokenizer(folder)
        clips = HFVoxCPMDataset(_Clips(_clip(row, tokenize(row.text)) for row in rows))
        self.loader = self.accelerator.prepare_dataloader(
            clips, batch_size=1, num_workers=0, shuffle=True, collate_fn=HFVoxCPMDataset.collate_fn
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.scheduler = get_cosine_schedule_with_warmup(
            self.optimizer, num_warmup_steps=TOTAL_STEPS // 10, num_training_steps=TOTAL_STEPS
        )
        self.clock, self.rows = clock, len(rows)
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by part, over all calls of `step`
        self.packed = [self.processor(batch) for batch in self.batches()]

    def step(self) -> None:
        """One optimizer step over all rows."""
        self._step((self.processor(batch) for batch in self.batches()), self.seconds)

    def step_with_latents_at_hand(self) -> None:
        """The same over rows that were encoded and packed before."""
        self._step(self.packed, defaultdict(float))

    def batches(self) -> Iterable[Any]:
        """Its loader's, in an order of their own each time."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pinned memory where there is no GPU
            yield from self.loader

    def _step(self, packed: Iterable[dict[str, torch.Tensor]], seconds: defaultdict[str, float]) -> None:
        with self.clock.told(seconds) as split:
            self.optimizer.zero_grad(set_to_none=True)
            for batch in packed:
                split("audio to latents, packing")
                loss = self._loss(batch)
                split("forward")
                self.accelerator.backward(loss)
                split("backward")
            scaler = self.accelerator.scaler
            scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=MAX_GRAD_NORM)
            split("gradient norm and clipping")
            self.accelerator.step(self.optimizer)
            self.accelerator.update()
            self.scheduler.step()
            split("update")

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        names = ("text_tokens", "text_mask", "audio_feats", "audio_mask", "loss_mask", "position_ids", "labels")
        with self.accelerator.no_sync(), self.autocast():
            outputs = self.model(*(batch[name] for name in names), progress=0.0)
        total: torch.Tensor = outputs["loss/diff"] / self.rows + outputs["loss/stop"] / self.rows
        return total

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """The context that its trainer computes in."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream asks for CUDA's autocast on a CPU too, which torch ignores
            with self.accelerator.autocast(dtype=torch.bfloat16):
                yield


class _Clips(list[dict[str, Any]]):
    """Decoded rows in the place of a Hugging Face dataset."""

    column_names = ("audio", "text_ids", "dataset_id")


def _clip(row: Row, tokens: list[int]) -> dict[str, Any]:
    audio = {"array": read_wave(row.audio), "sampling_rate": SAMPLE_RATE_HZ}
    return {"audio": audio, "text_ids": tokens, "dataset_id": 0}
