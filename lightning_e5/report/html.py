"""Self-contained HTML pages from sections, paragraphs, tables, figures and foldable texts, by the templates of this package.

Every text is escaped by the templates (jinja2's autoescape); no HTML is put together here.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from lightning_e5.report.figures.drawing import NARROW, WIDTH, svg
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

    ``figure`` may be None, where there was nothing to draw: such a part is left out. ``narrow`` is the same for a small screen;
    without it the figure keeps a width in which it can be read there, and scrolls.
    """

    figure: Figure | None
    description: str
    narrow: Figure | None = None

    @classmethod
    def of(cls, draw: Callable[[float], Figure | None], description: str) -> Picture:
        """The figure that ``draw`` makes for a width in inches, for a wide and for a small screen."""
        return cls(draw(WIDTH), description, draw(NARROW))

    @property
    def data(self) -> str:
        """The SVG in base64."""
        return _base64(self.figure)

    @property
    def narrow_data(self) -> str:
        """That of the small screen's."""
        return _base64(self.narrow)


@dataclass(frozen=True, slots=True)
class Details:
    """Plain text that opens on a click."""

    summary: str
    text: str


@dataclass(frozen=True, slots=True)
class Folded:
    """A heading whose parts open on a click."""

    title: str
    parts: Sequence[Part]


#: What a page is made of.
Part: TypeAlias = Section | Paragraph | Table | Picture | Details | Folded


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


def _base64(figure: Figure | None) -> str:
    assert figure is not None
    return base64.b64encode(svg(figure).encode("utf-8")).decode("ascii")


def _finalize(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
