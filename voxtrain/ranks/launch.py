"""Starting the ranks of a run, watching over them, and ending all when one ends badly.

The process that starts them trains nothing itself: it has no device, waits in no exchange, and so sees at once that a
rank is gone. A rank whose parent is gone ends at once, whatever it waits for. Each rank says by a pipe how it ended.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn, TypeVar

from torch._C._distributed_c10d import TCPStore  # what torch.distributed gives under this name

from voxtrain.fault import DONE, FAILED, InputError, RunFailed
from voxtrain.ranks.group import ALONE, Group, RankLost, Ranks, join

T = TypeVar("T")
HOST = "127.0.0.1"
TICK_S = 0.2
GRACE_S = 20.0
"""How long the others may take to end by themselves when one has ended: rank 0 finishes what it writes."""


class RankBroke(Exception):
    """A rank ended by an error that nobody foresaw; its own traceback is the cause of this one."""


class _Remote(Exception):
    """The traceback of another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a rank ended: `done` with its result, or `input`, `failed`, `lost`, `broke`, or `gone` without a word."""

    rank: int
    kind: str
    value: Any = None
    trace: str = ""


def run_ranks(
    job: Callable[[Ranks], T], size: int, accelerator: str, stop_reason: Callable[[], str | None] = lambda: None
) -> T:
    """Run `job` in `size` new processes, which are ranks of one group, and return rank 0's result.

    job: pickled; with size 1 it gets `ALONE`. stop_reason: asked all the time; what it answers first is said to the
    ranks. When rank 0 is done, so is the run. When a rank fails the others are ended, and its InputError or RunFailed
    is raised here; RunFailed too when it was killed, RankBroke for any other error.
    """
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    links: list[Connection] = []
    try:
        for rank in range(size):
            ours, theirs = context.Pipe()
            links.append(ours)
            process = context.Process(target=_rank, args=(job, rank, size, accelerator, store.port, theirs))
            process.start()
            processes.append(process)
            theirs.close()
        endings = _watch(processes, links, stop_reason)
    finally:
        _end_all(processes, links)
    leader = next((ending for ending in endings if ending.rank == 0 and ending.kind == "done"), None)
    if leader is None:
        _raise(_at_fault([ending for ending in endings if ending.kind != "done"]), size)
    result: T = leader.value
    return result


def _watch(
    processes: Sequence[SpawnProcess], links: Sequence[Connection], stop_reason: Callable[[], str | None]
) -> list[_Ending]:
    """The endings in the order in which they came, up to GRACE_S after rank 0's or the first that is bad."""
    running = dict(enumerate(processes))
    said: dict[int, _Ending] = {}
    endings: list[_Ending] = []
    told, until = False, float("inf")
    while running and time.monotonic() < until:
        wait([process.sentinel for process in running.values()], timeout=TICK_S)
        for rank, process in list(running.items()):
            ended = not process.is_alive()
            said |= _said(links[rank])  # before it ends too: a pipe holds so much of a long result, and then waits
            if ended:
                del running[rank]
                endings.append(said.get(rank, _Ending(rank, "gone", process.exitcode)))
        reason = stop_reason()
        if reason is not None and not told:
            told = True
            for rank in running:
                with suppress(OSError):  # it has just ended
                    links[rank].send(reason)
        if until == float("inf") and any(ending.rank == 0 or ending.kind != "done" for ending in endings):
            until = time.monotonic() + GRACE_S
    return endings


def _said(link: Connection) -> dict[int, _Ending]:
    """The ending that a rank has told, by its number, where it has told one."""
    with suppress(EOFError, OSError):
        if link.poll():
            ending: _Ending = pickle.loads(link.recv_bytes())
            return {ending.rank: ending}
    return {}


def _end_all(processes: Sequence[SpawnProcess], links: Sequence[Connection]) -> None:
    """A rank ends by itself when its link is closed; one that cannot is killed."""
    for link in links:
        link.close()
    until = time.monotonic() + GRACE_S
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _at_fault(failures: Sequence[_Ending]) -> _Ending:
    """The first of those that did not end because of another: who lost another rank has nothing to tell."""
    for kinds in (("input", "failed", "broke"), ("gone",), ("lost",)):
        found = [ending for ending in failures if ending.kind in kinds]
        if found:
            return found[0]
    raise AssertionError("every ending is of some kind")


def _raise(ending: _Ending, size: int) -> NoReturn:
    who = f"process {ending.rank} of {size}" if size > 1 else "the process that prepares"
    match ending.kind:
        case "input":
            faults, ledger = ending.value
            raise InputError(*faults, ledger=ledger)
        case "failed":
            raise RunFailed(ending.value if size == 1 else f"In {who}: {ending.value}")
        case "broke":
            raise RankBroke(f"{who}: {ending.value}") from _Remote(ending.trace)
        case "lost":
            raise RunFailed(f"The processes lost each other, though none of them was ended. {who} says: {ending.value}")
        case _:
            raise RunFailed(f"{who[0].upper()}{who[1:]} {_how(ending.value)}, so the others were ended too.")


def _how(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code} and said nothing"
    number = -exit_code
    name = signal.Signals(number).name if number in {one.value for one in signal.Signals} else f"signal {number}"
    memory = ": the kernel does that when host memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory}"


def _rank(job: Callable[[Ranks], Any], rank: int, size: int, accelerator: str, port: int, link: Connection) -> None:
    """What a new process does: become a rank, do the job, tell how it ended."""
    if size == 1:
        threading.Thread(target=_listen, args=(link, None, _interrupt_myself), daemon=True).start()
        ending = _outcome(lambda: job(ALONE), rank)
    else:
        _leave_signals_to_the_parent()
        ending = _outcome(lambda: job(_become(rank, size, accelerator, port, link)), rank)
    with suppress(OSError):  # nobody is there any more
        # plain pickle: torch's own way with a pipe would keep tensors in memory that goes with this process
        link.send_bytes(pickle.dumps(ending))
    if size > 1:
        # Nothing is left to do but clean up, and cleaning up a group can hang on a rank that went first.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(DONE if ending.kind == "done" else FAILED)


def _become(rank: int, size: int, accelerator: str, port: int, link: Connection) -> Ranks:
    import socket

    import torch

    if "OMP_NUM_THREADS" not in os.environ:  # else every rank would take all cores
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    loopback = "lo" in {name for _, name in socket.if_nameindex()}
    if loopback:  # by itself gloo asks the machine's name, which may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    group = join(rank, size, TCPStore(HOST, port, is_master=False), accelerator)
    threading.Thread(target=_listen, args=(link, group, lambda: os._exit(FAILED)), daemon=True).start()
    return group


def _outcome(work: Callable[[], Any], rank: int) -> _Ending:
    try:
        return _Ending(rank, "done", work())
    except InputError as error:
        return _Ending(rank, "input", (error.faults, error.ledger))
    except RunFailed as error:
        return _Ending(rank, "failed", str(error))
    except RankLost as error:
        return _Ending(rank, "lost", str(error))
    except KeyboardInterrupt:
        return _Ending(rank, "gone", -signal.SIGINT)
    except BaseException as error:
        return _Ending(rank, "broke", f"{type(error).__name__}: {error}", traceback.format_exc())


def _listen(link: Connection, group: Group | None, ended: Callable[[], object]) -> None:
    """Take the parent's word, and end with the parent: its end of the pipe closes, however it goes."""
    try:
        while True:
            word = link.recv()
            if group is not None:
                group.say(word)
    except (EOFError, OSError):
        ended()


def _interrupt_myself() -> None:
    os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does, so that a preparation ends its own workers


def _leave_signals_to_the_parent() -> None:
    """Ctrl-C reaches all processes of a terminal, Slurm's signals all of a job: the parent tells what they mean.

    A handler, unlike SIG_IGN, is not inherited by what a rank starts.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
