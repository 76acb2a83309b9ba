"""Exact search against the bare matrix product of the same size, and against faiss's exact search (``IndexFlatIP``).

All three run on the same threads in turn. The product is made in the same blocks as the search makes it, into one buffer,
and nothing is done with it: no exact search can be faster than it with the same library. ``over_gemm`` is our time over
the product's, ``ratio`` is faiss's time over ours. Preparing (ours: checking the vectors; faiss: ``add``) is given beside.
``agreement`` is the share of our rows that faiss found, too; it decides near ties by its own rounding.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import alternate, arguments, report, told
from lightning_e5.memory import peak_gb
from lightning_e5.retrieval.exact import ExactIndex
from lightning_e5.retrieval.top_k import ON_CPU

#: Share of the squared length that all vectors have in common: 0 is isotropic; cosines of E5 lie around 0.78.
COMMON = {"isotropic": 0.0, "E5-like": 0.78}


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "",
        documents={"type": int, "default": 1_000_000},
        queries={"type": int, "default": 10_000},
        width={"type": int, "default": 384},
        k={"type": int, "default": 100},
        common={"choices": list(COMMON), "default": "E5-like", "help": "how alike all vectors are"},
        no_faiss={"action": "store_true", "help": "leave faiss out (its index is a copy of the vectors)"},
    )
    sizes = {name: getattr(chosen, name) for name in ("documents", "queries", "width", "k", "threads")}
    report([measure(chosen)], chosen.json, **sizes)


def unit_vectors(rows: int, width: int, common: float, seed: int) -> np.ndarray:
    """Unit rows around one axis, made in blocks: the whole is held once."""
    axis = np.random.default_rng(0).standard_normal(width).astype(np.float32)
    axis *= common**0.5 / np.linalg.norm(axis)
    draw = np.random.default_rng([1, seed])
    vectors = np.empty((rows, width), dtype=np.float32)
    for start in range(0, rows, 65536):
        part = vectors[start : start + 65536]
        draw.standard_normal(dtype=np.float32, out=part)
        part *= (1 - common) ** 0.5 / np.linalg.norm(part, axis=1, keepdims=True)
        part += axis
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def measure(chosen: Any) -> dict[str, Any]:
    """One row."""
    common = COMMON[chosen.common]
    corpus = unit_vectors(chosen.documents, chosen.width, common, seed=1)
    queries = unit_vectors(chosen.queries, chosen.width, common, seed=2)
    started = time.perf_counter()
    index = ExactIndex(*ON_CPU, device="cpu")
    index.add(corpus)
    prepare = time.perf_counter() - started
    rows, at_once = ON_CPU
    buffer = np.empty(at_once * rows, dtype=np.float32)

    def product() -> None:
        for first in range(0, len(queries), at_once):
            part = queries[first : first + at_once]
            for start in range(0, len(corpus), rows):
                block = corpus[start : start + rows]
                np.matmul(part, block.T, out=buffer[: len(part) * len(block)].reshape(len(part), len(block)))

    with _numpy_threads(chosen.threads):
        ours = index.search(queries, chosen.k)[1]
        peak = peak_gb()  # before faiss takes a copy of the vectors
        contestants: dict[str, Callable[[], object]] = {"product": product, "ours": lambda: index.search(queries, chosen.k)}
        facts: dict[str, Any] = {}
        if not chosen.no_faiss:
            import faiss

            faiss.omp_set_num_threads(chosen.threads)
            peer = faiss.IndexFlatIP(chosen.width)
            started = time.perf_counter()
            peer.add(corpus)
            facts["peer_prepare_s"] = time.perf_counter() - started
            found = peer.search(queries, chosen.k)[1]
            facts["agreement"] = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(ours, found, strict=True)])) / ours.shape[1]
            contestants["peer"] = lambda: peer.search(queries, chosen.k)
        times = alternate(contestants, chosen.rounds, warm_up=0)
    told(f"peak of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, faiss included")
    flops = 2 * chosen.documents * chosen.queries * chosen.width
    return {
        "name": f"search {chosen.common}, {chosen.queries:,} x {chosen.documents:,} x {chosen.width}, k {chosen.k}",
        "ours_s": times["ours"].wall,
        "product_s": times["product"].wall,
        "over_gemm": times["ours"].wall / times["product"].wall,
        "peer_s": times["peer"].wall if "peer" in times else None,
        "ratio": times["peer"].wall / times["ours"].wall if "peer" in times else None,
        "product_gflops": flops / times["product"].wall / 1e9,
        "peak_gib": peak,
        "prepare_s": prepare,
        **facts,
    }


def _numpy_threads(threads: int) -> Any:
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    return threadpool_limits(threads, user_api="blas")


if __name__ == "__main__":
    main()
