"""One table for every place: aligned text for a terminal, Markdown, HTML, CSV and LaTeX.

    >>> scores = {"bm25": 0.61234, "e5": None}
    >>> table = Table.of(scores.items(), [Column("model", lambda s: s[0]), number("nDCG@10", lambda s: s[1], ".3f")])
    >>> print(table.text())
    model  nDCG@10
    --------------
    bm25     0.612
    e5           –
    >>> print(table.csv(), end="")
    model,nDCG@10
    bm25,0.61234
    e5,
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from lightning_e5.report.tables import escaping

#: What a cell without a value shows; in CSV it is empty.
ABSENT = "–"
#: ``words``: on the left, on one line; ``number``: on the right; ``text``: long text on the left, which wraps on a page.
Kind = Literal["words", "number", "text"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Args:
        title: its title.
        cell: what a record has in it, for `Table.of`: a function of the record, or a key of it (absent: None).
        kind: how it is aligned.
        format: how a value that is no text is shown: a format specification (``.3f``), or a function. CSV keeps the value.
    """

    title: str
    cell: Callable[[Any], Any] | str = ""
    kind: Kind = "words"
    format: str | Callable[[Any], str] = ""

    def of(self, record: Any) -> Any:
        """What a record has in this column."""
        return self.cell(record) if callable(self.cell) else record.get(self.cell)

    def shown(self, value: Any) -> str:
        """A cell as text."""
        if value is None or isinstance(value, str):
            return ABSENT if value is None else value
        return self.format(value) if callable(self.format) else format(value, self.format)


def number(title: str, cell: Callable[[Any], Any] | str = "", format: str | Callable[[Any], str] = "") -> Column:
    """A column of numbers."""
    return Column(title, cell, "number", format)


def text(title: str, cell: Callable[[Any], Any] | str = "") -> Column:
    """A column of long texts."""
    return Column(title, cell, "text")


@dataclass(slots=True)
class Table:
    """Columns, and rows of cells: texts, which are shown as they are, None, or values, which their column formats.

    ``title`` stands above, ``notes`` (sentences) below, where the form has room for them: neither in CSV nor in LaTeX.
    """

    columns: list[Column]
    rows: list[list[Any]] = field(default_factory=list)
    title: str = ""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, records: Iterable[T], columns: Iterable[Column | None], title: str = "") -> Table:
        """A row per record; columns that are None are left out."""
        there = [column for column in columns if column is not None]
        return cls(there, [[column.of(record) for column in there] for record in records], title)

    @property
    def header(self) -> list[str]:
        """The titles of the columns."""
        return [column.title for column in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[column.shown(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows]

    def lines(self) -> list[str]:
        """Aligned lines for a terminal, the header underlined."""
        rows = [self.header, *self.cells]
        widths = [max(len(row[place]) for row in rows) for place in range(len(self.columns))]
        lines = []
        for row in rows:
            shown = [
                cell.rjust(width) if column.kind == "number" else cell.ljust(width)
                for column, cell, width in zip(self.columns, row, widths, strict=True)
            ]
            lines.append("  ".join(shown).rstrip())
        above = [self.title] if self.title else []
        return [*above, lines[0], "-" * len(lines[0]), *lines[1:], *self.notes]

    def text(self) -> str:
        """The lines for a terminal as one text."""
        return "\n".join(self.lines())

    def markdown(self) -> str:
        """A table of Markdown; every cell stays text."""
        rules = ["---:" if column.kind == "number" else "---" for column in self.columns]
        rows = [[escaping.markdown(cell) for cell in row] for row in (self.header, *self.cells)]
        lines = ["| " + " | ".join(row) + " |" for row in (rows[0], rules, *rows[1:])]
        above = [escaping.markdown(self.title), ""] if self.title else []
        return "\n".join([*above, *lines, *(f"\n{escaping.markdown(note)}" for note in self.notes)])

    def csv(self) -> str:
        """The values in full; an absent one is an empty cell."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return out.getvalue()

    def latex(self) -> str:
        """A ``tabular`` with the rules of the package booktabs."""
        rows = [" & ".join(map(escaping.latex, row)) + r" \\" for row in (self.header, *self.cells)]
        alignment = "".join("r" if column.kind == "number" else "l" for column in self.columns)
        return "\n".join(
            [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", rows[0], "\\midrule", *rows[1:], "\\bottomrule", "\\end{tabular}"]
        )


def key_values(facts: Mapping[str, Any], what: str = "what", value: str = "value") -> Table:
    """A table of two columns: names and what they stand for."""
    return Table([Column(what), Column(value)], [[name, fact] for name, fact in facts.items()])
