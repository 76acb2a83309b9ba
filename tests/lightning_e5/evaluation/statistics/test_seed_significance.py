"""Intervals over seeds and queries: against formulas, and by simulated tables (A/A, and a planted difference)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_e5.errors import UserError
from lightning_e5.evaluation.statistics.decision import holm
from lightning_e5.evaluation.statistics.seed_significance import SeedTable

BASE = "baseline"


def ablation(draw, variants: int, *, seeds=3, queries=300, seed_noise=0.02, query_noise=0.1, noise=0.5, lift=0.0):
    """nDCG@10 of one judged passage per query, from ranks: variant -> [S, Q].

    The latent score of a query is its difficulty, what the variant makes of it, the seed's shift, and noise.
    """
    difficulty = draw.normal(0, 1.5, queries)
    table = {}
    for v in range(variants):
        own = difficulty + draw.normal(0, query_noise, queries) + (lift if v == 1 else 0)
        shift = np.broadcast_to(seed_noise, variants)[v] * draw.standard_normal((seeds, 1))
        rank = np.maximum(1, np.ceil(np.exp(1.2 - 1.3 * (own + shift + noise * draw.standard_normal((seeds, queries))))))
        table[BASE if v == 0 else f"v{v}"] = np.where(rank <= 10, 1 / np.log2(1 + rank), 0)
    return table


def claims(table) -> dict[str, bool]:
    found = SeedTable(table)
    names = [name for name in table if name != BASE]
    adjusted = holm([found.difference(name, BASE).p_value for name in names])
    return {name: p is not None and p <= 0.05 for name, p in zip(names, adjusted, strict=True)}


@pytest.mark.parametrize(
    "settings",
    [
        {"variants": 5},
        {"variants": 2, "seed_noise": 0.05},
        {"variants": 9, "queries": 50},
        {"variants": 5, "seed_noise": 0.0, "query_noise": 0.0},
        {"variants": 5, "seeds": 2},
        {"variants": 5, "seeds": 1, "seed_noise": 0.0},
        {"variants": 5, "queries": 1000, "query_noise": 0.3},
        {"variants": 5, "seed_noise": np.array([0.02, 0.02, 0.02, 0.02, 0.08])},  # one variant is unsteady
    ],
)
def test_equal_variants_are_told_apart_in_five_percent_of_tables_at_most(settings):
    draw = np.random.default_rng(0)
    claimed = sum(any(claims(ablation(draw, **settings)).values()) for _ in range(200))
    assert claimed / 200 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_queries_alone_would_claim_differences_that_only_the_seed_made():
    draw = np.random.default_rng(1)
    claimed = 0
    for _ in range(100):
        table = ablation(draw, 5, seed_noise=0.05, queries=1000)
        alone = {name: values.mean(0, keepdims=True) for name, values in table.items()}  # seeds averaged away
        claimed += any(claims(alone).values())
    assert claimed > 30


def test_two_points_of_ndcg_are_found():
    draw = np.random.default_rng(2)
    found, deviations, lifts = [], [], []
    for _ in range(100):
        table = ablation(draw, 5, queries=1000, seed_noise=0.01, noise=0.25, lift=0.09)
        found.append(claims(table))
        deviations.append(np.mean([v.mean(1).std(ddof=1) for v in table.values()]))
        lifts.append(table["v1"].mean() - table[BASE].mean())
    assert np.mean(lifts) == pytest.approx(0.02, abs=0.002)
    assert 0.002 < np.mean(deviations) < 0.005  # of a seed's mean nDCG, as of small encoders
    assert np.mean([f["v1"] for f in found]) >= 0.9
    assert np.mean([f["v2"] for f in found]) <= 0.05


def test_the_interval_covers_the_true_difference():
    draw = np.random.default_rng(3)
    truth = np.mean([np.subtract(*(t["v1"].mean(), t[BASE].mean())) for t in (ablation(draw, 2, queries=20000, lift=0.3) for _ in range(20))])
    hits = 0
    for _ in range(200):
        found = SeedTable(ablation(draw, 2, lift=0.3)).difference("v1", BASE)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_without_values_per_query_it_is_the_pooled_t_test():
    a, b, c = [0.5, 0.52, 0.55], [0.41, 0.44, 0.4], [0.3, 0.35, 0.31]
    found = SeedTable({"a": a, "b": b}).difference("a", "b")
    expected = stats.ttest_ind(a, b)
    assert found.p_value == pytest.approx(expected.pvalue) and found.degrees == pytest.approx(4)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval())
    assert found.seed_noise and not found.query_noise
    assert SeedTable({"a": a, "b": b, "c": c}).difference("a", "b").degrees == pytest.approx(6)


def test_one_seed_is_the_paired_t_test_over_queries():
    draw = np.random.default_rng(4)
    a, b = draw.random(40), draw.random(40)
    found = SeedTable({"a": [a], "b": [b]}).difference("a", "b")
    assert found.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue) and found.degrees == pytest.approx(39)
    assert found.query_noise and not found.seed_noise


def test_seeds_that_share_one_result_are_one_measurement():
    draw = np.random.default_rng(5)
    a, b = draw.random(40), draw.random(40)
    once = SeedTable({"a": [a], "b": [b]}).difference("a", "b")
    assert SeedTable({"a": [a] * 3, "b": [b] * 3}).difference("a", "b") == once
    nothing = SeedTable({"a": [0.9] * 3, "b": [0.8] * 3}).difference("a", "b")  # such as a filter's precision
    assert (nothing.low, nothing.p_value) == (None, None) and nothing.mean == pytest.approx(0.1)
    assert SeedTable({"a": [0.5], "b": [0.4]}).mean("a").low is None


def test_an_unsteady_variant_does_not_blur_the_steady_ones():
    draw = np.random.default_rng(6)
    table = ablation(draw, 6, queries=2000, seed_noise=np.array([0.01] * 5 + [0.5]))
    steady = {name: v for name, v in table.items() if name != "v5"}
    with_it, without = (SeedTable(t).difference("v5" if "v5" in t else "v4", BASE) for t in (table, steady))
    assert with_it.high - with_it.low > 3 * (without.high - without.low)


def test_equal_values_show_no_difference():
    values = np.random.default_rng(7).random((3, 20))
    found = SeedTable({"a": values, "b": values}).difference("a", "b")
    assert found.mean == 0 and found.p_value == 1 and found.low < 0 < found.high


def test_errors():
    with pytest.raises(UserError, match="different queries"):
        SeedTable({"a": np.ones((2, 3)), "b": np.ones((2, 4))})
    with pytest.raises(UserError, match="a: needs finite values"):
        SeedTable({"a": [float("nan")]})
    with pytest.raises(UserError, match="confidence"):
        SeedTable({"a": [1.0]}, confidence=2)
