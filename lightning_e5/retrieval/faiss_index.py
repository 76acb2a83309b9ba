"""faiss's indexes behind the project's index protocol, with its rule for ties and a measured recall.

faiss proposes rows; their scores are computed again exactly (`exact_scores`), so that a score never depends on the index
and equal scores rank by rising row. Where a cut could fall into near ties, more rows are fetched until it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np

from lightning_e5.configurable import configurable
from lightning_e5.distributed.devices import DeviceName
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.scratch import blocks, release
from lightning_e5.progress import say
from lightning_e5.ranges import Count, Range, Seed, Workers
from lightning_e5.retrieval.exact import VectorIndex, check_searchable, checked_vectors
from lightning_e5.retrieval.top_k import Float32, Int64, exact_scores, longest_norm, score_error_bound
from lightning_e5.retrieval.vector_rows import VectorRows, as_float32
from lightning_e5.rng import derive_seed, generator

Kind = Literal["flat", "ivf", "hnsw"]
Codes = Literal["float32", "float16", "int8"]

_KINDS, _CODES = ("flat", "ivf", "hnsw"), ("float32", "float16", "int8")
_QUERIES_AT_ONCE = 1024
#: The most results, and lists looked into, that faiss has on a GPU.
_GPU_MOST = 2048
#: Rows that are looked at together.
_CHECKED_ROWS = 1 << 16


@configurable("index")
class FaissIndex:
    """Inner-product search by faiss: ``flat`` finds what exact search finds, ``ivf`` and ``hnsw`` nearly all of it.

    The index is trained and built at the first search, over all rows added until then; rows added later let it be built
    anew. It is built on the CPU; a GPU searches a copy of it. Two builds from the same rows and seed are the same
    index: a graph (``hnsw``) is therefore built by one thread, and only searched by several.

    Args:
        kind: ``flat`` (all rows), ``ivf`` (the lists of the nearest centroids), ``hnsw`` (a graph of neighbours).
        lists: centroids of ``ivf``; 4 times the square root of the number of rows by default, at most a 39th of it.
        nprobe: lists that a search of ``ivf`` looks into.
        train_rows: rows of ``ivf`` that centroids are trained on, drawn by ``seed``; all where there are fewer.
        codes: what faiss keeps of the vectors that it searches: 4, 2 or 1 bytes per value. The rows that it finds are scored by the vectors as they were
            added, which stay where they are (in memory, or mapped from a file).
        links: neighbours of a row in the graph of ``hnsw``.
        ef_construction: candidates kept while the graph is built.
        ef_search: candidates kept during a search of ``hnsw``; at least the number of rows asked for.
        threads: of training and search; faiss's own number by default.
        seed: of training.
        device: where the index is searched; ``auto`` is the GPU where faiss sees one and has such an index for it (``ivf``, and ``flat`` of
            float32). More than 2,048 results of a query, or lists looked into, are always the CPU's.

    Raises:
        UserError: an unknown kind or a number below 1.
    """

    def __init__(
        self,
        kind: Kind = "flat",
        *,
        lists: Count | None = None,
        nprobe: Count = 16,
        train_rows: Count = 262_144,
        codes: Codes = "float32",
        links: Annotated[int, Range(2, 4096)] = 32,
        ef_construction: Count = 200,
        ef_search: Count = 128,
        threads: Workers | None = None,
        seed: Seed = 0,
        device: DeviceName = "auto",
    ) -> None:
        if kind not in _KINDS:
            raise UserError(f"index.kind: unknown kind {kind!r}{suggestion(kind, _KINDS)}")
        if codes not in _CODES:
            raise UserError(f"index.codes: unknown type {codes!r}{suggestion(codes, _CODES)}")
        numbers = {"lists": lists, "nprobe": nprobe, "train_rows": train_rows, "links": links,
                   "ef_construction": ef_construction, "ef_search": ef_search, "threads": threads}  # fmt: skip
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise UserError(f"index.{name}: {value} is not >= 1")
        if device == "cuda" and (kind == "hnsw" or (kind == "flat" and codes != "float32")):
            raise UserError(f"index.device: cuda: faiss has no {kind} index of {codes} on a GPU; the rule is ivf, or flat of float32")
        self.kind, self.lists, self.nprobe, self.train_rows = kind, lists, nprobe, train_rows
        self.links, self.ef_construction, self.ef_search = links, ef_construction, ef_search
        self.threads, self.seed, self.codes, self.device = threads, seed, codes, device
        self._added: list[Any] = []  # float32, or mapped from a file
        self._vectors: Any = None  # `VectorRows`, once the index is built
        self._index: Any = None
        self._on_gpu: Any = None  # its copy there, where there is one

    def __len__(self) -> int:
        return sum(len(block) for block in self._added)

    def add(self, vectors: Any) -> None:
        """Append ``[N, D]`` float32 rows; UserError for another width than before, or values that are not finite.

        An array that is mapped from a file stays there, and may be float16 or lie unaligned: rows of it are read where they are needed.
        """
        width = self._added[0].shape[1] if self._added else None
        if isinstance(vectors, np.memmap) and vectors.ndim == 2 and vectors.dtype in (np.float16, np.float32):
            for part in blocks(len(vectors), _CHECKED_ROWS):
                checked_vectors(as_float32(vectors[part]), "vectors", width)
                release(vectors)
            self._added.append(vectors)
        else:
            self._added.append(checked_vectors(vectors, "vectors", width))
        self._index = self._on_gpu = None

    def search(self, queries: Any, k: int) -> tuple[Float32, Int64]:
        """The best ``k`` rows that the index finds.

        Args:
            queries: ``[Q, D]`` float32.
            k: results per query; cut to the number of rows.

        Returns:
            Scores float32 ``[Q, k]``, falling and exact, and rows int64 ``[Q, k]``, equal scores by rising row; where
            an approximate index finds fewer, the last rows are -1 with score -inf.

        Raises:
            UserError: the index is empty, ``k`` is below 1, or the queries do not fit the rows or are not finite.
        """
        check_searchable(len(self), k)
        array = checked_vectors(queries, "queries", self._added[0].shape[1])
        k = min(k, len(self))
        scores = np.full((len(array), k), -np.inf, dtype=np.float32)
        rows = np.full((len(array), k), -1, dtype=np.int64)
        with _faiss_threads(self.threads):
            self._build()
            for start in range(0, len(array), _QUERIES_AT_ONCE):
                self._search(array, np.arange(start, min(len(array), start + _QUERIES_AT_ONCE)), k, scores, rows)
        return scores, rows

    def recall_against(self, reference: VectorIndex, queries: Any, k: int) -> float:
        """Recall@k against exact search: the mean share of the reference's best ``k`` that this index finds.

        A row whose score equals the reference's k-th counts as one of them, so ties cost nothing.

        Args:
            reference: an `ExactIndex`, say, with the same rows.
            queries: ``[Q, D]`` float32, at least one.
            k: cut to the number of rows.
        """
        expected, _ = reference.search(queries, k)
        if not len(expected):
            raise UserError("recall needs at least one query")
        found, _ = self.search(queries, k)
        return float((found >= expected[:, -1:]).mean())

    def _search(self, queries: Float32, places: Int64, k: int, scores: Float32, rows: Int64) -> None:
        norms = np.linalg.norm(queries[places].astype(np.float64), axis=1)
        slack = score_error_bound(norms, self._longest, queries.shape[1])
        fetch = min(len(self), k + 8)
        while len(places):
            index = self._index if self._on_gpu is None or fetch > _GPU_MOST else self._on_gpu
            approximate, found = index.search(np.ascontiguousarray(queries[places]), fetch)
            owner, column = np.nonzero(found >= 0)
            row = found[owner, column]
            exact = np.full(found.shape, -np.inf, dtype=np.float32)
            exact[owner, column] = exact_scores(queries, self._vectors, places[owner], row)
            order = np.lexsort((found, -exact), axis=1)[:, :k]
            scores[places] = np.take_along_axis(exact, order, axis=1)
            rows[places] = np.take_along_axis(found, order, axis=1)
            release(*self._added)
            # what was not fetched scores at most the last that was, give or take the rounding
            open_queries = (found[:, -1] >= 0) & (approximate[:, -1] + 2 * slack >= scores[places, -1]) & (fetch < len(self))
            places, slack, fetch = places[open_queries], slack[open_queries], min(len(self), 2 * fetch)

    def _build(self) -> None:
        if self._index is not None:
            return
        self._vectors = VectorRows(self._added)
        self._longest = max(map(longest_norm, self._added))
        self._index = {"flat": self._flat, "ivf": self._ivf, "hnsw": self._hnsw}[self.kind](self._vectors)
        self._on_gpu = self._copy_on_gpu(self._index)

    def _copy_on_gpu(self, index: Any) -> Any:
        """A copy of the index on the first GPU; None where it is to be searched on the CPU."""
        import faiss

        has_such = self.kind == "ivf" or (self.kind == "flat" and self.codes == "float32")
        if self.device == "cpu" or not has_such or getattr(index, "nprobe", 1) > _GPU_MOST:
            return None
        gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
        if not gpus:
            if self.device == "cuda":
                raise UserError("index.device: cuda: faiss sees no GPU here; the rule is auto, cpu, or cuda with faiss-gpu and a GPU")
            return None
        try:
            return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
        except RuntimeError as error:  # faiss's exceptions: no room for it, or no such index there
            if self.device == "cuda":
                raise UserError(f"index.device: cuda: the index cannot be copied to the GPU ({str(error).strip()}); take device: cpu") from None
            say(f"index: is searched on the CPU, as it cannot be copied to the GPU ({str(error).strip()})")
            return None

    def _flat(self, vectors: VectorRows) -> Any:
        import faiss

        width = vectors.width
        index = faiss.IndexFlatIP(width) if self.codes == "float32" else faiss.IndexScalarQuantizer(width, self._quantizer(), faiss.METRIC_INNER_PRODUCT)
        return vectors.add_to(index, self._sample(vectors))

    def _ivf(self, vectors: VectorRows) -> Any:
        import faiss

        count, width = len(vectors), vectors.width
        lists = min(count, self.lists) if self.lists else max(1, min(int(4 * count**0.5), count // 39))
        centroids, product = faiss.IndexFlatIP(width), faiss.METRIC_INNER_PRODUCT
        index: Any
        if self.codes == "float32":
            index = faiss.IndexIVFFlat(centroids, width, lists, product)
        else:
            index = faiss.IndexIVFScalarQuantizer(centroids, width, lists, self._quantizer(), product)
        index.cp.seed = derive_seed(self.seed, "faiss", "centroids") % 2**31
        index.cp.min_points_per_centroid = 1  # else faiss warns on stderr
        vectors.add_to(index, self._sample(vectors))
        index.nprobe = min(self.nprobe, lists)
        return index

    def _hnsw(self, vectors: VectorRows) -> Any:
        import faiss

        product = faiss.METRIC_INNER_PRODUCT
        index: Any
        if self.codes == "float32":
            index = faiss.IndexHNSWFlat(vectors.width, self.links, product)
        else:
            index = faiss.IndexHNSWSQ(vectors.width, self._quantizer(), self.links, product)
        index.hnsw.efConstruction = self.ef_construction
        index.hnsw.efSearch = self.ef_search
        with _faiss_threads(1):
            return vectors.add_to(index, self._sample(vectors), whole=True)

    def _quantizer(self) -> Any:
        import faiss

        return {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[self.codes]

    def _sample(self, vectors: VectorRows) -> Float32 | None:
        """The rows that an index is trained on; None for one that needs no training."""
        if self.kind != "ivf" and self.codes != "int8":
            return None
        if len(vectors) <= self.train_rows:
            return np.concatenate([as_float32(block) for block in vectors.blocks])
        draw = generator(self.seed, "faiss", "rows")
        return vectors[np.sort(draw.permutation(len(vectors))[: self.train_rows])]


@contextmanager
def _faiss_threads(threads: int | None) -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
