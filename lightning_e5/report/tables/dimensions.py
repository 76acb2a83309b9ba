"""The dimensions that trainings summed their loss over, as a table."""

from __future__ import annotations

from lightning_e5.report.tables.table import Column, Table, number
from lightning_e5.results.result_files import read_metrics
from lightning_e5.results.run import RunData

NOTE = (
    "The loss of these stages is the weighted sum of that of the first values of an embedding, of unit length again, at each of these numbers "
    "of them (Matryoshka, arXiv 2205.13147). Final loss: mean of the last 10 steps."
)


def dimensions_table(run: RunData) -> Table:
    """A row per training stage and dimension, with its weight and its final loss; empty where whole embeddings were trained alone."""
    rows = []
    for stage, node in run.config["stages"].items():
        module = node.get("module")
        dimensions = (module.get("dimensions") if isinstance(module, dict) else None) or []
        weights = (module.get("dimension_weights") if isinstance(module, dict) else None) or [1] * len(dimensions)
        found = read_metrics(run.stage(stage)) if dimensions else {}
        rows += [[stage, d, weight, found.get(f"final_loss@{d}")] for d, weight in zip(dimensions, weights, strict=True)]
    return Table([Column("stage"), number("dimensions", format=","), number("weight", format="g"), number("final loss", format=".3f")], rows)
