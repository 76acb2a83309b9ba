"""What every notebook shows with: pictures, tables and sentences, and a sentence where there is nothing to show."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from lightning_e5.errors import UserError
from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.html import escape, escaped
from lightning_e5.results.ablation import RUNS_DIR, AblationData
from lightning_e5.results.wandb_source import read_group, write_group

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are text here, as they are in a terminal
T = TypeVar("T")
_WANDB = "wandb:"

_CELL = "padding: 3px 12px 3px 0; vertical-align: top; white-space: {space}; text-align: {align}"
#: Letters of a text that a table shows.
LETTERS = 220


def show(figure: Figure | None, otherwise: str = "This run has nothing to draw here.") -> None:
    """Show a picture; where there is none, say why in a sentence."""
    if figure is None:
        say(otherwise)
        return
    from IPython.display import SVG, display

    display(SVG(svg(figure)))


def say(text: str) -> None:
    """Show a sentence of Markdown."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def attempt(make: Callable[[], T]) -> T | None:
    """What ``make`` returns; where something that it needs is not there, say so in a sentence and return None."""
    try:
        return make()
    except UserError as error:
        say(f"**Not shown:** {escaped(error)}")
        return None


def open_ablation(place: str, *, baseline: str | None = None, runs_dir: Path | str = RUNS_DIR) -> AblationData:
    """An ablation.

    Args:
        place: its directory, its YAML (the directory of its default scale), or ``wandb:ENTITY/PROJECT/GROUP`` for a W&B
            group, which is fetched into ``<runs_dir>/wandb/GROUP``.
        baseline: of a W&B group, the variant that the others are compared with; a directory names its own.
        runs_dir: the folder of run directories.

    Raises:
        UserError: nothing of an ablation is there.
    """
    if not place.startswith(_WANDB):
        return AblationData(Path(place), runs_dir=runs_dir)
    path, _, group = place.removeprefix(_WANDB).rpartition("/")
    if not path or not group:
        raise UserError(f"{place}: a W&B group is given as {_WANDB}ENTITY/PROJECT/GROUP")
    return write_group(read_group(path, group), group, Path(runs_dir) / "wandb" / group, baseline=baseline)


def show_table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Sequence[int] = (), texts: Sequence[int] = ()) -> None:
    """Show cells as a table; what is in them is shown as it is, never read as HTML or as formulas.

    Args:
        header: column titles.
        rows: cells.
        numbers: columns aligned right.
        texts: columns of long text, which is cut after 220 letters and wraps.
    """
    from IPython.display import HTML, display

    display(HTML(table_html(header, rows, numbers=numbers, texts=texts)))


def table_html(header: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Sequence[int] = (), texts: Sequence[int] = ()) -> str:
    """The table of `show_table` as HTML; it scrolls sideways where it is wider than the page."""
    lines = []
    for tag, cells in [("th", header), *(("td", row) for row in rows)]:
        line = ""
        for number, cell in enumerate(cells):
            align = "right" if number in numbers else "left"
            style = _CELL.format(space="normal" if number in texts or tag == "th" else "nowrap", align=align)
            text = shortened(str(cell)) if number in texts else str(cell)
            line += f'<{tag} style="{style}">{escape(text)}</{tag}>'
        lines.append(f"<tr>{line}</tr>")
    return f'<div class="mathjax_ignore tex2jax_ignore" style="overflow-x: auto"><table style="font-size: 13px">{"".join(lines)}</table></div>'


def shortened(text: str, letters: int = LETTERS) -> str:
    """The text on one line, cut after so many letters."""
    line = " ".join(text.split())
    return line if len(line) <= letters else f"{line[: letters - 1]}…"
