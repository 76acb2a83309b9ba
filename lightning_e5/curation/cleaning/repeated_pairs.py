"""Own pairs without repeats: query equal to passage, equal pairs, and near copies, each counted with its first place."""

from __future__ import annotations

from collections.abc import Sequence

from data_modules.own.own_pair import OwnPair
from lightning_e5.curation.cleaning.duplicates import NearDuplicates, pair_id
from lightning_e5.progress import progress
from lightning_e5.text import text_id
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
    if near is None or not distinct:
        return distinct
    signatures = []
    with progress(len(distinct), "look for near copies", "pair") as bar:
        for pair in distinct:
            signatures.append(near.signature(pair.query, pair.passage))
            bar(1)
    kept = []
    for pair, copy_of in zip(distinct, near.copies(signatures).tolist(), strict=True):
        if copy_of < 0:
            kept.append(pair)
        else:
            report.skip(pair.id, "near copy of a pair that was there before")
    return kept
