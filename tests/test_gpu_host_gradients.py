"""What only a CUDA GPU can show of gradients that leave the card: the same sums, copied while backward computes on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from voxtrain.optim.host_gradients import HostGradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

LAYERS, WIDTH, ROWS = 12, 4096, 2048
"""64 MiB of fp32 gradients a layer, and as much to compute meanwhile."""


def layers() -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).cuda()


def rows(seed: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed)).cuda()


def test_what_arrives_on_the_host_is_what_the_card_would_have_summed() -> None:
    stays, leaves = layers(), layers()
    host = HostGradients(leaves.parameters())
    for seed in (1, 2):  # two micro-batches
        for model in (stays, leaves):
            model(rows(seed)).square().mean().backward()
    for kept, sent in zip(stays.parameters(), leaves.parameters(), strict=True):
        arrived = host.of(sent)
        assert kept.grad is not None
        assert arrived is not None
        assert sent.grad is None
        assert torch.equal(arrived, kept.grad.cpu())


def test_copies_go_on_while_backward_computes() -> None:
    model = layers()
    host = HostGradients(model.parameters())
    model(rows(1)).square().mean().backward()  # streams and pinned pieces are made
    host.clear()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
        model(rows(2)).square().mean().backward()
        host.clear()
        torch.cuda.synchronize()
    on_card = [event for event in watched.events() or [] if event.device_type == DeviceType.CUDA]
    copies = [event.time_range for event in on_card if "DtoH" in event.name]
    work = [event.time_range for event in on_card if "gemm" in event.name.lower() or "cutlass" in event.name.lower()]
    assert len(copies) >= LAYERS
    overlapping = [copy for copy in copies if any(copy.start < one.end and one.start < copy.end for one in work)]
    assert len(overlapping) > LAYERS / 2
