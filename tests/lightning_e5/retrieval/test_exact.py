"""Exact search equals a float64 loop, whatever the chunks, the order of the rows and the error of the matmul."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_e5.errors import UserError
from lightning_e5.retrieval import top_k
from lightning_e5.retrieval.exact import ExactIndex


def unit(rng, count, width):
    vectors = rng.standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def corpus_with_ties(rng, count=60, width=37):
    """Random rows, exact copies of them, and neighbours one last bit away."""
    vectors = unit(rng, count, width)
    vectors[count // 2 :] = vectors[: count - count // 2]
    vectors[-5:] = np.nextafter(vectors[:5], np.float32(2))
    return vectors


def oracle(vectors, queries, k):
    scores, rows = [], []
    for query in queries:
        exact_scores = []
        for row in vectors:
            products = [float(a) * float(b) for a, b in zip(query, row, strict=True)]
            exact_scores.append(np.float32(sum(sorted(products, key=abs))))
        best = sorted(range(len(vectors)), key=lambda i: (-exact_scores[i], i))[:k]
        rows.append(best)
        scores.append([exact_scores[i] for i in best])
    return np.array(scores, dtype=np.float32), np.array(rows)


def search(vectors, queries, k, corpus_chunk=8192, query_chunk=256, parts=1):
    index = ExactIndex(corpus_chunk, query_chunk)
    for part in np.array_split(vectors, parts):
        index.add(part)
    return index.search(queries, k)


@pytest.mark.parametrize("k", [1, 7, 60, 61])
def test_equals_the_loop(k):
    rng = np.random.default_rng(0)
    vectors, queries = corpus_with_ties(rng), unit(rng, 4, 37)
    scores, rows = search(vectors, queries, k)
    expected_scores, expected_rows = oracle(vectors, queries, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)
    assert scores.dtype == np.float32
    assert rows.dtype == np.int64
    assert scores.shape == (4, min(k, 60))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("corpus_chunk", "query_chunk"), [(1, 1), (7, 3), (7, 100), (1000, 2)])
def test_chunks_and_parts_change_nothing(corpus_chunk, query_chunk, parts):
    rng = np.random.default_rng(1)
    vectors, queries = corpus_with_ties(rng, 300, 48), unit(rng, 9, 48)
    expected = search(vectors, queries, 20)
    found = search(vectors, queries, 20, corpus_chunk, query_chunk, parts)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_order_of_the_rows_changes_only_their_numbers():
    rng = np.random.default_rng(2)
    vectors, queries = unit(rng, 200, 32), unit(rng, 5, 32)
    order = rng.permutation(200)
    scores, rows = search(vectors, queries, 50)
    permuted_scores, permuted_rows = search(vectors[order], queries, 50)
    np.testing.assert_array_equal(permuted_scores, scores)
    np.testing.assert_array_equal(order[permuted_rows], rows)


def noisy(share_of_bound):
    """A matmul whose errors reach this share of the proven bound."""
    rng = np.random.default_rng(3)
    error_bound = top_k.score_error_bound

    def approximate(queries, chunk, out):
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        bound = error_bound(norms, top_k.longest_norm(chunk), queries.shape[1])[:, None] * share_of_bound
        out[:] = queries.astype(np.float64) @ chunk.T + rng.uniform(-bound, bound, (len(queries), len(chunk)))
        return out

    return approximate


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_any_error_within_the_bound_is_harmless(monkeypatch, chunk):
    rng = np.random.default_rng(4)
    vectors, queries = corpus_with_ties(rng, 400, 24), unit(rng, 8, 24)
    expected = search(vectors, queries, 9)
    monkeypatch.setattr(top_k, "approximate_scores", noisy(0.99))
    found = search(vectors, queries, 9, chunk)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_negative_control_an_error_beyond_the_bound_is_seen(monkeypatch):
    rng = np.random.default_rng(4)
    vectors, queries = corpus_with_ties(rng, 400, 24), unit(rng, 8, 24)
    expected = search(vectors, queries, 10)
    monkeypatch.setattr(top_k, "approximate_scores", noisy(1e5))
    assert not np.array_equal(search(vectors, queries, 10)[1], expected[1])


def test_negative_control_without_slack_the_chunks_show(monkeypatch):
    rng = np.random.default_rng(5)
    vectors, queries = corpus_with_ties(rng, 400, 24), unit(rng, 8, 24)
    expected = search(vectors, queries, 9)  # copies come in pairs: an odd k cuts through one
    monkeypatch.setattr(top_k, "approximate_scores", noisy(0.99))
    monkeypatch.setattr(top_k, "score_error_bound", lambda norms, longest, width: np.zeros(len(norms)))
    assert not np.array_equal(search(vectors, queries, 9)[1], expected[1])


def test_all_rows_equal_are_ranked_by_row_in_bounded_candidates():
    vectors = np.ones((500, 8), dtype=np.float32)
    _, rows = search(vectors, vectors[:2], 5, corpus_chunk=64)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3, 4]] * 2)


def test_takes_torch_tensors_and_no_queries():
    torch = pytest.importorskip("torch")
    index = ExactIndex()
    index.add(torch.eye(3))
    scores, rows = index.search(torch.eye(3)[1:2], 1)
    assert rows.tolist() == [[1]]
    assert scores.tolist() == [[1.0]]
    assert index.search(torch.zeros(0, 3), 2)[1].shape == (0, 2)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.array([[1, np.nan]], dtype=np.float32), "vectors hold NaN or infinity, first in row 0"),
        (np.array([[1, 1], [np.inf, 0]], dtype=np.float32), "first in row 1"),
        (np.ones((2, 2)), "must be float32, not float64"),
        (np.ones(2, dtype=np.float32), r"shape \[N, D\]"),
        (np.ones((2, 3), dtype=np.float32), "width 3, the index has width 2"),
    ],
)
def test_refuses_bad_vectors(vectors, message):
    index = ExactIndex()
    index.add(np.ones((1, 2), dtype=np.float32))
    with pytest.raises(UserError, match=message):
        index.add(vectors)
    with pytest.raises(UserError):
        index.search(vectors, 1)


def test_refuses_bad_use():
    with pytest.raises(UserError, match="empty"):
        ExactIndex().search(np.ones((1, 2), dtype=np.float32), 1)
    with pytest.raises(UserError, match="at least 1"):
        ExactIndex(corpus_chunk=0)
    index = ExactIndex()
    index.add(np.full((1, 2), 1e30, dtype=np.float32))
    with pytest.raises(UserError, match="k must be"):
        index.search(np.ones((1, 2), dtype=np.float32), 0)
    with pytest.raises(UserError, match="overflow"):
        index.search(np.full((1, 2), 1e30, dtype=np.float32), 1)
