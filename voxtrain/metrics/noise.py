"""What third parties say on stderr and a user can do nothing about, silenced in one place.

What is silenced is named here; everything else that they say still comes through.
"""

from __future__ import annotations

import logging
import warnings

CHATTY = (
    "pytorch_lightning",  # 'GPU available: ...', 'Tip: ...', '`Trainer.fit` stopped: ...'
    "lightning_fabric",
    "lightning.pytorch",
    "lightning.fabric",
    "bitsandbytes",  # 'compiled without GPU support' on a CPU
    "transformers",
    "torchao",
    "numba",
    "matplotlib",
)
"""Loggers from which only errors are wanted."""

IGNORED = (
    r".*does not have many workers.*",  # latents come from a cache: one process reads them fast enough
    r".*smaller than the logging interval.*",  # we log ourselves
    r".*GPU available but not used.*",  # chosen by trainer=cpu
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*You have overridden `transfer_batch_to_device`.*",  # VoxModule moves micro-batches one by one
    r".*TypedStorage is deprecated.*",
    r".*`torch\.nn\.utils\.weight_norm` is deprecated.*",  # in upstream's AudioVAE
    r".*The pynvml package is deprecated.*",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning 2.6 on torch 2.11
    r".*MatMul8bitLt.*",
    r".*Paged optimizer.*",  # bitsandbytes on a CPU: its paged state is ordinary memory there
)
"""Warnings, by what their message says."""


def silence_third_parties() -> None:
    """Keep Lightning, bitsandbytes and others from telling tips; called once, before a run loads anything."""
    import pytorch_lightning  # noqa: F401 - sets its loggers to INFO when imported, so it has to come first

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in IGNORED:
        warnings.filterwarnings("ignore", message=message)
