"""What every door shares: its arguments, and how a user's mistake is told."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from voxtrain.fault import DONE, FAILED, WRONG_INPUT, InputError, RunFailed

if TYPE_CHECKING:
    from voxtrain.settings import Settings


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """A door's arguments: what has no `=` and does not begin with `+` or `~` is a path, the rest are overrides."""
    paths = [Path(argument) for argument in arguments if "=" not in argument and argument[:1] not in "+~"]
    return paths, [argument for argument in arguments if "=" in argument or argument[:1] in "+~"]


def run_settings(folder: Path, overrides: Sequence[str], uses: Sequence[str]) -> Settings:
    """A run folder's settings with a door's overrides on top; `uses`: what of the settings the door makes use of.

    Raises InputError with every fault, an override that would do nothing among them.
    """
    from voxtrain.composition import unused_overrides  # late: most doors need no settings, or need them late
    from voxtrain.settings import load

    faults = unused_overrides(overrides, uses)
    idle = {fault.where for fault in faults}
    try:
        settings = load(folder, [override for override in overrides if override not in idle])
    except InputError as error:
        raise InputError(*faults, *error.faults) from None
    if faults:
        raise InputError(*faults)
    return settings


def tell(error: InputError | RunFailed) -> int:
    """Print what is wrong on stderr, and give the exit code that says so."""
    if isinstance(error, RunFailed):
        print(f"\nThe run failed.\n{error}", file=sys.stderr)
        return FAILED
    if error.ledger:
        print(f"\n{error.ledger}", file=sys.stderr)
    count = len(error.faults)
    head = "One thing is wrong" if count == 1 else f"{count} things are wrong"
    body = "\n".join(f"  {line}" for fault in error.faults for line in str(fault).splitlines())
    print(f"\n{head}; nothing was started.\n{body}", file=sys.stderr)
    return WRONG_INPUT


def run_door(main: Callable[[list[str]], int]) -> NoReturn:
    """Run the door `main` with the process's arguments and exit with its code; a user's mistake is told and exits 2.

    --help prints what the door's module says of itself.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(inspect.getdoc(inspect.getmodule(main)))
        raise SystemExit(DONE)
    try:
        code = main(sys.argv[1:])
    except (InputError, RunFailed) as error:
        code = tell(error)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        code = 130
    raise SystemExit(code)
