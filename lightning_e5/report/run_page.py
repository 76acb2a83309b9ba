"""``report.html``: a run's results, figures and provenance on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.evaluation.beir.model_differences import all_differences
from lightning_e5.evaluation.statistics.decision import NO_DIFFERENCE
from lightning_e5.files.storage import write_text
from lightning_e5.report.adaptation import adaptation_sections
from lightning_e5.report.data_report import data_sections
from lightning_e5.report.figures import drawing as figures
from lightning_e5.report.figures.validation import validation_curves
from lightning_e5.report.filter_report import filter_section
from lightning_e5.report.html import Details, Folded, Paragraph, Part, Picture, Section, page
from lightning_e5.report.tables.dimensions import NOTE as DIMENSIONS_NOTE
from lightning_e5.report.tables.dimensions import dimensions_table
from lightning_e5.report.tables.evaluation import NONE_SHOWN_NOTE, contamination_table, task_table, validity_table
from lightning_e5.report.tables.provenance import environment_facts
from lightning_e5.report.tables.results import further_comparisons, results_table
from lightning_e5.report.tables.table import Column, Table, key_values, number
from lightning_e5.results.durations import duration
from lightning_e5.results.recorded_config import recorded_text
from lightning_e5.results.run import MAIN_METRIC, Result, RunData

REPORT = "report.html"
RECALL = "recall@100"
#: Rows of a table that are open, and bars of the figure below it: with a filter's section the page is three screens of 1,280 x 900 at most.
OPEN_ROWS, OPEN_BARS = 24, 16
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
_COSINES_TEXT = (
    "Cosines of judged (query, passage) pairs and of random ones. A title says how often a judged pair's "
    "cosine is above a random pair's; 50% is chance."
)
_VALIDATION_NOTE = (
    "The star is the step whose weights are kept. Losses of training and validation, where both are drawn, compare as far as both tell as many "
    "passages apart: training has dropout and, with a queue, more negatives."
)
_TIME_NOTE = "The peak is the process's so far, so it never falls from one stage to the next of the same process."


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
    """The page as HTML: what it is, the table, the figures that decide, and the rest folded."""
    results, tasks = run.results(), run.tasks()
    filters = run.filters()
    parts: list[Part] = [Paragraph(str(run.config.get("description") or ""), "lead"), Paragraph(_made(run), "note")]
    parts += _results(run, results, len(tasks))
    if tasks:
        parts.append(Section("Other tasks", [*_first_rows(task_table(tasks)), Paragraph(_TASKS_NOTE, "note")]))
    parts += [filter_section(run, stage) for stage in filters[:1]]
    losses = Picture.of(lambda width: figures.loss_curves(run, width), "The loss of each training stage")
    validations = Picture.of(lambda width: validation_curves(run, width), "The validations of each training stage")
    if validations.figure is not None:
        parts.append(Section("Validation", [validations, Paragraph(_VALIDATION_NOTE, "note")]))
    if losses.figure is not None:  # what decides where nothing was evaluated or filtered
        parts.append((Folded if results or filters or validations.figure is not None else Section)("Training", [losses]))
    return page(run.name, [*parts, *_folded(run, [*(result.row for result in results), *tasks])])


def _folded(run: RunData, rows: Sequence[dict[str, Any]]) -> list[Part]:
    """What a reader opens who wants to know more."""
    parts: list[Part] = []
    if (validity := validity_table(rows)).rows:
        parts.append(Folded("How the figures were made", [validity, Paragraph(_VALIDITY_NOTE, "note")]))
    if (dimensions := dimensions_table(run)).rows:
        parts.append(Folded("Dimensions", [dimensions, Paragraph(DIMENSIONS_NOTE, "note")]))
    if (seen := contamination_table(rows, run.metrics)).rows:
        parts.append(Folded("What the models have seen", [seen, Paragraph(_CONTAMINATION_NOTE, "note")]))
    parts += data_sections(run)
    for stage in run.filters()[1:]:
        section = filter_section(run, stage)
        parts.append(Folded(section.title, section.parts))
    if cosines := figures.cosine_distributions(run):
        parts.append(Folded("Cosines", [Paragraph(_COSINES_TEXT), Picture(cosines, "Cosines of judged and of random pairs")]))
    if run.times():
        parts.append(Folded("Time and memory", [_time_table(run), Paragraph(_TIME_NOTE, "note")]))
    if environment := run.environment:
        parts.append(Folded("Environment", [key_values(environment_facts(environment))]))
    configuration = Details("config.yaml, resolved: this run and nothing else", recorded_text(run.path / "config.yaml"))
    return [*parts, Folded("Configuration", [configuration])]


def _results(run: RunData, results: Sequence[Result], other_rows: int) -> list[Part]:
    """The table of models and its figure, of which only so much is open as leaves the page short; of own texts their own table instead."""
    if not results:
        return []
    table = [*_first_rows(results_table(run, results, [MAIN_METRIC, RECALL])), Paragraph(_results_note(results), "note")]
    drawn: Part = Picture.of(lambda width: figures.ndcg_intervals(run, width), "nDCG@10 of each model with its 95% interval")
    if len(results) + other_rows > OPEN_BARS:
        drawn = Folded("nDCG@10 with intervals", [drawn])
    if own_texts := adaptation_sections(run, drawn):
        return [*own_texts, Folded("Results", table)]  # the same models
    return [Section("Results", [*table, drawn])]


def _first_rows(table: Table) -> list[Part]:
    """The table's first rows, and below them the others, folded."""
    rest = Table(table.columns, table.rows[OPEN_ROWS:])
    if not rest.rows:
        return [table]
    table.rows = table.rows[:OPEN_ROWS]
    return [table, Folded(f"{len(rest.rows)} more rows", [rest])]


def _made(run: RunData) -> str:
    """Seed, stages, time, memory and machine in one line."""
    times, reused = run.times(), run.reused()
    said = [f"Seed {run.config['seed']}"] if "seed" in run.config else []
    said.append(f"{len(times)} stages" + (f" ({len(reused)} reused from other runs)" if reused else ""))
    if own := [spent for name, spent in times.items() if name not in reused]:
        said.append(f"{duration(run.seconds_spent())} in all")
        said.append(f"peak memory {max(spent['peak_memory_gb'] for spent in own):.1f} GB")
    said += [str(run.environment["processor"])] if run.environment.get("processor") else []
    return ", ".join(said) + "."


def _time_table(run: RunData) -> Table:
    """What each stage took; of one that was taken from another run, what it took there, which is not of this run's time."""
    times, reused = run.times(), run.reused()
    columns = [Column("stage"), number("time", format=duration), number("peak memory"), *([Column("computed by")] if reused else [])]
    rows: list[list[Any]] = []
    for name, spent in times.items():
        own = name not in reused
        rows.append([name, spent["seconds"] if own else None, f"{spent['peak_memory_gb']:.2f} GB" if own else None])
        rows[-1] += [_computed_by(spent)] if reused else []
    return Table(columns, [*rows, ["together", run.seconds_spent(), "", *([""] if reused else [])]])


def _computed_by(spent: Mapping[str, Any]) -> str:
    if not spent.get("reused_from"):
        return "this run"
    made = str(spent.get("computed_at") or "")[:10]
    return f"{spent['reused_from']}{f', {made}' if made else ''} (in {duration(spent['seconds'])}), reused"


def _results_note(results: Sequence[Result]) -> str:
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
        "and the teacher are under “Time and memory”)."
    )
