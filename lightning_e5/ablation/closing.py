"""What the user sees at the end of a run: the table of models, the filter's judgement, and what to try next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_e5.ablation.durations import duration
from lightning_e5.ablation.evaluation_tables import aligned, labelled, published_cells, task_table
from lightning_e5.ablation.run_data import MAIN_METRIC, Result, RunData


def closing_table(directory: Path, headline: Sequence[str]) -> str:
    """The run's results as text for a terminal."""
    run = RunData(directory)
    results, times = run.results(), run.times()
    lines = [""]
    if results:
        # The headline may name metrics of other tasks, too: those stand in the second table.
        names = [name for name in headline if any(name in r.metrics for r in results)] or [MAIN_METRIC]
        with_published = any(names[0] in r.row.get("published", {}) for r in results)
        beside = ["published", "difference to it"] if with_published else []
        header = ["model", "collection", names[0], "95% interval", *beside, *names[1:], "against reference", "pairs seen", "time"]
        lines += aligned([header, *(_row(r, names, with_published) for r in results)], texts=2)
        lines += ["(pairs and time: of all the training that a model's weights went through)"]
    if tasks := run.tasks():
        lines += ["", *aligned(task_table(tasks), texts=4)]
    if "filter/removed_mismatches" in run.metrics:
        lines += ["", (
            f"filter: removed {run.metrics['filter/removed_mismatches']:.1%} of the planted mismatches, kept "
            f"{run.metrics['filter/kept_pairs']:.1%} of the other pairs; of what it kept {run.metrics['filter/precision']:.1%} "
            "are true pairs"
        )]  # fmt: skip
    total = sum(t["seconds"] for t in times.values())
    peak = max((t["peak_memory_gb"] for t in times.values()), default=0.0)
    shown = ", ".join(f"{name} {t['seconds']:.0f}" for name, t in times.items())
    lines += ["", f"time: {total:.0f} s in all ({shown}); peak memory {peak:.1f} GB", *_next_steps(directory, bool(results))]
    return "\n".join(lines)


def _row(result: Result, names: Sequence[str], shown: bool) -> list[str]:
    row = result.row
    difference = "the reference" if "difference" not in row else (
        f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    )  # fmt: skip
    values = [f"{result.metrics[name]:.3f}" if name in result.metrics else "–" for name in names]
    interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
    spent = "none" if not result.trained_by else "unknown" if result.seconds is None else duration(result.seconds)
    figure = row.get("published", {}).get(names[0])
    beside = published_cells(result.metrics.get(names[0]), figure) if shown else []
    pairs = "unknown" if row.get("pairs_seen", 0) is None else f"{result.pairs:,}"
    return [labelled(row), result.collection, values[0], interval, *beside, *values[1:], difference, pairs, spent]


def _next_steps(directory: Path, judged: bool) -> list[str]:
    steps = ["", f"report: {directory / 'report.html'}"]
    if judged and (directory / "encoder").is_dir():
        steps += [
            "try next:",
            f'  python -m lightning_e5 search {directory} "split a string on whitespace"',
            "  jupyter lab notebooks/01_quickstart.ipynb",
            "  an ablation: add name=other stages.pretrain.data.batch_size=256 to the command, then",
            f"  python -m lightning_e5 compare {directory} {directory.parent / 'other'} --metric ndcg@10",
        ]
    return steps
