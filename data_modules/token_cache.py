"""Texts tokenised once, into memory-mapped Arrow files that batches are gathered from.

A cache directory holds ``tokens-00000.arrow`` ..., each one record batch of up to ``SHARD_ROWS`` rows, and a manifest.
Every text column ``name`` is stored as ``name`` (its token ids) and ``name_text`` (the id of its normalised text).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_modules.token_shards import TOKENISED_ROWS, TokenShard, shards_of, token_shard_name, write_token_shard
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_manifest, write_manifest
from lightning_e5.text import TextsDigest, TextTokenizer
from lightning_e5.types import Kind

KIND = "tokens"
SHARD_ROWS = 1_000_000


def write_token_cache(
    directory: Path,
    columns: Mapping[str, tuple[Sequence[str], Kind]],
    tokenizer: TextTokenizer,
    *,
    progress: Callable[[int], object] = lambda rows: None,
    shard_rows: int = SHARD_ROWS,
    sources: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Tokenise columns of texts into ``directory`` (made, emptied); returns its manifest, written last.

    Args:
        directory: the cache.
        columns: name -> (texts, kind); all of equal length; the kind decides the prefix.
        tokenizer: with prefixes and length limit.
        progress: called with the rows done, block by block.
        shard_rows: rows of a file.
        sources: source -> rows, where each source's rows are contiguous and in this order; kept in the manifest, for
            sampling by source. None or empty: not known.
    """
    rows = {len(texts) for texts, _ in columns.values()}
    if len(rows) != 1:
        raise UserError(f"{directory}: nothing to tokenise, or columns of unequal length ({sorted(rows)})")
    total = rows.pop()
    blocks = (
        {name: texts[first : first + TOKENISED_ROWS] for name, (texts, _) in columns.items()} for first in range(0, total, TOKENISED_ROWS)
    )
    kinds = {name: kind for name, (_, kind) in columns.items()}
    return stream_token_cache(directory, blocks, kinds, total, tokenizer, progress=progress, shard_rows=shard_rows, sources=sources)


def stream_token_cache(
    directory: Path,
    blocks: Iterable[Mapping[str, Sequence[str]]],
    kinds: Mapping[str, Kind],
    rows: int,
    tokenizer: TextTokenizer,
    *,
    progress: Callable[[int], object] = lambda rows: None,
    shard_rows: int = SHARD_ROWS,
    sources: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """As `write_token_cache`, of texts that come block by block.

    Memory: three blocks, and 32 bytes for each text of a shard; a shard's tokens wait in a file.

    Args:
        blocks: name -> texts, `TOKENISED_ROWS` or fewer of each at a time.
        kinds: name -> kind.
        rows: of all blocks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if not rows:
        raise UserError(f"{directory}: nothing to tokenise, or columns of unequal length ([0])")
    if sources and sum(sources.values()) != rows:
        raise UserError(f"{directory}: the sources have {sum(sources.values())} rows, the texts {rows}")
    digests = {name: TextsDigest() for name in kinds}
    shards: list[TokenShard] = []
    for number, part in enumerate(shards_of(blocks, shard_rows)):
        shards.append(write_token_shard(directory / token_shard_name(number), part, kinds, tokenizer, progress, digests))
    assert sum(shard.rows for shard in shards) == rows, (shards, rows)
    return finish_token_cache(directory, shards, tokenizer, {name: digest.hexdigest() for name, digest in digests.items()}, sources)


def finish_token_cache(
    directory: Path, shards: Sequence[TokenShard], tokenizer: TextTokenizer, texts: Mapping[str, str], sources: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Write the manifest of a cache whose shards are there; returns it.

    Args:
        directory: of the cache.
        shards: in order.
        tokenizer: of all of them.
        texts: column -> digest of its texts (`texts_digest`).
        sources: see `write_token_cache`.
    """
    return write_manifest(
        directory, kind=KIND, files=[token_shard_name(n) for n in range(len(shards))], rows=sum(s.rows for s in shards),
        columns=sorted(texts), tokens=sum(s.tokens for s in shards), texts=dict(texts), texts_at_length_limit=sum(s.cut for s in shards),
        max_length=tokenizer.max_length, tokenizer=tokenizer.fingerprint(), sources=[[name, size] for name, size in (sources or {}).items()],
    )  # fmt: skip


class TokenCache:
    """A finished cache, memory-mapped.

    Args:
        directory: what `write_token_cache` wrote.

    Raises:
        UserError: unfinished, of another kind, or a file that Arrow cannot read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory, KIND)
        self.rows: int = self.manifest["rows"]
        #: source -> rows, contiguous and in this order; empty where the writer did not say.
        self.sources: dict[str, int] = dict(self.manifest.get("sources") or [])
        self._shards: list[pa.RecordBatch] = []
        for name in sorted(self.manifest["files"]):
            try:
                self._shards.append(pa.ipc.open_file(pa.memory_map(str(self.directory / name))).get_batch(0))
            except (OSError, pa.ArrowInvalid) as error:
                raise UserError(f"{self.directory / name}: not a token cache ({error})") from None
        self._starts = np.cumsum([0, *(s.num_rows for s in self._shards)])
        self._views: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}

    def __reduce__(self) -> tuple[type[TokenCache], tuple[Path]]:
        """Another process opens the files itself: pickled, the mapped tables would be copied whole."""
        return TokenCache, (self.directory,)

    def text_ids(self, column: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Normalised-text ids of some rows of a column."""
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        result = np.empty(len(rows), dtype=np.int64)
        for shard in np.unique(shard_of):
            chosen = shard_of == shard
            values = self._shards[shard].column(f"{column}_text").to_numpy(zero_copy_only=True)
            result[chosen] = values[rows[chosen] - self._starts[shard]]
        return result

    def gather(self, column: str, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of some rows of a column, text after text: (int64 ids ``[T]``, int64 lengths ``[N]``)."""
        views = self._column(column)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        if (shard_of == shard_of[:1]).all():
            offsets, values = views[shard_of[0]] if len(rows) else views[0]
            return _take(values, offsets, rows - (self._starts[shard_of[0]] if len(rows) else 0))
        lengths = np.empty(len(rows), dtype=np.int64)
        pieces: list[NDArray[Any]] = [np.empty(0, dtype=np.int64)] * len(rows)
        for index, (shard, row) in enumerate(zip(shard_of, rows, strict=True)):
            offsets, values = views[shard]
            local = row - self._starts[shard]
            pieces[index] = values[offsets[local] : offsets[local + 1]]
            lengths[index] = len(pieces[index])
        return np.concatenate(pieces).astype(np.int64), lengths

    def lengths(self, column: str) -> NDArray[np.int64]:
        """Tokens of every row of a column."""
        return np.concatenate([np.diff(offsets) for offsets, _ in self._column(column)])

    def _column(self, column: str) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        if column not in self._views:
            arrays = [shard.column(column) for shard in self._shards]
            self._views[column] = [
                (a.offsets.to_numpy(zero_copy_only=True), a.values.to_numpy(zero_copy_only=True)) for a in arrays
            ]
        return self._views[column]


def temporary_token_cache(
    columns: Mapping[str, tuple[Sequence[str], Kind]], tokenizer: TextTokenizer, *, sources: Mapping[str, int] | None = None
) -> TokenCache:
    """A cache in a folder of its own, which is removed with the cache, and at the end of this process at the latest.

    Args: see `write_token_cache`. Data workers open the files as long as this process holds the cache.
    """
    folder = Path(tempfile.mkdtemp(prefix="lightning_e5-tokens-"))
    try:
        write_token_cache(folder, columns, tokenizer, sources=sources)
        cache = TokenCache(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(cache, _remove, folder, os.getpid())
    return cache


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a fork has the cache, too
        shutil.rmtree(folder, ignore_errors=True)


def _take(values: NDArray[Any], offsets: NDArray[Any], rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    ends = np.cumsum(lengths)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return values[np.repeat(starts, lengths) + within].astype(np.int64), lengths
