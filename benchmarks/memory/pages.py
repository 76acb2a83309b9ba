"""Measurements -> one row for each stage, the projection to 270 million pairs, and a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.memory.stage import Stage

#: Of the peaks at the larger and the smaller number of pairs, where a stage's memory is said not to grow with them.
LARGEST_RATIO = 1.2
#: Pairs of CCPairs after filtering (paper section 3.1), and the cores of the machine that is thought of.
PROJECTED_PAIRS, PROJECTED_CORES = 270_000_000, 64

_HEAD = """# Memory of the stages

Peak memory of the process that runs a stage and of all its descendants, sampled from `/proc` every 100 ms. **own** is RssAnon + RssShmem, what the
kernel cannot take back; **resident** is VmRSS, which also holds the pages of memory-mapped files, and which the kernel takes back where it needs
them. Both are sums over the processes. **at the start** is what the interpreter and the imported libraries hold before the stage begins (it is in
the peak, too). **ratio**: peak at the larger number of pairs over that at the smaller one, own memory; where a stage's memory is said not to grow
with the pairs, it has to be at most {ratio}. On a machine that others use, too, compare rows per CPU second. Pairs are made of runs of real words ({sources}).
"""

_PROJECTION = """
## Projection to {pairs:,} pairs

From the larger number of pairs, in proportion to them; nothing of this was run. Bytes on disk are the most that the stage's folder and its temporary
files held; hours are the processor seconds of all processes over {cores} cores where the work is cut into parts that run in parallel, else on one core.
"""


def summarised(stages: Sequence[Stage], measured: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each stage that was measured at every number of pairs; ``measured``: stage -> pairs -> figures."""
    rows = []
    for stage in stages:
        by_size = dict(sorted(measured.get(stage.name, {}).items()))
        if not by_size:
            continue
        small, large = next(iter(by_size)), list(by_size)[-1]
        first, last = by_size[small], by_size[large]
        row: dict[str, Any] = {"stage": stage.name, "small_pairs": small, "large_pairs": large}
        for size, figures in (("small", first), ("large", last)):
            row[f"{size}_own_mb"] = figures["own_bytes"] / 1e6
            row[f"{size}_rss_mb"] = figures["rss_bytes"] / 1e6
            row[f"{size}_start_mb"] = figures["start_bytes"] / 1e6
            row[f"{size}_rows_per_s"] = figures["rows"] / figures["seconds"]
            row[f"{size}_rows_per_cpu_s"] = figures["rows"] / figures["cpu_seconds"]
        if small != large:
            row["ratio"] = last["own_bytes"] / first["own_bytes"]
            row["ratio_rss"] = last["rss_bytes"] / first["rss_bytes"]
            row["bytes_per_pair"] = (last["own_bytes"] - first["own_bytes"]) / (large - small)
            row["within"] = row["ratio"] <= LARGEST_RATIO if stage.streams else None
        row["projected_disk_gb"] = last["disk_bytes"] * PROJECTED_PAIRS / large / 1e9
        seconds = last["cpu_seconds"] / (PROJECTED_CORES if stage.parallel else 1)
        row["projected_hours"] = seconds * PROJECTED_PAIRS / last["rows"] / 3600
        row |= {"parallel": stage.parallel, "buffers": stage.buffers}
        rows.append(row)
    return rows


def page(rows: Sequence[Mapping[str, Any]], sources: str) -> str:
    """The rows as Markdown."""
    lines = [_HEAD.format(ratio=LARGEST_RATIO, sources=sources)]
    lines.append("| stage | pairs | peak, own | resident | at the start | rows/s | rows per CPU second | ratio own (resident) | buffers |")
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        for size in ("small", "large"):
            last = size == "large"
            ratio = f"{row['ratio']:.2f} ({row['ratio_rss']:.2f}){_judged(row)}" if last and "ratio" in row else ""
            if not last and row["small_pairs"] == row["large_pairs"]:
                continue
            figures = [f"{row[f'{size}_pairs']:,}", *(f"{row[f'{size}_{key}_mb']:,.0f} MB" for key in ("own", "rss", "start"))]
            lines.append(f"| {row['stage']} | {' | '.join(figures)} | {row[f'{size}_rows_per_s']:,.0f} | {row[f'{size}_rows_per_cpu_s']:,.0f} | {ratio} | {row['buffers'] if last else ''} |")
    lines.append(_PROJECTION.format(pairs=PROJECTED_PAIRS, cores=PROJECTED_CORES))
    lines += ["| stage | memory a pair more | disk | hours |", "|---|---|---|---|"]
    for row in rows:
        hours = f"{row['projected_hours']:,.1f}" + (f" on {PROJECTED_CORES} cores" if row["parallel"] else " on one")
        more = f"{row['bytes_per_pair']:,.1f} bytes" if "bytes_per_pair" in row else ""
        lines.append(f"| {row['stage']} | {more} | {row['projected_disk_gb']:,.0f} GB | {hours} |")
    return "\n".join(lines) + "\n"


def _judged(row: Mapping[str, Any]) -> str:
    return {True: "", False: f", over {LARGEST_RATIO}", None: ", grows"}[row["within"]]
