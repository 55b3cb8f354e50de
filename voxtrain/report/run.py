"""report.html: everything about one run on one page that opens from disk."""

from __future__ import annotations

from pathlib import Path

from voxtrain.durable import write_whole
from voxtrain.report import grounds, head, losses, machine, outliers, rows
from voxtrain.report.evidence import Evidence, read_evidence
from voxtrain.report.page import page
from voxtrain.run_folder import RunFolder


def write_report(run: RunFolder) -> Path:
    """Write `report.html` from whatever is in the run folder, and return its path.

    A file that is missing or broken leaves its section empty and says so: a run that failed has a report too.
    """
    write_whole(run.report, report_page(read_evidence(run)))
    return run.report


def report_page(evidence: Evidence) -> str:
    """The page as HTML."""
    return page(
        "run.html.j2",
        {
            "title": f"{name(evidence)} · {evidence.run.root.name}",
            "name": name(evidence),
            "place": evidence.run.root.name if name(evidence) != evidence.run.root.name else "",
            "folder": shown_folder(evidence.run.root),
            "head": head.head(evidence),
            "choice": losses.choice(evidence),
            "grounds": grounds.grounds(evidence),
            "training": losses.training(evidence),
            "outliers": outliers.outliers(evidence),
            "data": rows.ledger(evidence),
            "splits": rows.splits(evidence),
            "memory": machine.memory(evidence),
            "settings": machine.settings(evidence),
            "environment": machine.environment(evidence),
            "checks": machine.checks(evidence),
        },
    )


def name(evidence: Evidence) -> str:
    """The run's name in its settings, else its folder's."""
    return str(evidence.setting("name") or evidence.run.root.name)


def shown_folder(folder: Path) -> str:
    """The folder as one would type it from where the run was started."""
    parts = folder.parts
    return str(Path(*parts[parts.index("outputs") :])) if "outputs" in parts else str(folder)
