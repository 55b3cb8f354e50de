"""The short form of an audit, for a terminal: the ledger as a table, what was only reported, and where the rest is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from voxtrain.manifest.audit import LEDGER_HEAD, ledger_lines, ledger_remarks
from voxtrain.manifest.page.words import RULES, count, harmless, share, shown
from voxtrain.run_folder import DataFolder

REPEATED_SHOWN = 3
REPEATED_LETTERS = 60
OFTEN = 3  # rows with the same text: fewer are no habit of a transcriber


def tell(audit: Mapping[str, Any], folder: DataFolder) -> None:
    """Print the ledger, what was only reported, repeated lines, remarks, and the files to look at."""
    console = Console(highlight=False)
    console.print(_ledger(audit))
    reported = {rule: rows for rule, rows in (audit.get("reported") or {}).items() if rows}
    if reported:
        console.print(_reported(reported, audit["rows_in"]))
    for line in _repeated(audit):
        console.print(harmless(line), markup=False)
    for remark in ledger_remarks(audit):
        console.print(harmless(remark), markup=False)
    console.print(f"Every reject, with its reason: {folder.rejects}", markup=False, soft_wrap=True)
    if folder.page.is_file():
        console.print(f"The same to look at and listen to: {folder.page}", markup=False, soft_wrap=True)


def _ledger(audit: Mapping[str, Any]) -> Table:
    table = Table(
        title=escape(harmless(audit["manifest"])),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, name in enumerate(LEDGER_HEAD):
        last = number == len(LEDGER_HEAD) - 1
        table.add_column(name, justify="right" if number and not last else "left", no_wrap=not last)
    for cells in ledger_lines(audit):
        style = "bold" if cells[0] in ("rows in", "kept") else None
        table.add_row(*(escape(harmless(cell)) for cell in cells), style=style)
    return table


def _reported(reported: Mapping[str, int], rows_in: int) -> Table:
    table = Table(title="Kept and reported", title_justify="left", box=SIMPLE_HEAD)
    for name, justify in (("", "left"), ("rows", "right"), ("share", "right"), ("what", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for rule, rows in reported.items():
        table.add_row(escape(rule), count(rows), share(rows / rows_in), RULES.get(rule, ""))
    return table


def _repeated(audit: Mapping[str, Any]) -> list[str]:
    """The texts that stand on the most rows, if any stands on many."""
    lines = [line for line in audit.get("repeated_lines") or [] if line["rows"] >= OFTEN][:REPEATED_SHOWN]
    if not lines:
        return []
    told = [f"  {count(line['rows'])} x {shown(line['text'], REPEATED_LETTERS)}" for line in lines]
    return ["Texts that repeat; if nobody says them, clean.boilerplate takes patterns:", *told]
