"""A finished run directory at W&B: all metrics, tables per query, the filter's ranks, the report and its figures.

Everything is read from the run's files, so the mirror can be made at any time and never takes part in a computation. The
training stages' steps are in W&B runs of their own (`lightning_e5.tracking.wandb_live`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_e5.config.experiment import Node
from lightning_e5.files.storage import read_json, sha256_file, sha256_text, write_json
from lightning_e5.results.run import METRICS, Result, RunData
from lightning_e5.tracking.run_directory import warn
from lightning_e5.tracking.wandb_run import FOLDER, RESULTS, first_line, start_run, wandb_mode

#: What was mirrored, beside W&B's files.
RECORD = "mirror.json"
#: W&B's own limit of a table.
_TABLE_ROWS = 200_000
_BINS = 64
_DPI = 80


def mirror(directory: Path, settings: Node) -> bool:
    """Mirror a finished run to W&B once; a failure is a warning.

    Args:
        directory: the run's.
        settings: the ``logger`` node of its experiment.

    Returns:
        Whether something was mirrored: False where W&B is disabled, failed, or has this very state already.
    """
    if wandb_mode(settings) == "disabled":
        return False
    state, record = _state(directory), directory / FOLDER / RECORD
    before: Node = read_json(record) if record.is_file() else {"state": None, "times": 0}
    if before["state"] == state:
        return False
    try:
        _mirror(RunData(directory), settings, before["times"])
    except Exception as error:
        warn(f"W&B: {first_line(error)}; the run's results are not mirrored, {directory} has everything")
        return False
    write_json(record, {"state": state, "times": before["times"] + 1})
    return True


def _state(directory: Path) -> str:
    """What decides the mirror's content: the metrics and the report made from the run's files."""
    files = [directory / METRICS, directory / "report.html"]
    return sha256_text(" ".join(sha256_file(p) for p in files if p.is_file()))


def _mirror(run: RunData, settings: Node, step: int) -> None:
    """``step``: of the one row of history; one more each time a directory is mirrored again."""
    import wandb

    at_wandb = start_run(settings, directory=run.path, job_type=RESULTS, config=run.config)
    try:
        with tempfile.TemporaryDirectory() as folder, _staged_in(run.path / FOLDER / "staged"):
            row: dict[str, Any] = {name: wandb.Table(columns=[*columns], data=rows) for name, columns, rows in tables(run)}
            for stage in run.filters():
                row[f"{stage}/ranks"] = _histogram(run.filter_ranks(stage).rank_N)
            for name, path in drawn_figures(run, Path(folder)):
                row[f"figures/{name}"] = wandb.Image(str(path))
            if (run.path / "report.html").is_file():
                row["report"] = wandb.Html(str(run.path / "report.html"), inject=False)
            if row:
                at_wandb.log(row, step=step, commit=True)
            at_wandb.summary.update(summary(run))
            if settings.get("log_model") and (run.path / "encoder").is_dir():
                artifact = wandb.Artifact(f"{run.name}-encoder", type="model", metadata={"run": run.name})
                artifact.add_dir(str(run.path / "encoder"))
                at_wandb.log_artifact(artifact)
    except BaseException:
        at_wandb.finish(exit_code=1)
        raise
    at_wandb.finish(exit_code=0)


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Files that W&B sets aside for a later upload lie in ``folder``, not in the user's home, unless WANDB_DATA_DIR says so."""
    own = "WANDB_DATA_DIR" not in os.environ
    if own:
        os.environ["WANDB_DATA_DIR"] = str(folder.resolve())
    try:
        yield
    finally:
        if own:
            del os.environ["WANDB_DATA_DIR"]


def summary(run: RunData) -> dict[str, float]:
    """What the W&B run's summary holds: ``metrics.json`` name by name, and each stage's time and memory, wherever it was computed;
    ``reused`` is 1 where that was another run."""
    times = {f"{stage}/{name}": facts[name] for stage, facts in run.times().items() for name in ("seconds", "peak_memory_gb")}
    times |= {f"{stage}/reused": 1.0 for stage in run.reused()}
    return {**times, **run.metrics}


def tables(run: RunData) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """Name, columns and rows of every table: ``results``, ``tasks``, and per collection the values of every query."""
    results = run.results()
    if results:
        yield "results", *_columns([_result_row(result) for result in results])
    if tasks := run.tasks():
        yield "tasks", *_columns([{k: v for k, v in task.items() if isinstance(v, str | int | float)} for task in tasks])
    for collection in dict.fromkeys(result.collection for result in results):
        rows: list[Node] = []
        for result in (r for r in results if r.collection == collection):
            place = result.model, result.collection
            by_metric = {name: run.per_query(*place, name) for name in result.metrics if run.has_per_query(*place, name)}
            queries = dict.fromkeys(query for values in by_metric.values() for query in values)
            rows += [{"model": result.model, "query": q, **{m: v.get(q) for m, v in by_metric.items()}} for q in queries]
        if rows:
            yield f"per_query/{collection}", *_columns(rows[:_TABLE_ROWS])


def drawn_figures(run: RunData, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and PNG file of each of the report's figures, drawn into ``folder``."""
    from matplotlib import rc_context

    from lightning_e5.report.figures import drawing as figures
    from lightning_e5.report.figures.filters import filter_ranks, kept_per_source
    from lightning_e5.report.figures.validation import validation_curves

    drawn = {"validation": validation_curves(run), "ndcg": figures.ndcg_intervals(run), "loss": figures.loss_curves(run), "cosines": figures.cosine_distributions(run)}
    for stage in run.filters():
        drawn |= {f"{stage}_ranks": filter_ranks(run, stage), f"{stage}_sources": kept_per_source(run, stage)}
    for name, figure in drawn.items():
        if figure is not None:
            with rc_context(figures.STYLE):
                figure.savefig(folder / f"{name}.png", format="png", dpi=_DPI, pil_kwargs={"compress_level": 1})
            yield name, folder / f"{name}.png"


def _result_row(result: Result) -> Node:
    kept = ("low", "high", "difference", "difference_low", "difference_high", "verdict")
    shown = {name: result.row[name] for name in kept if name in result.row}
    return {"model": result.model, "collection": result.collection, **result.metrics, **shown, "pairs": result.pairs, "seconds": result.seconds}


def _columns(rows: list[Node]) -> tuple[list[str], list[list[Any]]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, [[row.get(name) for name in names] for row in rows]


def _histogram(rank_N: Any) -> Any:
    import numpy as np
    import wandb

    return wandb.Histogram(np_histogram=np.histogram(rank_N[rank_N > 0], bins=_BINS))
