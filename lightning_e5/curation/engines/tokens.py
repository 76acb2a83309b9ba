"""The tokens of a folder of pairs, a shard a task."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_modules.pair_store import BLOCK_ROWS, PairStore
from data_modules.token_cache import SHARD_ROWS, finish_token_cache
from data_modules.token_shards import TOKENISED_ROWS, TokenShard, token_shard_name, write_token_shard
from lightning_e5.curation.engines.engine import Engine
from lightning_e5.curation.engines.run_parts import Part, Progress, run_parts
from lightning_e5.files.storage import sha256_file, sha256_text
from lightning_e5.text import TextsDigest, TextTokenizer
from lightning_e5.types import Kind

_SIDES: tuple[Kind, ...] = ("query", "passage")
_KINDS: dict[str, Kind] = {side: side for side in _SIDES}


@dataclass(frozen=True)
class TokeniseRows:
    """(name of a shard, its rows) -> the record of the shard, which it writes: a function of `run_parts`.

    Args:
        pairs: folder of pairs.
        folder: of the token cache.
        tokenizer: with prefixes and length limit.
    """

    pairs: Path
    folder: Path
    tokenizer: TextTokenizer

    def __call__(self, work: tuple[str, slice], progress: Progress) -> dict[str, Any]:
        name, rows = work
        blocks = _texts(PairStore(self.pairs), TOKENISED_ROWS, rows)
        shard = write_token_shard(self.folder / name, blocks, _KINDS, self.tokenizer, progress)
        return {"files": {name: sha256_file(self.folder / name)}, **shard._asdict()}


def tokenise_pairs(
    folder: Path, store: PairStore, tokenizer: TextTokenizer, *, engine: Engine | str | None = None
) -> dict[str, Any]:
    """Write the token cache of all pairs, its files those of `write_token_cache`; returns its manifest, written last.

    Args:
        folder: of the cache; shards that an earlier try has finished stay.
        store: the pairs.
        tokenizer: with prefixes and length limit.
        engine: see `run_parts`.
    """
    work, key = folder / "work", sha256_text(f"{tokenizer.fingerprint()} {tokenizer.max_length} {store.rows} {SHARD_ROWS}")
    work.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, first in enumerate(range(0, store.rows, SHARD_ROWS)):
        rows, name = slice(first, min(first + SHARD_ROWS, store.rows)), token_shard_name(number)
        parts.append(Part(f"pairs {rows.start} to {rows.stop}", work / f"{name}.json", (name, rows), steps=2 * (rows.stop - rows.start), key=key, folder=folder))
    records = run_parts(TokeniseRows(store.folder, folder, tokenizer), parts, title="tokenise", unit="text", engine=engine)
    shards = [TokenShard(record["rows"], record["tokens"], record["cut"]) for record in records]
    manifest = finish_token_cache(folder, shards, tokenizer, dict(_digests(store)), store.sources)
    shutil.rmtree(work)
    return manifest


def _digests(store: PairStore) -> Iterator[tuple[str, str]]:
    digests = {side: TextsDigest() for side in _SIDES}
    for block in _texts(store, BLOCK_ROWS):
        for side, digest in digests.items():
            digest.update(block[side])
    return ((side, digest.hexdigest()) for side, digest in digests.items())


def _texts(store: PairStore, rows: int, within: slice | None = None) -> Iterator[dict[str, list[str]]]:
    """Blocks of ``rows`` pairs: side -> texts."""
    for table in store.iter_batches(_SIDES, rows, within):
        yield {side: table[side].to_pylist() for side in _SIDES}
