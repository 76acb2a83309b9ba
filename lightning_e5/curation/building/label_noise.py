"""Injected label noise: a share of the pairs get another pair's passage, so that a filter can be measured by what it removes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.text import text_id
from lightning_e5.types import TextPair


@dataclass(frozen=True, slots=True)
class NoisyPairs:
    """The pairs in their old order, and which of them now hold another pair's passage."""

    pairs: list[TextPair]
    planted: list[bool]


def inject_label_noise(pairs: Sequence[TextPair], share: float, seed: int) -> NoisyPairs:
    """Exchange the passages of ``share`` of all pairs among each other, within the same source.

    The passages stay the same ones, each as often as before, so the noise shows in nothing but its meaning. No query
    gets a passage that is (after normalisation) its own or that of another pair with the same query. Every source
    gives its share; a source in which no exchange is possible leaves its part to the largest ones. Where even they
    cannot give it (all passages equal), fewer are exchanged: ``planted`` tells.

    Args:
        pairs: the raw pool.
        share: share of all pairs to exchange, 0 to 1.
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
        for target, source_row in _exchange(chosen, query_ids, passage_ids, true_passages, generator):
            # The kind goes with the passage: it says how the passage is to be encoded.
            taken = pairs[source_row]
            result[target] = replace(pairs[target], passage=taken.passage, passage_kind=taken.passage_kind)
            planted[target] = True
    return NoisyPairs(result, planted)


def _quotas(sizes: dict[str, int], share: float) -> dict[str, int]:
    """How many pairs of each source to exchange: proportional, never 1 (nothing to exchange with), the right sum."""
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
    """(target row, source row of its passage) for as many of ``rows`` as can be had without giving a query a true passage."""
    if len(rows) < 2:
        return []
    # Rows with equal passages stand together and every row takes from as many places on as the largest such group
    # has members: so nobody gets its own passage back, if that can be avoided at all.
    group_sizes = Counter(passage_ids[row] for row in rows)
    ranks = dict(zip(sorted(group_sizes), generator.permutation(len(group_sizes)).tolist(), strict=True))
    targets = sorted(rows, key=lambda row: (ranks[passage_ids[row]], row))
    shift = max(group_sizes.values()) % len(targets)
    sources = targets[shift:] + targets[:shift]

    def is_wrong(target: int, source: int) -> bool:
        return passage_ids[source] in true_passages[query_ids[target]]

    for i, target in enumerate(targets):
        if not is_wrong(target, sources[i]):
            continue
        start = int(generator.integers(len(targets)))
        for step in range(len(targets)):  # another pair of the source that can swap what it was given
            j = (start + step) % len(targets)
            if not is_wrong(target, sources[j]) and not is_wrong(targets[j], sources[i]):
                sources[i], sources[j] = sources[j], sources[i]
                break
    return [(target, source) for target, source in zip(targets, sources, strict=True) if not is_wrong(target, source)]
