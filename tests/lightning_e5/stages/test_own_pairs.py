"""Own texts end to end: what the stage writes, what it leaves out and says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.finetune.groups import read_ranked
from data_modules.own.beir_folder import Collection, read_collection
from data_modules.pair_store import PairStore
from lightning_e5.errors import UserError
from lightning_e5.stages.own_pairs import own_pairs
from lightning_e5.text import text_id


def sentence(n: int, words: int = 9) -> str:
    """Words of its own for each number, so that no two are near copies."""
    return " ".join(f"{word}{n}" for word in np.random.default_rng(n).choice(["tree", "river", "stone", "cloud", "house", "road", "light"], size=words))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_beir(folder: Path, splits: dict[str, Sequence[int]], documents: int = 120) -> Path:
    write_rows(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": f"Title {sentence(n, 2)}", "text": sentence(1000 + n)} for n in range(documents)])
    write_rows(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"ask {sentence(2000 + n, 4)}"} for n in range(documents)])
    (folder / "qrels").mkdir()
    for split, numbers in splits.items():
        (folder / f"qrels/{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in numbers), encoding="utf-8")
    return folder


def trained(out: Path) -> list[dict[str, str]]:
    return PairStore(out).read(["query", "passage", "source", "id"]).to_pylist()  # type: ignore[no-any-return]


def texts(rows: Sequence[dict[str, str]]) -> set[int]:
    return {text_id(row[side]) for row in rows for side in ("query", "passage")}


def asked(collection: Collection) -> set[int]:
    answers = [collection.passages[p] for grades in collection.qrels.values() for p in grades]
    return {text_id(text) for text in [*collection.queries.values(), *answers]}


def test_a_table_with_negatives(tmp_path: Path) -> None:
    rows = [{"anchor": sentence(n, 4), "positive": sentence(500 + n), "negative": sentence(500 + (n + 7) % 200), "url": f"u{n // 2}"} for n in range(200)]
    rows += [rows[0], {**rows[1], "anchor": "same words here", "positive": "Same  words HERE"}, {**rows[2], "positive": rows[2]["positive"] + "."}]
    path = write_rows(tmp_path / "faq.jsonl", rows)
    metrics = own_pairs(tmp_path / "out", pairs=f"path:{path}", seed=3)
    out = tmp_path / "out"
    found, test, validation = trained(out), read_collection(out / "test", "test"), read_collection(out / "validation", "test")
    assert not texts(found) & asked(test) and not texts(found) & asked(validation) and not asked(test) & asked(validation)
    assert (metrics["test_queries"], metrics["validation_queries"]) == (40, 20) == (len(test.queries), len(validation.queries))
    assert metrics["pairs"] == len(found) == 140 and metrics["pairs_read"] == 203
    # The whole remaining pool is searched, too.
    assert {text_id(row["passage"]) for row in found} <= {text_id(text) for text in test.passages.values()} and metrics["test_passages"] == len(test.passages)
    # Ids lead back to the line.
    for row in found:
        assert rows[int(row["id"].removeprefix("faq.jsonl:")) - 1]["anchor"] == row["query"] and row["source"] == "pairs"
    assert all(rows[int(key.rpartition(":")[2]) - 1]["anchor"] == text for key, text in test.queries.items())
    # Pairs of one url are on one side.
    urls = [{rows[int(key.rpartition(":")[2]) - 1]["url"] for key in keys} for keys in ([r["id"] for r in found], test.queries, validation.queries)]
    assert not urls[0] & urls[1] and not urls[0] & urls[2] and not urls[1] & urls[2]
    dropped = json.loads((out / "dropped.json").read_text())
    assert dropped["pair that was there before"] == {"count": 1, "first": "faq.jsonl:201"} and dropped["query is passage"] == {"count": 1, "first": "faq.jsonl:202"}
    assert dropped["near copy of a pair that was there before"] == {"count": 1, "first": "faq.jsonl:203"} and metrics["dropped_query_is_passage"] == 1
    # Training groups whose negatives answer no held-out query.
    ranked = read_ranked([out / "ranked.parquet"], 1, "first")
    assert metrics["triplets"] == len(ranked.queries) and metrics["negatives"] == 1
    answers = {text_id(side.passages[key]) for side in (test, validation) for grades in side.qrels.values() for key in grades}
    assert not {text_id(text) for text in ranked.passages["passage"]} & answers
    assert metrics["triplets"] + metrics["dropped_negative_that_answers_a_query_of_the_test_or_validation"] == 140
    record = json.loads((out / "own_texts.json").read_text())
    assert record["split"]["test"] == "held out by document" and "columns query 'anchor'" in record["lines"][0] and len(json.loads((out / "examples.json").read_text())) == 10


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"query": sentence(n, 4), "passage": sentence(500 + n)} for n in range(100)])
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        own_pairs(tmp_path / name, pairs=path, max_pairs=30, test_passages=25, seed=seed)
    files = ["pairs.parquet", "test/corpus.jsonl", "test/queries.jsonl", "test/qrels/test.tsv", "examples.json"]
    a, b, c = ([(tmp_path / name / file).read_bytes() for file in files] for name in "abc")
    assert a == b and all(x != y for x, y in zip(a, c, strict=True)) and not (tmp_path / "a/ranked.parquet").exists()
    assert len(trained(tmp_path / "a")) == 30 and len(read_collection(tmp_path / "a/test", "test").passages) == 25


def test_documents_are_held_out_whole(tmp_path: Path) -> None:
    for n in range(30):
        sections = "".join(f"## {sentence(100 * n + m, 2)}\n\n{sentence(5000 + 100 * n + m)}\n\n" for m in range(5))
        (tmp_path / "docs").mkdir(exist_ok=True)
        (tmp_path / f"docs/{n}.md").write_text(f"# {sentence(9000 + n, 2)}\n\n{sections}", encoding="utf-8")
    out = tmp_path / "out"
    metrics = own_pairs(out, documents=tmp_path / "docs", test_passages=60, seed=0)
    test = read_collection(out / "test", "test")
    files = [{key.partition("#")[0].removeprefix("q:") for key in keys} for keys in ([row["id"] for row in trained(out)], test.queries)]
    assert not files[0] & files[1] and len(files[1]) == 6 and metrics["test_queries"] == 30 and metrics["test_passages"] == 60
    assert metrics["documents"] == len(files[0])


def test_the_users_own_test_keeps_its_queries_out_and_leaves_its_corpus(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "set", {"train": range(60), "test": range(60, 90)})
    queries = write_rows(tmp_path / "pairs.jsonl", [{"query": f"Ask {sentence(2060, 4)}!", "passage": sentence(7000)}])
    out = tmp_path / "out"
    metrics = own_pairs(out, collection=folder, pairs=queries, seed=0)
    found, test = trained(out), read_collection(out / "test", "test")
    assert metrics["test_queries"] == 30 and test.passages == {f"d{n}": f"Title {sentence(n, 2)} {sentence(1000 + n)}" for n in range(120)}
    assert metrics["dropped_query_of_the_test"] == 1 and not {text_id(q) for q in test.queries.values()} & texts(found)
    assert {row["id"] for row in found if row["source"] == "titles"} >= {f"d{n}" for n in range(60, 120)}
    validation = read_collection(out / "validation", "test")
    assert metrics["validation_queries"] == 6 and all(text.startswith("ask ") for text in validation.queries.values())
    # Judged queries are searched among whole documents, each of them once.
    assert len(validation.passages) == len({key.partition(" (")[0] for key in validation.passages}) and all(t.startswith("Title ") for k, t in validation.passages.items() if k[0] == "d")


def test_a_test_of_pairs_is_searched_among_the_own_texts(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"query": sentence(n, 4), "passage": sentence(500 + n)} for n in range(100)])
    own = write_rows(tmp_path / "mine.jsonl", [{"query": sentence(800 + n, 4), "passage": sentence(900 + n)} for n in range(9)] + [{"query": sentence(5, 4), "passage": sentence(505)}])
    metrics = own_pairs(tmp_path / "out", pairs=path, test=str(own), validation_queries=0, seed=0)
    assert (metrics["test_queries"], metrics["test_passages"], metrics["pairs"], metrics["validation_queries"]) == (10, 109, 99, 0)
    assert not (tmp_path / "out/validation").exists()


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        ([{"query": "a", "passage": "b"}] * 3, {}, "leave 0 queries to test on, where at least 5"),
        ([{"query": "a", "passage": ""}] * 3, {}, "3 of 3 rows are bad, more than max_bad_share = 0.01; the first is .*a.jsonl:1: no text in the column 'passage'"),
        ([{"query": "a", "passage": "A"}], {}, "gives no pair from 1 records; 1 times skipped: query is passage, first at a.jsonl:1"),
        ([{"x": "a", "y": "b"}], {}, r"name them by query and passage \(--query, --passage\)"),
        ([{"query": "a", "passage": "b"}], {"collection": "."}, "holds no corpus.jsonl"),
        ([{"query": "a", "passage": "b"}], {"test": "nowhere/x.csv"}, "nowhere/x.csv: no such file"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, rows: list[dict[str, Any]], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        own_pairs(tmp_path / "out", pairs=write_rows(tmp_path / "a.jsonl", rows), seed=0, **arguments)


def test_nothing_to_read() -> None:
    with pytest.raises(UserError, match="give pairs, documents or collection"):
        own_pairs(Path("nowhere"), seed=0)
