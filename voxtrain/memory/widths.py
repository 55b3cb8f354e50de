"""Bytes that a parameter takes in each class of memory, under each stack. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from voxtrain.memory.stack import MemoryStack

OF_DTYPE = {"fp32": 4, "bf16": 2}
MOMENTS = {"fp32": 8.0, "8bit": 2.032, "paged_8bit": 2.032, "host": 8.0, "host_8bit": 2.032}
"""AdamW's two moments of a parameter. 8 bits: two bytes, two fp32 scales for 256 of them, and fp32 for tensors under
4096 values: 2.0318 for the released model, 2.0313 for adapters of rank 32."""
BLOCK, SMALLEST = 256, 4096
"""Values that share a scale of an 8-bit moment, and the fewest of a tensor whose moments have 8 bits."""
WORKSPACE_BYTES = 5 * 4 * 2**22
"""What the update of bf16 weights takes on the card for a moment: five fp32 pieces (optim/narrow_adamw.py: PIECE)."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes for each parameter."""

    learnt: int  # of a weight that learns, and of its gradient
    frozen: int  # of a weight under adapters
    state: float  # of a learnt weight's optimizer state, with what completes a bf16 weight, wherever it lives
    completing: int  # of that: what completes a bf16 weight
    eight_bits: bool  # whether moments of large tensors have 8
    workspace_bytes: int  # in all, while the optimizer steps

    def state_of(self, values: int) -> int:
        """Bytes of the state of one tensor, exactly; `state` is their mean over the released model."""
        if not self.eight_bits or values < SMALLEST:
            return (8 + self.completing) * values
        return (2 + self.completing) * values + 2 * 4 * -(-values // BLOCK)


def widths(stack: MemoryStack, *, adapters: bool) -> Widths:
    """The widths of full fine-tuning, or of adapters (fp32 whatever the stack says) on a frozen model."""
    learnt = OF_DTYPE["fp32" if adapters else stack.weights]
    remainder = 2 if learnt == 2 and stack.rounding == "kahan" else 0
    master = 4 if stack.on_host() else 0
    return Widths(
        learnt=learnt,
        frozen=OF_DTYPE[stack.frozen],
        state=MOMENTS[stack.state] + remainder + master,
        completing=remainder + master,
        eight_bits=stack.state.endswith("8bit"),
        workspace_bytes=WORKSPACE_BYTES if learnt == 2 else 0,
    )
