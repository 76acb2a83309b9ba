"""The benchmark's headline: the mean of nDCG@10 over BEIR's 15 public sets, each counting the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_e5.evaluation.beir.collection import Collection, grouped
from lightning_e5.evaluation.beir.retrieval import RetrievalResult
from lightning_e5.evaluation.beir.sets import BEIR_SETS
from lightning_e5.evaluation.statistics.paired_test import bootstrap_interval, mean_of_groups

#: The average's name among the sets, and its metric.
BEIR15, METRIC = "beir15", "ndcg@10"


@dataclass
class BeirAverage:
    """Collects the sets as they are evaluated; has rows once all 15 were, on the split that the benchmark scores.

    ``values``: set -> model -> per group of queries their values.
    """

    values: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)

    def add(self, collection: Collection, results: Mapping[str, RetrievalResult]) -> None:
        """Take note of a collection, where it was evaluated by the rules of one of the sets."""
        rules = collection.rules
        if rules is None or collection.data.split != rules.split:
            return
        groups = collection.query_groups()
        self.values[rules.name] = {
            model: [np.array(values) for values in grouped(result.per_query[METRIC], groups)] for model, result in results.items()
        }

    @property
    def complete(self) -> bool:
        """Whether all 15 sets were evaluated."""
        return set(self.values) == set(BEIR_SETS)

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """One row per model in the form of the tasks' table; none before all sets were evaluated.

        Args:
            seed: of the interval's bootstrap, which resamples the queries of each set (and forum).

        Source: paper tables 1 and 2 (average over 15 sets).
        """
        if not self.complete:
            return []
        models = list(next(iter(self.values.values())))
        return [self._row(model, seed) for model in models]

    def _row(self, model: str, seed: int) -> dict[str, Any]:
        sets = [self.values[name][model] for name in BEIR_SETS]
        groups = [group for of_set in sets for group in of_set]
        weights = [1 / (len(sets) * len(of_set)) for of_set in sets for _ in of_set]
        of_query = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        low, high = bootstrap_interval(np.concatenate(groups), seed=seed, groups=of_query, weights=weights)
        row = {"model": model, "set": BEIR15, "task": "retrieval", "metric": METRIC, "value": mean_of_groups(groups, weights)}
        facts = {"low": low, "high": high, "items": sum(len(group) for group in groups), "others": {}}
        return {**row, **facts, "sets": {name: mean_of_groups(self.values[name][model]) for name in BEIR_SETS}}


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Flat metrics of the rows: ``<model>/beir15/ndcg@10`` with ``_low`` and ``_high``."""
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {f"{row['model']}/{row['set']}/{row['metric']}{end}": row[key] for row in rows for end, key in ends.items()}
