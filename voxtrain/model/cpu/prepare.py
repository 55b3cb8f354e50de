"""Compile all kernels for this processor, once: about 20 s, and a fraction of a second from then on."""

from __future__ import annotations

from voxtrain.model.cpu import feed_forward_kernels, norm_kernels, patch_kernels, row_kernels, turn_kernels
from voxtrain.model.cpu.kernel import Kernel, available
from voxtrain.progress import told

ROOMS = (feed_forward_kernels, norm_kernels, patch_kernels, row_kernels, turn_kernels)
KERNELS = tuple(kernel for room in ROOMS for kernel in vars(room).values() if isinstance(kernel, Kernel))


def prepare() -> None:
    """Have the code of all kernels at hand; says on stderr how far it is, where that takes long."""
    if not available():
        return
    for kernel in told(KERNELS, len(KERNELS), "compiling operators for this processor, once"):
        assert kernel.address


if __name__ == "__main__":
    prepare()
