"""Training pairs that hold an evaluation text are dropped, by exact match of the normalised text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_e5.text import text_id
from lightning_e5.types import TextPair


@dataclass(frozen=True, slots=True)
class Decontamination:
    """What `decontaminate` kept, and how many pairs it dropped by which text (both: counted under the query)."""

    kept: list[TextPair]
    dropped_by_query: int
    dropped_by_passage: int


def decontaminate(pairs: Iterable[TextPair], evaluation_texts: Iterable[str]) -> Decontamination:
    """Drop the pairs whose query or passage is one of the evaluation texts, whichever side it has there.

    Args:
        pairs: training pairs.
        evaluation_texts: queries and passages of every evaluation set.

    Returns:
        The kept pairs in their order, with counts.

    Source: paper appendix A ("we remove text pairs that occur in the evaluation datasets based on exact string
    match"); here the match is made after `normalise_text`, so that case and white space do not hide a copy.
    """
    evaluation = {text_id(text) for text in evaluation_texts}
    kept: list[TextPair] = []
    by_query = by_passage = 0
    for pair in pairs:
        if text_id(pair.query) in evaluation:
            by_query += 1
        elif text_id(pair.passage) in evaluation:
            by_passage += 1
        else:
            kept.append(pair)
    return Decontamination(kept, by_query, by_passage)
