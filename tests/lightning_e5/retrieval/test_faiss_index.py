"""faiss behind the index protocol: equality with exact search, recall, seeds, threads, errors."""

from __future__ import annotations

import copy
from typing import Any

import faiss
import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.retrieval import faiss_index, vector_rows
from lightning_e5.retrieval.exact import ExactIndex, exact_scores
from lightning_e5.retrieval.faiss_index import FaissIndex


def unit(seed, count, width=16):
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS, QUERIES = unit(0, 1500), unit(1, 40)


def filled(index, vectors=VECTORS):
    for part in np.array_split(vectors, 3):
        index.add(part)
    return index


EXACT = filled(ExactIndex())


@pytest.mark.parametrize("k", [1, 10, 1500, 5000])
def test_flat_is_exact_search(k):
    for found, expected in zip(filled(FaissIndex()).search(QUERIES, k), EXACT.search(QUERIES, k), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_ties_beyond_the_first_fetch_go_to_the_lower_row():
    vectors = np.tile(unit(2, 3), (200, 1))  # each of 3 rows 200 times
    scores, rows = filled(FaissIndex(), vectors).search(vectors[:1], 5)
    assert rows.tolist() == [[0, 3, 6, 9, 12]]
    assert len(set(scores[0].tolist())) == 1

    class HigherRowsFirst:
        """The same index, breaking ties the other way."""

        def search(self, queries, fetch):
            approximate, found = real.search(queries, 600)
            order = np.lexsort((-found, -approximate.round(5)), axis=1)[:, :fetch]
            return np.take_along_axis(approximate, order, 1), np.take_along_axis(found, order, 1)

    index = filled(FaissIndex(), vectors)
    index.search(vectors[:1], 1)
    real, index._index = index._index, HigherRowsFirst()
    assert index.search(vectors[:1], 5)[1].tolist() == [[0, 3, 6, 9, 12]]


def test_recall_is_measured_and_rises_with_the_effort():
    few, many = (filled(FaissIndex("ivf", lists=40, nprobe=n, threads=1)) for n in (1, 40))
    found = few.search(QUERIES, 10)[1]
    expected = EXACT.search(QUERIES, 10)[1]
    share = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, expected, strict=True)])
    assert few.recall_against(EXACT, QUERIES, 10) == pytest.approx(share)
    assert 0 < share < 0.9
    assert many.recall_against(EXACT, QUERIES, 10) == 1.0
    assert filled(FaissIndex("hnsw", threads=1)).recall_against(EXACT, QUERIES, 10) > 0.95


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_same_index_twice_whatever_the_threads(kind):
    runs = [filled(FaissIndex(kind, nprobe=2, ef_search=12, threads=threads)).search(QUERIES, 10) for threads in (1, 2)]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    np.testing.assert_array_equal(runs[0][0], runs[1][0])


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("codes", ["float16", "int8"])
def test_smaller_codes_find_nearly_the_same_with_exact_scores(kind, codes):
    index = filled(FaissIndex(kind, codes=codes, lists=20, nprobe=20, threads=1))
    scores, rows = index.search(QUERIES, 10)
    assert index.recall_against(EXACT, QUERIES, 10) > 0.9
    np.testing.assert_array_equal(scores, exact_scores(QUERIES, VECTORS, np.repeat(np.arange(40), 10), rows.ravel()).reshape(40, 10))


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize(("dtype", "offset"), [(np.float32, 0), (np.float32, 1), (np.float16, 0), (np.float16, 1)])
def test_mapped_rows_are_searched_where_they_lie(tmp_path, monkeypatch, kind, dtype, offset):
    """Also those of two bytes a value, and those that lie unaligned, as within an archive."""
    monkeypatch.setattr(vector_rows, "_ROWS_AT_ONCE", 700)  # a block is 500
    monkeypatch.setattr(faiss_index, "_CHECKED_ROWS", 64)
    mapped = np.memmap(tmp_path / "vectors", dtype=dtype, mode="w+", shape=VECTORS.shape, offset=offset)
    mapped[:] = VECTORS
    in_memory, index = filled(FaissIndex(kind, nprobe=2, threads=1), mapped.astype(np.float32)), FaissIndex(kind, nprobe=2, threads=1)
    filled(index, mapped)
    for found, expected in zip(index.search(QUERIES, 10), in_memory.search(QUERIES, 10), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert all(np.shares_memory(block, mapped) for block in index._added)
    mapped[700, 3] = np.nan
    with pytest.raises(UserError, match="vectors hold NaN or infinity"):
        filled(FaissIndex(kind), mapped)


def test_the_seed_decides_the_centroids():
    runs = [filled(FaissIndex("ivf", lists=40, nprobe=1, threads=1, seed=seed)).search(QUERIES, 10)[1] for seed in (0, 1)]
    assert not np.array_equal(runs[0], runs[1])


def test_too_few_found_is_said_with_minus_one():
    index = filled(FaissIndex("ivf", lists=300, nprobe=1, threads=1))
    scores, rows = index.search(QUERIES, 100)
    assert (rows == -1).any()
    assert np.isneginf(scores[rows == -1]).all()
    assert (rows[:, 0] >= 0).all()
    assert all((np.diff((row >= 0).astype(int)) <= 0).all() for row in rows)  # the missing ones come last


def test_threads_are_given_back_and_an_empty_index_copies():
    before = faiss.omp_get_max_threads()
    filled(copy.deepcopy(FaissIndex("flat", threads=1))).search(QUERIES, 1)
    assert faiss.omp_get_max_threads() == before


def test_refuses_bad_use():
    with pytest.raises(UserError, match="unknown kind 'hsnw'; did you mean 'hnsw'"):
        FaissIndex("hsnw")
    with pytest.raises(UserError, match="unknown type 'int4'; did you mean 'int8'"):
        FaissIndex("ivf", codes="int4")
    with pytest.raises(UserError, match=r"index\.nprobe: 0 is not >= 1"):
        FaissIndex("ivf", nprobe=0)
    with pytest.raises(UserError, match="empty"):
        FaissIndex().search(QUERIES, 1)
    with pytest.raises(UserError, match="width 3, the index has width 16"):
        filled(FaissIndex()).add(np.ones((1, 3), dtype=np.float32))
    with pytest.raises(UserError, match=r"index.device: cuda: faiss sees no GPU here"):
        filled(FaissIndex(device="cuda")).search(QUERIES, 1)
    for kind, codes in (("hnsw", "float32"), ("flat", "int8")):
        with pytest.raises(UserError, match=rf"index.device: cuda: faiss has no {kind} index of {codes} on a GPU"):
            FaissIndex(kind, codes=codes, device="cuda")


class OnGpu:
    """A copy as faiss has it on a GPU: at most 2,048 results."""

    def __init__(self, index: Any) -> None:
        self.index, self.asked = index, 0

    def search(self, queries: Any, k: int) -> Any:
        assert k <= 2048, "faiss refuses more on a GPU"
        self.asked += len(queries)
        return self.index.search(queries, k)


@pytest.mark.parametrize(("kind", "codes", "copied"), [("flat", "float32", True), ("ivf", "float32", True), ("ivf", "int8", True), ("hnsw", "float32", False), ("flat", "int8", False)])
def test_a_gpu_searches_a_copy_with_the_same_results(monkeypatch: pytest.MonkeyPatch, kind: Any, codes: Any, copied: bool) -> None:
    """faiss's GPU part stands for itself here: which index is copied, and which one is asked."""
    copies: list[OnGpu] = []

    def copy_to(resources: object, number: int, index: Any) -> OnGpu:
        copies.append(OnGpu(index))
        return copies[-1]

    vectors = np.tile(VECTORS, (2, 1))  # with ties past the GPU's most results
    settings: dict[str, Any] = {"codes": codes, "lists": 20, "nprobe": 20, "threads": 1}
    expected = [filled(FaissIndex(kind, device="cpu", **settings), vectors).search(QUERIES[:5], k) for k in (10, len(vectors))]
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copy_to, raising=False)
    index = filled(FaissIndex(kind, **settings), vectors)
    for k, (scores, rows) in zip((10, len(vectors)), expected, strict=True):
        found = index.search(QUERIES[:5], k)
        assert np.array_equal(found[0], scores) and np.array_equal(found[1], rows)
    assert len(copies) == copied and all(one.asked for one in copies)


def test_an_index_that_does_not_fit_on_the_gpu_is_searched_on_the_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def copy_to(resources: object, number: int, index: Any) -> Any:
        raise RuntimeError("Error in virtual void* faiss::gpu::StandardGpuResourcesImpl::allocMemory: out of memory")

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", copy_to, raising=False)
    assert np.array_equal(filled(FaissIndex()).search(QUERIES, 5)[1], EXACT.search(QUERIES, 5)[1])
    assert "is searched on the CPU, as it cannot be copied to the GPU" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"index.device: cuda: the index cannot be copied to the GPU .*out of memory"):
        filled(FaissIndex(device="cuda")).search(QUERIES, 5)
