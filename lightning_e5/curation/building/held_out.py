"""Which pairs are held out to test and to validate on, so that no document and no text is on two sides.

Pairs that share a document, a query or a passage (by the normalised text, whichever side it is on) belong together: the connected
components of that graph go to one side as a whole. Near copies across the sides are found afterwards (`NearTexts`).

How many queries a test needs. Two encoders are compared by the differences of their nDCG@10 per query. Such differences have a
standard deviation of about 0.25 to 0.3 (most queries are answered alike, some jump between rank 1 and none), so the 95 % interval of
their mean is +-1.96 * 0.3 / sqrt(n): 0.03 with 400 queries, 0.06 with 100, 0.08 with 60. What adapting an encoder gains is of the order of
0.03 to 0.13: 400 queries show it, 60 show only the larger gains. More than 400 cost pairs that would teach more than the interval narrows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lightning_e5.curation.cleaning.shingles import NgramIndex, WordHashes
from lightning_e5.rng import generator
from lightning_e5.text import text_id, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Standard deviation of the paired differences of nDCG@10 per query, the larger of what was seen.
SPREAD = 0.3
#: Words of an n-gram, and the share of n-grams in common (Jaccard) from which two texts are near copies.
_NGRAM, NEAR = 3, 0.8


class Pair(Protocol):
    """What is looked at of a pair."""

    @property
    def query(self) -> str: ...
    @property
    def passage(self) -> str: ...
    @property
    def document(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of each side, rising. by: ``document``, or ``text`` where documents are too few or too large to hold some out."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    by: str


def half_width(queries: int) -> float:
    """Half the 95 % interval of a mean difference of nDCG@10 over some queries, as far as it can be told beforehand."""
    return 1.96 * SPREAD / math.sqrt(max(1, queries))


def components(pairs: Sequence[Pair], *, documents: bool) -> NDArray[np.int64]:
    """The number of each pair's component, int64 ``[N]``; without ``documents`` only equal texts connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[tuple[str, object], int] = {}
    rows: list[int] = []
    keys: list[int] = []
    for row, pair in enumerate(pairs):
        own: list[tuple[str, object]] = [("text", text_id(pair.query)), ("text", text_id(pair.passage))]
        own += [("document", pair.document)] if documents and pair.document else []
        rows += [row] * len(own)
        keys += [numbers.setdefault(key, len(numbers)) for key in own]
    count = len(pairs) + len(numbers)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, np.asarray(keys) + len(pairs))), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1][: len(pairs)], dtype=np.int64)


def split_pairs(
    pairs: Sequence[Pair], asks: NDArray[np.bool_], *, test_queries: int, validation_queries: int, test_share: float, validation_share: float, seed: int
) -> Split:
    """Hold out components, drawn by ``seed``, until there are enough queries or the share of the pairs is reached.

    Args:
        pairs: without repeated pairs.
        asks: bool ``[N]``, pairs whose query may be one of a test.
        test_queries, validation_queries: wanted of each; 0 holds out none.
        test_share, validation_share: at most this share of the pairs is held out for each.
        seed: of the draw.
    """
    tried = []
    asked = len({text_id(pairs[row].query) for row in np.flatnonzero(asks).tolist()})
    shares = (test_share, validation_share)
    wanted = [min(count, int(share * asked)) for count, share in zip((test_queries, validation_queries), shares, strict=True)]
    for by in ("document", "text"):
        split = _split(pairs, asks, by, wanted, shares, seed)
        found = [int(asks[rows].sum()) for rows in (split.test, split.validation)]
        if all(2 * there >= want for there, want in zip(found, wanted, strict=True)):
            return split
        tried.append((sum(found), split))
    return max(tried, key=lambda entry: entry[0])[1]


def _split(pairs: Sequence[Pair], asks: NDArray[np.bool_], by: str, counts: Sequence[int], shares: Sequence[float], seed: int) -> Split:
    of_pair = components(pairs, documents=by == "document")
    order = np.argsort(of_pair, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(of_pair[order])) + 1)
    members = [members[row] for row in generator(seed, "held out").permutation(len(members))]
    sides: list[list[NDArray[np.int64]]] = []
    for count, share in zip(counts, shares, strict=True):
        budget, queries, side, left = int(share * len(pairs)), set[int](), [], []
        for rows in members:
            own = {text_id(pairs[row].query) for row in rows[asks[rows]].tolist()}
            if own and len(queries) < count and len(rows) <= budget:
                side.append(rows)
                queries |= own
                budget -= len(rows)
            else:
                left.append(rows)
        members = left
        sides.append(side)
    test, validation, train = (np.sort(np.concatenate([np.empty(0, np.int64), *side])) for side in (*sides, members))
    return Split(train, validation, test, by)


class NearTexts:
    """Texts of which near copies are looked for: equal up to punctuation and case, or with most runs of three words in common.

    The similarity is Jaccard's of the sets of word trigrams, computed exactly; a text of fewer words is one run as a whole.
    """

    def __init__(self, texts: Iterable[str], threshold: float = NEAR) -> None:
        distinct = {text_id(text): text for text in texts}
        found = [own for text in distinct.values() if (own := words(text))]
        self.threshold = threshold
        self._sizes = np.array([len(np.unique(_ngrams(own))) for own in found], dtype=np.int64)
        self._index = NgramIndex.of(enumerate(found), _NGRAM) if found else None

    def holds(self, text: str) -> bool:
        """Whether a text is a near copy of one of them."""
        own = words(text)
        if self._index is None or not own:
            return False
        hashes = np.unique(_ngrams(own))
        _, first, last = self._index.find(hashes)
        if not len(first):
            return False
        owners, shared = np.unique(np.concatenate([self._index.owners[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]), return_counts=True)
        return bool((shared >= self.threshold * (len(hashes) + self._sizes[owners] - shared)).any())


def _ngrams(text_words: Sequence[str]) -> NDArray[np.uint64]:
    return WordHashes(text_words).ngrams(min(_NGRAM, len(text_words)))
