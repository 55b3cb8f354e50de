"""The listening page marks the selected checkpoint: where the choice is another one by now, the page is written again.

In a process of its own: listening knows of validation, and never the other way round.
"""

from __future__ import annotations

import subprocess
import sys

from voxtrain.durable import read_json
from voxtrain.fault import DONE
from voxtrain.run_folder import RunFolder
from voxtrain.validation.launch import clean_environment

Marks = tuple[int | None, int | None]


def marks(run: RunFolder) -> Marks:
    """What the page shows of a selection: the selected step and the runner-up; None where there is none."""
    choice = read_json(run.selection) if run.selection.is_file() else {}
    return choice.get("selected_step"), choice.get("runner_up")


def mark_again(run: RunFolder, before: Marks) -> None:
    """Write the page again where there is one and the selection is not `before` any more. Tells what went wrong."""
    if marks(run) == before or not run.listening_page.is_file():
        return
    command = [sys.executable, "-m", "voxtrain.listening", str(run.root), "--page"]
    code = subprocess.run(command, env=clean_environment(), check=False).returncode
    if code != DONE:
        print(f"The listening page still marks the choice before: `{' '.join(command)}` failed.", file=sys.stderr)
