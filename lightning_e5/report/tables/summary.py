"""What the user sees at the end of a run: the table of models, what the filter removed, and what to try next."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lightning_e5.report.tables.evaluation import NONE_SHOWN, NONE_SHOWN_NOTE, task_table
from lightning_e5.report.tables.results import difference_table, further_comparisons, results_table
from lightning_e5.results.run import MAIN_METRIC, Result, RunData

#: Letters of a line.
WIDTH = 100


def summary_table(directory: Path, headline: Sequence[str]) -> str:
    """The run's results as text for a terminal."""
    run = RunData(directory)
    results = run.results()
    lines = [""]
    if results:
        lines += _retrieval(run, results, headline)
    if tasks := run.tasks():
        lines += ["", *task_table(tasks).lines()]
    for stage in run.filters():
        lines += _filter(run, stage)
    lines += ["", *_wrapped(_time(run)), *_next_steps(run, results)]
    return "\n".join(lines)


def _time(run: RunData) -> str:
    """What this run computed took so long; what it took from other runs did not."""
    times, reused = run.times(), run.reused()
    shown = ", ".join(f"{name} {t['seconds']:.0f}" for name, t in times.items() if name not in reused)
    sources = {source: [name for name in reused if reused[name] == source] for source in reused.values()}
    taken = "".join(f"; reused from {source}: {', '.join(names)}" for source, names in sources.items())
    peak = max((t["peak_memory_gb"] for name, t in times.items() if name not in reused), default=None)
    memory = f"; peak memory {peak:.1f} GB" if peak is not None else ""
    return f"time: {run.seconds_spent():.0f} s in all{f' ({shown})' if shown else ''}{memory}{taken}"


def _retrieval(run: RunData, results: Sequence[Result], headline: Sequence[str]) -> list[str]:
    """The models on the collections: what each is above the step before it and above the reference, then their figures."""
    # The headline may name metrics of other tasks, too: those stand in the second table.
    names = [name for name in headline if any(name in r.metrics for r in results)] or [MAIN_METRIC]
    lines: list[str] = []
    if any("difference" in r.row or r.previous for r in results):
        for collection in dict.fromkeys(r.collection for r in results):
            lines += [*_differences(run, [r for r in results if r.collection == collection]), ""]
    lines += results_table(run, results, names, differences=False).lines()
    return [*lines, f"(pairs seen and time: of all the training {_where(run)} that a model's weights went through)"]


def _where(run: RunData) -> str:
    trained = {stage for result in run.results() for stage in result.trained_by}
    return "in this run, and in those that it reused stages of," if trained & {*run.reused()} else "in this run"


def _differences(run: RunData, results: Sequence[Result]) -> list[str]:
    table = difference_table(run, results)
    counts = [f"{result.row['queries']:,}" for result in results if "queries" in result.row]
    title = f"{results[0].collection}, {counts[0]} queries; differences are paired, with 95% intervals" if counts else results[0].collection
    further = [line for result in results for line in further_comparisons(result)]
    unclear = any(NONE_SHOWN in cell for row in table.cells for cell in row)
    return [title, "", *table.lines(), *further, *([NONE_SHOWN_NOTE] if unclear else [])]


def _filter(run: RunData, stage: str) -> list[str]:
    metrics = run.metrics
    if f"{stage}/removed_mismatches" not in metrics:
        return []
    removed, kept, precision = (metrics[f"{stage}/{key}"] for key in ("removed_mismatches", "kept_pairs", "precision"))
    return ["", *_wrapped(
        f"{stage}: removed {removed:.1%} of the injected mismatches, kept {kept:.1%} of the other pairs; of what it kept "
        f"{precision:.1%} are true pairs"
    )]  # fmt: skip


def _next_steps(run: RunData, results: Sequence[Result]) -> list[str]:
    """The report's place, and commands that work as the run lies there now."""
    directory, report = run.path, run.path / "report.html"
    steps = ["", f"report: {report}"] if report.is_file() else [""]
    commands: list[list[str]] = []
    collection = run.collection_folder(results[0].collection) if results else None
    searchable = collection is not None and (directory / "encoder").is_dir() and collection.is_dir()
    if searchable:
        own_corpus = any((directory / "stages").glob("*/test/corpus.jsonl"))
        corpus = [] if own_corpus else ["--corpus", str(collection)]
        commands.append(["python", "-m", "lightning_e5", "search", str(directory), *corpus, "--interactive"])
    if report.is_file():
        commands.append(["python", "-m", "webbrowser", str(report)])
    if searchable:
        own = run.name if run.name not in ("start", "bm25") else "run"
        split = results[0].row.get("split", "test")
        evaluate = ["python", "-m", "lightning_e5", "evaluate", "--model", f"{own}={directory}", _other_model(run), "--beir", str(collection)]
        evaluate += ["--split", str(split)] if split != "test" else []
        name, rules = results[0].collection, results[0].row.get("rules", {}).get("beir", "")
        commands.append([*evaluate, *(["--rules", f"{name}={rules}"] if name == f"nano-{rules}" else [])])
    return [*steps, "try next:", *(f"  {shlex.join(command)}" for command in commands)] if commands else steps


def _other_model(run: RunData) -> str:
    """A model to evaluate beside the run's: what it started from, as it is used without us; else BM25."""
    start = (run.config.get("encoder") or {}).get("pretrained")
    return f"start={str(start).partition('#')[0]}" if start else "bm25"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)
