"""The consistency filter in independent pieces: embed a run of the pool, rank a run of the pairs.

Pieces are runs of row numbers, not shards, so the texts that are embedded together, and with them every last bit, are
the same however the pairs are cut into files. Each piece writes one file, and one that is there is not made again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_modules.pair_rows import NOT_RANKED, take_rows
from data_modules.pair_store import PairStore
from lightning_e5.curation.consistency_filter.pool import StoredPool, open_pool, part_path, pool_texts, write_part
from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.distributed.devices import Precision
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.text import text_id
from lightning_e5.types import compares_by_cosine


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """What every piece needs to know; ``identity`` is a hash of all that decides the ranks."""

    out: Path
    pairs: Path
    encoder: Path
    precision: Precision
    max_length: int | None
    device: str
    per_source: bool
    exact_up_to: int | None
    previous: Path | None
    identity: str

    @property
    def pool(self) -> Path:
        """The pool's folder."""
        return self.out / "pool"

    @property
    def torch_device(self) -> torch.device:
        """``auto`` is a GPU where there is one."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


@dataclass(frozen=True, slots=True)
class PoolTask:
    """Embed the pool's passages ``first`` to ``stop``."""

    settings: FilterSettings
    first: int
    stop: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"pool passages {self.first} to {self.stop}"

    @property
    def done(self) -> bool:
        """Whether its file is there."""
        return part_path(self.settings.pool, self.first).is_file()


@dataclass(frozen=True, slots=True)
class RankTask:
    """Rank the pairs of rows ``first`` to ``stop``; ``codes``: int32, each row's source, where pools are per source."""

    settings: FilterSettings
    number: int
    first: int
    stop: int
    codes: bytes = b""

    @property
    def name(self) -> str:
        """For messages."""
        return f"pairs {self.first} to {self.stop}"

    @property
    def path(self) -> Path:
        """Its file."""
        return self.settings.out / "ranks" / f"part-{self.number:05d}.parquet"

    @property
    def done(self) -> bool:
        """Whether its file is there."""
        return self.path.is_file()


def embed_pool_part(task: PoolTask, bar: Callable[[int], object] | None = None) -> int:
    """Write a run's embeddings; returns how many."""
    model = _encoder(task.settings)
    texts = pool_texts(task.settings.pool, task.first, task.stop)
    write_part(task.settings.pool, task.first, model.embed(texts, "passage", normalize=compares_by_cosine(model), progress=bar))
    return len(texts)


def rank_part(task: RankTask, bar: Callable[[int], object] = lambda texts: None) -> int:
    """Write a run's ranks (column ``rank``, int64); returns how many pairs were ranked.

    ``bar`` is told of each text embedded and each pair ranked: three for a pair.
    """
    settings = task.settings
    rank_N = np.full(task.stop - task.first, NOT_RANKED, dtype=np.int64)
    rows = np.arange(task.first, task.stop)
    if settings.previous is not None:
        kept = read_parquet(settings.previous, {"keep": "bool"})["keep"].slice(task.first, len(rows))
        rows = rows[kept.to_numpy(zero_copy_only=False)]
    bar(3 * (len(rank_N) - len(rows)))
    if len(rows):
        table = take_rows(PairStore(settings.pairs), rows, ["query", "passage"])
        passages = table["passage"].to_pylist()
        model = _encoder(settings)
        by_cosine = compares_by_cosine(model)
        queries_ND = model.embed(table["query"].to_pylist(), "query", normalize=by_cosine, progress=bar)
        passages_ND = model.embed(passages, "passage", normalize=by_cosine, progress=bar)
        text_N = torch.tensor([text_id(p) for p in passages])
        places = rows - task.first
        code_N = np.frombuffer(task.codes, np.int32)[places] if settings.per_source else np.zeros(len(rows), np.int32)
        for code in np.unique(code_N).tolist():
            own = torch.from_numpy(np.flatnonzero(code_N == code))
            ranks = _rank_pool(settings, code if settings.per_source else None).ranks(
                queries_ND[own], passages_ND[own], text_N[own], bar
            )
            rank_N[places[own.numpy()]] = ranks.numpy()
    write_parquet(task.path, {"rank": rank_N})
    return len(rows)


def forget() -> None:
    """Free what the pieces of this process share: the encoder and the pools."""
    for cached in (_encoder, _pool, _rank_pool):
        cached.cache_clear()


@functools.lru_cache(maxsize=1)
def _encoder(settings: FilterSettings) -> TextEncoder:
    return TextEncoder.from_pretrained(settings.encoder, max_length=settings.max_length, precision=settings.precision).to(settings.torch_device)


@functools.lru_cache(maxsize=1)
def _pool(settings: FilterSettings) -> StoredPool:
    return open_pool(settings.pool)


@functools.lru_cache(maxsize=8)
def _rank_pool(settings: FilterSettings, source: int | None) -> RankPool:
    embeddings_PD, text_P = _pool(settings).of_source(source)
    return RankPool(embeddings_PD, text_P, exact_up_to=settings.exact_up_to, device=settings.torch_device)


def ranks_of(tasks: list[RankTask]) -> Tensor:
    """All ranks, from the tasks' files."""
    return torch.cat([torch.from_numpy(read_parquet(t.path, {"rank": "int64"})["rank"].to_numpy().copy()) for t in tasks])
