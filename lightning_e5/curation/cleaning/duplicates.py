"""Copies among the training pairs: exact ones by the normalised texts, near ones by MinHash.

Both go in two steps. A worker makes something small of each pair (`pair_id`, `NearDuplicates.signature`); one pass over
those, in the pairs' fixed order, decides. So the decisions depend on neither the number of workers nor their timing.
"""

from __future__ import annotations

import functools
import hashlib
import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from lightning_e5.configurable import configurable
from lightning_e5.curation.cleaning.shingles import WordHashes
from lightning_e5.errors import UserError
from lightning_e5.ranges import PositiveShare, Range
from lightning_e5.text import text_id, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Selects the hash functions. Not a draw: other values give other, equally good estimates.
_MINHASH_SEED = 1
#: What all values are of a text without n-grams.
_EMPTY = 0xFFFFFFFF
_MIXER = np.uint64(0x9E3779B97F4A7C15)
_BLOCK_ROWS = 1 << 16
_PROGRESS_ROWS = 1 << 14


def pair_id(query: str, passage: str) -> int:
    """A 63-bit id of the pair: equal for pairs whose normalised texts are equal, stable across processes."""
    both = text_id(query).to_bytes(8, "little") + text_id(passage).to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(both, digest_size=8).digest(), "little") >> 1


def first_of_each(ids_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows hold an id that no earlier row holds: bool ``[N]`` of int64 ``[N]``.

    Two different pairs have one id with a chance of about N**2 / 2**64, in 10**9 pairs 1 in 20.
    """
    first_N = np.zeros(len(ids_N), dtype=bool)
    first_N[np.unique(ids_N, return_index=True)[1]] = True
    return first_N


@configurable("settings", constructs=True)
@dataclass(frozen=True)
class NearDuplicates:
    """Finds the pairs that are a near copy of an earlier kept pair.

    Two passages are alike by the Jaccard similarity of their sets of word n-grams; it is estimated by the share of
    ``permutations`` MinHash values that agree. In a fixed order, a pair is dropped when its estimate with an earlier
    *kept* pair is at least ``threshold``. One changed word changes ``shingle`` n-grams on both sides: with 5, a passage of
    100 words with one word changed is 0.90 like the original, one of 50 words 0.80.

    How exact this is. The estimate has a standard error of sqrt(s(1-s)/permutations), 0.027 at s = 0.9 and 128, so pairs
    within about 0.05 of the threshold may fall on either side. Candidates are the pairs with all values of one of
    ``bands`` bands in common; they are checked by all values, so none is dropped below the estimated threshold. With more
    bands than values that may differ, as by default (16 bands, 12 values), none at or above it is overlooked; with
    fewer, a pair of similarity s is overlooked with a chance of (1 - s**(permutations/bands))**bands.

    Args:
        threshold: estimated similarity from which a pair is a near copy, above 0 to 1.
        permutations: MinHash values per signature (4 bytes each).
        bands: bands they are split into; must divide ``permutations``. More find more and cost more checks.
        shingle: words per n-gram. A shorter passage is one n-gram as a whole.
        field: ``"pair"``: a near copy has the same words in its query and a similar passage, so other questions on one
            paragraph stay. ``"passage"``: a similar passage is enough; passages of fewer than ``shingle`` words, such as
            short answers, are then never near copies.

    Source: ours; the paper removes no near copies. MinHash LSH: Broder 1997; datasketch computes the signatures.
    """

    threshold: PositiveShare = 0.9
    permutations: Annotated[int, Range(1, 4096)] = 128
    bands: Annotated[int, Range(1, 4096)] = 16
    shingle: Annotated[int, Range(1, 1000)] = 5
    field: Literal["pair", "passage"] = "pair"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"NearDuplicates.threshold={self.threshold} must be above 0 and at most 1")
        if self.permutations < 1 or self.bands < 1 or self.permutations % self.bands:
            raise UserError(f"NearDuplicates.bands={self.bands} must divide permutations={self.permutations}")
        if self.shingle < 1:
            raise UserError(f"NearDuplicates.shingle={self.shingle} must be at least 1")
        if self.field not in ("pair", "passage"):
            raise UserError(f"NearDuplicates.field={self.field!r} must be 'pair' or 'passage'")

    def fingerprint(self) -> dict[str, Any]:
        """What decides which pairs are dropped."""
        return {"rule": "NearDuplicates", "version": 1, **asdict(self)}

    def signature(self, query: str, passage: str) -> bytes:
        """The pair's MinHash values, ``4 * permutations`` bytes; equal in every process."""
        from datasketch import MinHash

        passage_words = words(passage)
        hashes = WordHashes(passage_words).ngrams(min(self.shingle, max(1, len(passage_words))))
        if self.field == "passage" and len(passage_words) < self.shingle:
            hashes = hashes[:0]
        if self.field == "pair":
            hashes = hashes ^ np.uint64(text_id(" ".join(words(query))))
        # The n-grams come hashed, so datasketch's own hash function has nothing left to do.
        sketch = MinHash(
            seed=_MINHASH_SEED,
            scheme="affine32",
            num_perm=self.permutations,
            permutations=_permutations(self.permutations),
            hashfunc=int,
        )
        sketch.update_batch(np.unique(hashes >> np.uint64(32)).tolist())
        return np.ascontiguousarray(sketch.hashvalues, dtype="<u4").tobytes()

    def copies(
        self,
        signatures: Sequence[bytes] | NDArray[np.uint32],
        *,
        progress: Callable[[int], object] = lambda rows: None,
    ) -> NDArray[np.int64]:
        """For each pair the row of an earlier kept pair that it is a near copy of, or -1 where it is kept.

        Args:
            signatures: `signature` of each pair in the order that counts, or uint32 ``[N, permutations]`` of them, which
                may be a memory map. Beside them about ``8 * bands + 60`` bytes per pair are held, and some kilobytes per kept
                pair that shares bands with another one; only such pairs are looked at singly.
            progress: called with the rows done, block by block.

        Returns:
            int64 ``[N]``.

        Raises:
            UserError: a signature has another length.
        """
        signatures_NV = self._as_array(signatures)
        count = len(signatures_NV)
        copy_of_N = np.full(count, -1, dtype=np.int64)
        compared_with_N = np.full(count, -1, dtype=np.int64)  # the last row that a kept one was compared with
        buckets_NB, sizes = self._shared_buckets(signatures_NV)
        members: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
        enough = math.ceil(self.threshold * self.permutations - 1e-9)
        # Values that may differ spoil as many bands at most, so near copies have `spare` + 1 buckets in common; of these
        # neither has the smallest among its own `spare` largest. So those, crowded by set phrases, can be left out.
        spare = max(0, self.bands - (self.permutations - enough) - 1)
        done = 0
        for row in np.flatnonzero((buckets_NB >= 0).sum(1) > spare).tolist():
            shared = buckets_NB[row][buckets_NB[row] >= 0]
            own = shared[np.lexsort((shared, sizes[shared]))][: len(shared) - spare].tolist()
            for bucket in own:
                if bucket in members:
                    kept_K = np.array(members[bucket])
                    kept_K = kept_K[compared_with_N[kept_K] != row]
                    if not len(kept_K):
                        continue
                    compared_with_N[kept_K] = row
                    agreeing_K = (signatures_NV[kept_K] == signatures_NV[row]).sum(1)
                    best = int(agreeing_K.argmax())  # the earliest of the best
                    if agreeing_K[best] >= enough:
                        copy_of_N[row] = kept_K[best]
                        break
            else:
                for bucket in own:
                    members[bucket].append(row)
            if row - done >= _PROGRESS_ROWS:
                progress(row - done)
                done = row
        progress(count - done)
        return copy_of_N

    def _as_array(self, signatures: Sequence[bytes] | NDArray[np.uint32]) -> NDArray[np.uint32]:
        if not isinstance(signatures, np.ndarray):
            wrong = next((row for row, s in enumerate(signatures) if len(s) != 4 * self.permutations), None)
            if wrong is not None:
                raise UserError(
                    f"signatures: row {wrong} has {len(signatures[wrong])} bytes, not the {4 * self.permutations} of "
                    f"{self.permutations} permutations"
                )
            signatures = np.frombuffer(b"".join(signatures), dtype="<u4").reshape(-1, self.permutations)
        if signatures.ndim != 2 or signatures.shape[1] != self.permutations or signatures.dtype != np.uint32:
            raise UserError(
                f"signatures: an array of {signatures.dtype} {list(signatures.shape)}, not of uint32 [N, {self.permutations}]"
            )
        return signatures

    def _shared_buckets(self, signatures_NV: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The number of each pair's bucket in every band, -1 where no other pair is in it, and the buckets' sizes.

        Values of a band that differ may fall into one bucket with a chance of 2**-64; the check by all values follows.
        """
        count, width = len(signatures_NV), self.permutations // self.bands
        keys_NB = np.zeros((count, self.bands), dtype=np.uint64)
        empty_N = np.zeros(count, dtype=bool)
        for start in range(0, count, _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            values_RBW = np.asarray(signatures_NV[block]).reshape(-1, self.bands, width)
            empty_N[block] = (values_RBW == _EMPTY).all((1, 2))
            keys_RB = keys_NB[block]
            for column in range(width):
                keys_RB ^= values_RBW[:, :, column]
                keys_RB *= _MIXER
                keys_RB ^= keys_RB >> np.uint64(29)
        buckets_NB = keys_NB.view(np.int64)  # band by band in the keys' place
        sizes_of_bands: list[NDArray[np.int64]] = []
        first = 0
        for band in range(self.bands):
            _, inverse_N, sizes = np.unique(keys_NB[:, band], return_inverse=True, return_counts=True)
            shared_N = (sizes[inverse_N] > 1) & ~empty_N
            buckets_NB[:, band] = np.where(shared_N, first + inverse_N, -1)
            sizes_of_bands.append(sizes)
            first += len(sizes)
        return buckets_NB, np.concatenate(sizes_of_bands)


@functools.cache
def _permutations(count: int) -> Any:
    """The hash functions, drawn once per process: drawing them takes longer than a signature."""
    from datasketch import MinHash

    return MinHash(num_perm=count, seed=_MINHASH_SEED, scheme="affine32").permutations
