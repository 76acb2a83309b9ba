"""Stage: the consistency filter, in four steps: draw a pool of passages, embed it, rank every pair's passage in it, keep the top k.

Each step works part by part (`run_parts`), so a killed filter goes on behind its last finished part. Parts are runs of row
numbers, not shards, so the texts that are embedded together, and with them every last bit, are the same however the pairs
are cut into files. How a rank is counted exactly and fast stands in `lightning_e5.curation.consistency_filter`.
"""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.pair_rows import NOT_RANKED, RowSources, row_sources, take_rows
from data_modules.pair_store import PairStore
from lightning_e5.configurable import configurable
from lightning_e5.curation.consistency_filter.filter_pairs import ROWS_PER_PART
from lightning_e5.curation.consistency_filter.metrics import Decisions, has_label_noise
from lightning_e5.curation.consistency_filter.pool import EMBEDDINGS, KIND, TEXTS, PoolKind, draw_pool, embed_pool
from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.curation.engines.engine import Engine
from lightning_e5.curation.engines.inference import EmbedTexts
from lightning_e5.curation.engines.run_parts import Progress, parts_of, read_array, run_parts
from lightning_e5.distributed.devices import Precision, recorded_precision
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.parquet import iter_parquet, parquet_rows, parquet_writer, read_parquet
from lightning_e5.files.storage import (
    read_checked,
    read_manifest,
    remove_temporaries,
    sha256_file,
    sha256_text,
    to_json,
    write_checked,
    write_json,
)
from lightning_e5.pipeline.fingerprint import result_version
from lightning_e5.ranges import Count, CountOrZero, Length, WorkersOrZero
from lightning_e5.text import text_id

#: What the filter did source by source, and the hash of what decided the ranks that are there.
SOURCES, STATE = "sources.json", "filter.json"


@configurable("stage")
@result_version(3)  # a pool of over a million pairs is drawn by a computed permutation
def consistency_filter(
    out: Path,
    *,
    pairs: Path,
    encoder: Path,
    pool_size: Count = 1_000_000,
    k: Count = 2,
    pool: PoolKind = "global",
    precision: Precision = "bf16-gpu",
    max_length: Length | None = None,
    exact_up_to: CountOrZero | None = None,
    previous: Path | None = None,
    filtered_before: str | None = None,
    rows_per_part: Count = ROWS_PER_PART,
    engine: Engine | Literal["local", "ray"] | None = None,
    gpus_per_task: WorkersOrZero = 0,
    device: str = "auto",
    seed: int,
) -> dict[str, float]:
    """Write ``ranks.parquet`` (``rank`` int64, ``keep`` bool; a row per pair, in order) and ``sources.json``.

    The pool is embedded once; parts of ``rows_per_part`` pairs are ranked into ``ranks/part-*.parquet``. Killed and
    started again, it goes on behind the last finished part and writes the same bytes.

    Args:
        pairs: folder of pairs, one table or shards (`PairStore`).
        encoder: folder of the model trained on unfiltered pairs.
        pool_size: random passages to rank among (E5: 1M), at most all there are; for each source with ``per_source``.
        k: highest rank kept (E5: 2).
        pool: ``global``, passages of all sources (E5 does not say), or ``per_source``, of the pair's own source.
        precision: of the backbone; scores are float32.
        max_length: tokens per text; as stored with the encoder by default.
        exact_up_to: ranks over it are written as ``exact_up_to + 1``, which makes ranking several times as fast; at
            least ``k``; None writes every rank as it is.
        previous: ``ranks.parquet`` of an earlier round: a pair that it dropped stays dropped, with rank 0.
        filtered_before: what filtered these pairs before, for the report; by default what their sources say (nomic's: gte-base).
        rows_per_part: pairs ranked between two files; the memory of their embeddings is ``8 * D`` bytes a pair.
        engine: ``local`` or ``ray`` (or an `Engine`) for parts in parallel, each process with the low-precision pool in its
            memory (``D`` bytes a passage in int8); None for one after the other, here. The last bits of embeddings may
            depend on the threads of a process, and with them the rank of a near tie.
        gpus_per_task: GPUs of each part, with an engine.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``.

    Returns:
        Counts, kept shares in all and of each source, and, where the pairs have a ``planted`` column (which no training
        reads), precision and recall.

    Raises:
        UserError: a number is out of range, or ``previous`` belongs to other pairs.

    Source: paper section 3.1.
    """
    _check(k, pool_size, pool, exact_up_to, rows_per_part, gpus_per_task)
    store = PairStore(pairs)
    embedder = EmbedTexts(Path(encoder), max_length, precision, device)
    runs_in = recorded_precision(precision, embedder.torch_device)
    decides = {
        "pairs": [[s.path.relative_to(store.folder).as_posix(), s.rows, s.path.stat().st_size] for s in store.shards()],
        "encoder": [[p.name, sha256_file(p)] for p in sorted(Path(encoder).rglob("*")) if p.is_file()],
        "previous": sha256_file(_previous(previous, store.rows)) if previous is not None else None,
        "method": 3,
        "settings": [pool_size, pool, runs_in, max_length, exact_up_to, rows_per_part, seed],
    }
    identity = sha256_text(to_json(decides))
    _begin(out, identity)
    sources = row_sources(store, out)
    ranking = RankPairs(embedder, Path(pairs), out / "pool", exact_up_to, previous, sources if pool == "per_source" else None)
    parts = parts_of(
        out / "ranks" / "part", store.rows, rows_per_part,
        suffix=".parquet", what="pairs", steps=lambda rows: 3 * (rows.stop - rows.start),  # two texts to embed, one rank
    )  # fmt: skip
    where: dict[str, Any] = {"engine": engine, "gpus_per_task": gpus_per_task}

    # 1. Draw the pool. 2. Embed it, where a pair is still to be ranked. 3. Rank. 4. Keep the pairs in the top k.
    sizes = draw_pool(out / "pool", store, sources, pool, pool_size, seed)
    if not all(part.path.is_file() for part in parts):
        embed_pool(out / "pool", embedder, int(sizes.sum()), rows_per_part, **where)
    noise = has_label_noise(store)
    decisions = Decisions(sources.names, sizes if pool == "per_source" else np.full(len(sources.names), sizes.sum()), noise)
    with parquet_writer(out / "ranks.parquet") as write:
        for part, block in zip(parts, run_parts(ranking, parts, title="rank pairs", unit="step", **where), strict=True):
            rank_N = block["rank"]
            keep_N = (rank_N <= k) & (rank_N != NOT_RANKED)
            write({"rank": rank_N, "keep": keep_N})
            rows = np.arange(part.work.start, part.work.stop)
            noise_N = take_rows(store, rows, ["planted"])["planted"].to_numpy() if noise else None
            decisions.add(sources.of(rows), rank_N, keep_N, noise_N)

    records = decisions.by_source()
    write_json(out / SOURCES, {"k": k, "pool": pool, "exact_up_to": exact_up_to, "sources": records, **store.filtered_before(filtered_before)})
    shutil.rmtree(out / "pool")  # the ranks are whole; drawing and embedding it again would give the same
    if sources.codes is not None:
        sources.codes.unlink()
    metrics = {"pool": int(sizes.sum())} | decisions.overall(ranked=previous is not None)
    return metrics | {f"kept_share.{row['source'].replace('/', ':')}": row["kept_share"] for row in records if len(records) > 1}


@dataclass(frozen=True)
class RankPairs:
    """Rows -> ``rank`` int64 of each pair's own passage, among the pool of its source where ``sources`` are given.

    It reports three steps for a pair: two texts embedded, one passage ranked.
    """

    embedder: EmbedTexts
    pairs: Path
    pool: Path
    exact_up_to: int | None
    previous: Path | None
    sources: RowSources | None

    def __call__(self, run: slice, progress: Progress) -> dict[str, NDArray[np.int64]]:
        rows = np.arange(run.start, run.stop)
        rank_N = np.full(len(rows), NOT_RANKED, dtype=np.int64)
        if self.previous is not None:
            (kept,) = iter_parquet(self.previous, {"keep": "bool"}, len(rows), run.start, run.stop)
            rows = rows[kept["keep"].to_numpy()]
        if not len(rows):
            return {"rank": rank_N}
        table = take_rows(self._store, rows, ["query", "passage"])
        passages = table["passage"].to_pylist()
        queries_ND = self.embedder.embed(table["query"].to_pylist(), "query", progress)
        passages_ND = self.embedder.embed(passages, "passage", progress)
        text_N = torch.tensor([text_id(p) for p in passages])
        places = rows - run.start
        code_N = np.zeros(len(rows), np.int32) if self.sources is None else self.sources.of(rows)
        for code in np.unique(code_N).tolist():
            own = torch.from_numpy(np.flatnonzero(code_N == code))
            ranks = self._pools(None if self.sources is None else code).ranks(queries_ND[own], passages_ND[own], text_N[own], progress)
            rank_N[places[own.numpy()]] = ranks.numpy()
        return {"rank": rank_N}

    @cached_property
    def _store(self) -> PairStore:
        return PairStore(self.pairs)

    @cached_property
    def _pools(self) -> Any:
        """Source (None: all) -> its pool, made ready for ranking; the last few stay."""
        read_manifest(self.pool, KIND)
        table = read_parquet(self.pool / TEXTS, {"text": "int64", "source": "int32"})
        text_P, source_P = torch.from_numpy(table["text"].to_numpy().copy()), table["source"].to_numpy()
        pool_PD = torch.from_numpy(read_array(self.pool / EMBEDDINGS, "c"))  # never written to; torch asks for a writable array
        exact_up_to, device = self.exact_up_to, self.embedder.torch_device  # not self, which a circle would keep alive

        @functools.lru_cache(maxsize=8)
        def ready(source: int | None) -> RankPool:
            low, high = (0, len(text_P)) if source is None else np.searchsorted(source_P, [source, source + 1])
            return RankPool(pool_PD[low:high], text_P[low:high], exact_up_to=exact_up_to, device=device)

        return ready


def _check(k: int, pool_size: int, pool: str, exact_up_to: int | None, rows_per_part: int, gpus_per_task: int) -> None:
    if k < 1 or pool_size < 1:
        raise UserError(f"filter: k = {k} and pool_size = {pool_size} must be >= 1")
    if pool not in ("global", "per_source"):
        raise UserError(f"filter: pool = {pool!r} is no kind of pool{suggestion(pool, ('global', 'per_source'))}")
    if exact_up_to is not None and exact_up_to < k:
        raise UserError(f"filter: exact_up_to = {exact_up_to} must be >= k = {k}, or null for all ranks")
    if rows_per_part < 1 or gpus_per_task < 0:
        raise UserError(f"filter: rows_per_part = {rows_per_part} must be >= 1 and gpus_per_task = {gpus_per_task} >= 0")


def _previous(path: Path, rows: int) -> Path:
    found = parquet_rows(path, {"keep": "bool"})
    if found != rows:
        raise UserError(f"{path}: previous has {found} rows, the pairs {rows}; it is not of these pairs")
    return path


def _begin(out: Path, identity: str) -> None:
    """Keep what an earlier try with the same identity left; remove what another one did."""
    try:
        same = read_checked(out / STATE)["identity"] == identity
    except UserError:  # not there, or damaged
        same = False
    if same:
        for folder in (out, out / "ranks", out / "pool"):
            remove_temporaries(folder)
        return
    for name in ("ranks", "pool"):
        shutil.rmtree(out / name, ignore_errors=True)
    write_checked(out / STATE, {"identity": identity})
