"""Known noise: a share of the pairs get another pair's passage, so that a filter can be judged by what it removes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.text import text_id
from lightning_e5.types import TextPair


@dataclass(frozen=True, slots=True)
class Planting:
    """The pairs in their old order, and which of them now hold another pair's passage."""

    pairs: list[TextPair]
    planted: list[bool]


def plant_mismatches(pairs: Sequence[TextPair], share: float, seed: int) -> Planting:
    """Exchange the passages of ``share`` of all pairs among each other, within the same source.

    The passages stay the same ones, each as often as before, so a mismatch shows in nothing but its meaning. No query
    gets a passage that is (after normalisation) its own or that of another pair with the same query. Every source
    gives its share; a source in which no exchange is possible leaves its part to the largest ones. Where even they
    cannot give it (all passages equal), fewer are planted: ``planted`` tells.

    Args:
        pairs: the raw pool.
        share: share of all pairs to plant, 0 to 1.
        seed: the draw's seed; equal seeds give equal pools.

    Raises:
        UserError: ``share`` is outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"planted_mismatches={share} must be between 0 and 1")
    generator = np.random.default_rng(seed)
    query_ids = [text_id(pair.query) for pair in pairs]
    passage_ids = [text_id(pair.passage) for pair in pairs]
    true_passages: dict[int, set[int]] = {}
    for query, passage in zip(query_ids, passage_ids, strict=True):
        true_passages.setdefault(query, set()).add(passage)
    rows_of: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs):
        rows_of.setdefault(pair.source, []).append(row)

    result = list(pairs)
    planted = [False] * len(pairs)
    for source, quota in sorted(_quotas({s: len(rows) for s, rows in rows_of.items()}, share).items()):
        chosen = generator.choice(np.asarray(rows_of[source]), size=quota, replace=False).tolist()
        for row, giver in _exchange(chosen, query_ids, passage_ids, true_passages, generator):
            # The kind goes with the passage: it says how the passage is to be encoded.
            result[row] = replace(pairs[row], passage=pairs[giver].passage, passage_kind=pairs[giver].passage_kind)
            planted[row] = True
    return Planting(result, planted)


def _quotas(sizes: dict[str, int], share: float) -> dict[str, int]:
    """How many pairs of each source to plant: proportional, never 1 (nothing to exchange with), the right sum."""
    total = round(share * sum(sizes.values()))
    by_size = sorted(sizes, key=lambda source: (-sizes[source], source))
    quotas = {source: int(share * size) for source, size in sizes.items()}
    quotas = {source: 0 if quota == 1 else quota for source, quota in quotas.items()}
    for source in by_size:
        missing = total - sum(quotas.values())
        more = min(missing, sizes[source] - quotas[source])
        if more > 0 and quotas[source] + more > 1:
            quotas[source] += more
    return quotas


def _exchange(
    rows: list[int],
    query_ids: list[int],
    passage_ids: list[int],
    true_passages: dict[int, set[int]],
    generator: np.random.Generator,
) -> list[tuple[int, int]]:
    """(row, row that gives its passage) for as many of ``rows`` as can be had without giving a query a true passage."""
    if len(rows) < 2:
        return []
    # Rows with equal passages stand together and every row takes from as many places on as the largest such group
    # has members: so nobody gets its own passage back, if that can be avoided at all.
    group_sizes = Counter(passage_ids[row] for row in rows)
    ranks = dict(zip(sorted(group_sizes), generator.permutation(len(group_sizes)).tolist(), strict=True))
    takers = sorted(rows, key=lambda row: (ranks[passage_ids[row]], row))
    shift = max(group_sizes.values()) % len(takers)
    givers = takers[shift:] + takers[:shift]

    def is_wrong(taker: int, giver: int) -> bool:
        return passage_ids[giver] in true_passages[query_ids[taker]]

    for i, taker in enumerate(takers):
        if not is_wrong(taker, givers[i]):
            continue
        start = int(generator.integers(len(takers)))
        for step in range(len(takers)):  # another pair of the source that can swap what it was given
            j = (start + step) % len(takers)
            if not is_wrong(taker, givers[j]) and not is_wrong(takers[j], givers[i]):
                givers[i], givers[j] = givers[j], givers[i]
                break
    return [(taker, giver) for taker, giver in zip(takers, givers, strict=True) if not is_wrong(taker, giver)]
