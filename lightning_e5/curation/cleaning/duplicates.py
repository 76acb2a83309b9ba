"""Copies among the training pairs: exact ones by the normalised texts, near ones by MinHash.

Both go in two steps. A worker makes something small of each pair (`pair_id`, `NearDuplicates.signature`); one pass over
those, in the pairs' fixed order, decides. So the decisions depend on neither the number of workers nor their timing. What the
pass compares lies in files, sorted by hash buckets, so that its memory does not grow with the pairs.
"""

from __future__ import annotations

import functools
import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from lightning_e5.configurable import configurable
from lightning_e5.curation.cleaning.shared_buckets import SharedBuckets
from lightning_e5.curation.cleaning.shingles import WordHashes
from lightning_e5.errors import UserError
from lightning_e5.files.scratch import HashRanges, hash_of, mapped_zeros, release
from lightning_e5.ranges import PositiveShare, Range
from lightning_e5.text import text_id, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Selects the hash functions. Not a draw: other values give other, equally good estimates.
_MINHASH_SEED = 1
#: What all values are of a text without n-grams.
_EMPTY = 0xFFFFFFFF
_PROGRESS_ROWS = 1 << 14
#: Rows looked at singly after which the pages that they touched are given back (64 KiB each, at most).
_RELEASE_ROWS = 1 << 10


def pair_id(query: str, passage: str) -> int:
    """A 63-bit id of the pair: equal for pairs whose normalised texts are equal, stable across processes."""
    both = text_id(query).to_bytes(8, "little") + text_id(passage).to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(both, digest_size=8).digest(), "little") >> 1


def first_of_each(parts: Iterable[NDArray[np.int64]], scratch: Path, first_N: NDArray[np.bool_]) -> None:
    """Mark the rows that hold an id that no earlier row holds, by hash buckets on disk.

    Two different pairs have one id with a chance of about N**2 / 2**64, in 10**9 pairs 1 in 20.

    Args:
        parts: the ids, int64, of the rows in their order, part after part.
        scratch: folder for 16 bytes per row.
        first_N: bool, all False, a place per row; may be mapped.
    """
    found, first = HashRanges(scratch, len(first_N)), 0
    for ids in parts:
        found.add(hash_of(ids), np.arange(first, first + len(ids)))
        first += len(ids)
    for records in found:  # the rows of an id are together, rising
        first_N[records["row"][np.unique(records["hash"], return_index=True)[1]]] = True
        release(first_N)


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
            signatures: `signature` of each pair in the order that counts, or uint32 ``[N, permutations]`` of them.
            progress: called with the rows done, block by block.

        Returns:
            int64 ``[N]``.

        Raises:
            UserError: a signature has another length.
        """
        signatures_NV = self._as_array(signatures)
        copy_of_N = np.full(len(signatures_NV), -1, dtype=np.int64)
        with tempfile.TemporaryDirectory(prefix="lightning_e5-near-") as folder:
            for row, kept in self.find_copies(signatures_NV, Path(folder), progress=progress):
                copy_of_N[row] = kept
        return copy_of_N

    def find_copies(
        self,
        signatures_NV: NDArray[np.uint32],
        scratch: Path,
        *,
        progress: Callable[[int], object] = lambda rows: None,
    ) -> Iterator[tuple[int, int]]:
        """The pairs that `copies` drops as (row, row of the kept pair), rising, in memory that does not grow with their number.

        Args:
            signatures_NV: as `copies`; mapped from a file where there are many.
            scratch: folder for ``16 * bands + 8`` bytes per pair, and ``40 * bands`` more for each that shares bands with another one.
            progress: as `copies`.
        """
        count = len(signatures_NV)
        buckets = SharedBuckets(signatures_NV, self.bands, _EMPTY, scratch)
        places, compared = (mapped_zeros(scratch / name, "<i8", rows) for name, rows in (("places", buckets.places), ("compared", count)))
        members, compared_with_N = np.asarray(places), np.asarray(compared)  # 1 + the last row that a kept one was compared with
        signatures_all = np.asarray(signatures_NV)  # a view: rows of a memory map are slow to make
        enough = math.ceil(self.threshold * self.permutations - 1e-9)
        # Values that may differ spoil as many bands at most, so near copies have `spare` + 1 buckets in common; of these
        # neither has the smallest among its own `spare` largest. So those, crowded by set phrases, can be left out.
        spare = max(0, self.bands - (self.permutations - enough) - 1)
        done = looked_at = 0
        for row, shared in buckets.of_rows():
            if len(shared) <= spare:
                continue
            own = shared[: len(shared) - spare]
            for bucket in own:
                if kept := int(members[bucket]):
                    kept_K = members[bucket + 1 : bucket + 1 + kept]
                    kept_K = kept_K[compared_with_N[kept_K] != row + 1]
                    if not len(kept_K):
                        continue
                    compared_with_N[kept_K] = row + 1
                    agreeing_K = (signatures_all[kept_K] == signatures_all[row]).sum(1)
                    best = int(agreeing_K.argmax())  # the earliest of the best
                    if agreeing_K[best] >= enough:
                        yield row, int(kept_K[best])
                        break
            else:
                for bucket in own:
                    members[bucket] += 1
                    members[bucket + members[bucket]] = row
            looked_at += 1
            if looked_at % _RELEASE_ROWS == 0:
                release(signatures_NV, places, compared)
            if row - done >= _PROGRESS_ROWS:
                progress(row - done)
                done = row
        progress(count - done)

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


@functools.cache
def _permutations(count: int) -> Any:
    """The hash functions, drawn once per process: drawing them takes longer than a signature."""
    from datasketch import MinHash

    return MinHash(num_perm=count, seed=_MINHASH_SEED, scheme="affine32").permutations
