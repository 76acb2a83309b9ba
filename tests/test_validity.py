"""The rows of a whole run say what the models have seen, and so do its exported encoders."""

from __future__ import annotations

from pathlib import Path

from lightning_e5.__main__ import main
from lightning_e5.evaluation.baselines.word_vectors import WordVectorsConfig
from lightning_e5.files.storage import read_json
from lightning_e5.models.training_record import read_record
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.evaluate import evaluate
from lightning_e5.stages.word_vectors import word_vectors


def test_rows_of_a_run_say_what_the_models_have_seen(smoke_run: Path) -> None:
    metrics = read_json(smoke_run / "metrics.json")
    rows = {row["model"]: row for row in read_json(smoke_run / "stages/evaluate/table.json")}
    for key in ("pairs_seen", "tokens_seen"):
        assert rows["e5-noisy"][key] == metrics[f"noisy/{key}"] and rows["e5-pt"][key] == metrics[f"pretrain/{key}"]
        assert rows["e5"][key] == metrics[f"pretrain/{key}"] + metrics[f"finetune/{key}"]
        assert rows["start"][key] == rows["bm25"][key] == 0  # at test size the start has random weights
    trained = ("e5-noisy", "e5-pt", "e5")
    assert {rows[m]["contamination"] for m in trained} == {"measured"}
    assert {rows[m]["contamination"] for m in ("start", "bm25")} == {"none"}
    assert len({row["clean_items"] for row in rows.values()}) == 1
    for model, row in rows.items():
        assert 0 <= row["contaminated"]["share"] <= 1 and row["queries"] >= row["clean_items"] > 0
        assert metrics[f"{model}/python-docs/ndcg@10_clean"] == row["ndcg@10_clean"]
        assert ("p_holm" in row) == (model != "bm25")
        assert model == "bm25" or row["p_holm"] >= row["p_value"]
    assert rows["e5"]["contaminated"]["count"] >= rows["e5-pt"]["contaminated"]["count"]  # mined passages come on top
    page = (smoke_run / "report.html").read_text(encoding="utf-8")
    assert "What the models have seen" in page


def test_an_exported_encoder_says_it_too(smoke_run: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["export", str(smoke_run), str(tmp_path / "exported")]) == 0
    assert read_record(tmp_path / "exported") == read_record(smoke_run / "stages/finetune/encoder")
    test, pairs, mined = (smoke_run / "stages" / name for name in ("pairs/test", "pairs", "scores/ranked.parquet"))
    command = ["evaluate", "--model", f"mine={tmp_path / 'exported'}", "--beir", f"python-docs={test}", "--details", str(tmp_path / "details")]
    assert main([*command, "--training-texts", f"pairs={pairs}", f"mined={mined}"]) == 0
    (row,) = read_json(tmp_path / "details" / "table.json")
    known = next(r for r in read_json(smoke_run / "stages/evaluate/table.json") if r["model"] == "e5")
    for key in ("pairs_seen", "tokens_seen", "contamination", "contaminated", "clean_items"):
        assert row[key] == known[key]
    assert "seen in training" in capsys.readouterr().out


def test_word_vectors_of_a_run_s_pairs_say_it_too(smoke_run: Path, tmp_path: Path) -> None:
    pairs, vectors = smoke_run / "stages" / "pairs", tmp_path / "vectors"
    vectors.mkdir()
    config = WordVectorsConfig(epochs=1, width=32, batch_size=64)
    seen = word_vectors(vectors, pairs=pairs, keep=smoke_run / "stages/filter/ranks.parquet", config=config, seed=0)
    evaluate(
        tmp_path / "out", collections={"python-docs": pairs / "test"}, word_vectors=vectors, baselines={"bm25": BM25()}, reference="bm25",
        training_texts={"pairs": pairs}, seed=0,
    )  # fmt: skip
    rows = {row["model"]: row for row in read_json(tmp_path / "out" / "table.json")}
    assert rows["word-vectors"]["pairs_seen"] == seen["pairs_seen"] and rows["word-vectors"]["tokens_seen"] is None
    assert rows["word-vectors"]["contamination"] == "measured" and rows["bm25"]["contamination"] == "none"
    assert "difference" in rows["word-vectors"]
