"""The rows of one collection compared: each with its interval, with the reference model, and with the step before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.beir.collection import Collection
from lightning_e5.evaluation.beir.retrieval import RetrievalResult
from lightning_e5.evaluation.statistics.paired_test import Difference, bootstrap_interval, paired_test

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
    collection: Collection, results: Mapping[str, RetrievalResult], metric: str, rows: Mapping[str, dict[str, Any]], *,
    reference: str | None, previous: Previous, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Put the 95% intervals and paired differences of one collection into its rows.

    Args:
        collection: that was searched.
        results: model -> what it reached.
        metric: such as ``ndcg@10``.
        rows: model -> its row, which gets ``low`` and ``high``; ``difference``, ``difference_low``, ``difference_high`` and
            ``p_value`` against the reference; and under ``previous`` a list of the same against each of ``previous``.
        reference: the model that all others are compared with.
        previous: see `Previous`.
        seed: of the bootstraps.

    Returns:
        The intervals' ends as flat metrics.
    """
    ids = [(query, number) for number, group in enumerate(collection.query_groups()) for query in group]
    groups = [number for _, number in ids]
    values = {name: [r.per_query[metric][query] for query, _ in ids] for name, r in results.items()}
    metrics: dict[str, float] = {}
    for name, per_query in values.items():
        low, high = bootstrap_interval(per_query, seed=seed, groups=groups)
        metrics |= {f"{name}/{collection.data.name}/{metric}_{end}": value for end, value in (("low", low), ("high", high))}
        rows[name] |= {"low": low, "high": high}
        if reference is not None and name != reference:
            rows[name] |= _columns(paired_test(per_query, values[reference], groups, seed=seed))
        if others := previous.get(name):
            compared = [{"model": o, **_columns(paired_test(per_query, values[o], groups, seed=seed))} for o in others]
            rows[name][COMPARISONS] = compared
    return metrics


def all_differences(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every compared part of a table: its rows, and their comparisons with other models than the reference."""
    return [part for row in table for part in (row, *row.get(COMPARISONS, ()))]


def _columns(difference: Difference) -> dict[str, float]:
    return {
        "difference": difference.mean, "difference_low": difference.low, "difference_high": difference.high, "p_value": difference.p_value,
    }  # fmt: skip
