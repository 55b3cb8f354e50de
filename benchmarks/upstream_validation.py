"""Upstream's validation loop, as `validate` in its scripts/train_voxcpm_finetune.py: one batch of its loader at a time.

It is given its own loader (batches of `batch_size` 1, shuffled), packer, AudioVAE and forward, under the autocast that
it asks for, without gradients. What its trainer stops after, ten batches, it goes on with here, to the last row; the
sample that it then speaks for TensorBoard, and decoding and resampling of the files, are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from benchmarks.upstream_loop import UpstreamLoop

NAMES = ("text_tokens", "text_mask", "audio_feats", "audio_mask", "loss_mask", "position_ids", "labels")
LAMBDAS = {"loss/diff": 1.0, "loss/stop": 1.0}
TEN_BATCHES = 10
"""After which its trainer stops."""


class UpstreamValidation:
    """Upstream's validation over the rows of a loop of upstream's, and what its parts took."""

    def __init__(self, loop: UpstreamLoop) -> None:
        self._loop = loop
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by part, over all calls

    def run(self) -> float:
        """Validate all rows once, and return the mean of its total loss."""
        loop, totals = self._loop, []
        loop.model.eval()
        with torch.no_grad(), loop.clock.told(self.seconds) as split:
            for batch in loop.batches():
                packed = loop.processor(batch)
                split("audio to latents, packing")
                with loop.autocast():
                    outputs = self._forward(packed)
                totals.append(sum(LAMBDAS[name] * value for name, value in outputs.items() if name in LAMBDAS).detach())
                split("forward")
            mean = float(torch.stack(totals).mean().item())
        loop.model.train()
        return mean

    def _forward(self, packed: dict[str, torch.Tensor]) -> dict[str, Any]:
        outputs: dict[str, Any] = self._loop.model(
            *(packed[name] for name in NAMES), progress=0.0, sample_generate=False
        )
        return outputs
