"""Hashed runs of a text's words (n-grams) and an index of them: for near copies and for overlap with evaluation texts."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 1 << 64)
_THREE = np.uint64(3)


class WordHashes:
    """A text's words as 64-bit hashes, from which the hashes of all its n-grams follow for any n.

    Equal runs of words have equal hashes in every text and process. Two different runs have one hash with a chance of
    2**-64, for runs of less than a thousand words.
    """

    def __init__(self, text_words: Sequence[str]) -> None:
        count = len(text_words)
        hashes = np.fromiter(map(_word_hash, text_words), dtype=np.uint64, count=count)
        powers, self._inverse_powers = _powers(1 << max(10, count.bit_length()))
        self.count = count
        self._prefix_sums = np.zeros(count + 1, dtype=np.uint64)
        np.cumsum(hashes * powers[:count], out=self._prefix_sums[1:])

    def ngrams(self, n: int) -> NDArray[np.uint64]:
        """uint64 ``[count - n + 1]``: the hash of the n words from each place on; empty for a text of fewer words."""
        if self.count < n:
            return np.zeros(0, dtype=np.uint64)
        sums = self._prefix_sums
        return (sums[n:] - sums[:-n]) * self._inverse_powers[: self.count - n + 1]


class NgramIndex:
    """The n-grams of some texts, in which those of other texts are looked up: 12 to 18 bytes per n-gram.

    N-grams of different lengths have different hashes, as different ones of one length do, so one array holds all.

    Args:
        hashes: uint64 ``[M]``, sorted.
        owners: integers ``[M]``: the number of the text (or of its collection) that each is of.
        lengths: words of the n-grams; those that occur.
    """

    def __init__(self, hashes: NDArray[np.uint64], owners: NDArray[Any], lengths: Iterable[int]) -> None:
        self.hashes, self.owners, self.lengths = hashes, owners, sorted(lengths)
        self._filter = _BitFilter(hashes)

    @classmethod
    def of(cls, texts: Iterable[tuple[int, Sequence[str]]], n: int, owner_type: Literal["H", "q"] = "q") -> NgramIndex:
        """The index of (owner, words) of texts: every run of n words, or all words of a shorter text as one.

        Each (n-gram, owner) is there once; the rows of an n-gram are in the order of their owners.

        Args:
            texts: of at least one word each.
            n: words of an n-gram.
            owner_type: 16 bits where owners are collections, 64 where they are texts.
        """
        hashes, owners = array("Q"), array(owner_type)
        lengths: set[int] = set()
        for owner, text_words in texts:
            length = min(n, len(text_words))
            found = np.unique(WordHashes(text_words).ngrams(length))
            lengths.add(length)
            hashes.frombytes(found.tobytes())
            owners.frombytes(np.full(len(found), owner, dtype=owner_type).tobytes())
        hashes_M, owners_M = np.frombuffer(hashes, dtype=np.uint64), np.frombuffer(owners, dtype=owner_type)
        order = np.lexsort((owners_M, hashes_M))
        hashes_M, owners_M = hashes_M[order], owners_M[order]
        fresh = np.ones(len(order), dtype=bool)
        fresh[1:] = (hashes_M[1:] != hashes_M[:-1]) | (owners_M[1:] != owners_M[:-1])
        return cls(hashes_M[fresh], owners_M[fresh], lengths)

    def find(self, wanted: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(places in ``wanted`` of hashes that are in the index, and the index's rows of each: ``first`` to ``last - 1``)."""
        at = np.flatnonzero(self._filter.may_hold(wanted))
        first, last = np.searchsorted(self.hashes, wanted[at], "left"), np.searchsorted(self.hashes, wanted[at], "right")
        hit = last > first
        return at[hit], first[hit], last[hit]


class _BitFilter:
    """Says of most hashes at once that they are not in a set: 2 to 4 bytes per member, wrong for 1 in 16 to 32 others."""

    def __init__(self, members: NDArray[np.uint64]) -> None:
        bits = max(3, (16 * len(members)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._bytes = np.zeros(1 << (bits - 3), dtype=np.uint8)
        places = members >> self._shift
        np.bitwise_or.at(self._bytes, places >> _THREE, _bit(places))

    def may_hold(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """False only where a hash is no member."""
        places = hashes >> self._shift
        return (self._bytes[places >> _THREE] & _bit(places)) != 0


def _bit(places: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (places & np.uint64(7)).astype(np.uint8))


@functools.lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=8)
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers 0 to count - 1 of the base and of its inverse, modulo 2**64."""
    result = []
    for base in (_BASE, _INVERSE):
        factors = np.full(count, base, dtype=np.uint64)
        factors[0] = 1
        result.append(np.cumprod(factors, dtype=np.uint64))
    return result[0], result[1]
