"""What the manifest calls its columns, where it has other names for them than voxtrain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field

Name = Annotated[str, Field(min_length=1)]

NEEDED = ("audio", "text")


class Columns(BaseModel, frozen=True, extra="forbid"):
    """For each column that voxtrain reads, its name in the file; null: the same name."""

    audio: Name | None
    text: Name | None
    id: Name | None
    duration: Name | None
    speaker: Name | None
    parent: Name | None
    ref_audio: Name | None

    def other_names(self) -> dict[str, str]:
        """Only those that are called otherwise in the file."""
        named = self.model_dump()
        return {column: name for column, name in named.items() if name is not None and name != column}

    def in_file(self, column: str) -> str:
        """What the file calls a column; others than ours keep their names."""
        return self.other_names().get(column, column)


def renamed(record: Mapping[str, Any], other_names: Mapping[str, str]) -> dict[str, Any]:
    """The record with our names in place; all other columns stay as they are.

    A column of ours that is mapped to a name which the record lacks is absent, even if it has one of our name.
    """
    mapped = {column: record[name] for column, name in other_names.items() if name in record}
    return {name: value for name, value in record.items() if name not in other_names} | mapped
