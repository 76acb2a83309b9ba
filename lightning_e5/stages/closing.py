"""What the user sees at the end of a run: the table of models, the filter's judgement, and what to try next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_e5.storage import read_json

METRICS, TIMING, TABLE = "metrics.json", "timing.json", "table.json"


def closing_table(directory: Path, headline: Sequence[str]) -> str:
    """The run's results as text for a terminal."""
    metrics: dict[str, float] = read_json(directory / METRICS)
    times = {s.name: read_json(s / TIMING) for s in _stages(directory)}
    rows = [r for s in _stages(directory) if (s / TABLE).is_file() for r in read_json(s / TABLE)]
    lines = [""]
    if rows:
        names = list(headline) or ["ndcg@10"]
        header = ["model", "collection", names[0], "95% interval", *names[1:], "against reference", "pairs seen"]
        lines += _aligned([header, *(_row(r, metrics, names) for r in rows)])
    if "filter/removed_mismatches" in metrics:
        lines += ["", (
            f"filter: removed {metrics['filter/removed_mismatches']:.1%} of the planted mismatches, kept "
            f"{metrics['filter/kept_pairs']:.1%} of the other pairs; of what it kept {metrics['filter/precision']:.1%} "
            "are true pairs"
        )]  # fmt: skip
    total = sum(t["seconds"] for t in times.values())
    peak = max((t["peak_memory_gb"] for t in times.values()), default=0.0)
    shown = ", ".join(f"{name} {t['seconds']:.0f}" for name, t in times.items())
    lines += ["", f"time: {total:.0f} s in all ({shown}); peak memory {peak:.1f} GB", *_next_steps(directory, bool(rows))]
    return "\n".join(lines)


def _stages(directory: Path) -> list[Path]:
    """Finished stages in the order in which the configuration names them."""
    from lightning_e5.stages.runner import _stored_config

    names = _stored_config(directory / "config.yaml")["stages"]
    return [p for name in names if (p := directory / "stages" / name).is_dir() and (p / TIMING).is_file()]


def _row(row: dict[str, Any], metrics: dict[str, float], names: Sequence[str]) -> list[str]:
    prefix = f"{row['model']}/{row['collection']}"
    difference = "the reference" if "difference" not in row else (
        f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    )  # fmt: skip
    values = [f"{metrics[f'{prefix}/{name}']:.3f}" for name in names]
    interval = f"[{row['low']:.3f}, {row['high']:.3f}]"
    return [row["model"], row["collection"], values[0], interval, *values[1:], difference, f"{row['pairs_seen']:,}"]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    numeric = [c > 1 for c in range(len(widths))]
    lines = ["  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(r, widths, numeric, strict=True)) for r in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


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
