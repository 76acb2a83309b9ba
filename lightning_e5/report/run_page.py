"""``report.html``: a run's results, figures and provenance on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_e5.evaluation.beir.model_differences import all_differences
from lightning_e5.evaluation.statistics.decision import NO_DIFFERENCE
from lightning_e5.files.storage import write_text
from lightning_e5.report.adaptation import adaptation_sections
from lightning_e5.report.data_report import data_sections
from lightning_e5.report.figures import drawing as figures
from lightning_e5.report.filter_report import filter_section
from lightning_e5.report.html import Details, Paragraph, Part, Picture, Section, page
from lightning_e5.report.tables.evaluation import NONE_SHOWN_NOTE, contamination_table, task_table, validity_table
from lightning_e5.report.tables.provenance import environment_facts
from lightning_e5.report.tables.results import further_comparisons, results_table
from lightning_e5.report.tables.table import Column, Table, key_values, number
from lightning_e5.results.durations import duration
from lightning_e5.results.recorded_config import recorded_text
from lightning_e5.results.run import MAIN_METRIC, Result, RunData

REPORT = "report.html"
RECALL = "recall@100"
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
    """The page as HTML."""
    results, tasks = run.results(), run.tasks()
    rows = [*(result.row for result in results), *tasks]
    parts: list[Part] = [Paragraph(str(run.config.get("description") or ""), "lead")]
    if results:
        table = results_table(run, results, [MAIN_METRIC, RECALL])
        drawn = Picture(figures.ndcg_intervals(run), "nDCG@10 of each model with its 95% interval")
        parts.append(Section("Results", [table, Paragraph(_results_note(results), "note"), drawn]))
    parts += adaptation_sections(run)
    if tasks:
        parts.append(Section("Other tasks", [task_table(tasks), Paragraph(_TASKS_NOTE, "note")]))
    if (validity := validity_table(rows)).rows:
        parts.append(Section("How the figures were made", [validity, Paragraph(_VALIDITY_NOTE, "note")]))
    if (seen := contamination_table(rows, run.metrics)).rows:
        parts.append(Section("What the models have seen", [seen, Paragraph(_CONTAMINATION_NOTE, "note")]))
    parts += data_sections(run)
    parts += [filter_section(run, stage) for stage in run.filters()]
    if curves := figures.loss_curves(run):
        parts.append(Section("Training", [Picture(curves, "The loss of each training stage")]))
    if cosines := figures.cosine_distributions(run):
        parts.append(Section("Cosines", [Paragraph(_COSINES_TEXT), Picture(cosines, "Cosines of judged and of random pairs")]))
    if times := run.times():
        parts.append(Section("Time and memory", [_time_table(times), Paragraph(_TIME_NOTE, "note")]))
    if environment := run.environment:
        parts.append(Section("Environment", [key_values(environment_facts(environment))]))
    configuration = Details("config.yaml, resolved: this run and nothing else", recorded_text(run.path / "config.yaml"))
    return page(run.name, [*parts, Section("Configuration", [configuration])])


def _time_table(times: Mapping[str, Mapping[str, float]]) -> Table:
    columns = [Column("stage"), number("time", format=duration), number("peak memory")]
    rows = [[name, spent["seconds"], f"{spent['peak_memory_gb']:.2f} GB"] for name, spent in times.items()]
    return Table(columns, [*rows, ["together", sum(spent["seconds"] for spent in times.values()), ""]])


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
        "and the teacher are in the table of stages below)."
    )
