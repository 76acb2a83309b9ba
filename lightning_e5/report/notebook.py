"""What every notebook works with: figures, tables and sentences (one where there is nothing to show), and a run's encoders loaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from matplotlib.figure import Figure

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData, load_beir
from lightning_e5.evaluation.embedding_space import some_passages
from lightning_e5.evaluation.loaded_models import ModelSpec, given_prefixes
from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.html import notebook_table
from lightning_e5.report.tables.escaping import markdown, shortened
from lightning_e5.report.tables.table import Table
from lightning_e5.results.ablation import RUNS_DIR, AblationData
from lightning_e5.results.outcomes import evaluated_split
from lightning_e5.results.run import RunData
from lightning_e5.results.spaces import encoder_folders, training_passages
from lightning_e5.tracking.wandb_group import read_group, write_group
from lightning_e5.types import Embedder

warnings.filterwarnings("ignore", message="IProgress not found")  # progress bars are text here, as they are in a terminal
T = TypeVar("T")
_WANDB = "wandb:"

#: Letters of a text that a table shows.
LETTERS = 220
#: Texts of one kind on the map, and kinds on it.
OF_A_KIND, KINDS = 50, 9


def show(figure: Figure | None, otherwise: str = "This run has nothing to draw here.") -> None:
    """Show a figure; where there is none, say why in a sentence."""
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
        say(f"**Not shown:** {markdown(error)}")
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
    fetched = write_group(read_group(path, group), group, Path(runs_dir) / "wandb" / group, baseline=baseline)
    return AblationData(fetched)


def show_table(table: Table | None, otherwise: str = "There is nothing to show.") -> None:
    """Show a table; where there is none, say why in a sentence.

    What is in its cells is shown as it is, never read as HTML or as formulas; long texts are cut after 220 letters.
    """
    if table is None:
        say(otherwise)
        return
    from IPython.display import HTML, display

    display(HTML(table_html(table)))


def table_html(table: Table) -> str:
    """The table of `show_table` as HTML; it scrolls sideways where it is wider than the page."""
    long = [place for place, column in enumerate(table.columns) if column.kind == "text"]
    rows = [[shortened(cell, LETTERS) if place in long else cell for place, cell in enumerate(row)] for row in table.cells]
    return notebook_table(replace(table, rows=rows))


def load_encoder(run: RunData, model: str) -> Embedder:
    """One of `encoder_folders`, as its evaluation loaded it; UserError where it is not there."""
    folders = encoder_folders(run)
    if model not in folders:
        raise UserError(f"{run.path}: has no encoder {model!r} (has: {', '.join(folders) or 'none'})")
    folder, settings = folders[model]
    own = {**settings, "prefixes": given_prefixes(settings.get("prefixes"))}
    loaded: Embedder = ModelSpec(model, folder, **own).load().model
    return loaded


def load_collection(run: RunData, collection: str) -> RetrievalData:
    """A collection's texts and judgements, of the split that was evaluated."""
    return load_beir(run.collection_folder(collection), evaluated_split(run, collection), collection)


def texts_by_kind(run: RunData, collections: Mapping[str, RetrievalData], of_a_kind: int = OF_A_KIND) -> dict[str, list[str]]:
    """Passages to map: of the largest sources of the training pairs, and of each collection (``test: NAME``).

    Injected mismatches are left out. No more than 9 kinds, the collections among them.
    """
    tests = {f"test: {name}": some_passages(data, of_a_kind) for name, data in list(collections.items())[:3]}
    kinds = training_passages(run, KINDS - len(tests), of_a_kind)
    return kinds | {name: texts for name, texts in tests.items() if texts}
