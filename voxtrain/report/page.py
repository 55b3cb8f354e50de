"""From what is to be told to one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Drawn:
    """A chart with its title and a line that says what is drawn; `svg` is empty where there was nothing to draw."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Chip:
    """A word in a box. kind: good, bad, warn, mark, soft or empty."""

    text: str
    kind: str


def page(template: str, content: Mapping[str, Any]) -> str:
    """The HTML of one of templates/; a name that the content lacks is an error, not a gap."""
    environment = Environment(
        loader=PackageLoader("voxtrain.report"),
        autoescape=True,  # texts and paths of the user's data come into the page
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)
