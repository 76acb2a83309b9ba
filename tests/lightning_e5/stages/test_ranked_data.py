"""Others' fine-tuning data as ranked groups and as a collection, up to a fine-tuning on a mixture of two sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ElectraConfig, ElectraModel

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.files.parquet import read_parquet
from lightning_e5.files.storage import read_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.pipeline.runner import run_experiment
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.hard_negatives import hard_negatives
from lightning_e5.stages.ranked_data import ranked_data
from lightning_e5.text import TextTokenizer
from lightning_e5.types import RankedExample, ReadReport

COLUMNS = {"query": "string", "positive": "string", "negatives": "list<string>", "source": "string", "passage_kind": "string", "teacher_scores": "list<float>"}


class Source:
    """Examples written down, and bad records."""

    name = "made"

    def __init__(self, examples: list[RankedExample], bad: int = 0) -> None:
        self.examples, self.bad = examples, bad

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        for number in range(self.bad):
            report.counts["records"] += 1
            report.reject(f"file:{number + 1}", "torn")
        for example in self.examples:
            report.counts["records"] += 1
            yield example

    def corpus(self) -> Iterator[str]:
        yield from ("Lone  answer", "a passage", "another passage")

    def fingerprint(self) -> Mapping[str, Any]:
        return {}


FULL = RankedExample("q1", ("p1", "p2"), ("n1", " P2 ", "n2", "N1", "n3"), (5.0, 4.0, 1.0, 4.0, 2.0, 1.0, 3.0), "made")
LONE = RankedExample("q2", ("lone answer", "Second answer"), ("n1",), None, "made")
PAIR = RankedExample("q3", ("a",), ("b", "c"), None, "made", "query")


def test_groups_and_the_rest_to_mine(tmp_path: Path) -> None:
    counts = ranked_data(tmp_path, source=Source([FULL, LONE, PAIR, LONE]), negatives=2, positives="each")
    rows = read_parquet(tmp_path / "ranked.parquet", COLUMNS).to_pylist()
    expected = [
        ("q1", "p1", ["n1", "n2", "n3"], "made", "passage", [5.0, 1.0, 2.0, 3.0]),
        ("q1", "p2", ["n1", "n2", "n3"], "made", "passage", [4.0, 1.0, 2.0, 3.0]),
        ("q3", "a", ["b", "c"], "made", "query", None),
    ]
    assert [tuple(row.values()) for row in rows] == expected
    data = load_beir(tmp_path / "collection", "train")
    assert list(data.queries.values()) == ["q2"] and list(data.corpus.values()) == [
        "lone answer", "Second answer", "n1", "a passage", "another passage", "p1", "n2", "n3", "p2", "a", "b", "c"
    ]  # fmt: skip
    assert data.qrels == {"q0": {"d0": 1, "d1": 1, "d2": 0}}
    wanted = {"ranked": 3, "with_teacher": 2, "to_mine": 2, "negatives_equal_to_a_positive": 1, "repeated_negatives": 1, "collection_passages": 12, "source_records": 4, "known_negatives_to_mine": 2}
    assert {k: counts[k] for k in wanted} == wanted
    first = ranked_data(tmp_path / "first", source=Source([FULL]), negatives=2)
    assert first["ranked"] == 1 and not (tmp_path / "first/collection").exists()


def test_only_to_mine(tmp_path: Path) -> None:
    assert ranked_data(tmp_path, source=Source([LONE]))["ranked"] == 0
    assert not (tmp_path / "ranked.parquet").exists() and load_beir(tmp_path / "collection", "train").qrels


def test_known_negatives_are_kept_and_mining_fills_them_up(tmp_path: Path) -> None:
    def rows(count: int, negatives: int, name: str) -> list[RankedExample]:
        return [
            RankedExample(f"{name} question {i} river", (f"{name} answer {i} river",), tuple(f"{name} wrong {i} {n} sea" for n in range(negatives)), None, "made", "query")
            for i in range(count)
        ]  # fmt: skip

    few, none = rows(3, 2, "few"), rows(1, 0, "none")
    none.append(RankedExample(few[0].query, ("few wrong 0 1 sea",), (), None, "made", "query"))  # an answer by another row
    source = Source([*rows(4, 5, "whole"), *few, *none])
    source.corpus = lambda: iter(())  # type: ignore[method-assign]
    counts = ranked_data(tmp_path / "ranked", source=source, negatives=5)
    assert (counts["ranked"], counts["to_mine"], counts["known_negatives_to_mine"], counts["collection_passages"]) == (4, 5, 6, 4 * 6 + 3 * 3 + 1)
    mined = hard_negatives(tmp_path / "mined", collection=tmp_path / "ranked/collection", retriever=BM25(), count=5, seed=1)
    assert mined["queries"] == 5 and mined["known_negatives"] == 1 + 1 + 2 + 2
    for row in read_parquet(tmp_path / "mined/ranked.parquet", {k: v for k, v in COLUMNS.items() if k != "teacher_scores"}).to_pylist():
        assert len(set(row["negatives"])) == 5 and row["positive"] not in row["negatives"] and row["passage_kind"] == "query"
        if row["query"].startswith("few"):
            number = row["query"].split()[2]
            known = [f"few wrong {number} {n} sea" for n in range(2)]
            assert row["negatives"][: 1 if number == "0" else 2] == (known[:1] if number == "0" else known)
    with pytest.raises(UserError, match=r"passage_kind is 'passage', but the passages of .* are of kind 'query'"):
        hard_negatives(tmp_path / "b", collection=tmp_path / "ranked/collection", retriever=BM25(), count=5, seed=1, passage_kind="passage")
    with pytest.raises(UserError, match="made: has queries to mine for with passages of both kinds"):
        ranked_data(tmp_path / "c", source=Source([LONE, PAIR]))


def test_bad_records_are_reported_or_stop_it(tmp_path: Path) -> None:
    many = [RankedExample(f"q{i}", ("p",), tuple("abcdefg"), None, "made") for i in range(20000)]
    assert ranked_data(tmp_path / "a", source=Source(many, bad=1))["source_bad_torn"] == 1
    assert len(read_parquet(tmp_path / "a/ranked.parquet", COLUMNS)) == 20000
    assert read_json(tmp_path / "a/report.json")["bad"] == [["file:1", "torn"]]
    with pytest.raises(UserError, match=r"made: 2 of 4 records are bad, more than max_bad_share = 0\.01; the first is file:1: torn"):
        ranked_data(tmp_path / "b", source=Source(many[:2], bad=2))
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["report.json"], "nothing half written stays"
    with pytest.raises(UserError, match=r"made: gives no query with a positive passage; made: gives no query from 0 records$"):
        ranked_data(tmp_path / "c", source=Source([]))


def test_a_reader_that_leaves_most_out_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source([LONE], bad=3)
    ranked_data(tmp_path, source=source, max_bad_share=1.0)
    sentence = "made: 3 of 4 records are bad: torn; the first is file:1"
    assert read_json(tmp_path / "report.json")["warnings"] == [sentence]
    assert sentence in capsys.readouterr().err.splitlines()


def test_two_sets_are_read_and_trained_on_together(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer, small_bert: Any) -> None:
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    passages = [{"id": str(i), "contents": t} for i, t in enumerate(texts[:60])]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    rows = [
        {"query": texts[60 + i], "positives": {"doc_id": [str(i)], "score": [4.0]}, "negatives": {"doc_id": [str((i + d) % 60) for d in range(1, 6)], "score": [0.0] * 5}}
        for i in range(16)
    ]  # fmt: skip
    (tmp_path / "kd.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    triplets = [{"anchor": f"a dog runs {i}", "entailment": f"an animal moves {i}", "contradiction": f"nothing moves {i}"} for i in range(16)]
    (tmp_path / "nli.jsonl").write_text("".join(json.dumps(t) + "\n" for t in triplets))
    stage = "lightning_e5.stages.ranked_data.ranked_data"
    simlm = {"_target_": "data_modules.finetune.msmarco.SimLMRanked", "examples": str(tmp_path / "kd.jsonl"), "passages": str(tmp_path / "passages.jsonl"), "teacher_scores": True}
    nli = {"_target_": "data_modules.finetune.nli.Nli", "paths": [str(tmp_path / "nli.jsonl")], "random_negatives": 3}
    finetune = {
        "_target_": "lightning_e5.stages.finetune.finetune",
        "inputs": {"encoder": f"path:{tmp_path}/encoder", "ranked": {"msmarco": "msmarco/ranked.parquet", "nli": "nli/ranked.parquet"}},
        "trainer": {"accelerator": "cpu"},
        "data": {"_target_": "data_modules.finetune.datamodule.RankedDataModule", "_partial_": True, "batch_size": 8, "epochs": 2, "negatives": 3, "choose": "window", "weights": {"msmarco": 3, "nli": 1}},
        "optimizer": {"_target_": "lightning_e5.training.optimizer.AdamWConfig", "learning_rate": 1.0e-3},
        "module": {"_target_": "lightning_e5.modules.distilled.DistilledModule", "_partial_": True, "temperature": 0.05},
    }  # fmt: skip
    experiment = {
        "name": "mixture", "seed": 1, "threads": 1, "runs_dir": str(tmp_path / "runs"), "final_encoder": "finetune", "logger": {"mode": "disabled"},
        "stages": {"msmarco": {"_target_": stage, "source": simlm, "negatives": 3}, "nli": {"_target_": stage, "source": nli, "negatives": 3}, "finetune": finetune},
    }  # fmt: skip
    metrics, computed = run_experiment(experiment, say=lambda text: None)
    assert computed and metrics["finetune/groups"] == 32 and metrics["finetune/steps"] == 8
    assert metrics["msmarco/with_teacher"] == 16 and metrics["nli/with_teacher"] == 0
    log = [json.loads(line) for line in (tmp_path / "runs/mixture/stages/finetune/metrics.jsonl").read_text().splitlines()]
    assert all(row["divergence"] > 0 for row in log if "divergence" in row) and any("divergence" in row for row in log)
    assert run_experiment(experiment, say=lambda text: None)[1] is False, "finished, and recognised as such"
    (tmp_path / "nli.jsonl").write_text("".join(json.dumps(t) + "\n" for t in triplets[:15]))
    said: list[str] = []
    run_experiment(experiment, say=said.append)
    assert any("msmarco: finished before" in s for s in said) and any("nli: starts" in s for s in said) and any("finetune: starts" in s for s in said)


def write_collection(folder: Path, texts: list[str]) -> Path:
    """20 queries with an answer each, among 60 documents."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "title": "Title", "text": t}) + "\n" for i, t in enumerate(texts[:60])))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": texts[60 + i]}) + "\n" for i in range(20)))
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(20)))
    return folder


def test_a_set_without_negatives_is_mined_and_teaches_any_encoder(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    """BEIR's layout to a collection, BM25's negatives, and an ELECTRA that is trained on them as a teacher and scores them."""
    torch.manual_seed(1)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "embedding_size": 16, "max_position_embeddings": 130}
    electra = ElectraModel(ElectraConfig(vocab_size=small_tokenizer.backend.get_vocab_size(), **size))
    TextEncoder(electra, small_tokenizer).save_pretrained(tmp_path / "electra")
    source = {"_target_": "data_modules.finetune.beir.BeirRanked", "folder": str(write_collection(tmp_path / "set", texts)), "name": "made"}
    training = {
        "data": {"_target_": "data_modules.finetune.datamodule.RankedDataModule", "_partial_": True, "batch_size": 4, "epochs": 2, "negatives": 3, "hold_out": 4},
        "optimizer": {"_target_": "lightning_e5.training.optimizer.AdamWConfig", "learning_rate": 1.0e-3},
        "module": {"_target_": "lightning_e5.modules.cross_encoder.CrossEncoderModule", "_partial_": True},
        "trainer": {"accelerator": "cpu"},
    }  # fmt: skip
    bm25 = {"_target_": "lightning_e5.retrieval.bm25.BM25"}
    experiment = {
        "name": "mined", "seed": 1, "threads": 1, "runs_dir": str(tmp_path / "runs"), "logger": {"mode": "disabled"},
        "stages": {
            "ranked": {"_target_": "lightning_e5.stages.ranked_data.ranked_data", "source": source},
            "negatives": {"_target_": "lightning_e5.stages.hard_negatives.hard_negatives", "inputs": {"collection": "ranked/collection"}, "retriever": bm25, "count": 3, "source": "made"},
            "teacher": {"_target_": "lightning_e5.stages.teacher.teacher", "inputs": {"encoder": f"path:{tmp_path}/electra", "ranked": "negatives/ranked.parquet"}, **training},
            "scores": {"_target_": "lightning_e5.stages.teacher.teacher_scores", "inputs": {"teacher": "teacher", "ranked": "negatives"}},
        },
    }  # fmt: skip
    metrics, _ = run_experiment(experiment, say=lambda text: None)
    assert metrics["ranked/to_mine"] == metrics["negatives/queries"] == metrics["scores/groups"] == 20
    assert metrics["teacher/steps"] == 8 and metrics["teacher/held_out_groups"] == 4 and metrics["ranked/collection_passages"] == 60
    rows = read_parquet(tmp_path / "runs/mined/stages/scores/ranked.parquet", COLUMNS).to_pylist()
    assert all(len(r["teacher_scores"]) == 4 and r["source"] == "made" and r["positive"].startswith("Title ") for r in rows)
