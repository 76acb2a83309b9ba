"""Tables of equal models claim a difference in one of 20 at most, and a true one of 2 points is found with enough queries.

Per-query values are drawn as nDCG@10 is on sets with one relevant document per query: 30% of the queries are missed (0), 40%
have it first (1), the others at ranks 2 to 10. Runs of one configuration with other seeds agree on 65% of the queries; the
paired differences then have a standard deviation of 0.36.
"""

from __future__ import annotations

import numpy as np
import pytest

from lightning_e5.evaluation.statistics.decision import NO_DIFFERENCE, decide_together
from lightning_e5.evaluation.statistics.paired_test import paired_test

MODELS, SETS = 6, 3
GAINS = np.concatenate([[0.0], 1 / np.log2(np.arange(1, 11) + 1)])
SHARES = np.array([0.3, 0.4, *[0.3 / 9] * 9])


def runs_of_one_configuration(draw, models, queries):
    """``[models, queries]``: every run keeps the values that all share for 65% of the queries and draws the others anew."""
    shared = draw.choice(GAINS, p=SHARES, size=queries)
    own = draw.choice(GAINS, p=SHARES, size=(models, queries))
    return np.where(draw.random((models, queries)) < 0.65 ** 0.5, shared, own)


def table_rows(differences_MQ, samples=2000, flips=10_000, seed=0):
    """What `paired_test` says of every row of differences, with the draws that it makes, by products of matrices."""
    size = differences_MQ.shape[1]
    rng, means = np.random.default_rng(seed), []
    for start in range(0, samples, 250):
        drawn = rng.integers(size, size=(min(250, samples - start), size))
        counts = np.stack([np.bincount(one, minlength=size) for one in drawn])
        means.append(counts.astype(float) @ differences_MQ.T / size)
    low_M, high_M = np.quantile(np.concatenate(means), [0.025, 0.975], axis=0)
    rng, extreme_M = np.random.default_rng(seed), np.zeros(len(differences_MQ))
    observed_M = np.abs(differences_MQ.sum(1)) - 1e-12 * np.abs(differences_MQ).sum(1)
    for start in range(0, flips, 500):
        signs = 1.0 - 2.0 * rng.integers(2, size=(min(500, flips - start), size))
        extreme_M += (np.abs(signs @ differences_MQ.T) >= observed_M).sum(0)
    p_M = (extreme_M + 1) / (flips + 1)
    return [
        {"difference": float(d), "difference_low": float(low), "difference_high": float(high), "p_value": float(p)}
        for d, low, high, p in zip(differences_MQ.mean(1), low_M, high_M, p_M, strict=True)
    ]


def test_the_fast_form_says_what_the_evaluation_says():
    values = runs_of_one_configuration(np.random.default_rng(0), 9, 300)
    for row, a in zip(table_rows(values[1:] - values[0], seed=3), values[1:], strict=True):
        found = paired_test(a, values[0], seed=3)
        assert (row["difference"], row["difference_low"], row["difference_high"]) == pytest.approx((found.mean, found.low, found.high), abs=1e-12)
        assert row["p_value"] == found.p_value


def claims(rows):
    """Rows of one table, models by sets: which claim a difference."""
    decide_together(rows)
    return np.array([row["verdict"] != NO_DIFFERENCE for row in rows])


def test_tables_of_equal_models_claim_a_difference_in_one_of_twenty_at_most():
    """200 tables of 6 models on 3 sets of 300 queries, 5 of the models against the sixth."""
    draw = np.random.default_rng(1)
    tables = 200
    groups = [runs_of_one_configuration(draw, MODELS, 300) for _ in range(tables * SETS)]
    rows = table_rows(np.concatenate([values[1:] - values[0] for values in groups]))
    size = SETS * (MODELS - 1)
    each = [rows[start : start + size] for start in range(0, len(rows), size)]
    without = np.mean([any(r["p_value"] <= 0.05 for r in table) for table in each])
    claimed = np.mean([claims(table).any() for table in each])
    assert claimed <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / tables), claimed
    assert without > 0.2  # what Holm is for: row by row, a quarter or more of these tables would claim one


def test_two_points_are_found_with_8000_queries_and_not_with_300():
    """One of 15 comparisons truly differs by 0.02. With a standard deviation of 0.36 and Holm over 15 rows a power of 0.9
    needs about 6,000 queries (3,500 where it is the only comparison); with 300 such a difference is mostly not seen."""
    found, wrong = {}, {}
    for queries, tables in ((8000, 30), (300, 100)):
        draw = np.random.default_rng(2)
        differences = []
        for _ in range(tables):
            sets = [runs_of_one_configuration(draw, MODELS, queries) for _ in range(SETS)]
            better = sets[0][1]
            better[(better == 0) & (draw.random(queries) < 0.02 / 0.3)] = 1.0  # of the missed ones some come first
            differences += [values[1:] - values[0] for values in sets]
        rows = table_rows(np.concatenate(differences), samples=1000, flips=4000)
        size = SETS * (MODELS - 1)
        claimed = np.array([claims(rows[start : start + size]) for start in range(0, len(rows), size)])
        found[queries], wrong[queries] = claimed[:, 0].mean(), claimed[:, 1:].any(1).mean()
    assert found[8000] > 0.9 and found[300] < 0.3, found
    assert max(wrong.values()) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 30), wrong
