"""What ``evaluate`` found, on one page that needs nothing else: differences first, then all figures and how they were made."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_e5.report.figures.evaluation import model_differences
from lightning_e5.report.html import Paragraph, Part, Picture, Section, page
from lightning_e5.report.tables.evaluation import (
    contamination_table,
    retrieval_notes,
    retrieval_table,
    task_table,
    validity_table,
)
from lightning_e5.report.tables.model_differences import comparison_notes, differences_table
from lightning_e5.result_row import ResultRow, flat


def evaluation_page(rows: Sequence[ResultRow], reference: str | None, metrics: Sequence[str], *, chosen: bool = True) -> str:
    """The page as HTML.

    Args:
        rows: of the evaluation.
        reference: the model that the others were compared with; None where there is one model.
        metrics: of retrieval, those shown; the first one's interval is.
        chosen: whether the user named the reference.
    """
    models, sets = (list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("model", "collection"))
    retrieval, others = ([row.as_json() for row in rows if row.is_retrieval is wanted] for wanted in (True, False))
    body: list[Part] = [Paragraph(f"{', '.join(models)} on {', '.join(sets)}", "lead")]
    if reference is not None and (notes := comparison_notes(rows, reference, chosen=chosen)):
        table = differences_table(rows, reference)
        picture = Picture(model_differences(rows, reference), f"Each model's difference to {reference} with its 95% interval")
        shown: list[Part] = [table, picture] if table.rows else []
        body.append(Section(f"Differences to {reference}", [*shown, *(Paragraph(note, "note") for note in notes)]))
    if retrieval:
        notes = retrieval_notes(retrieval, metrics[0])
        body.append(Section("Retrieval", [retrieval_table(retrieval, flat(rows), metrics), *(Paragraph(note, "note") for note in notes)]))
    if others:
        body.append(Section("Other tasks", [task_table(others)]))
    body.append(Section("How the figures were made", [validity_table([*retrieval, *others])]))
    if (seen := contamination_table([*retrieval, *others], flat(rows))).rows:
        body.append(Section("What the models have seen", [seen]))
    return page("Evaluation", body)
