"""BEIR's public sets by name in the evaluate stage and command: each set's own rules, and the average over all 15."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.average import BEIR15
from lightning_e5.evaluation.beir.sets import BEIR_SETS
from lightning_e5.evaluation.statistics.paired_test import bootstrap_interval, mean_of_groups, paired_test
from lightning_e5.files.parquet import read_parquet
from lightning_e5.files.storage import read_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.stages.beir_data import beir_data
from lightning_e5.stages.evaluate import evaluate

Rows = list[dict[str, Any]]


def write(folder: Path, queries: dict[str, str], corpus: dict[str, tuple[str, str]], qrels: dict[str, list[str]], split: str = "test") -> Path:
    """A collection in BEIR's layout."""
    (folder / "qrels").mkdir(parents=True)
    documents = [json.dumps({"_id": key, "title": title, "text": text}) + "\n" for key, (title, text) in corpus.items()]
    (folder / "corpus.jsonl").write_text("".join(documents))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in queries.items()))
    lines = [f"{query}\t{document}\t1\n" for query, documents in qrels.items() for document in documents]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def toy(folder: Path, split: str = "test", *, hits: int = 1, queries: int = 2) -> Path:
    """Two (or more) queries of which BM25 finds the passage of the first ``hits`` at rank 1 and of the others never."""
    words = ["apple", "bridge", "copper", "dolphin"][:queries]
    corpus = {f"d{i}": ("", f"{word} tree") for i, word in enumerate(words)} | {"x": ("", "nothing in common")}
    qrels = {f"q{i}": [f"d{i}" if i < hits else "x"] for i in range(queries)}
    return write(folder, {f"q{i}": word for i, word in enumerate(words)}, corpus, qrels, split)


def row_of(out: Path, model: str, name: str) -> dict[str, Any]:
    rows: Rows = read_json(out / "table.json")
    return next(r for r in rows if (r["model"], r["collection"]) == (model, name))


class Asked:
    """What an encoder was asked to embed: the text with its kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        real = TextEncoder.embed

        def embed(encoder: TextEncoder, texts: Any, kind: Any, **options: Any) -> Any:
            self.seen += [(text, kind) for text in texts]
            return real(encoder, texts, kind, **options)

        monkeypatch.setattr(TextEncoder, "embed", embed)


QUORA = {"corpus": {"d1": ("A title", "how do I fly"), "d2": ("", "how do I walk")}, "queries": {"q1": "ways to fly"}, "qrels": {"q1": ["d1"]}}


def test_quoras_passages_are_queries_without_titles(tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "set", **QUORA)  # type: ignore[arg-type]
    given: dict[str, Any] = {"encoders": {"small": encoder_folder}, "seed": 0}
    asked = Asked(monkeypatch)
    evaluate(tmp_path / "quora", collections={"quora": folder}, **given)
    assert {kind for _, kind in asked.seen} == {"query"} and ("how do I fly", "query") in asked.seen
    row = row_of(tmp_path / "quora", "small", "quora")
    assert row["rules"] == {"beir": "quora", "split": "test", "queries_are_documents": True, "passage_kind": "query", "text_only": True}
    assert row["prefix"] == {"query": "query: "}
    for name, rules in (("other", None), ("quora", {"quora": "none"})):  # another set, and the same one without its rules
        asked = Asked(monkeypatch)
        evaluate(tmp_path / f"plain-{name}", collections={name: folder}, rules=rules, **given)
        assert ("A title how do I fly", "passage") in asked.seen
        assert "rules" not in row_of(tmp_path / f"plain-{name}", "small", name)
    asked = Asked(monkeypatch)
    evaluate(tmp_path / "named", collections={"mine": folder}, rules={"mine": "quora"}, **given)
    assert ("how do I fly", "query") in asked.seen and row_of(tmp_path / "named", "small", "mine")["rules"]["beir"] == "quora"


def test_arguanas_queries_do_not_find_themselves(tmp_path: Path, encoder_folder: Path) -> None:
    corpus = {"a": ("", "cars are loud in the city"), "b": ("", "cars are quiet in the city"), "c": ("", "fish")}
    folder = write(tmp_path / "set", {"a": "cars are loud in the city"}, corpus, {"a": ["b"]})
    metrics = evaluate(tmp_path / "out", collections={"arguana": folder}, encoders={"small": encoder_folder}, baselines={"bm25": BM25()}, seed=0)
    assert metrics["bm25/arguana/ndcg@10"] == 1.0
    for model in ("bm25", "small"):
        assert row_of(tmp_path / "out", model, "arguana")["rules"]["queries_are_documents"] is True
        documents = [line.split()[2] for line in (tmp_path / "out" / model / "arguana" / "run.trec").read_text().splitlines()]
        assert "b" in documents and "a" not in documents


def forums(folder: Path) -> tuple[Path, dict[str, float]]:
    """CQADupStack with forums of 1 to 4 queries; forum -> share of the queries that BM25 answers."""
    shares = {}
    for number, forum in enumerate(BEIR_SETS["cqadupstack"].forums):
        queries, hits = 1 + number % 4, 1 + number % 2 if number % 4 else 1
        toy(folder / forum, hits=hits, queries=queries)
        shares[forum] = hits / queries
    return folder, shares


def test_equal_ids_alone_leave_nothing_out(tmp_path: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Questions and answers both numbered from 1: question i is answered by document i. And an ArguAna of another name."""
    words = ["apple", "bridge", "copper", "dolphin"]
    numbered = write(
        tmp_path / "numbered", {str(i): f"which {w}" for i, w in enumerate(words, 1)}, {str(i): ("", f"the {w} tree") for i, w in enumerate(words, 1)},
        {str(i): [str(i)] for i in range(1, 5)},
    )  # fmt: skip
    apart = write(
        tmp_path / "apart", {str(i): f"which {w}" for i, w in enumerate(words, 1)}, {f"d{i}": ("", f"the {w} tree") for i, w in enumerate(words, 1)},
        {str(i): [f"d{i}"] for i in range(1, 5)},
    )  # fmt: skip
    corpus = {"a": ("Cars", "cars are loud in the city"), "b": ("", "cars are quiet in the city"), "c": ("", "fish")}
    debate = write(tmp_path / "debate", {"a": "Cars  are loud in the city"}, corpus, {"a": ["b"]})
    command = ["evaluate", "--model", f"small={encoder_folder}", "bm25", "--beir", str(numbered), str(apart), str(debate), "--details"]
    assert main([*command, str(tmp_path / "details")]) == 0
    printed = capsys.readouterr().out
    assert "numbered: 4 documents have the id of a query and are not left out of its results" in printed
    assert "debate: 1 query's own document is left out of its results (document and query have one text)" in printed
    for name, excluded, kept in (("numbered", 0, 4), ("apart", 0, 0), ("debate", 1, 0)):
        for model in ("bm25", "small"):
            row = row_of(tmp_path / "details", model, name)
            assert (row["self_excluded"], row["same_id_kept"]) == (excluded, kept)
    value = {name: read_run(tmp_path / "details" / "bm25" / name) for name in ("numbered", "apart", "debate")}
    assert [value["numbered"][q][0] for q in "1234"] == list("1234") and [value["apart"][q][0] for q in "1234"] == ["d1", "d2", "d3", "d4"]
    assert value["debate"]["a"] == ["b"]
    assert main([*command, str(tmp_path / "none"), "--rules", "debate=none", "numbered=arguana"]) == 0
    assert read_run(tmp_path / "none" / "bm25" / "debate")["a"] == ["a", "b"]
    assert row_of(tmp_path / "none", "bm25", "debate")["self_excluded"] == 0
    declared = row_of(tmp_path / "none", "bm25", "numbered")
    assert (declared["self_excluded"], declared["rules"]["queries_are_documents"], declared["missing"]) == (4, True, 4)
    assert "numbered: 4 queries' own documents are left out of their results (the set's queries are documents)" in capsys.readouterr().out


def read_run(folder: Path) -> dict[str, list[str]]:
    """Query -> documents, best first, of a run file."""
    found: dict[str, list[str]] = {}
    for line in (folder / "run.trec").read_text().splitlines():
        found.setdefault(line.split()[0], []).append(line.split()[2])
    return found


def test_equal_scores_have_their_range_in_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = {f"d{i}": ("", "one and the same text") for i in range(4)} | {"x": ("", "another")}
    folder = write(tmp_path / "copies", {"q1": "same text", "q2": "another"}, corpus, {"q1": ["d1"], "q2": ["x"]})
    assert main(["evaluate", "--model", "bm25", "--beir", str(folder), "--details", str(tmp_path / "out")]) == 0
    row = row_of(tmp_path / "out", "bm25", "copies")
    assert row["tie_queries"] == 1 and row["tie_range"]["mrr@10"] == [(0.25 + 1) / 2, 1.0] and "recall@10" not in row["tie_range"]
    assert read_run(tmp_path / "out" / "bm25" / "copies")["q1"] == ["d3", "d2", "d1", "d0"]
    assert "bm25, copies: 1 query depends on the order of equal scores (falling ids, as in trec_eval), ndcg@10 0.7153 to 1.0000" in capsys.readouterr().out


def test_cqadupstack_is_the_mean_of_its_forums(tmp_path: Path, encoder_folder: Path) -> None:
    folder, shares = forums(tmp_path / "set")
    out, given = tmp_path / "out", {"encoders": {"small": encoder_folder}, "baselines": {"bm25": BM25()}, "reference": "bm25", "seed": 0}
    metrics = evaluate(out, collections={"cqadupstack": folder}, **given)  # type: ignore[arg-type]
    table = read_parquet(out / "bm25/cqadupstack/per_query.parquet", {"query_id": "string", "ndcg@10": "double"})
    values = dict(zip(table["query_id"].to_pylist(), table["ndcg@10"].to_pylist(), strict=True))
    by_forum = {forum: [v for q, v in values.items() if q.startswith(f"{forum}/")] for forum in shares}
    assert {forum: float(np.mean(v)) for forum, v in by_forum.items()} == pytest.approx(shares)
    assert metrics["bm25/cqadupstack/ndcg@10"] == pytest.approx(np.mean(list(shares.values())))
    assert metrics["bm25/cqadupstack/ndcg@10"] != pytest.approx(np.mean(list(values.values())))  # forums count, not queries
    row = row_of(out, "bm25", "cqadupstack")
    assert row["rules"]["mean_of"] == list(shares) and row["queries"] == len(values) == sum(1 + n % 4 for n in range(12))
    assert row["low"] < metrics["bm25/cqadupstack/ndcg@10"] < row["high"]
    assert "difference" in row_of(out, "small", "cqadupstack")
    assert not any(line.split()[0].split("/")[0] != line.split()[2].split("/")[0] for line in (out / "bm25/cqadupstack/run.trec").read_text().splitlines())
    (folder / "tex" / "corpus.jsonl").rename(folder / "tex-corpus")
    with pytest.raises(UserError, match=r"tex.corpus\.jsonl: no such file"):
        evaluate(tmp_path / "again", collections={"cqadupstack": folder}, **given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"mean of 12 forums, and the folder 'android' is not there \(rules: \{cqadupstack: none\}"):
        evaluate(tmp_path / "again", collections={"cqadupstack": toy(tmp_path / "one")}, **given)  # type: ignore[arg-type]


def test_msmarco_is_scored_on_dev_and_another_split_can_be_asked_for(tmp_path: Path) -> None:
    folder = toy(tmp_path / "set", "dev", hits=2)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tx\t1\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq0\tx\t1\n")
    for given, split, value in (({}, "dev", 1.0), ({"rules": {"msmarco": "none"}}, "test", 0.0), ({"split": "train"}, "train", 0.0)):
        out = tmp_path / split
        metrics = evaluate(out, collections={"msmarco": folder}, baselines={"bm25": BM25()}, seed=0, **given)  # type: ignore[arg-type]
        assert metrics["bm25/msmarco/ndcg@10"] == value and row_of(out, "bm25", "msmarco")["split"] == split


def all_sets(folder: Path) -> dict[str, Path]:
    """All 15 sets: BM25 answers everything in the first seven and nothing in the others, but for CQADupStack."""
    made = {}
    for number, facts in enumerate(BEIR_SETS.values()):
        own = folder / facts.name
        made[facts.name] = forums(own)[0] if facts.forums else toy(own, facts.split, hits=2 if number < 7 else 0)
    return made


def test_all_fifteen_give_the_average_beside_the_published_one(tmp_path: Path) -> None:
    sets = all_sets(tmp_path / "beir")
    given: dict[str, Any] = {"baselines": {"bm25": BM25()}, "seed": 0}
    metrics = evaluate(tmp_path / "out", collections=sets, published={"bm25": {"beir15/ndcg@10": 0.417}}, **given)
    mean = np.mean([metrics[f"bm25/{name}/ndcg@10"] for name in BEIR_SETS])
    assert metrics["bm25/beir15/ndcg@10"] == pytest.approx(mean) and 0.4 < mean < 0.6
    (row,) = read_json(tmp_path / "out" / "tasks.json")
    assert (row["set"], row["published"], row["value"]) == ("beir15", 0.417, metrics["bm25/beir15/ndcg@10"])
    assert row["sets"] == pytest.approx({name: metrics[f"bm25/{name}/ndcg@10"] for name in BEIR_SETS})
    assert row["low"] < row["value"] < row["high"]
    del sets["nq"]
    assert "bm25/beir15/ndcg@10" not in evaluate(tmp_path / "fewer", collections=sets, **given)
    with pytest.raises(UserError, match="two sets are named 'beir15'"):
        evaluate(tmp_path / "named", collections={BEIR15: sets["fiqa"]}, **given)


def test_the_command_knows_the_sets_too(tmp_path: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "questions", **QUORA)  # type: ignore[arg-type]
    command = ["evaluate", "--model", f"small={encoder_folder}", "--details", str(tmp_path / "details"), "--beir", f"quora={folder}"]
    assert main(command) == 0
    assert row_of(tmp_path / "details", "small", "quora")["rules"]["passage_kind"] == "query"
    other = ["evaluate", "--model", "bm25", "--details", str(tmp_path / "other"), "--beir", str(folder), "--rules"]
    assert main([*other, "questions=quora"]) == 0
    assert row_of(tmp_path / "other", "bm25", "questions")["rules"]["beir"] == "quora"
    capsys.readouterr()
    assert main(["evaluate", "--model", "bm25", "--beir", str(folder), "--rules", "questions=quorra"]) == 2
    assert "did you mean 'quora'" in capsys.readouterr().err
    assert main(["evaluate", "--model", "bm25", "--beir", str(folder), "--rules", "question=quora"]) == 2
    assert "'question' is not one of the collections; did you mean 'questions'" in capsys.readouterr().err


def test_beir_data_leads_to_what_is_there_and_says_what_is_not(tmp_path: Path) -> None:
    root, out = tmp_path / "beir", tmp_path / "stage"
    out.mkdir()
    toy(root / "scifact")
    forums(root / "cqadupstack")
    assert beir_data(out, folder=str(root), sets=["scifact", "cqadupstack"]) == {"sets": 2.0, "downloaded": 0.0}
    assert (out / "scifact" / "corpus.jsonl").is_file() and (out / "cqadupstack" / "tex" / "qrels" / "test.tsv").is_file()
    first = read_json(out / "sets.json")
    assert beir_data(out, folder=str(root), sets=["scifact"])["sets"] == 1.0 and read_json(out / "sets.json")["scifact"] == first["scifact"]
    with (root / "scifact" / "qrels" / "test.tsv").open("a") as handle:
        handle.write("q0\tx\t1\n")
    beir_data(out, folder=str(root), sets=["scifact"])
    assert read_json(out / "sets.json")["scifact"] != first["scifact"]
    with pytest.raises(UserError, match=r"the sets nq, fever are not there; put each there in BEIR's layout, or set download=true"):
        beir_data(out, folder=str(root), sets=["scifact", "nq", "fever"])
    with pytest.raises(UserError, match=r"nq: is not there and was not fetched: https://.*the download stopped") as raised:
        beir_data(out, folder=str(root), sets=["nq"], download=True)  # tests have no network
    assert "\n" not in str(raised.value)
    (root / "nq").mkdir()
    with pytest.raises(UserError, match=r"test\.tsv: no such file, so .* is not nq in BEIR's layout"):
        beir_data(out, folder=str(root), sets=["nq"])


def test_the_interval_of_a_mean_of_groups() -> None:
    a, b = [0.0, 1.0] * 20, [0.5] * 10
    assert bootstrap_interval(a, groups=[7] * 40, seed=3) == bootstrap_interval(a, seed=3)
    groups = [0] * 40 + [1] * 10
    low, high = bootstrap_interval(a + b, groups=groups, seed=3)
    of_a = bootstrap_interval(a, seed=3)
    assert low == pytest.approx(0.25 + of_a[0] / 2, abs=0.02) and high == pytest.approx(0.25 + of_a[1] / 2, abs=0.02)
    assert mean_of_groups([a, b], [0.9, 0.1]) == pytest.approx(0.5) and mean_of_groups([[1.0], [0.0, 0.0, 0.0]]) == 0.5
    better = paired_test([1.0] * 30 + [0.6] * 10, [0.0] * 30 + [0.5] * 10, [0] * 30 + [1] * 10)
    assert better.mean == pytest.approx(0.55) and better.decision == "higher"
    same = paired_test(a + b, a + b, groups)
    assert same.decision == "no difference shown" and same.p_value == 1.0
