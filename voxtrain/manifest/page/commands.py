"""Commands that a page offers, quoted so that they can be copied into a shell and mean what the audit was made with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxtrain.manifest.page.words import harmless, number

USUAL_GROUPS, USUAL_REJECTS = "parent", 0.2  # what data.group_by and clean.max_reject_share are where nobody says so
PLAIN = re.compile(r"[\w./-]+", re.ASCII)


def manifest_setting(audit: Mapping[str, Any]) -> str:
    """`data.manifest=...`."""
    return shlex.quote(f"data.manifest={_quoted(audit.get('manifest') or 'rows.jsonl')}")


def data_settings(audit: Mapping[str, Any]) -> str:
    """The manifest and its grouping, and the share of rejects that was allowed where they are many."""
    settings = [manifest_setting(audit)]
    grouped = audit.get("group_by")
    if grouped not in (None, USUAL_GROUPS):
        value = f"[{','.join(map(_quoted, grouped))}]" if isinstance(grouped, list) else _quoted(grouped)
        settings.append(shlex.quote(f"data.group_by={value}"))
    allowed = number((audit.get("clean") or {}).get("max_reject_share"))
    if number(audit.get("reject_share")) > USUAL_REJECTS and allowed > USUAL_REJECTS:
        settings.append(f"clean.max_reject_share={allowed:g}")
    return " ".join(settings)


def _quoted(value: Any) -> str:
    """A text as Hydra's command line takes it: plain where it is a name or a path, else in quotation marks."""
    text = str(harmless(str(value)))
    if PLAIN.fullmatch(text):
        return text
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def list_rejects(folder: Path, rule: str) -> str:
    """A command that lists the rows rejected under a rule."""
    pattern = shlex.quote(f'"rule": *"{rule}"')
    return f"grep {pattern} {shlex.quote(harmless(str(folder / 'rejects.jsonl')))}"


def compare(folder: Path) -> str:
    """A command that compares this audit with one to come."""
    return f"python -m voxtrain.manifest --diff {shlex.quote(harmless(str(folder)))} NEW_FOLDER"
