"""Mining with texts, vectors and candidates in files gives what it gives in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lightning_e5.curation.mining.candidates as candidates_module
from data_modules.pair_store import PairStore
from lightning_e5.curation.mining import score_quantiles as quantiles_module
from lightning_e5.curation.mining.collections import MiningData, of_collection, of_pairs
from lightning_e5.curation.mining.score_quantiles import score_quantiles
from lightning_e5.curation.mining.stored_pairs import of_stored_pairs
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir import data as beir_data
from lightning_e5.evaluation.beir.data import RetrievalData, load_beir, write_beir
from lightning_e5.files import scratch
from lightning_e5.files.parquet import read_parquet, write_parquet
from lightning_e5.files.storage import read_json
from lightning_e5.files.stored_corpus import StoredCorpus
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.retrieval.faiss_index import FaissIndex
from lightning_e5.stages.hard_negatives import hard_negatives
from lightning_e5.text import TextTokenizer

ROWS = 160


@pytest.fixture
def pairs(tmp_path: Path, texts: list[str]) -> Path:
    """Queries and passages that occur several times, in other spellings, too."""
    queries = [" ".join(texts[n * 7 % 50].split()[:5]) for n in range(ROWS)]
    passages = [(texts[n * 11 % 70].upper() if n % 5 == 0 else texts[n * 11 % 70]) for n in range(ROWS)]
    columns = {"query": queries, "passage": passages, "source": [("a", "b")[n % 3 == 0] for n in range(ROWS)]}
    write_parquet(tmp_path / "pairs" / "pairs.parquet", columns)
    write_parquet(tmp_path / "ranks.parquet", {"keep": [n % 8 != 5 for n in range(ROWS)]})
    return tmp_path / "pairs"


@pytest.fixture
def encoder(tmp_path: Path, small_tokenizer: TextTokenizer, small_bert: Any) -> Path:
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def contents(data: MiningData) -> dict[str, Any]:
    """All that is mined with, as plain lists."""
    lists = {name: list(getattr(data, name)) for name in ("queries", "sources", "positive_texts", "corpus", "known")}
    numbers = {name: np.asarray(getattr(data, name)).tolist() for name in ("positives", "corpus_text_P")}
    return lists | numbers | {"negatives": [list(own) for own in data.known_negatives], "distinct": data.corpus_distinct, "most": data.most_known}


@pytest.mark.parametrize("most", [None, 20])
def test_pairs_in_files_are_those_in_memory(tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, most: int | None) -> None:
    monkeypatch.setattr(scratch, "RANGE_ROWS", 16)
    keep = read_parquet(tmp_path / "ranks.parquet", {"keep": "bool"})["keep"].to_numpy(zero_copy_only=False)
    table = PairStore(pairs).read(["query", "passage", "source"]).take(np.flatnonzero(keep))
    columns = [table[name].to_pylist() for name in ("query", "passage", "source")]
    in_memory = of_pairs(*columns, max_queries=most, seed=3)
    stored = of_stored_pairs(PairStore(pairs), keep, tmp_path / "scratch", max_queries=most, seed=3)
    assert contents(stored) == contents(in_memory)
    assert len(in_memory.corpus) < len(columns[1]) and in_memory.most_known > 1, "passages and queries repeat"
    assert list(stored.queries[3:9]) == list(in_memory.queries[3:9]) and stored.known[2:5][1] == in_memory.known[3]
    keep[0] = not keep[0]
    assert contents(of_stored_pairs(PairStore(pairs), keep, tmp_path / "other", max_queries=most, seed=3)) != contents(in_memory)


def mined(out: Path, pairs: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    metrics = hard_negatives(out, pairs=pairs, keep=pairs.parent / "ranks.parquet", count=3, last_rank=20, seed=1, **options)
    columns = {"query": "string", "positive": "string", "negatives": "list<string>", "source": "string", "retriever_scores": "list<float>"}
    rows = read_parquet(out / "ranked.parquet", columns).to_pylist()
    return [{**row, "retriever_scores": np.nan_to_num(row["retriever_scores"]).tolist()} for row in rows], metrics


def test_parts_of_any_size_give_the_same_groups(tmp_path: Path, pairs: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, metrics = mined(tmp_path / "whole", pairs, encoder=encoder)
    report = read_json(tmp_path / "whole/report.json")
    for name, size in (("TEXTS", 16), ("SEARCHES", 24), ("RESCORED", 8)):
        monkeypatch.setattr(candidates_module, name, size)
    by_parts, again = mined(tmp_path / "parts", pairs, encoder=encoder)
    assert [r["negatives"] for r in by_parts] == [r["negatives"] for r in whole]
    assert again == metrics and len(whole) == metrics["queries"] == 140
    np.testing.assert_allclose([r["retriever_scores"] for r in by_parts], [r["retriever_scores"] for r in whole], atol=1e-6)
    np.testing.assert_allclose(read_json(tmp_path / "parts/report.json")["score_quantiles"], report["score_quantiles"], atol=1e-6)
    assert mined(tmp_path / "bm25", pairs, retriever=BM25())[0] != whole
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == ["ranked.parquet", "report.json"]


def test_an_index_and_smaller_vectors(tmp_path: Path, pairs: Path, encoder: Path) -> None:
    exact, plain = mined(tmp_path / "exact", pairs, encoder=encoder)
    flat, found = mined(tmp_path / "flat", pairs, encoder=encoder, index=FaissIndex("flat", threads=1))
    assert flat == exact and found == plain | {"index_recall": 1.0}, "an index that finds everything finds the same"
    _, found = mined(tmp_path / "ivf", pairs, encoder=encoder, index=FaissIndex("ivf", lists=16, nprobe=1, threads=1), recall_queries=50)
    assert 0 < found["index_recall"] < 1 and read_json(tmp_path / "ivf/report.json")["index_recall"] == found["index_recall"]
    half, _ = mined(tmp_path / "half", pairs, encoder=encoder, vectors="float16")
    scores = np.array([[row["retriever_scores"][0] for row in rows] for rows in (exact, half)])
    assert 0 < np.abs(scores[0] - scores[1]).max() < 2e-3, "11 bits of each value"
    with pytest.raises(UserError, match="index and vectors need an encoder"):
        mined(tmp_path / "wrong", pairs, retriever=BM25(), vectors="float16")
    write_parquet(tmp_path / "ranks.parquet", {"keep": [True] * (ROWS - 1)})
    with pytest.raises(UserError, match=r"ranks\.parquet: has 159 rows, and there are 160 pairs"):
        mined(tmp_path / "wrong", pairs, encoder=encoder)


@pytest.mark.parametrize("empty", [{"empty": ""}, {}])
def test_a_large_collection_is_mined_from_files(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, empty: dict[str, str]) -> None:
    corpus = {f"d{n}": text for n, text in enumerate(texts[:80])} | empty | {"copy": texts[3]}
    queries = {f"q{n}": texts[90 + n] for n in range(20)}
    qrels = {f"q{n}": {f"d{n}": 1, f"d{n + 30}": n % 2, "empty": 1, "absent": 1, "copy": 0} for n in range(20)}
    write_beir(tmp_path / "set", RetrievalData("set", "train", corpus, queries, qrels))
    small = load_beir(tmp_path / "set", "train")
    monkeypatch.setattr(beir_data, "STORED_BYTES", 0)
    large = load_beir(tmp_path / "set", "train", scratch=tmp_path / "scratch")
    assert isinstance(large.corpus, StoredCorpus) and not isinstance(small.corpus, StoredCorpus) and large == small
    for most in (None, 7):
        mined_in = [of_collection(small, max_queries=most, seed=2), *(of_collection(large, max_queries=most, seed=2, folder=f) for f in (None, tmp_path / "ids"))]
        found = [contents(data) for data in mined_in]
        assert found[0] == found[1] == found[2] and len(found[0]["corpus"]) == 81
        assert [data.corpus_distinct for data in mined_in] == [80] * 3 and isinstance(mined_in[2].corpus_text_P, np.memmap)
    assert any(found[0]["negatives"])


@pytest.mark.parametrize("count", [1, 2, 5, 1000])
def test_quantiles_of_a_file(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(count)
    scores = np.concatenate([draw.normal(size=count), np.repeat(draw.normal(size=3), count // 3), [-0.0][: count % 2]]).astype(np.float32)
    shares = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]
    monkeypatch.setattr(quantiles_module, "blocks", lambda rows: scratch.blocks(rows, 97))
    assert score_quantiles(scores, shares) == np.quantile(scores.astype(np.float64), shares).tolist()
    assert score_quantiles(scores[:0], shares) == []
    assert score_quantiles(scores + np.float32(1), shares) != score_quantiles(scores, shares)
