"""Every layout of evaluation data gives its texts, and what is none is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lightning_e5.curation.cleaning.evaluation_texts import collection_names, evaluation_texts
from lightning_e5.errors import UserError


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def beir(folder: Path, end: str = "") -> Path:
    documents: list[dict[str, object]] = [
        {"_id": "d1", "title": "A title", "text": "the text"},
        {"_id": "d2", "title": "", "text": "alone"},
        {"_id": "d3", "text": ""},
    ]
    jsonl(folder / f"corpus.jsonl{end}", documents)
    jsonl(folder / f"queries.jsonl{end}", [{"_id": "q1", "text": "a query"}, {"_id": "q2", "text": "unjudged"}])
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_beir(tmp_path: Path, end: str) -> None:
    folder = beir(tmp_path / "toy", end)
    texts = list(evaluation_texts([folder]))
    assert {t.collection for t in texts} == {"toy"}
    assert [t.text for t in texts] == ["a query", "unjudged", "the text", "A title the text", "alone"]
    assert [t.text for t in evaluation_texts([str(folder)], corpora=False)] == ["a query", "unjudged"]


def test_files_of_every_kind(tmp_path: Path) -> None:
    sts = tmp_path / "sts" / "test.tsv"
    sts.parent.mkdir()
    sts.write_text(
        'score\tsentence1\tsentence2\n2.5\tA "quoted\tA\u2028 second.\n3\tThird.\tFourth.\n', encoding="utf-8"
    )
    paths = [
        sts,
        jsonl(tmp_path / "banking" / "test.jsonl", [{"text": "my card", "label": "card"}]),
        jsonl(tmp_path / "nli.jsonl.gz", [{"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"}]),
        jsonl(tmp_path / "qa" / "dev.jsonl", [{"question": "who was it", "answers": ["nobody"]}]),
    ]
    found = [(t.collection, t.text) for t in evaluation_texts(paths)]
    assert found == [
        ("sts/test", 'A "quoted'),
        ("sts/test", "A\u2028 second."),
        ("sts/test", "Third."),
        ("sts/test", "Fourth."),
        ("banking/test", "my card"),
        (f"{tmp_path.name}/nli", "It rains."),
        (f"{tmp_path.name}/nli", "It is wet."),
        ("qa/dev", "who was it"),
    ]


def test_names() -> None:
    assert collection_names(["beir/scifact", "a/sts/test.tsv", "x.jsonl.gz"]) == ["scifact", "sts/test", "x"]
    assert collection_names(["a/toy", "b/toy", "c"]) == ["a/toy", "b/toy", "c"]
    with pytest.raises(UserError, match="a/toy: is named twice"):
        collection_names(["a/toy", "a/toy"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"label": 1}\n', r"a\.jsonl:2: lacks the key 'text'"),
        ("a.jsonl", '{"label": 1}\n', r"a\.jsonl:1: has none of the keys text, query"),
        ("a.jsonl", '{"premise": "x", "hypothesis": 3}\n', r"a\.jsonl:1: lacks the key 'hypothesis' \(a string\)"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', r"a\.jsonl:2: not a JSON object"),
        ("a.jsonl", "\n", r"a\.jsonl: holds no text"),
        ("a.tsv", "score\tfirst\n1\tx\n", r"a\.tsv:2: has none of the keys text, query.*\(has: score, first\)"),
        ("a.tsv", "score\tsentence1\n1\tx\n2\n", r"a\.tsv:3: another number of cells than the header \(1 separated by tabs, not 2\)"),
        ("a.tsv", "sentence1\n", r"a\.tsv: holds no text"),
        ("a.xlsx", "x", r"a\.xlsx: is no folder in BEIR's layout"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list(evaluation_texts([tmp_path / name]))


def test_missing_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no such file or directory"):
        list(evaluation_texts([tmp_path / "none"]))
    with pytest.raises(UserError, match=r"queries\.jsonl: no such file"):
        list(evaluation_texts([tmp_path]))
