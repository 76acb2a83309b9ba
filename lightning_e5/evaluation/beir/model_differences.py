"""The rows of one collection compared: each with its interval, with the reference model, and with the step before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.statistics.answers import Answers
from lightning_e5.evaluation.statistics.paired_test import Difference

#: model -> the models that it is compared with beside the reference, the step before it first.
Previous = Mapping[str, Sequence[str]]
#: Key of a row that holds its comparisons with other models than the reference, each with ``model``.
COMPARISONS = "previous"


def checked_previous(given: Mapping[str, str | Sequence[str]] | None, models: Sequence[str]) -> Previous:
    """``given`` with lists alone; UserError for a model that is not evaluated, or compared with itself."""
    chosen = {model: [others] if isinstance(others, str) else list(others) for model, others in (given or {}).items()}
    for model, others in chosen.items():
        for name in (model, *others):
            if name not in models:
                raise UserError(f"evaluate.previous: {name!r} is not one of the models{suggestion(name, models)}")
        if model in others or len({*others}) < len(others):
            raise UserError(f"evaluate.previous: {model!r} is compared with itself or twice with one model: {', '.join(others)}")
    return chosen


def compare_models(
    answers: Mapping[str, Answers], *, reference: str | None, previous: Previous, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """The paired differences between models on one collection or set.

    Args:
        answers: model -> what it answered; a model that is not here (BM25, which cannot embed) is compared with none.
        reference: the model that all others are compared with.
        previous: see `Previous`.
        seed: of the bootstraps.

    Returns:
        Model -> its comparisons with ``model`` (empty for the reference), ``difference``, ``difference_low``,
        ``difference_high`` and ``p_value``.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, own in answers.items():
        others = [("", reference)] if reference is not None and name != reference else []
        others += [(other, other) for other in previous.get(name, ())]
        found[name] = [{"model": shown, **_columns(own.minus(answers[other], seed=seed))} for shown, other in others if other in answers]
    return found


def all_differences(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every compared part of a table: its rows, and their comparisons with other models than the reference."""
    return [part for row in table for part in (row, *row.get(COMPARISONS, ()))]


def _columns(difference: Difference) -> dict[str, float]:
    return {
        "difference": difference.mean, "difference_low": difference.low, "difference_high": difference.high, "p_value": difference.p_value,
    }  # fmt: skip
