"""The consistency filter's decision, is a pair's own passage among the best two: ours against faiss's exact search.

Both answer for the same queries, passages and pool, on the same threads: faiss searches the pool's best two
(``IndexFlatIP``, k = 2) and a pair is kept where fewer than two score above its own passage; ours counts low-precision scores
and rescores the undecided exactly (``exact_up_to=2``), or counts every rank to its end (``all ranks``, which faiss's answer does not hold).
Preparing the pool (ours: its low-precision form; faiss: ``add``) is done once for millions of queries and is given beside.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import alternate, arguments, report, told
from lightning_e5.curation.consistency_filter.bounded_scores import exact_scores
from lightning_e5.curation.consistency_filter.rank_counting import RankPool

#: Share of the squared length that all vectors have in common: 0 is isotropic; cosines of E5 lie around 0.78.
COMMON = {"isotropic": 0.0, "E5-like": 0.78}
KEPT = 2


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "",
        pool={"type": int, "default": 100_000},
        queries={"type": int, "default": 1024},
        width={"type": int, "default": 384},
    )
    import faiss

    faiss.omp_set_num_threads(chosen.threads)
    rows = []
    for name, common in COMMON.items():
        queries, passages, pool = vectors(common, chosen.queries, chosen.pool, chosen.width)
        for exact_up_to in (KEPT, None):
            rows.append(measure(name, queries, passages, pool, exact_up_to, chosen))
    report(rows, chosen.json, pool=chosen.pool, width=chosen.width, threads=chosen.threads)


def vectors(common: float, pairs: int, pool: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, passages and a pool: 30% of the pairs are mismatched, the others near by all degrees."""
    draw = torch.Generator().manual_seed(0)
    unit = functional.normalize
    axis = unit(torch.randn(1, width, generator=draw), dim=1)

    def rows(own: Tensor) -> Tensor:
        return unit(common**0.5 * axis + (1 - common) ** 0.5 * unit(own, dim=1), dim=1)

    topics = torch.randn(pairs, width, generator=draw)
    nearness = torch.rand(pairs, 1, generator=draw) * (torch.rand(pairs, 1, generator=draw) > 0.3)
    queries = rows(nearness * topics + torch.randn(pairs, width, generator=draw) * (1 - nearness))
    return queries, rows(topics), rows(torch.randn(pool, width, generator=draw))


def measure(name: str, queries: Tensor, passages: Tensor, pool: Tensor, exact_up_to: int | None, chosen: Any) -> dict[str, Any]:
    """One row."""
    import faiss

    ids = torch.arange(len(queries) + len(pool))
    index = faiss.IndexFlatIP(pool.shape[1])
    started = time.process_time()
    index.add(pool.numpy())
    peer_prepare, started = time.process_time() - started, time.process_time()
    ranked = RankPool(pool, ids[len(queries) :], exact_up_to=exact_up_to)
    prepare = time.process_time() - started
    own = exact_scores(queries, passages).numpy()

    def ours() -> np.ndarray:
        return ranked.ranks(queries, passages, ids[: len(queries)]).numpy() <= KEPT

    def peer() -> np.ndarray:
        return index.search(queries.numpy(), KEPT)[0][:, KEPT - 1] <= own

    agreement = float((ours() == peer()).mean())
    times = alternate({"ours": ours, "peer": peer}, chosen.rounds)
    told(f"{name}: kept {peer().mean():.1%}, format {ranked.scores.name}")
    mine, theirs = times["ours"], times["peer"]
    return {
        "name": f"filter {name}, {'all ranks' if exact_up_to is None else f'exact up to {exact_up_to}'}",
        "batch": len(queries),
        "precision": ranked.scores.name,
        "ours_s": mine.wall,
        "peer_s": theirs.wall,
        "ratio": theirs.wall / mine.wall,
        "ours_cpu_s": mine.cpu,
        "peer_cpu_s": theirs.cpu,
        "ratio_cpu": theirs.cpu / mine.cpu,
        "agreement": agreement,
        "cosine_median": float((queries[:100] @ pool[:1000].T).median()),
        "prepare_cpu_s": prepare,
        "peer_prepare_cpu_s": peer_prepare,
    }


if __name__ == "__main__":
    main()
