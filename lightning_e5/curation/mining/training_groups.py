"""From examples as sources give them to training groups: a query, one positive and hard negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from lightning_e5.text import text_id
from lightning_e5.types import RankedExample, TrainingGroup

#: ``first``: the first positive of each example; ``each``: a group per positive.
Positives = Literal["first", "each"]


def training_groups(example: RankedExample, positives: Positives, counts: Counter[str]) -> Iterator[TrainingGroup]:
    """The groups of an example.

    A negative that reads as one of the positives is left out, and so is a second copy of a negative, each with its score.

    Args:
        example: with at least one positive.
        positives: which of them make a group.
        counts: what was left out is added.
    """
    known = {text_id(p) for p in example.positives}
    seen = set(known)
    kept: list[int] = []
    for place, negative in enumerate(example.negatives):
        identity = text_id(negative)
        if identity in seen:
            counts["negatives_equal_to_a_positive" if identity in known else "repeated_negatives"] += 1
            continue
        seen.add(identity)
        kept.append(place)
    scores = example.teacher_scores
    for place, positive in enumerate(example.positives[:1] if positives == "first" else example.positives):
        own = None if scores is None else (scores[place], *(scores[len(example.positives) + k] for k in kept))
        negatives = tuple(example.negatives[k] for k in kept)
        yield TrainingGroup(example.query, positive, negatives, own, example.source, example.passage_kind)
