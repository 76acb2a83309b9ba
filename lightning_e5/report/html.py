"""Self-contained HTML pages from sections, paragraphs, tables, figures and foldable texts, by the templates of this package.

Every text is escaped by the templates (jinja2's autoescape); no HTML is put together here.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.tables.escaping import printable
from lightning_e5.report.tables.table import Table


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str
    kind: Literal["", "lead", "note"] = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as SVG inside an image: its ids cannot clash with another's, nor can it run anything.

    ``figure`` may be None, where there was nothing to draw: such a part is left out.
    """

    figure: Figure | None
    description: str

    @property
    def data(self) -> str:
        """The SVG in base64."""
        assert self.figure is not None
        return base64.b64encode(svg(self.figure).encode("utf-8")).decode("ascii")


@dataclass(frozen=True, slots=True)
class Details:
    """Plain text that opens on a click."""

    summary: str
    text: str


#: What a page is made of.
Part: TypeAlias = Section | Paragraph | Table | Picture | Details


def page(title: str, parts: Iterable[Part]) -> str:
    """A whole page under its title, which is also its largest heading."""
    return _templates().get_template("page.html.j2").render(title=title, body=Markup(fragment(parts)))


def fragment(parts: Iterable[Part]) -> str:
    """The parts as HTML without a page around them."""
    return _templates().get_template("parts.html.j2").render(parts=parts)


def notebook_table(table: Table) -> str:
    """A table with its style in each cell, since a notebook has no style sheet of ours."""
    return _templates().get_template("notebook_table.html.j2").render(table=table)


@functools.cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("lightning_e5.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=False, finalize=_finalize,
    )  # fmt: skip
    environment.filters["kind"] = lambda part: type(part).__name__
    return environment


def _finalize(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
