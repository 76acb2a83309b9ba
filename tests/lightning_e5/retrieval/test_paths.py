"""One rule for every search path: exact, chunked, stored shards, faiss, BM25. Self-retrieval, ties, invariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.beir.retrieval import RetrievalTask
from lightning_e5.files.stored_corpus import StoredCorpus
from lightning_e5.retrieval import mapped_vectors
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.retrieval.exact import ExactIndex
from lightning_e5.retrieval.faiss_index import FaissIndex
from lightning_e5.retrieval.mapped_vectors import MappedVectors
from lightning_e5.retrieval.search import retrieve
from lightning_e5.retrieval.stored_embeddings import store_embeddings
from lightning_e5.retrieval.top_k import TopK


class Letters:
    """Unit vectors of letter counts: many texts tie exactly."""

    calls = 0

    def fingerprint(self):
        return "letters"

    def embed(self, texts, kind, *, normalize=True):
        self.calls += 1
        vectors = torch.tensor([[float(text.count(letter)) for letter in "abcdefgh"] for text in texts]) + 0.125
        return torch.nn.functional.normalize(vectors)


texts = st.text(alphabet="abcdefgh", min_size=1, max_size=5)
# a brute force for every kind of index: all lists of the inverted file, more candidates than there are rows
PATHS = {
    "exact": lambda folder: {},
    "chunked": lambda folder: {"index": ExactIndex(corpus_chunk=3, query_chunk=2)},
    "stored": lambda folder: {"cache_dir": folder},
    "flat": lambda folder: {"index": FaissIndex("flat", threads=1)},
    "ivf": lambda folder: {"index": FaissIndex("ivf", lists=3, nprobe=3, threads=1)},
    "hnsw": lambda folder: {"index": FaissIndex("hnsw", ef_search=500, links=64, threads=1)},
}


def expected_run(queries, corpus, k):
    """Sorting in float64, with nothing of the search code."""
    embedder = Letters()
    vectors = {d: np.float64(embedder.embed([corpus[d]], "passage").numpy()[0]) for d in corpus}
    run = {}
    for query, text in queries.items():
        vector = np.float64(embedder.embed([text], "query").numpy()[0])
        scores = {d: float(np.float32((vector * vectors[d]).sum()))for d in corpus}
        run[query] = sorted(scores.items(), key=lambda item: (item[1], item[0].encode()), reverse=True)[:k]  # trec_eval's order
    return run


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corpus=st.dictionaries(st.sampled_from([f"d{i}" for i in range(38)] + ["D", "ä"]), texts, min_size=1, max_size=40),
    others=st.dictionaries(st.sampled_from(["q1", "q2"]), texts, max_size=2),
    k=st.integers(1, 6) | st.just(45),
    order=st.randoms(use_true_random=False),
)
def test_every_path_gives_the_same_run(tmp_path_factory, path, corpus, others, k, order):
    queries = {**dict(list(corpus.items())[:10]), **others}
    documents = list(corpus)
    order.shuffle(documents)
    folder = tmp_path_factory.mktemp("cache")
    run = retrieve(Letters(), queries, {d: corpus[d] for d in documents}, k, **PATHS[path](folder))
    if path == "hnsw":  # a graph of few equal vectors need not reach every row; what it finds follows the same rules
        for query, found in run.items():
            allowed = dict(expected_run({query: queries[query]}, corpus, len(corpus))[query])
            assert all(allowed[d] == score for d, score in found.items())
            assert list(found.items()) == sorted(found.items(), key=lambda item: (item[1], item[0]), reverse=True)
            assert len(found) <= k
        return
    assert {query: list(found.items()) for query, found in run.items()} == expected_run(queries, corpus, k)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("k", [1, 4, 19])
def test_each_query_of_the_corpus_gets_k_others(tmp_path, path, k):
    """As in ArguAna: all documents are queries; each is dropped for itself alone, by the texts where nothing is declared."""
    rng = np.random.default_rng(6)
    corpus = {f"d{i:02d}": "".join(rng.choice(list("abcdefgh"), 12)) for i in range(20)}
    data = RetrievalData("toy", "test", corpus, corpus, {d: {"d00": 1} for d in corpus if d != "d00"})
    options = {"k": k, "metrics": ["mrr@1"], **PATHS[path](tmp_path)}
    for declared in (True, None):
        result = RetrievalTask(data, queries_are_documents=declared, **options).evaluate(Letters())
        assert all(query not in found and len(found) == k for query, found in result.run.items())
        assert set().union(*result.run.values()) == set(corpus) or k < 19
        assert (result.counts["self_excluded"], result.counts["same_id_kept"]) == (20, 0)
    kept = RetrievalTask(data, queries_are_documents=False, **options).evaluate(Letters())
    assert all(len(found) == k for found in kept.run.values())
    assert all(next(iter(found.values())) >= np.float32(1 - 1e-6) for found in kept.run.values())
    assert (kept.counts["self_excluded"], kept.counts["same_id_kept"]) == (0, 20)
    lexical = RetrievalTask(data, k=k, metrics=["mrr@1"]).evaluate(BM25(stemmer=None))
    assert lexical.counts["self_excluded"] == 20 and all(query not in found for query, found in lexical.run.items())


def unit(seed, count, width=24):
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    vectors[count // 2 :] = vectors[: count - count // 2]  # every row twice
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("shard_rows", [1, 7, 50, 1000])
@pytest.mark.parametrize("devices", [None, ["cpu", "cpu", "cpu"]])
def test_shards_chunks_and_devices_change_nothing(tmp_path, shard_rows, devices):
    vectors, queries = unit(0, 60), unit(1, 9)
    table = {str(i): v for i, v in enumerate(vectors)}
    index = ExactIndex()
    index.add(vectors)
    expected = index.search(queries, 11)
    stored = store_embeddings(tmp_path, Table(table), list(table), model="m", shard_rows=shard_rows)
    for chunks in ({}, {"corpus_chunk": 1, "query_chunk": 1}, {"corpus_chunk": 7, "query_chunk": 100}):
        scores, rows = stored.search(queries, 11, devices=devices, **chunks)
        np.testing.assert_array_equal(scores, expected[0])
        np.testing.assert_array_equal(rows, expected[1])


class Table:
    def __init__(self, table):
        self.table = table

    def embed(self, texts, kind, *, normalize=True):
        return torch.from_numpy(np.stack([self.table[t] for t in texts]))


def test_a_torch_device_keeps_what_numpy_keeps():
    vectors, queries = unit(2, 200), unit(3, 9)
    index = ExactIndex()
    index.add(vectors)
    expected = index.search(queries, 11)
    best = TopK(queries, 11, corpus_chunk=16, query_chunk=4, device="cpu")
    for first in (100, 0):  # blocks in any order
        best.show(vectors[first : first + 100], first)
    np.testing.assert_array_equal(best.scores, expected[0])
    np.testing.assert_array_equal(best.rows, expected[1])


def test_a_device_gets_few_blocks_of_files_and_finds_the_same(tmp_path, monkeypatch):
    """Norms of a block's rows are computed in the first search only."""
    vectors, queries, files = unit(2, 400), unit(3, 9), []
    for number, part in enumerate(np.split(vectors, [150])):
        files.append(tmp_path / f"{number}.npy")
        np.save(files[-1], part)
    index = ExactIndex()
    index.add(vectors)
    expected = index.search(queries, 11)
    monkeypatch.setattr(mapped_vectors, "_ROWS_AT_ONCE", 10)
    monkeypatch.setattr(mapped_vectors, "_VALUES_ON_GPU", 100 * vectors.shape[1])
    shown, measured = [], []
    show, longest = TopK.show, mapped_vectors.longest_norm
    monkeypatch.setattr(TopK, "show", lambda best, block, *given: shown.append(len(block)) or show(best, block, *given))
    monkeypatch.setattr(mapped_vectors, "longest_norm", lambda block: measured.append(len(block)) or longest(block))
    stored = MappedVectors.of(files)
    for device, blocks in (("cpu:0", [100, 50, 100, 100, 50]), ("cpu", [10] * 40)):
        for again in (False, True):
            shown.clear()
            measured.clear()
            found = stored.search(queries, 11, corpus_chunk=16, query_chunk=4, devices=[device])
            assert shown == blocks and measured == ([] if again else blocks)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_many_ties_are_cut_to_bounded_candidates():
    """More than 2 k + 64 rows tie at the cut: they are decided exactly while the block passes."""
    rng = np.random.default_rng(4)
    vectors = unit(5, 900)
    vectors[rng.permutation(900)[:600]] = vectors[0]
    queries = vectors[:3] + 0
    index = ExactIndex(corpus_chunk=100, query_chunk=2)
    index.add(vectors)
    scores, rows = index.search(queries, 5)
    exact = (queries.astype(np.float64)[:, None] * vectors[None].astype(np.float64)).sum(2).astype(np.float32)
    for q in range(3):
        best = sorted(range(900), key=lambda i: (-exact[q, i], i))[:5]
        assert rows[q].tolist() == best
        assert scores[q].tolist() == [exact[q, i] for i in best]


@pytest.mark.parametrize("path", [*PATHS, "bm25", "evaluation"])
def test_a_corpus_in_files_is_searched_as_one_in_memory(tmp_path, monkeypatch, path):
    draw = np.random.default_rng(0)
    corpus = {f"d{n * 37 % 300}": "".join(draw.choice(list("abcdefgh"), 4)) for n in range(300)}
    queries = {f"q{n}": corpus[f"d{n}"] for n in range(20)}
    runs = []
    for number, documents in enumerate((corpus, StoredCorpus(corpus.items()), {**corpus, "d3": "hhhhhh"})):
        if path == "bm25":
            runs.append(BM25().retrieve(documents, queries, 7))
        elif path == "evaluation":
            data = RetrievalData("set", "test", documents, queries, {f"q{n}": {f"d{n}": 1} for n in range(20)})
            result = RetrievalTask(data, k=10, metrics=("ndcg@10",)).evaluate(Letters())
            runs.append((result.run, result.metrics, result.counts))
        else:
            runs.append(retrieve(Letters(), queries, documents, 7, **PATHS[path](tmp_path / str(number))))
    assert runs[0] == runs[1] != runs[2]
