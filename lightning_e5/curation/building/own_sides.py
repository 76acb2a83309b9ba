"""Own pairs as the three sides of an experiment: training pairs, a test and a validation collection that share nothing with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_modules.own.beir_folder import Collection
from data_modules.own.own_pair import JUDGED, PAIRS, OwnPair
from lightning_e5.curation.building.held_out import NearTexts, split_pairs
from lightning_e5.curation.building.own_collection import collection_of_pairs
from lightning_e5.errors import UserError
from lightning_e5.progress import progress
from lightning_e5.rng import generator
from lightning_e5.text import text_id
from lightning_e5.types import ReadReport

#: Queries that people asked are a better test than headings; with fewer of them the headings ask, too.
ENOUGH_ASKED = 50
#: Fewer queries tell nothing.
FEWEST_TEST_QUERIES = 5


@dataclass(frozen=True, slots=True)
class HeldOutSizes:
    """How much is held out: queries and share of the pairs at most, and passages that a collection is filled up to."""

    test_queries: int
    test_share: float
    test_passages: int
    validation_queries: int
    validation_share: float
    validation_passages: int


@dataclass(frozen=True, slots=True)
class OwnSides:
    """train: the pairs to train on. by: what was held out, ``document`` or ``text``; empty where both collections are the user's."""

    train: list[OwnPair]
    test: Collection
    validation: Collection | None
    by: str


def make_sides(
    pairs: Sequence[OwnPair],
    sizes: HeldOutSizes,
    report: ReadReport,
    *,
    seed: int,
    test: Collection | None = None,
    validation: Collection | None = None,
    whole: Mapping[str, str] | None = None,
) -> OwnSides:
    """Split own pairs; what is left out on the way is counted.

    Args:
        pairs: without repeats.
        sizes: see `HeldOutSizes`.
        report: counts pairs that are left out because they come near a text of another side.
        seed: of every draw.
        test, validation: the user's own; pairs with their queries are left out, their passages may be trained on.
        whole: see `collection_of_pairs`.

    Raises:
        UserError: too few pairs to test on or to train on.
    """
    own = {text for found in (test, validation) if found is not None for text in found.queries.values()}
    left = _without_near(pairs, NearTexts(own), report, "query of the test", passages=False) if own else list(pairs)
    asks_N = asking(left)
    split = split_pairs(
        left, asks_N, seed=seed,
        test_queries=0 if test else sizes.test_queries, test_share=sizes.test_share,
        validation_queries=0 if validation else sizes.validation_queries, validation_share=sizes.validation_share,
    )  # fmt: skip
    of_test = _rows(left, split.test)
    of_validation = _without_near(_rows(left, split.validation), _texts_of(of_test), report, "near copy of a test text")
    train = _without_near(_rows(left, split.train), _texts_of([*of_test, *of_validation]), report, "near copy of a test or validation text")
    asked = {id(left[row]) for row in np.flatnonzero(asks_N).tolist()}
    if test is None:
        test = collection_of_pairs(
            of_test, [p for p in of_test if id(p) in asked], train, most_queries=sizes.test_queries, most_passages=sizes.test_passages, seed=seed, whole=whole
        )
    if validation is None and of_validation:
        validation = collection_of_pairs(
            of_validation, [p for p in of_validation if id(p) in asked], train,
            most_queries=sizes.validation_queries, most_passages=sizes.validation_passages, seed=seed, whole=whole,
        )  # fmt: skip
    if len(test.queries) < FEWEST_TEST_QUERIES:
        raise UserError(
            f"own texts: {len(pairs):,} pairs leave {len(test.queries)} queries to test on, where at least {FEWEST_TEST_QUERIES} are needed; "
            "give more texts, a larger test_share, or your own queries by test (--test)"
        )
    if len(train) < 2:
        raise UserError(f"own texts: of {len(pairs):,} pairs {len(train)} are left to train on; at least 2 are needed")
    return OwnSides(train, test, validation if validation and validation.queries else None, split.by if of_test or of_validation else "")


def asking(pairs: Sequence[OwnPair]) -> NDArray[np.bool_]:
    """Which pairs' queries may be those of a test, bool ``[N]``: what people asked, or all where that is too few."""
    asked_N = np.array([pair.source in (PAIRS, JUDGED) for pair in pairs], dtype=bool)
    enough = len({text_id(pairs[row].query) for row in np.flatnonzero(asked_N).tolist()}) >= ENOUGH_ASKED
    return asked_N if enough else np.ones(len(pairs), dtype=bool)


def collection_of_tables(own: Sequence[OwnPair], others: Sequence[OwnPair], most_passages: int, seed: int) -> Collection:
    """A user's own test that comes as pairs, searched among the passages of the other own texts, too.

    Passages that nearly read as an answer are left out of the others: nobody has judged them.
    """
    answers = NearTexts(pair.passage for pair in own)
    further = [pair for pair in others if not answers.holds(pair.passage)]
    return collection_of_pairs(own, own, further, most_queries=len(own), most_passages=most_passages, seed=seed)


def draw_pairs(pairs: list[OwnPair], most: int | None, seed: int) -> list[OwnPair]:
    """At most ``most`` of the pairs, in their order."""
    if most is None or most >= len(pairs):
        return pairs
    rows = generator(seed, "max_pairs").choice(len(pairs), size=most, replace=False)
    return [pairs[row] for row in sorted(rows.tolist())]


def _rows(pairs: Sequence[OwnPair], rows: NDArray[np.int64]) -> list[OwnPair]:
    return [pairs[row] for row in rows.tolist()]


def _texts_of(pairs: Sequence[OwnPair]) -> NearTexts:
    return NearTexts(text for pair in pairs for text in (pair.query, pair.passage))


def _without_near(pairs: Sequence[OwnPair], near: NearTexts, report: ReadReport, reason: str, *, passages: bool = True) -> list[OwnPair]:
    """The pairs whose texts are no near copies; the others are counted."""

    def kept() -> Iterator[OwnPair]:
        with progress(len(pairs), "compare with the test", "pair") as bar:
            for pair in pairs:
                bar(1)
                if near.holds(pair.query) or (passages and near.holds(pair.passage)):
                    report.skip(pair.id, reason)
                else:
                    yield pair

    return list(kept())
