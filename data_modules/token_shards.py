"""A shard of a token cache, tokenised and written: texts come block by block, and its tokens wait in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_e5.files.storage import atomic_path, naming_the_file
from lightning_e5.text import TextsDigest, TextTokenizer, check_texts, text_id
from lightning_e5.types import Kind

#: Texts of a column that are tokenised at once.
TOKENISED_ROWS = 8192


class TokenShard(NamedTuple):
    """What a written shard holds: rows, tokens, and how many texts reach the length limit."""

    rows: int
    tokens: int
    cut: int


def token_shard_name(number: int) -> str:
    """The name of a shard's file."""
    return f"tokens-{number:05d}.arrow"


def write_token_shard(
    path: Path,
    blocks: Iterable[Mapping[str, Sequence[str]]],
    kinds: Mapping[str, Kind],
    tokenizer: TextTokenizer,
    progress: Callable[[int], object] = lambda rows: None,
    digests: Mapping[str, TextsDigest] | None = None,
) -> TokenShard:
    """Tokenise the texts of one shard into its file; arguments as of `stream_token_cache`, ``digests`` are shown the texts."""
    rows = tokens = cut = 0
    with _Shard(path.parent, kinds) as shard:
        for block in _tokenised(blocks, kinds, tokenizer, digests or {}):
            for name, part in block.items():
                shard.add(name, part)
                tokens += int(part.lengths.sum())
                cut += int((part.lengths >= tokenizer.max_length).sum())
                progress(len(part.lengths))
            rows += len(next(iter(block.values())).lengths)
        shard.write(path)
    return TokenShard(rows, tokens, cut)


class _Tokens(NamedTuple):
    """A column's part of a block: int32 ids, text after text, int64 lengths, int64 ids of the normalised texts."""

    ids: NDArray[Any]
    lengths: NDArray[Any]
    text_ids: NDArray[np.int64]


def shards_of(blocks: Iterable[Mapping[str, Sequence[str]]], shard_rows: int) -> Iterator[Iterator[Mapping[str, Sequence[str]]]]:
    """The blocks of each shard, cut where one reaches over its end; a shard's are taken before the next shard is asked for."""
    pending = ((len(next(iter(block.values()))), block) for block in blocks)
    rest: list[tuple[int, Mapping[str, Sequence[str]]]] = []

    def of_one() -> Iterator[Mapping[str, Sequence[str]]]:
        left = shard_rows
        while left and (found := rest.pop() if rest else next(pending, None)):
            rows, block = found
            if rows > left:
                rest.append((rows - left, {name: texts[left:] for name, texts in block.items()}))
                block = {name: texts[:left] for name, texts in block.items()}
            left -= min(left, rows)
            yield block

    while rest or (first := next(pending, None)):
        if not rest:
            assert first is not None
            rest.append(first)
        yield of_one()


def _tokenised(
    blocks: Iterable[Mapping[str, Sequence[str]]], kinds: Mapping[str, Kind], tokenizer: TextTokenizer, digests: Mapping[str, TextsDigest]
) -> Iterator[dict[str, _Tokens]]:
    """Each block's tokens. While a thread tokenises one block (the tokenizer is not Python), texts are read and hashed here."""

    def finished(of: Mapping[str, tuple[Future[tuple[Any, Any]], NDArray[np.int64]]]) -> dict[str, _Tokens]:
        return {name: _Tokens(*tokens.result(), text_ids) for name, (tokens, text_ids) in of.items()}

    with ThreadPoolExecutor(1) as pool:
        waiting: dict[str, tuple[Future[tuple[Any, Any]], NDArray[np.int64]]] = {}
        for block in blocks:
            for texts in block.values():
                check_texts(texts)
            begun = {name: pool.submit(tokenizer.encode, texts, kinds[name]) for name, texts in block.items()}
            if waiting:
                yield finished(waiting)
            waiting = {}
            for name, texts in block.items():
                if name in digests:
                    digests[name].update(texts)
                waiting[name] = begun[name], np.fromiter(map(text_id, texts), dtype=np.int64, count=len(texts))
        if waiting:
            yield finished(waiting)


class _Shard:
    """A shard in the making: its tokens wait in unnamed files, since an Arrow file of one batch is written at once."""

    def __init__(self, directory: Path, columns: Iterable[str]) -> None:
        self._directory = directory
        self._files = {name: tempfile.TemporaryFile(dir=directory) for name in columns}  # noqa: SIM115
        self._lengths: dict[str, list[NDArray[Any]]] = {name: [] for name in self._files}
        self._text_ids: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self._files}

    def __enter__(self) -> _Shard:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, name: str, part: _Tokens) -> None:
        """The next texts of a column."""
        with naming_the_file(self._directory):
            self._files[name].write(part.ids.tobytes())
        self._lengths[name].append(part.lengths)
        self._text_ids[name].append(part.text_ids)

    def write(self, path: Path) -> None:
        """All that was added, as a file."""
        arrays: dict[str, pa.Array] = {}
        for name, file in self._files.items():
            with naming_the_file(self._directory):
                file.flush()
            offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths[name]))]).astype(np.int64)
            ids = np.memmap(file, dtype=np.int32, mode="r") if offsets[-1] else np.empty(0, np.int32)
            arrays[name] = pa.LargeListArray.from_arrays(offsets, ids)
            arrays[f"{name}_text"] = pa.array(np.concatenate(self._text_ids[name]))
        batch = pa.record_batch(arrays)
        with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
            writer.write_batch(batch)
