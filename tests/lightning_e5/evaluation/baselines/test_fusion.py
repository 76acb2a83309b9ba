"""Reciprocal rank fusion against its formula, models from folders, and a run that notices a changed file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.fusion import FusedModels, ReciprocalRankFusion, StoredEncoder, fuse
from lightning_e5.evaluation.baselines.sentence_transformer import SentenceTransformerModel
from lightning_e5.evaluation.baselines.tfidf import TfIdf
from lightning_e5.evaluation.baselines.vectors_file import VectorsFile
from lightning_e5.evaluation.baselines.word_vectors import WordVectors, WordVectorsConfig
from lightning_e5.evaluation.beir.collection import Collection
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.loaded_models import LoadedModel, fused_models
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import UNTRAINED
from lightning_e5.pipeline.fingerprint import own_fingerprint
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.retrieval.search import retrieve
from lightning_e5.stages.evaluate import evaluate


def test_the_formula() -> None:
    first = {"q": {"a": 9.0, "b": 5.0, "c": 5.0}, "r": {"z": 1.0}}
    second = {"q": {"d": 0.3, "a": 0.2}}
    fused = fuse([first, second])
    assert fused["q"] == {"a": 1 / 61 + 1 / 62, "d": 1 / 61, "c": 1 / 62, "b": 1 / 63}  # b and c tie: falling ids, as in trec_eval
    assert list(fused["q"]) == ["a", "d", "c", "b"]
    assert fused["r"] == {"z": 1 / 61}
    assert fuse([second, first]) == fused
    assert fuse([first, second], constant=1)["q"]["a"] == 1 / 2 + 1 / 3
    ties = fuse([{"q": {"b": 1.0}}, {"q": {"a": 1.0}}])["q"]
    assert list(ties) == ["b", "a"]


@pytest.fixture
def corpus(texts: list[str]) -> dict[str, str]:
    return {f"d{i:02d}": text for i, text in enumerate(texts[:24])}


@pytest.fixture
def words(tmp_path: Path, corpus: dict[str, str]) -> Path:
    pairs = [(text[:50], text) for text in corpus.values()]
    WordVectors(WordVectorsConfig(width=16, epochs=1, batch_size=8, buckets=8)).fit(pairs, progress=False).save(tmp_path / "stage/word_vectors")
    return tmp_path / "stage"


def test_bm25_and_a_stored_model(words: Path, corpus: dict[str, str], texts: list[str]) -> None:
    queries = {f"q{i}": texts[i][:40] for i in range(5)} | {"q9": ""}
    fusion = ReciprocalRankFusion([BM25(), StoredEncoder(words)], depth=10)
    assert fusion.training_record is None  # the folder does not say
    UNTRAINED.after("words", {"pairs_seen": 24.0}, ["x"]).save(words / "word_vectors")
    assert fusion.training_record is not None and fusion.training_record.pairs_seen == 24
    run = fusion.retrieve(corpus, queries, 4)
    lexical = BM25().retrieve(corpus, queries, 10)
    dense = retrieve(WordVectors.load(words / "word_vectors"), queries, corpus, 10)
    expected = fuse([lexical, dense])
    assert {query: list(scores.items()) for query, scores in run.items()} == {q: list(expected[q].items())[:4] for q in queries}


def test_a_stored_encoder(tmp_path: Path, small_bert, small_tokenizer, texts: list[str]) -> None:  # type: ignore[no-untyped-def]
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "stage" / "encoder")
    expected = TextEncoder.from_pretrained(tmp_path / "stage" / "encoder").embed(texts[:3], "query")
    for path in (tmp_path / "stage", tmp_path / "stage" / "encoder"):
        assert torch.equal(StoredEncoder(path).embed(texts[:3], "query"), expected)
    with pytest.raises(UserError, match="absent"):
        StoredEncoder(tmp_path / "absent").embed(["a"], "query")
    assert StoredEncoder(tmp_path / "absent").fingerprint() == []


def test_a_sentence_transformers_folder(tmp_path: Path, small_bert, small_tokenizer, texts: list[str]) -> None:  # type: ignore[no-untyped-def]
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "model")
    ours = TextEncoder.from_pretrained(tmp_path / "model")
    theirs = SentenceTransformerModel(str(tmp_path / "model"), device="cpu")
    assert (theirs.prompt("query"), theirs.prompt("passage")) == ("query: ", "passage: ")
    for kind in ("query", "passage"):
        torch.testing.assert_close(theirs.embed(texts[:3], kind), ours.embed(texts[:3], kind), atol=1e-5, rtol=0)
    bare = SentenceTransformerModel(str(tmp_path / "model"), device="cpu", query_prompt="", passage_prompt="query: ")
    assert not torch.allclose(bare.embed(texts[:1], "query"), ours.embed(texts[:1], "query"), atol=1e-4)
    torch.testing.assert_close(bare.embed(texts[:1], "passage"), ours.embed(texts[:1], "query"), atol=1e-5, rtol=0)
    assert theirs.embed([], "query").shape[0] == 0


def test_a_models_own_passage_prompt_under_its_older_name(tmp_path: Path, small_bert, small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    import json

    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config_sentence_transformers.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"prompts": {"query": "q: ", "passage": "p: "}}))
    model = SentenceTransformerModel(str(tmp_path / "model"), device="cpu")
    assert (model.prompt("query"), model.prompt("passage")) == ("q: ", "p: ")


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2, not 1"):
        ReciprocalRankFusion([BM25()])
    with pytest.raises(UserError, match=r"models\[1\]: int has neither"):
        ReciprocalRankFusion([BM25(), 3])
    with pytest.raises(UserError, match="constant must be at least 1"):
        ReciprocalRankFusion([BM25(), TfIdf()], constant=0)
    with pytest.raises(UserError, match="no sentence-transformers model"):
        SentenceTransformerModel(str(tmp_path / "absent")).embed(["a"], "query")
    with pytest.raises(UserError, match="'query' or 'passage'"):
        SentenceTransformerModel("any").embed(["a"], "document")  # type: ignore[arg-type]


def test_a_changed_file_changes_the_fingerprint_of_a_mapping_of_models(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("cat 1 2\n")
    models = {"bm25": BM25(), "vectors": VectorsFile(path), "both": ReciprocalRankFusion([BM25(), VectorsFile(path)])}
    before = own_fingerprint(models)
    assert set(before) == {"vectors", "both"} and own_fingerprint({"bm25": BM25()}) is None
    path.write_text("cat 1 2\ndog 1 2\n")
    after = own_fingerprint(models)
    assert after["vectors"] != before["vectors"] and after["both"] != before["both"]


def test_an_evaluations_rankings_are_fused_as_its_models_would_be(words: Path, corpus: dict[str, str], texts: list[str], tmp_path: Path) -> None:
    """What the members found is taken over, on a plain collection and on one of forums, and compared like any model."""
    folder = tmp_path / "collection"
    write_collection(folder, corpus, texts)
    stage = {"baselines": {"bm25": BM25(), "words": StoredEncoder(words), "again": ReciprocalRankFusion([BM25(), StoredEncoder(words)])}}
    evaluate(
        tmp_path / "out", collections={"docs": folder}, **stage, fusions={"both": ["bm25", "words"]}, reference="bm25", previous={"both": "words"}, seed=1
    )  # type: ignore[arg-type]
    rows = {row["model"]: row for row in json.loads((tmp_path / "out" / "table.json").read_text())}
    assert list(rows) == ["bm25", "words", "again", "both"] and rows["both"]["value"] == rows["again"]["value"]
    assert rows["both"]["difference"] == pytest.approx(rows["both"]["value"] - rows["bm25"]["value"])
    assert [one["model"] for one in rows["both"]["previous"]] == ["words"]
    runs = [(tmp_path / "out" / name / "docs" / "run.trec").read_text() for name in ("both", "again")]
    assert runs[0] == runs[1]


def test_a_fusion_of_forums_takes_each_ones_rankings() -> None:
    data = {forum: RetrievalData(forum, "test", {"a": f"{forum} one", "b": "two"}, {"q": "one"}, {"q": {"a": 1}}) for forum in ("x", "y")}
    whole = RetrievalData("all", "test", {}, {}, {})
    fused = FusedModels(["m", "n"])
    fused.take(Collection(whole, data, None), {"m": {"x/q": {"x/a": 2.0}, "y/q": {"y/b": 1.0}}, "n": {"x/q": {"x/b": 1.0}, "y/q": {"y/b": 3.0}}})
    assert fused.retrieve(data["x"].corpus, data["x"].queries, 2) == {"q": {"b": 1 / 61, "a": 1 / 61}}
    assert fused.retrieve(data["y"].corpus, data["y"].queries, 2) == {"q": {"b": 2 / 61}}


@pytest.mark.parametrize(
    ("fusions", "said"),
    [
        ({"both": ["bm25"]}, "fusions: 'both' needs at least 2 models"),
        ({"both": "bm25"}, "fusions: 'both' needs at least 2 models, not 'bm25'"),
        ({"both": ["bm25", "word"]}, "fusions: 'both': 'word' is not one of the models; did you mean 'words'"),
        ({"bm25": ["bm25", "words"]}, "fusions: two models are named 'bm25'"),
        ({"a/b": ["bm25", "words"]}, "evaluate.fusions: a fusion: 'a/b' cannot be a name"),
    ],
)
def test_fusions_that_are_refused(fusions: dict[str, list[str]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fused_models(fusions, {"bm25": LoadedModel(BM25()), "words": LoadedModel(BM25())})


def write_collection(folder: Path, corpus: dict[str, str], texts: list[str]) -> None:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "title": "", "text": t}) + "\n" for d, t in corpus.items()))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": texts[i][20:60]}) + "\n" for i in range(12)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i:02d}\t1\n" for i in range(12)))
