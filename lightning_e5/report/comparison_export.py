"""The small files of an ablation's results that are kept under version control: equal input gives equal bytes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, write_json, write_text
from lightning_e5.report.comparison_page import environment_facts
from lightning_e5.report.figures.comparison import metric_bars, png
from lightning_e5.report.tables.comparison import as_csv, notes
from lightning_e5.results.agreement import agreement
from lightning_e5.results.comparison import AblationComparison, FurtherDifference, Row

TABLE, RESULTS, BARS = "table.csv", "results.json", "bars.png"


def export_comparison(comparison: AblationComparison, directory: Path) -> list[Path]:
    """Write ``table.csv``, ``results.json`` and ``bars.png``.

    Raises:
        UserError: ``directory`` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--export {directory}: is a file, not a directory")
    write_text(directory / TABLE, as_csv(comparison))
    write_json(directory / RESULTS, results(comparison))
    written = [directory / TABLE, directory / RESULTS]
    figure = metric_bars(comparison)
    if figure is not None:
        with atomic_path(directory / BARS) as temporary:
            temporary.write_bytes(png(figure))
        written.append(directory / BARS)
    return written


def results(comparison: AblationComparison) -> dict[str, Any]:
    """Everything but the single queries, as JSON: plan, per-seed values, differences, costs, the paper's figures, machine."""
    data = comparison.data
    file = str(data.plan.get("file") or "")
    return {
        "ablation": data.name,
        "scale": data.scale,
        "file": PurePath(file).name if PurePath(file).is_absolute() else file,
        "question": data.question,
        "held_constant": data.held_constant,
        "baseline": data.baseline,
        "metrics": list(comparison.metrics),
        "seeds": data.seeds,
        "paper": data.paper,
        "variants": {row.name: _variant(comparison, row) for row in comparison.rows},
        "also_compared": [_further(comparison, row) for row in comparison.further],
        "notes": notes(comparison),
        "made_with": environment_facts(comparison.environments),
    }


def _further(comparison: AblationComparison, row: FurtherDifference) -> dict[str, Any]:
    metrics = {
        name: {
            "difference": None if cell.difference is None else asdict(cell.difference), "p_holm": cell.p_holm, "verdict": cell.decision,
            "papers_direction": agreement(comparison, row, name),
        }
        for name, cell in row.cells.items()
    }  # fmt: skip
    return {"variant": row.variant, "reference": row.reference, "metrics": metrics}


def _variant(comparison: AblationComparison, row: Row) -> dict[str, Any]:
    cells = {}
    for name, cell in row.cells.items():
        cells[name] = {
            "per_seed": {str(seed): value for seed, value in cell.per_seed.items()},
            "mean": asdict(cell.mean),
            "difference": None if cell.difference is None else asdict(cell.difference),
            "p_holm": cell.p_holm,
            "verdict": cell.decision,
            "queries": None if cell.per_query is None else int(cell.per_query.shape[1]),
            "papers_direction": agreement(comparison, row, name),
        }
    return {
        "description": row.description,
        "seeds_finished": list(row.seeds),
        "unfinished": {str(seed): state for seed, state in row.unfinished.items()},
        "metrics": cells,
        "pairs_seen": row.pairs,
        "tokens_seen": row.tokens,
        "optimizer_steps": row.steps,
        "seconds": row.seconds,
        "unequal_compute": list(row.flags),
    }
