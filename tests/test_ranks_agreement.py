"""What ranks agree on, seen from one process: sums in buckets, equal weights, one stop for all, who was at fault."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner import Learner, fit

from voxtrain.checkpoint.changes import allowed_changes, fingerprint
from voxtrain.checkpoint.stop import StopRequest
from voxtrain.checkpoint.together import KeepTogether
from voxtrain.fault import RunFailed
from voxtrain.ranks.agreement import check_equal_weights, digest
from voxtrain.ranks.group import Group, buckets
from voxtrain.ranks.launch import _at_fault, _Ending, _how
from voxtrain.settings import compose

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


class Two:
    """Rank 0 or 1 of two; the other answers with `theirs` of what this one says."""

    size = 2

    def __init__(self, rank: int = 0, theirs: Any = lambda mine: mine) -> None:
        self.rank, self._theirs = rank, theirs
        self.hear: Any = None

    def listen(self, hear: Any) -> None:
        self.hear = hear

    def gather(self, value: Any) -> list[Any]:
        return [value, self._theirs(value)]

    def sum_gradients(self, parameters: Any) -> None:
        raise AssertionError("nothing is trained here")


class Plan:
    """The part of a CheckpointPlan that is asked."""

    def is_checkpoint(self, step: int, total: int) -> bool:
        return step == 4

    is_state = is_checkpoint


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([torch.float32, torch.bfloat16])), max_size=30))
def test_buckets_hold_every_tensor_once_and_in_order(kinds: list[tuple[int, torch.dtype]]) -> None:
    tensors = [torch.zeros(size, dtype=dtype) for size, dtype in kinds]
    found = list(buckets(tensors, 64))
    assert [id(tensor) for bucket in found for tensor in bucket] == [id(tensor) for tensor in tensors]
    for bucket in found:
        assert len({tensor.dtype for tensor in bucket}) == 1
        assert sum(tensor.nbytes for tensor in bucket) <= 64 or len(bucket) == 1
        assert len(bucket) == 1 or all(4 * tensor.nbytes < 64 for tensor in bucket)


@given(st.integers(0, 63), st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_digest_sees_every_bit(place: int, seed: int, dtype: torch.dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (64,), generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    tensor = bits.view(dtype)
    changed = bits.clone()
    changed[place] ^= 1 << (seed % 31)
    one = digest({"a": tensor, "b": torch.ones(3)})
    assert one == digest({"b": torch.ones(3), "a": tensor.clone()})
    assert one != digest({"a": changed.view(dtype), "b": torch.ones(3)})
    assert one != digest({"a": tensor.reshape(2, -1), "b": torch.ones(3)})
    assert one != digest({"c": tensor, "b": torch.ones(3)})
    if tensor[0] != tensor[-1]:
        assert one != digest({"a": tensor.flip(0), "b": torch.ones(3)})


def test_weights_that_differ_end_the_run_by_name() -> None:
    weights = {"w": torch.ones(3)}
    check_equal_weights(Two(), weights, 5)
    with pytest.raises(RunFailed, match="After step 5 the processes no longer hold the same weights"):
        check_equal_weights(Two(theirs=lambda mine: mine[::-1]), weights, 5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_that_reached_the_other_rank_alone_is_everybodys(rank: int) -> None:
    """The first exchange of a step is about stopping; here the other rank has heard a signal in step 3."""
    module, stop = Learner(10), StopRequest()

    def theirs(mine: object) -> object:
        return "SIGTERM was received" if mine is None and module.steps_done == 3 else mine

    keeper = KeepTogether(Two(rank, theirs), Plan(), 10, stop)  # type: ignore[arg-type]
    fit(module, keeper)
    assert stop.reason == "SIGTERM was received"
    # rank 0 stops by the callback that saves, which is not here
    assert module.steps_done == (10 if rank == 0 else 3)


def test_weights_are_compared_after_the_first_step_and_before_each_save() -> None:
    module, compared = Learner(6), []

    def theirs(mine: object) -> object:
        if isinstance(mine, str):
            compared.append(module.steps_done)
        return mine

    fit(module, KeepTogether(Two(0, theirs), Plan(), 6, StopRequest()))  # type: ignore[arg-type]
    assert compared == [1, 4]


def test_a_word_that_came_early_is_heard() -> None:
    group, heard = Group(0, 2, None), []
    group.say("SIGINT was received")
    group.listen(heard.append)
    group.say("again")
    assert heard == ["SIGINT was received", "again"]


def test_who_lost_another_rank_is_not_at_fault() -> None:
    lost, killed = _Ending(0, "lost", "closed"), _Ending(1, "gone", -signal.SIGKILL)
    failed = _Ending(2, "failed", "out of memory")
    assert _at_fault([lost, killed]) is killed
    assert _at_fault([killed, failed, lost]) is failed
    assert _at_fault([lost]) is lost
    assert "SIGKILL" in _how(-signal.SIGKILL)
    assert "exit code 7" in _how(7)


def test_the_number_of_processes_may_change_and_the_accelerator_may_not() -> None:
    old = compose(["+recipe=demo"]).plain
    more = compose(["+recipe=demo", "trainer.devices=2"]).plain
    assert more["trainer"]["devices"] == 2
    assert allowed_changes(old, more) == []
    assert fingerprint(old) == fingerprint(more)
    other = {**more, "trainer": {**more["trainer"], "accelerator": "cuda"}}
    assert [fault.where for fault in allowed_changes(old, other)] == ["trainer.accelerator = cuda"]
    assert fingerprint(old) != fingerprint(other)
