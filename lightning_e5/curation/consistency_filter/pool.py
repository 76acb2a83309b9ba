"""The random passages that the consistency filter ranks among: drawn, embedded once, kept as a mapped file.

A folder: ``texts.parquet`` (the passages with their ids and sources), ``part-*.npy`` (embeddings of runs of them, while
they are made), then ``pool.npy`` (float32, all of them) and ``manifest.json``, which says that the pool is whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.pair_rows import source_codes, take_rows
from data_modules.pair_store import PairStore
from lightning_e5.curation.engines.blocks import read_array
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.files.storage import MANIFEST, atomic_path, read_manifest, write_manifest
from lightning_e5.rng import generator
from lightning_e5.text import text_id

PoolKind = Literal["global", "per_source"]
KIND = "filter-pool"
TEXTS, EMBEDDINGS = "texts.parquet", "pool.npy"


@dataclass(frozen=True, slots=True)
class StoredPool:
    """A whole pool: embeddings ``[P, D]`` (a mapped file), ids of the normalised texts, and numbers of the sources,
    rising where there is a pool for each source."""

    embeddings_PD: Tensor
    text_P: Tensor
    source_P: NDArray[np.int32]

    def of_source(self, source: int | None) -> tuple[Tensor, Tensor]:
        """The embeddings and text ids of a source's pool; None for all."""
        if source is None:
            return self.embeddings_PD, self.text_P
        low, high = np.searchsorted(self.source_P, [source, source + 1])
        return self.embeddings_PD[low:high], self.text_P[low:high]


def draw_pool(folder: Path, store: PairStore, kind: PoolKind, size: int, seed: int) -> int:
    """Write ``texts.parquet``: ``size`` random passages, of all pairs or of each source; returns how many there are.

    A folder that has it is left as it is.

    Raises:
        UserError: a pool for each source is asked for, and the pairs name no source.
    """
    if (folder / TEXTS).is_file():
        return len(read_parquet(folder / TEXTS, {"source": "int32"}))
    if kind == "per_source" and "source" not in store.columns:
        raise UserError(f"{store.folder}: pool: per_source needs a column 'source', which the pairs lack")
    names, code_N = source_codes(store)
    if kind == "global":
        rows = generator(seed, "pool").permutation(store.rows)[:size]
    else:
        by_source = np.split(np.argsort(code_N, kind="stable"), np.cumsum(np.bincount(code_N, minlength=len(names)))[:-1])
        rows = np.concatenate(
            [own[generator(seed, "pool", name).permutation(len(own))[:size]] for name, own in zip(names, by_source, strict=True)]
        )
    rows = np.sort(rows)
    passages = take_rows(store, rows, ["passage"])["passage"]
    order = np.argsort(code_N[rows], kind="stable") if kind == "per_source" else np.arange(len(rows))
    texts = np.fromiter((text_id(p) for p in passages.to_pylist()), np.int64, len(rows))
    columns = {"passage": passages.take(order), "text": texts[order], "source": code_N[rows][order]}
    write_parquet(folder / TEXTS, columns)
    return len(rows)


def pool_texts(folder: Path, first: int, stop: int) -> list[str]:
    """The passages of a run of the pool."""
    found: list[str] = read_parquet(folder / TEXTS, {"passage": "string"})["passage"].slice(first, stop - first).to_pylist()
    return found


def part_path(folder: Path, first: int) -> Path:
    """The file of the embeddings that start at pool row ``first``."""
    return folder / f"part-{first:010d}.npy"


def write_part(folder: Path, first: int, embeddings_PD: Tensor) -> None:
    """Keep the embeddings of a run, atomically."""
    with atomic_path(part_path(folder, first)) as temporary, temporary.open("wb") as handle:
        np.save(handle, embeddings_PD.numpy(), allow_pickle=False)


def join_parts(folder: Path, starts: list[int]) -> None:
    """Make ``pool.npy`` of the parts, write the manifest, remove the parts."""
    parts = [read_array(part_path(folder, first), "r") for first in starts]
    shape = (sum(len(part) for part in parts), parts[0].shape[1])
    with atomic_path(folder / EMBEDDINGS) as temporary:
        whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        row = 0
        for part in parts:
            whole[row : row + len(part)] = part
            row += len(part)
        whole.flush()
        del whole
    write_manifest(folder, kind=KIND, files=[TEXTS, EMBEDDINGS], rows=shape[0], width=shape[1])
    for first in starts:
        part_path(folder, first).unlink(missing_ok=True)


def is_whole(folder: Path) -> bool:
    """Whether the pool is embedded."""
    return (folder / MANIFEST).is_file()


def open_pool(folder: Path) -> StoredPool:
    """Open a whole pool; UserError where it is not."""
    read_manifest(folder, KIND)
    table = read_parquet(folder / TEXTS, {"text": "int64", "source": "int32"})
    mapped = read_array(folder / EMBEDDINGS, "c")  # never written to; torch asks for a writable array
    text_P = torch.from_numpy(table["text"].to_numpy().copy())
    return StoredPool(torch.from_numpy(mapped), text_P, table["source"].to_numpy())
