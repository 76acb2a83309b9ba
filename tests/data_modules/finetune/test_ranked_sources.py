"""The published formats of MS-MARCO, NQ, NLI and BEIR: what is read from them, and what is counted as bad, by place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_modules.finetune import records
from data_modules.finetune.beir import BeirRanked
from data_modules.finetune.msmarco import SimLMRanked, TevatronRanked
from data_modules.finetune.nq import DprRanked
from data_modules.finetune.records import json_array
from lightning_e5.errors import UserError
from lightning_e5.types import RankedExample, ReadReport
from tests.data_modules.finetune.written import read, write_lines


def simlm(folder: Path, extra: list[Any] | None = None, **settings: Any) -> SimLMRanked:
    passages = [{"id": str(i), "contents": f"contents {i}", "title": "-" if i % 2 else f"title {i}"} for i in range(10)]
    rows = [
        {"query_id": "7", "query": "first query", "positives": {"doc_id": ["3"], "score": [5.5]}, "negatives": {"doc_id": ["0", "4", "9"], "score": [1.0, -2.5, 0.25]}},
        {"query_id": "8", "query": "second query", "positives": {"doc_id": ["2", "5"], "score": [3.0, 4.0]}, "negatives": {"doc_id": ["1"], "score": [-1]}},
    ]  # fmt: skip
    examples = write_lines(folder / "kd_train.jsonl", [*rows, *(extra or [])])
    return SimLMRanked(examples=examples, passages=write_lines(folder / "passages.jsonl.gz", passages), **{"teacher_scores": True, **settings})


def test_simlm(tmp_path: Path) -> None:
    found, report = read(simlm(tmp_path))
    assert found == [
        RankedExample("first query", ("contents 3",), ("title 0 contents 0", "title 4 contents 4", "contents 9"), (5.5, 1.0, -2.5, 0.25), "msmarco"),
        RankedExample("second query", ("title 2 contents 2", "contents 5"), ("contents 1",), (3.0, 4.0, -1.0), "msmarco"),
    ]
    assert report.counts == {"records": 2, "passages": 10} and not report.bad
    few, _ = read(simlm(tmp_path, max_negatives=2, teacher_scores=False))
    assert few[0].negatives == ("title 0 contents 0", "title 4 contents 4") and few[0].teacher_scores is None
    assert read(simlm(tmp_path, max_negatives=2))[0][0].teacher_scores == (5.5, 1.0, -2.5)


def test_simlm_bad_rows_are_counted_by_place(tmp_path: Path) -> None:
    good = {"doc_id": ["1"], "score": [1.0]}
    bad = [
        "{broken", "[1]", {"query": " ", "positives": good, "negatives": good}, {"query": "q", "positives": good},
        {"query": "q", "positives": {"doc_id": [], "score": []}, "negatives": good},
        {"query": "q", "positives": {"doc_id": ["11"], "score": [1.0]}, "negatives": good},
        {"query": "q", "positives": {"doc_id": ["1"], "score": [float("nan")]}, "negatives": good},
        {"query": "q", "positives": {"doc_id": ["1"], "score": []}, "negatives": good},
        {"query": "q", "positives": {"doc_id": ["-1"], "score": [1.0]}, "negatives": good},
        '{"query": "half \\ud800", "positives": {"doc_id": ["1"], "score": [1]}, "negatives": {"doc_id": [], "score": []}}',
    ]  # fmt: skip
    found, report = read(simlm(tmp_path, bad))
    assert len(found) == 2 and len(report.bad) == len(bad) == sum(n for k, n in report.counts.items() if k.startswith("bad: "))
    assert [place for place, _ in report.bad] == [f"{tmp_path}/kd_train.jsonl:{n}" for n in range(3, 13)]


def test_simlm_passages_are_rows(tmp_path: Path) -> None:
    source = simlm(tmp_path)
    write_lines(tmp_path / "passages.jsonl.gz", [{"id": "0", "contents": "a"}, {"id": "5", "contents": "b"}])
    with pytest.raises(UserError, match=r"passages\.jsonl\.gz:2: has the id '5', but doc_id counts the rows from 0, which gives 1"):
        list(source.read(ReadReport()))
    source = simlm(tmp_path)
    (tmp_path / "passages.jsonl.gz").write_bytes((tmp_path / "passages.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"passages\.jsonl\.gz: .* archive breaks off"):
        list(source.read(ReadReport()))


def test_tevatron(tmp_path: Path) -> None:
    passage = {"docid": "1", "title": "Title", "text": "text one"}
    rows = [
        {"query_id": "1", "query": "q", "positive_passages": [passage], "negative_passages": [{"docid": "2", "title": "", "text": "two"}, {"docid": "3", "text": ""}]},
        {"query_id": "2", "query": "no positive", "positive_passages": [], "negative_passages": [passage]},
        {"query_id": "3", "query": "no list", "negative_passages": [passage]},
    ]  # fmt: skip
    found, report = read(TevatronRanked(path=write_lines(tmp_path / "train.jsonl", rows)))
    assert found == [RankedExample("q", ("Title text one",), ("two",), None, "msmarco")]
    assert report.counts == {"records": 3, "skipped: passage without text": 1, "bad: no positive": 1, "bad: no list of passages": 1}
    assert report.bad[0] == (f"{tmp_path}/train.jsonl:2", "no positive")


def contexts(*names: str) -> list[dict[str, str]]:
    return [{"title": f"T {n}", "text": n, "passage_id": n} for n in names]


def dpr_rows(count: int) -> list[dict[str, Any]]:
    return [
        {"dataset": "nq", "question": f"question {i} – ü", "answers": ["x", "] }, {"], "positive_ctxs": contexts(f"p{i}"),
         "hard_negative_ctxs": contexts(f"h{i}", f"g{i}"), "negative_ctxs": contexts(f"n{i}")}
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_huge_array_is_read_an_element_at_a_time(tmp_path: Path, chunk: int, indent: int | None) -> None:
    rows = dpr_rows(5)
    path = tmp_path / "nq.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    report = ReadReport()
    assert [row for _, row in json_array(path, report, chunk=chunk)] == rows and report.counts["records"] == 5


def test_the_array_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nq.json"
    path.write_text(json.dumps(dpr_rows(3000)))
    most = 0
    more = records._Buffer.more

    def watched(self: Any, size: int) -> bool:
        nonlocal most
        result = more(self, size)
        most = max(most, len(self.text))
        return result

    monkeypatch.setattr(records._Buffer, "more", watched)
    assert len(list(json_array(path, ReadReport(), chunk=4096))) == 3000
    assert most < 4 * 4096 < path.stat().st_size / 20


def test_dpr(tmp_path: Path) -> None:
    rows = dpr_rows(2)
    rows += [{**rows[0], "positive_ctxs": []}, {**rows[0], "question": None}, {**rows[0], "positive_ctxs": [*contexts("a"), {"title": "t", "text": ""}]}]
    path = tmp_path / "nq.json.gz"
    path.write_bytes(gzip.compress(json.dumps([*rows, 3]).encode()))
    found, report = read(DprRanked(path=tmp_path / "nq.json"))
    assert found[0] == RankedExample("question 0 – ü", ("T p0 p0",), ("T h0 h0", "T g0 g0", "T n0 n0"), None, "nq")
    assert len(found) == 3 and report.counts["skipped: no positive passage"] == 1 and report.counts["skipped: passage without text"] == 1
    assert report.bad == [(f"{path}: element 3", "no question"), (f"{path}: element 5", "not a JSON object")]
    assert read(DprRanked(path=path, random_negatives=False, max_negatives=1))[0][0].negatives == ("T h0 h0",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "q"}', "not a JSON array"),
        ("", "cut off"),
        ('[{"question": "q"}', "cut off"),
        ('[{"question": "q"}, {"question": "w', "element 1 is not JSON"),
        ('[{"question": "q"}, {question: 1}]', "element 1 is not JSON"),
        ('[{"question": "q"} {"question": "w"}]', "after element 0 comes '{'"),
        ("[" * 100000, "element 0 is nested too deeply"),
    ],
)
def test_a_damaged_array_is_refused_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "nq.json").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        list(DprRanked(path=tmp_path / "nq.json").read(ReadReport()))
    assert "nq.json" in str(raised.value) and "\n" not in str(raised.value)


def beir(folder: Path) -> Path:
    write_lines(folder / "corpus.jsonl.gz", [{"_id": f"d{i}", "title": "T" if i else "", "text": f"document {i}"} for i in range(5)])
    write_lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(4)])
    write_lines(folder / "qrels/train.tsv", ["query-id\tcorpus-id\tscore", "q0\td0\t1", "q0\td2\t2", "q1\td1\t0", "q2\td9\t1", "q3\td3\t1", "broken"])
    return folder


def test_beir(tmp_path: Path) -> None:
    source = BeirRanked(folder=beir(tmp_path / "squad"))
    found, report = read(source)
    assert found == [
        RankedExample("query 0", ("document 0", "T document 2"), (), None, "squad"),
        RankedExample("query 3", ("T document 3",), (), None, "squad"),
    ]
    assert report.counts["skipped: judged text not there"] == 1 and report.bad == [(f"{tmp_path}/squad/qrels/train.tsv:7", "another number of columns than in the first line")]
    assert list(source.corpus()) == ["document 0", *(f"T document {i}" for i in range(1, 5))]
    with pytest.raises(UserError, match=r"qrels/dev\.tsv: no such file"):
        BeirRanked(folder=tmp_path / "squad", split="dev")
