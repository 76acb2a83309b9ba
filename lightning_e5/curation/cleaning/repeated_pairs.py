"""Own pairs without repeats: query equal to passage, equal pairs, and near copies, each counted with its first place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_modules.own.own_pair import OwnPair
from lightning_e5.curation.cleaning.duplicates import NearDuplicates, pair_id
from lightning_e5.progress import progress
from lightning_e5.text import text_id, words
from lightning_e5.types import ReadReport


def without_repeats(pairs: Sequence[OwnPair], near: NearDuplicates | None, report: ReadReport) -> list[OwnPair]:
    """The pairs that say something new, in their order.

    Args:
        pairs: as they were read.
        near: finds near copies; None keeps them.
        report: counts what is left out as ``skipped``.
    """
    seen: set[int] = set()
    distinct = []
    for pair in pairs:
        identity = pair_id(pair.query, pair.passage)
        if text_id(pair.query) == text_id(pair.passage):
            report.skip(pair.id, "query is passage")
        elif identity in seen:
            report.skip(pair.id, "pair that was there before")
        else:
            seen.add(identity)
            distinct.append(pair)
    return distinct if near is None else _without_near_copies(distinct, near, report)


def _without_near_copies(pairs: Sequence[OwnPair], near: NearDuplicates, report: ReadReport) -> list[OwnPair]:
    # Near copies of pairs have the same words in their queries, so that a query that is there once needs no signature.
    queries = [" ".join(words(pair.query)) if near.field == "pair" else "" for pair in pairs]
    repeated = Counter(queries)
    rows = [row for row, query in enumerate(queries) if repeated[query] > 1]
    copies: set[int] = set()
    if rows:
        signatures = []
        with progress(len(rows), "look for near copies", "pair") as bar:
            for row in rows:
                signatures.append(near.signature(pairs[row].query, pairs[row].passage))
                bar(1)
        copies = {row for row, copy_of in zip(rows, near.copies(signatures).tolist(), strict=True) if copy_of >= 0}
    for row in sorted(copies):
        report.skip(pairs[row].id, "near copy of a pair that was there before")
    return [pair for row, pair in enumerate(pairs) if row not in copies]
