"""The benchmark's headline: the mean of nDCG@10 over BEIR's 15 public sets, each counting the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_e5.evaluation.beir.sets import BEIR_SETS
from lightning_e5.evaluation.statistics.paired_test import bootstrap_interval, mean_of_groups, stacked
from lightning_e5.result_row import MAIN_METRIC, RETRIEVAL, ResultRow

#: The average's name among the sets.
BEIR15 = "beir15"


def beir_averages(values: Mapping[str, Mapping[str, Sequence[NDArray[np.float64]]]], seed: int) -> list[ResultRow]:
    """One row per model; none where one of the 15 sets is missing.

    Args:
        values: set -> model -> nDCG@10 per query, in groups (of forums).
        seed: of the interval's bootstrap, which resamples the queries of each set (and forum).

    Source: paper tables 1 and 2 (average over 15 sets).
    """
    if set(values) != set(BEIR_SETS):
        return []
    rows = []
    for model in next(iter(values.values())):
        sets = [values[name][model] for name in BEIR_SETS]
        groups = [group for of_set in sets for group in of_set]
        weights = [1 / (len(sets) * len(of_set)) for of_set in sets for _ in of_set]
        per_query, of_query = stacked(groups)
        low, high = bootstrap_interval(per_query, seed=seed, groups=of_query, weights=weights)
        means = {name: mean_of_groups(values[name][model]) for name in BEIR_SETS}
        count = sum(len(group) for group in groups)
        rows.append(ResultRow(model, BEIR15, RETRIEVAL, MAIN_METRIC, mean_of_groups(groups, weights), low, high, count, sets=means))
    return rows
