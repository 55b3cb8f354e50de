"""A page as a reader of its tags finds it."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from voxtrain.durable import read_json, write_json
from voxtrain.manifest.page.whole import write_page
from voxtrain.run_folder import DataFolder

VOID = {"meta", "br", "input", "path"}


class Page(HTMLParser):
    """What stands on a page; fails where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def sounds(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "audio"]


def read(folder: DataFolder) -> Page:
    write_page(folder)
    return Page(folder.page.read_text(encoding="utf-8"))


def copied(folder: DataFolder, root: Path, **changed: Any) -> DataFolder:
    """The same folder elsewhere, with `changed` keys of the audit."""
    shutil.copytree(folder.root, root)
    write_json(root / "audit.json", {**read_json(folder.audit), **changed})
    return DataFolder(root)
