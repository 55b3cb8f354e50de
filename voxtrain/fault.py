"""A user's mistake, told so that it can be mended: where, what, and what to do.

Every room raises `InputError` for settings or inputs that are wrong (exit code 2) and `RunFailed` for a run that
broke (exit code 1). The doors print them; nobody else catches them.
"""

from __future__ import annotations

from dataclasses import dataclass

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 3
"""Exit codes: done; the run failed and says why; settings or inputs are wrong; stopped with its state saved."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    where: a setting with its value (`train.max_steps = -1`), or a file with its line (`rows.jsonl:17`).
    what: the reason, in one sentence.
    remedy: what the user can do about it.
    """

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}\n    {self.what}\n    -> {self.remedy}"


class InputError(Exception):
    """Settings or inputs are wrong: every fault that could be found, told at once. Exit code 2."""

    def __init__(self, *faults: Fault, ledger: str = "") -> None:
        """`ledger` is printed above the faults: what became of each row, where the fault lies in the data."""
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults
        self.ledger = ledger


class RunFailed(Exception):
    """The run broke after it had started, and the message says why and how to go on. Exit code 1."""


class Stopped(Exception):
    """The run stopped at a step boundary because it was asked to; its state is saved. Exit code 3."""
