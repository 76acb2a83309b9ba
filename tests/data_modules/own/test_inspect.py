"""What files are taken for is told by their content, from their heads, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_modules.own.beir_folder import corpus_pairs, judged_pairs, own_test_split, read_collection, validation_split
from data_modules.own.examples import draw_examples, format_examples
from data_modules.own.inspect import inspect
from data_modules.own.own_pair import OwnPair
from lightning_e5.errors import UserError
from lightning_e5.types import ReadReport

LONG = "A text that says a little more than forty characters."


def write_beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": "1", "title": "One", "text": LONG}, {"_id": "2", "title": "", "text": f"The first sentence is here. {LONG}"}, {"_id": "3", "title": "Three", "text": ""}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus), encoding="utf-8")
    (folder / "queries.jsonl").write_text('{"_id": "a", "text": "ask one"}\n{"_id": "b", "text": "ask two"}\n', encoding="utf-8")
    (folder / "qrels/train.tsv").write_text("query-id\tcorpus-id\tscore\na\t1\t1\na\t2\t0\na\t9\t1\n", encoding="utf-8")
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nb\t2\t1\nc\t1\t1\n", encoding="utf-8")
    (folder / "qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\na\t1\t1\n", encoding="utf-8")
    return folder


def test_a_beir_folder(tmp_path: Path) -> None:
    folder, report = write_beir(tmp_path / "set"), ReadReport()
    assert list(corpus_pairs(folder, report)) == [
        OwnPair("One", LONG, "titles", "1", "1"), OwnPair("The first sentence is here.", LONG, "first sentences", "2", "2"),
    ]  # fmt: skip
    assert list(judged_pairs(folder, "train", report)) == [OwnPair("ask one", f"One {LONG}", "judgements", "1", "1", (f"The first sentence is here. {LONG}",))]
    assert report.counts["skipped: no text in the document"] == report.counts["skipped: judged text not there"] == 1
    test = read_collection(folder, "test")
    assert test.qrels == {"b": {"2": 1}} and test.queries == {"b": "ask two"} and list(test.passages) == ["1", "2", "3"]
    assert (own_test_split(folder), validation_split(folder)) == ("test", "dev")
    found = inspect(folder)
    assert found.kinds == ("collection",) and found.own_test and found.stage_arguments() == {"collection": [f"path:{folder}"]}
    assert "its split 'test' is the test, 'dev' the validation" in found.lines[0]


def test_a_mixed_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("anchor;positive;negative\nq;p;n\n", encoding="utf-8")
    (tmp_path / "test.jsonl").write_text('{"query": "q", "passage": "p"}\n', encoding="utf-8")
    (tmp_path / "b.md").write_text("# B", encoding="utf-8")
    found = inspect(tmp_path)
    assert (found.kinds, found.has_negatives, found.rows, found.files, found.own_test) == (("pairs", "documents"), True, 2, 1, False)
    assert found.stage_arguments() == {"pairs": [f"path:{tmp_path}/a.csv", f"path:{tmp_path}/test.jsonl"], "documents": [f"path:{tmp_path}"]}
    assert found.lines[0] == f"{tmp_path}/a.csv: about 1 rows of pairs (CSV, separated by semicolons, utf-8); columns query 'anchor', passage 'positive', negatives 'negative' (guessed by their names)"
    assert any("its name says that it is for testing" in line for line in found.lines) and found.lines[-1].startswith("tables and documents are both there")


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x", encoding="utf-8")
    for path, said in ((tmp_path, "holds no own texts"), (tmp_path / "a.py", "holds no own texts"), (tmp_path / "none", "no such file or directory")):
        with pytest.raises(UserError, match=said):
            inspect(path)


def test_examples_are_drawn_by_the_seed_and_fit_a_terminal() -> None:
    pairs = [OwnPair(f"query {n} \x1b[31m", "word " * 200, "pairs", f"a.csv:{n}", negatives=("other",) * (n % 2)) for n in range(30)]
    examples = draw_examples(pairs, 1)
    assert len(examples) == 10 and examples == draw_examples(pairs, 1) != draw_examples(pairs, 2)
    text = format_examples(examples, width=80)
    assert max(map(len, text.split("\n"))) <= 80 and "\x1b" not in text and text.count("    not     other") == sum("negative" in e for e in examples)
    assert len(draw_examples(pairs[:3], 1)) == 3
