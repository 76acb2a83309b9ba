"""The benchmarks' headlines: the mean of nDCG@10 over BEIR's 15 public sets, and over NanoBEIR's 13, each set counting the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_e5.evaluation.beir.sets import BEIR_SETS, NANO_SETS
from lightning_e5.evaluation.statistics.paired_test import bootstrap_interval, mean_of_groups, stacked
from lightning_e5.result_row import MAIN_METRIC, RETRIEVAL, ResultRow

#: The averages' names among the sets.
BEIR15 = "beir15"
NANO_BEIR = "nano-beir"
#: Average -> the sets that it is over, all of which must be there.
AVERAGES = {BEIR15: tuple(BEIR_SETS), NANO_BEIR: tuple(NANO_SETS)}


def beir_averages(values: Mapping[str, Mapping[str, Sequence[NDArray[np.float64]]]], seed: int) -> list[ResultRow]:
    """One row per model and benchmark; none of a benchmark of which a set is missing.

    Args:
        values: set -> model -> nDCG@10 per query, in groups (of forums).
        seed: of the interval's bootstrap, which resamples the queries of each set (and forum).

    Source: paper tables 1 and 2 (average over 15 sets); NanoBEIR (average over 13 sets).
    """
    whole = {average: names for average, names in AVERAGES.items() if all(name in values for name in names)}
    return [_average(average, {name: values[name][model] for name in names}, model, seed) for average, names in whole.items() for model in values[names[0]]]


def _average(average: str, values: Mapping[str, Sequence[NDArray[np.float64]]], model: str, seed: int) -> ResultRow:
    """The row of one model; ``values``: set -> nDCG@10 per query, in groups."""
    groups = [group for of_set in values.values() for group in of_set]
    weights = [1 / (len(values) * len(of_set)) for of_set in values.values() for _ in of_set]
    per_query, of_query = stacked(groups)
    low, high = bootstrap_interval(per_query, seed=seed, groups=of_query, weights=weights)
    means = {name: mean_of_groups(of_set) for name, of_set in values.items()}
    count = sum(len(group) for group in groups)
    return ResultRow(model, average, RETRIEVAL, MAIN_METRIC, mean_of_groups(groups, weights), low, high, count, sets=means)
