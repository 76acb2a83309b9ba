"""``report.html``: a run's results, pictures and circumstances on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lightning_e5.evaluation.beir.model_differences import all_differences
from lightning_e5.evaluation.statistics.significance import NO_DIFFERENCE
from lightning_e5.files.storage import write_text
from lightning_e5.report.data_report import data_sections
from lightning_e5.report.figures import drawing as figures
from lightning_e5.report.filter_report import filter_section
from lightning_e5.report.html import details, heading, page, paragraph, picture, table
from lightning_e5.report.tables import evaluation as evaluation_tables
from lightning_e5.report.tables.evaluation import (
    NONE_SHOWN_NOTE,
    difference_cell,
    further_comparisons,
    labelled,
    pairs_seen,
    published_cells,
    task_table,
    validity_table,
)
from lightning_e5.results.durations import duration
from lightning_e5.results.recorded_config import recorded_text
from lightning_e5.results.run import MAIN_METRIC, Result, RunData

REPORT = "report.html"
RECALL = "recall@100"
_ABSENT = "–"
_TASKS_NOTE = "95% intervals by bootstrap over items: pairs, texts (and resamplings or clusterings) or queries."
_VALIDITY_NOTE = (
    "Truncated: share of the texts with more tokens than the limit. Tied at 10: share of the queries whose documents at ranks "
    "10 and 11 have one score. Missing: judged queries without a result, counted as 0. Qrels of missing documents: "
    "judgements of documents outside the collection."
)
_CONTAMINATION_NOTE = (
    "Seen in training: share of the test items (queries; pairs of sentences of which one was seen; texts) that occur in the "
    "texts that the model was trained on, equal but for case and punctuation, or of at least 4 words inside a longer text; "
    "unknown where it does not say what these were, or they are not here. Clean: the score over the items that occur in no "
    "training text that this evaluation was given, the same items for every model. Pairs and tokens: seen in all trainings of "
    "the weights, repetitions counted."
)


def write_report(directory: Path, metrics: Mapping[str, float]) -> None:
    """Write ``report.html`` into a run directory, atomically.

    Args:
        directory: the run's.
        metrics: the run's flat metrics; ``metrics.json`` is written after the report and need not be there.

    Raises:
        UserError: the directory is no run directory, or a file in it is damaged.
    """
    run = RunData(directory, given=metrics)
    write_text(run.path / REPORT, report_page(run))


def report_page(run: RunData) -> str:
    """The page as HTML."""
    body = [paragraph(str(run.config.get("description") or ""), "lead")]
    results = run.results()
    if results:
        body += [heading("Results"), results_table(run, results), paragraph(_results_note(run, results), "note")]
        body += _pictures(figures.ndcg_intervals(run), "nDCG@10 of each model with its 95% interval")
    tasks = run.tasks()
    if tasks:
        header, *rows = task_table(tasks)
        body += [heading("Other tasks"), table(header, rows, numbers=range(4, len(header))), paragraph(_TASKS_NOTE, "note")]
    header, *rows = validity_table([*(r.row for r in results), *tasks])
    if rows:
        body += [heading("How the figures were made"), table(header, rows, numbers=[4, 5, *range(7, len(header))])]
        body += [paragraph(_VALIDITY_NOTE, "note")]
    header, *rows = evaluation_tables.contamination_table([*(r.row for r in results), *tasks], run.metrics)
    if rows:
        body += [heading("What the models have seen"), table(header, rows, numbers=[2, 3, 4, 5, 7, 8])]
        body += [paragraph(_CONTAMINATION_NOTE, "note")]
    body += data_sections(run)
    for stage in run.filters():
        body += filter_section(run, stage)
    if curves := _pictures(figures.loss_curves(run), "The loss of each training stage"):
        body += [heading("Training"), *curves]
    if cosines := _pictures(figures.cosine_distributions(run), "Cosines of judged and of random pairs"):
        text = (
            "Cosines of judged (query, passage) pairs and of random ones. A title says how often a judged pair's "
            "cosine is above a random pair's; 50% is chance."
        )
        body += [heading("Cosines"), paragraph(text), *cosines]
    body += [*_times(run), *_environment(run), _configuration(run)]
    return page(run.name, body)


def results_table(run: RunData, results: Sequence[Result]) -> str:
    """The results as an HTML table; the notebook shows the same."""
    references = {r.collection: run.reference(r.collection) for r in results}
    where = len(references) > 1
    header = ["model", *(["collection"] if where else []), MAIN_METRIC, "95% interval", RECALL]
    named = sorted({name for name in references.values() if name})
    shown = any(MAIN_METRIC in r.row.get("published", {}) for r in results)
    if shown:
        header += ["published", "difference to it"]
    if steps := any(r.previous for r in results):
        header += ["to the step before"]
    if named:
        header += [f"to {' / '.join(named)}"]
    texts = range(len(header) - steps - bool(named), len(header))
    header += ["pairs seen", "time"]
    rows = []
    for result in results:
        low, high = result.row.get("low"), result.row.get("high")
        interval = _ABSENT if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
        row = [labelled(result.row), *([result.collection] if where else []), _value(result, MAIN_METRIC), interval, _value(result, RECALL)]
        if shown:
            figure = result.row.get("published", {}).get(MAIN_METRIC)
            row += published_cells(result.metrics[MAIN_METRIC], figure)
        if steps:
            row += [difference_cell(result.previous[0]) if result.previous else ""]
        if named:
            row += [_difference(result, references[result.collection])]
        rows.append([*row, pairs_seen(result), duration(result.seconds)])
    return table(header, rows, numbers=[c for c in range(1 + where, len(header)) if c not in texts])


def _times(run: RunData) -> list[str]:
    times = run.times()
    if not times:
        return []
    rows = [[name, duration(t["seconds"]), f"{t['peak_memory_gb']:.2f} GB"] for name, t in times.items()]
    total = [["together", duration(sum(t["seconds"] for t in times.values())), ""]]
    note = "The peak is the process's so far, so it never falls from one stage to the next of the same process."
    stages = table(["stage", "time", "peak memory"], rows + total, numbers=[1, 2])
    return [heading("Time and memory"), stages, paragraph(note, "note")]


def _environment(run: RunData) -> list[str]:
    environment = dict(run.environment)
    if not environment:
        return []
    packages = environment.pop("packages", None) or {}
    changed = " with uncommitted changes" if environment.pop("uncommitted_changes", False) else ""
    commit = environment.pop("commit", None)
    rows: list[list[object]] = [["commit", f"{commit or 'unknown'}{changed}"]]
    for key, value in environment.items():
        shown = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        rows.append([key, shown])
    rows += [[str(name), version or "not installed"] for name, version in packages.items()]
    return [heading("Environment"), table(["what", "value"], [[str(cell) for cell in row] for row in rows])]


def _configuration(run: RunData) -> str:
    text = recorded_text(run.path / "config.yaml")
    return heading("Configuration") + details("config.yaml, resolved: this run and nothing else", text)


def _results_note(run: RunData, results: Sequence[Result]) -> str:
    collections = {r.collection: r.row["queries"] for r in results if "queries" in r.row}
    on = [f"{name}: {queries:,} queries. " for name, queries in collections.items()]
    note = "".join(on) + "95% intervals by bootstrap over queries, differences by paired bootstrap over the same queries. "
    if any(compared.get("verdict") == NO_DIFFERENCE for compared in all_differences([r.row for r in results])):
        note += f"{NONE_SHOWN_NOTE}. "
    else:
        note += "What is said of the differences holds for all of the table together (Holm). "
    note += "".join(f"{further}. " for r in results for further in further_comparisons(r))
    return note + (
        "Pairs seen: in all stages that a model's weights went through, repetitions counted; time: of these stages (filtering, mining "
        "and the teacher are in the table of stages below)."
    )


def _difference(result: Result, reference: str | None) -> str:
    if "difference" not in result.row:
        return "the reference" if result.model == reference else _ABSENT
    return difference_cell(result.row)


def _value(result: Result, metric: str) -> str:
    return f"{result.metrics[metric]:.3f}" if metric in result.metrics else _ABSENT


def _pictures(figure: Figure | None, description: str) -> list[str]:
    return [] if figure is None else [picture(figures.svg(figure), description)]
