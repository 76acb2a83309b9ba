"""Peak memory, speed and disk of every stage at two numbers of pairs; see `benchmarks.memory.watch` for what is counted."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory.pages import page, summarised
from benchmarks.memory.stage import Stage, folder_of
from benchmarks.memory.table import STAGES
from benchmarks.memory.watch import watch

#: What writes the pairs themselves.
CORPUS = "corpus:pairs"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[300_000, 3_000_000], help="numbers of pairs (default 300000 3000000)")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads, or processes of a stage that has some (default: all cores)")
    parser.add_argument("--work", type=Path, help="folder for pairs, results and what stages write; what was measured there stands (default: a temporary one)")
    parser.add_argument("--again", action="store_true", help="measure again what stands in --work")
    parser.add_argument("--json", metavar="FILE", help="write machine and rows")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write them as Markdown")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (chosen.work or Path(temporary)).resolve()
        stages = [STAGES[name] for name in chosen.stages]
        measured: dict[str, dict[int, dict[str, Any]]] = {}
        for rows in sorted(chosen.pairs):
            for stage in stages:
                measured.setdefault(stage.name, {})[rows] = measure(stage, rows, work, chosen.workers, chosen.again)
    found = summarised(stages, measured)
    if chosen.page:
        chosen.page.write_text(page(found, "see `benchmarks/memory/corpus.py`"))
    from benchmarks.common import report  # with PyTorch, which measuring does without

    shown = [{key: row.get(key) for key in _SHOWN} for row in found]
    report(shown, None)
    report([], chosen.json, stages=found, measured=measured, workers=chosen.workers)


_SHOWN = ("stage", "small_pairs", "large_pairs", "small_own_mb", "large_own_mb", "ratio", "ratio_rss", "small_rows_per_s", "large_rows_per_s", "small_rows_per_cpu_s", "large_rows_per_cpu_s", "bytes_per_pair")


def measure(stage: Stage, rows: int, work: Path, workers: int, again: bool) -> dict[str, Any]:
    """One stage at one number of pairs, in a process of its own; kept in ``work/results``."""
    kept = work / "results" / f"{stage.name}-{rows}.json"
    if kept.is_file() and not again:
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    folder = work / f"pairs-{rows}"
    for needed in (CORPUS, *stage.needs):
        made = folder / folder_of(needed)
        if not made.is_dir():
            part = folder / f"{made.name}.part"
            run(needed, folder, rows, workers, part)
            part.rename(made)
    out = work / "out" / f"{stage.name}-{rows}"
    found = run(stage.measured, folder, rows, workers, out)
    shutil.rmtree(out)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n")
    told = f"{stage.name}, {rows:,} pairs: {found['own_bytes'] / 1e6:,.0f} MB, {found['seconds']:.1f} s"
    print(f"  {told}", file=sys.stderr, flush=True)
    return found


def run(function: str, folder: Path, rows: int, workers: int, out: Path) -> dict[str, Any]:
    """Run a function with an empty folder ``out``, and its temporary files beside it."""
    temporary, result = out.with_name(f"{out.name}.tmp"), out.with_name(f"{out.name}.json")
    for place in (out, temporary):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    threads = {name: str(workers) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = os.environ | threads | {"TMPDIR": str(temporary), "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.memory.process", function, str(folder), str(rows), str(workers), str(out), str(result)]
    watched = watch(command, [out, temporary], environment)
    taken: dict[str, Any] = json.loads(result.read_text())
    shutil.rmtree(temporary)
    result.unlink()
    peaks = {f"{name}_bytes": getattr(watched, name) for name in ("rss", "own", "disk")}
    # Without what the process took for its imports.
    return taken | peaks | {"processes": watched.processes, "cpu_seconds": watched.cpu_seconds - taken.pop("start_cpu_seconds")}


if __name__ == "__main__":
    main()
