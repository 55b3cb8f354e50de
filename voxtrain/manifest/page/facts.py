"""What the audit page's advice is drawn from: shares, quantiles and settings of an audit, where they are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtrain.manifest.page.commands import data_settings, list_rejects, manifest_setting
from voxtrain.manifest.page.words import number

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What the advice is drawn from."""

    audit: Record
    split: Record  # empty where there is none
    folder: Path

    def rows(self, *rules: str) -> int:
        """Rejected under any of these rules first."""
        found = self.audit.get("rejects_by_rule") or {}
        return sum(found.get(rule) or 0 for rule in rules)

    def told(self, rule: str) -> int:
        """On how many rows a rule was only reported."""
        return (self.audit.get("reported") or {}).get(rule) or 0

    def part(self, rows: float) -> float:
        """Their share of all rows."""
        rows_in = number(self.audit.get("rows_in"))
        return rows / rows_in if rows_in > 0 else 0.0

    def quantile(self, measure: str, name: str) -> float:
        """A quantile of the kept rows; NaN where it is not known."""
        spread = (self.audit.get("distributions") or {}).get(measure) or {}
        kept = (spread.get("parts") or {}).get("kept") or {}
        return number((kept.get("quantiles") or {}).get(name))

    def setting(self, group: str, name: str) -> Any:
        """A setting that the audit was made under."""
        return (self.audit.get(group) or {}).get(name)

    @property
    def manifest(self) -> str:
        """`data.manifest=...`, quoted for a shell."""
        return manifest_setting(self.audit)

    @property
    def data(self) -> str:
        """The same with the grouping, and what else training needs to accept these rows."""
        return data_settings(self.audit)

    def listed(self, rule: str) -> str:
        """A command that lists the rows rejected under a rule."""
        return list_rejects(self.folder, rule)
