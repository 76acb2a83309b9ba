"""The consistency filter's pool: passages drawn at random, of all pairs or of each source, and their embeddings in one memory-mapped file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.order import SHUFFLED_ROWS, Permutation
from data_modules.pair_rows import RowSources, take_rows
from data_modules.pair_store import PairStore
from lightning_e5.curation.engines.inference import EmbedTexts
from lightning_e5.curation.engines.run_parts import Progress, parts_of, run_parts
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.files.storage import MANIFEST, atomic_path, write_manifest
from lightning_e5.rng import derive_seed, generator
from lightning_e5.text import text_id

PoolKind = Literal["global", "per_source"]
#: Of the pool's folder: its passages, their embeddings, and the kind that its manifest names.
TEXTS, EMBEDDINGS, KIND = "texts.parquet", "pool.npy", "filter-pool"


def pool_rows(rows: int, size: int, seed: int, *source: str) -> NDArray[np.int64]:
    """The rows of a pool, at most ``size`` of ``rows``, rising; ``source``: whose pool it is."""
    if rows <= SHUFFLED_ROWS:
        return np.sort(generator(seed, "pool", *source).permutation(rows)[:size])
    return np.sort(Permutation(rows, derive_seed(seed, "pool", *source))(np.arange(min(size, rows))))


def draw_pool(folder: Path, store: PairStore, sources: RowSources, kind: PoolKind, size: int, seed: int) -> NDArray[np.int64]:
    """Write ``texts.parquet``: ``size`` random passages, of all pairs or of each source; returns how many of each source.

    A folder that has it is left as it is. Where there is a pool for each source, the passages stand by source.

    Raises:
        UserError: a pool for each source is asked for, and the pairs name no source.
    """
    if kind == "per_source" and "source" not in store.columns:
        raise UserError(f"{store.folder}: pool: per_source needs a column 'source', which the pairs lack")
    count = len(sources.names)
    if (folder / TEXTS).is_file():
        return np.bincount(read_parquet(folder / TEXTS, {"source": "int32"})["source"].to_numpy(), minlength=count)
    rows = pool_rows(store.rows, size, seed) if kind == "global" else _rows_by_source(store, sources, size, seed)
    code_P = sources.of(rows)
    passages = take_rows(store, rows, ["passage"])["passage"]
    order = np.argsort(code_P, kind="stable") if kind == "per_source" else np.arange(len(rows))
    texts = np.fromiter((text_id(p) for chunk in passages.chunks for p in chunk.to_pylist()), np.int64, len(rows))
    write_parquet(folder / TEXTS, {"passage": passages.take(order), "text": texts[order], "source": code_P[order]})
    return np.bincount(code_P, minlength=count)


def _rows_by_source(store: PairStore, sources: RowSources, size: int, seed: int) -> NDArray[np.int64]:
    """Rows drawn of each source, rising: which of a source's rows, then, block by block, which rows these are."""
    before = np.zeros(len(sources.names), dtype=np.int64)
    for _, code_N in sources.blocks(store.rows):
        before += np.bincount(code_N, minlength=len(before))
    drawn = [pool_rows(rows, size, seed, name) for name, rows in zip(sources.names, before.tolist(), strict=True)]
    before[:] = 0
    found = []
    for first, code_N in sources.blocks(store.rows):
        for code in np.unique(code_N).tolist():
            own = np.flatnonzero(code_N == code)
            low, high = np.searchsorted(drawn[code], [before[code], before[code] + len(own)])
            found.append(first + own[drawn[code][low:high] - before[code]])
            before[code] += len(own)
    return np.sort(np.concatenate(found))


def embed_pool(folder: Path, embedder: EmbedTexts, rows: int, rows_per_part: int, **where: Any) -> None:
    """Embed the drawn passages into one file, ``pool.npy``; the manifest, written last, says that it is whole.

    Args:
        rows: of the pool.
        where: `run_parts`' engine and GPUs.
    """
    if (folder / MANIFEST).is_file():
        return
    parts = parts_of(folder / "part", rows, rows_per_part, lambda own: (folder, own), what="pool passages")
    whole: Any = None
    first = 0
    with atomic_path(folder / EMBEDDINGS) as temporary:
        for block in run_parts(EmbedPool(embedder), parts, title="embed the pool", unit="text", **where):
            embeddings = block["embeddings"]
            if whole is None:
                whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(rows, embeddings.shape[1]))
            whole[first : first + len(embeddings)] = embeddings
            first += len(embeddings)
        width = whole.shape[1]
        whole.flush()
        del whole
    write_manifest(folder, kind=KIND, files=[TEXTS, EMBEDDINGS], rows=rows, width=width)
    for part in parts:
        part.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class EmbedPool:
    """(the pool's folder, rows) -> ``embeddings`` of these passages."""

    embedder: EmbedTexts

    def __call__(self, work: tuple[Path, slice], progress: Progress) -> dict[str, NDArray[np.float32]]:
        folder, rows = work
        passages = read_parquet(folder / TEXTS, {"passage": "string"})["passage"][rows]
        return self.embedder(("passage", passages.to_pylist()), progress)
