"""What the ``evaluate`` verb found, as text, JSON, CSV and a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_e5.cli.evaluate_inputs import Evaluated
from lightning_e5.files.storage import to_json, write_json, write_text
from lightning_e5.report.tables.evaluation import evaluation_text
from lightning_e5.report.tables.model_differences import (
    comparison_notes,
    differences_table,
    evaluation_csv,
    not_compared,
)
from lightning_e5.result_row import flat

#: The metrics of retrieval that tables show.
SHOWN_METRICS = ("ndcg@10", "recall@100", "map@100", "mrr@10")


def write_and_show(found: Evaluated, given: argparse.Namespace) -> str:
    """Write the files that the arguments name, each atomically; returns what is printed."""
    if given.csv is not None:
        write_text(Path(given.csv), evaluation_csv(found.rows, found.reference))
    if given.html is not None:
        from lightning_e5.report.evaluation_page import evaluation_page  # imports matplotlib

        write_text(Path(given.html), evaluation_page(found.rows, found.reference, SHOWN_METRICS, chosen=given.reference is not None))
    if given.out is not None:
        write_json(Path(given.out), flat(found.rows))
    return as_json(found) if given.json else as_text(found, chosen=given.reference is not None)


def as_json(found: Evaluated) -> str:
    """One object: the reference, all rows as ``table.json`` and ``tasks.json`` have them, and why sets were not compared."""
    left_out = not_compared(found.rows, found.reference) if found.reference is not None else {}
    return to_json({"reference": found.reference, "rows": [row.as_json() for row in found.rows], "not_compared": left_out}).rstrip()


def as_text(found: Evaluated, *, chosen: bool) -> str:
    """All tables for a terminal, the differences last.

    Args:
        found: of the evaluation.
        chosen: whether the user named the reference.
    """
    retrieval, others = ([row.as_json() for row in found.rows if row.is_retrieval is wanted] for wanted in (True, False))
    parts = [evaluation_text(retrieval, others, flat(found.rows), SHOWN_METRICS)]
    if found.reference is not None and (notes := comparison_notes(found.rows, found.reference, chosen=chosen)):
        table = differences_table(found.rows, found.reference)
        parts += [table.text()] if table.rows else []
        parts.append("\n".join(notes))
    return "\n\n".join(parts)
