"""Stage: rank every pair's passage among a random pool, keep the pairs in the top k."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_modules.pair_rows import NOT_RANKED, source_codes
from data_modules.pair_store import PairStore
from lightning_e5.configurable import configurable
from lightning_e5.curation.consistency_filter.keep import judge
from lightning_e5.curation.consistency_filter.pool import PoolKind, draw_pool, is_whole, join_parts
from lightning_e5.curation.consistency_filter.tasks import (
    FilterSettings,
    PoolTask,
    RankTask,
    embed_pool_part,
    forget,
    rank_part,
    ranks_of,
)
from lightning_e5.curation.engines.engine import Engine, make_engine
from lightning_e5.distributed.devices import Precision
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.files.storage import (
    read_checked,
    remove_temporaries,
    sha256_file,
    sha256_text,
    to_json,
    write_checked,
    write_json,
)
from lightning_e5.progress import progress
from lightning_e5.ranges import Count, CountOrZero, Length, WorkersOrZero

#: What the filter did source by source, and the hash of what decided the ranks that are there.
SOURCES, STATE = "sources.json", "filter.json"
Task = TypeVar("Task", PoolTask, RankTask)


@configurable("stage")
def consistency_filter(
    out: Path,
    *,
    pairs: Path,
    encoder: Path,
    pool_size: Count = 1_000_000,
    k: Count = 2,
    pool: PoolKind = "global",
    precision: Precision = "fp32",
    max_length: Length | None = None,
    exact_up_to: CountOrZero | None = None,
    previous: Path | None = None,
    rows_per_part: Count = 131_072,
    engine: Engine | Literal["local", "ray"] | None = None,
    gpus_per_task: WorkersOrZero = 0,
    device: str = "auto",
    seed: int,
) -> dict[str, float]:
    """Write ``ranks.parquet`` (``rank`` int64, ``keep`` bool; a row per pair, in order) and ``sources.json``.

    The pool is embedded once; runs of ``rows_per_part`` pairs are ranked into ``ranks/part-*.parquet``. Killed and
    started again, it goes on behind the last finished run and writes the same bytes.

    Args:
        pairs: folder of pairs, one table or shards (`PairStore`).
        encoder: folder of the noisy model.
        pool_size: random passages to rank among (E5: 1M), at most all there are; for each source with ``per_source``.
        k: highest rank kept (E5: 2).
        pool: ``global``, passages of all sources (E5 does not say), or ``per_source``, of the pair's own source.
        precision: of the backbone; scores are float32.
        max_length: tokens per text; as stored with the encoder by default.
        exact_up_to: ranks over it are written as ``exact_up_to + 1``, which makes ranking several times as fast; at
            least ``k``; None writes every rank as it is.
        previous: ``ranks.parquet`` of an earlier round: a pair that it dropped stays dropped, with rank 0.
        rows_per_part: pairs ranked between two files; the memory of their embeddings is ``8 * D`` bytes a pair.
        engine: ``local`` or ``ray`` (or an `Engine`) for runs in parallel, each process with the screened pool in its
            memory (``D`` bytes a passage in int8); None for one after the other, here. The last bits of embeddings may
            depend on the threads of a process, and with them the rank of a near tie.
        gpus_per_task: GPUs of each run, with an engine.
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
    decides = {
        "pairs": [[s.path.relative_to(store.folder).as_posix(), s.rows, s.path.stat().st_size] for s in store.shards()],
        "encoder": [[p.name, sha256_file(p)] for p in sorted(Path(encoder).rglob("*")) if p.is_file()],
        "previous": sha256_file(_previous(previous, store.rows)) if previous is not None else None,
        "settings": [pool_size, pool, precision, max_length, exact_up_to, rows_per_part, seed],
    }
    identity = sha256_text(to_json(decides))
    _begin(out, identity)
    settings = FilterSettings(out, Path(pairs), Path(encoder), precision, max_length, device, pool == "per_source", exact_up_to, previous, identity)
    names, code_N = source_codes(store)
    tasks = [
        RankTask(settings, number, first, stop, code_N[first:stop].tobytes() if settings.per_source else b"")
        for number, (first, stop) in enumerate(_runs(store.rows, rows_per_part))
    ]
    pool_rows = draw_pool(settings.pool, store, pool, pool_size, seed)
    try:
        if not all(task.done for task in tasks):
            _embed_pool(settings, pool_rows, rows_per_part, engine, gpus_per_task)
            _do(rank_part, tasks, 3, "rank pairs", engine, gpus_per_task)
    finally:
        forget()
    ranks = ranks_of(tasks)
    keep = (ranks <= k) & (ranks != NOT_RANKED)
    write_parquet(out / "ranks.parquet", {"rank": ranks.numpy(), "keep": keep.numpy()})
    planted = _planted(store)
    pools = _pools(settings.pool, len(names), settings.per_source)
    rows = _by_source(names, code_N, ranks, keep, planted, pools)
    write_json(out / SOURCES, {"k": k, "pool": pool, "exact_up_to": exact_up_to, "sources": rows})
    shutil.rmtree(settings.pool)  # the ranks are whole; drawing and embedding it again would give the same
    metrics = {"pairs": len(keep), "kept": int(keep.sum()), "pool": pool_rows, "kept_share": int(keep.sum()) / len(keep)}
    if previous is not None:
        metrics["ranked"] = int((ranks != NOT_RANKED).sum())
    if planted is not None:
        metrics |= _truth(keep, planted)
    return metrics | {f"kept_share.{row['source'].replace('/', ':')}": row["kept_share"] for row in rows if len(rows) > 1}


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
    found = len(read_parquet(path, {"keep": "bool"}))
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


def _runs(rows: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(rows, first + size)) for first in range(0, rows, size)]


def _embed_pool(settings: FilterSettings, rows: int, size: int, engine: Engine | str | None, gpus: int) -> None:
    if is_whole(settings.pool):
        return
    tasks = [PoolTask(settings, first, stop) for first, stop in _runs(rows, size)]
    _do(embed_pool_part, tasks, 1, "embed the pool", engine, gpus)
    join_parts(settings.pool, [task.first for task in tasks])


def _do(
    function: Callable[..., int], tasks: Sequence[Task], steps: int, title: str, engine: Engine | str | None, gpus: int
) -> None:
    """Do the tasks that are not done, here or on an engine."""
    left = [task for task in tasks if not task.done]
    if engine is not None:
        for _ in make_engine(engine).map(function, left, title=title, gpus_per_task=gpus):
            pass
        return
    with progress(steps * sum(task.stop - task.first for task in left), title, "step") as bar:
        for task in left:
            function(task, bar)


def _planted(store: PairStore) -> Tensor | None:
    """Which pairs are planted mismatches; None where none is, for then nothing can be judged."""
    if "planted" not in store.columns:
        return None
    planted = torch.from_numpy(store.read(["planted"])["planted"].to_numpy(zero_copy_only=False).copy())
    return planted if bool(planted.any()) else None


def _pools(folder: Path, sources: int, per_source: bool) -> NDArray[np.int64]:
    """The size of the pool that each source's pairs were ranked among."""
    source_P = read_parquet(folder / "texts.parquet", {"source": "int32"})["source"].to_numpy()
    return np.bincount(source_P, minlength=sources) if per_source else np.full(sources, len(source_P))


def _by_source(
    names: list[str], code_N: NDArray[np.int32], ranks: Tensor, keep: Tensor, planted: Tensor | None, pools: NDArray[np.int64]
) -> list[dict[str, Any]]:
    order = np.argsort(code_N, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(code_N, minlength=len(names)))[:-1])
    rows = []
    for name, own, pool in zip(names, parts, pools.tolist(), strict=True):
        kept, rank = keep[own], ranks[own]
        ranked = rank[rank != NOT_RANKED]
        row = {
            "source": name,
            "pairs": len(own),
            "ranked": len(ranked),
            "kept": int(kept.sum()),
            "kept_share": int(kept.sum()) / len(own),
            "median_rank": int(ranked.median()) if len(ranked) else None,
            "pool": pool,
        }
        rows.append(row if planted is None else row | {"planted": int(planted[own].sum())} | _truth(kept, planted[own]))
    return rows


def _truth(keep: Tensor, planted: Tensor) -> dict[str, float]:
    truth = judge(keep, planted)
    return {
        "removed_mismatches": truth.removed_mismatches,
        "kept_pairs": truth.kept_pairs,
        "precision": truth.precision,
        "recall": truth.recall,
    }
