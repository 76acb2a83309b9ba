"""What a filter stage left, as data: its ranks and decisions, its record of each source, samples of its pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_rows import NOT_RANKED, take_rows
from data_modules.pair_store import PairStore
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import read_parquet
from lightning_e5.results.result_files import FILTER, read_result

RANKS, SOURCES = "ranks.parquet", "sources.json"


@dataclass(frozen=True, slots=True)
class FilterRanks:
    """What a filter decided.

    ``rank_N`` (0: dropped by a round before, not ranked), ``keep_N``, ``planted_N`` (None: no injected label noise), ``k``, the
    last rank kept, ``cap`` (ranks from it on are written as it; None: all as they are), ``sources`` (the rows of
    ``sources.json``), ``pool`` (``global``, ``per_source``) and ``filtered_before`` (what filtered the pairs before; None: nothing known).
    """

    rank_N: NDArray[np.int64]
    keep_N: NDArray[np.bool_]
    planted_N: NDArray[np.bool_] | None
    k: int
    metrics: dict[str, float]
    cap: int | None = None
    sources: tuple[dict[str, Any], ...] = ()
    pool: str = "global"
    filtered_before: str | None = None

    @property
    def ranked_N(self) -> NDArray[np.bool_]:
        """The pairs that were ranked."""
        return self.rank_N != NOT_RANKED


@dataclass(frozen=True, slots=True)
class FilterSample:
    """One pair with the filter's decision."""

    query: str
    passage: str
    rank: int
    keep: bool
    planted: bool | None
    source: str = ""


def read_filter(folder: Path, pairs: PairStore | None, settings: Mapping[str, Any], metrics: dict[str, float]) -> FilterRanks:
    """The ranks of a stage's folder.

    Args:
        pairs: what was filtered; None where it is not there any more.
        settings: the stage's configuration.
        metrics: the stage's.

    Raises:
        UserError: the ranks are not of these pairs.
    """
    table = read_parquet(folder / RANKS, {"rank": "int64", "keep": "bool"})
    rank_N, keep_N = (table[c].to_numpy(zero_copy_only=False) for c in ("rank", "keep"))
    planted_N = None
    if pairs is not None and pairs.rows != len(rank_N):
        raise UserError(f"{folder / RANKS}: has {len(rank_N)} rows, its pairs {pairs.rows}")
    if pairs is not None and "planted" in pairs.columns:
        planted_N = pairs.read(["planted"])["planted"].to_numpy(zero_copy_only=False)
        planted_N = planted_N if planted_N.any() else None  # no mismatch planted: nothing to evaluate by
    record = read_result(folder / SOURCES, FILTER) if (folder / SOURCES).is_file() else {}
    k = settings.get("k") or record.get("k") or int(rank_N[keep_N].max(initial=1))
    limit = record.get("exact_up_to")
    return FilterRanks(
        rank_N, keep_N, planted_N, k, metrics, None if limit is None else limit + 1, tuple(record.get("sources", ())), record.get("pool", "global"),
        record.get("filtered_before"),
    )


def draw_samples(ranks: FilterRanks, pairs: PairStore, count: int) -> list[FilterSample]:
    """``count`` kept pairs, then ``count`` dropped ones that were ranked, at random (always the same), by rank."""
    draw = np.random.default_rng(0)
    chosen = []
    for kept in (True, False):
        rows = draw.permutation(np.flatnonzero((ranks.keep_N == kept) & ranks.ranked_N))[:count]
        chosen += sorted(rows.tolist(), key=lambda r: ranks.rank_N[r])
    order = np.sort(np.array(chosen, np.int64))
    columns = ["query", "passage", *(["source"] if "source" in pairs.columns else [])]
    texts = dict(zip(order.tolist(), take_rows(pairs, order, columns).to_pylist(), strict=True))
    return [
        FilterSample(
            texts[row]["query"], texts[row]["passage"], int(ranks.rank_N[row]), bool(ranks.keep_N[row]),
            None if ranks.planted_N is None else bool(ranks.planted_N[row]), texts[row].get("source", ""),
        )
        for row in chosen
    ]  # fmt: skip
