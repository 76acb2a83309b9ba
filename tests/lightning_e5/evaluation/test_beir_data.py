"""The strict reader of BEIR's layout: what it reads, and file and line of everything it refuses."""

from __future__ import annotations

import gzip
import json

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir_data import load_beir

DOCUMENTS = [
    {"_id": "d1", "title": "A title", "text": "and\u2028 text"},
    {"_id": "d2", "title": "", "text": "alone"},
    {"_id": "d3", "text": "no title"},
]
QUERIES = [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "second"}, {"_id": "q3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td9\t2\nq2\td2\t0\n"


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder, corpus=None, queries=None, qrels=QRELS):
    (folder / "qrels").mkdir(parents=True)
    for name, content in (
        ("corpus.jsonl", lines(DOCUMENTS) if corpus is None else corpus),
        ("queries.jsonl", lines(QUERIES) if queries is None else queries),
        ("qrels/test.tsv", qrels),
    ):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_reads(tmp_path):
    data = load_beir(write(tmp_path / "toy"))
    assert (data.name, data.split) == ("toy", "test")
    assert data.corpus == {"d1": "A title and\u2028 text", "d2": "alone", "d3": "no title"}
    assert data.queries == {"q1": "first", "q2": "second"}
    assert data.qrels == {"q1": {"d1": 1, "d9": 2}, "q2": {"d2": 0}}
    assert data.dangling == 1


def test_reads_gzip_and_windows_line_ends(tmp_path):
    folder = write(tmp_path / "toy", qrels=QRELS.replace("\n", "\r\n"))
    expected = load_beir(folder)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    assert load_beir(folder) == expected


def test_refuses_a_torn_gzip_file(tmp_path):
    folder = write(tmp_path / "toy")
    packed = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(packed[:-9])
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz: damaged gzip"):
        load_beir(folder)
    (folder / "corpus.jsonl.gz").write_bytes(b"not gzip at all")
    with pytest.raises(UserError, match="damaged gzip"):
        load_beir(folder)


GOOD = lines(DOCUMENTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": GOOD + "{not json\n"}, r"corpus\.jsonl:4: not JSON"),
        ({"corpus": "[" * 100_000 + "\n"}, r"corpus\.jsonl:1: not JSON"),
        ({"corpus": GOOD + "[1]\n"}, r"corpus\.jsonl:4: not a JSON object"),
        ({"corpus": GOOD.encode() + b'{"_id": "\xff"}\n'}, r"corpus\.jsonl:4: not valid UTF-8"),
        ({"corpus": GOOD + GOOD}, r"corpus\.jsonl:4: the id 'd1' was there before"),
        ({"corpus": '{"text": "a"}\n'}, r"corpus\.jsonl:1: lacks the key '_id'"),
        ({"corpus": '{"_id": 3, "text": "a"}\n'}, r"corpus\.jsonl:1: lacks the key '_id'"),
        ({"corpus": '{"_id": "d", "title": "a"}\n'}, r"corpus\.jsonl:1: lacks the key 'text'"),
        ({"corpus": '{"_id": "d", "title": 1, "text": "a"}\n'}, r"corpus\.jsonl:1: the key 'title'"),
        ({"corpus": ""}, "the corpus has 0 documents"),
        ({"queries": lines(QUERIES[:1])}, r"test\.tsv:4: the query 'q2' has no text"),
        ({"queries": lines([QUERIES[0], {"_id": "q2", "text": " \u2003"}])}, r"queries\.jsonl:2: the query 'q2' is judged and its text is empty"),
        ({"queries": lines(QUERIES + QUERIES[:1])}, r"queries\.jsonl:4: the id 'q1'"),
        ({"qrels": QRELS.split("\n", 1)[1]}, r"test\.tsv:1: lacks the header"),
        ({"qrels": ""}, r"test\.tsv:1: lacks the header"),
        ({"qrels": QRELS + "q1\td2\n"}, r"test\.tsv:5: has 2 columns"),
        ({"qrels": QRELS + "q1\t0\td2\t1\n"}, r"test\.tsv:5: has 4 columns"),
        ({"qrels": QRELS + "q1\td2\t0.5\n"}, r"test\.tsv:5: the score '0.5' is not an integer"),
        ({"qrels": QRELS + "q1\td1\t1\n"}, r"test\.tsv:5: the document 'd1' was judged"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\td1\t0\n"}, "0 queries with a relevant judgement"),
    ],
)
def test_refuses(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as raised:
        load_beir(write(tmp_path / "toy", **change))
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_empty_documents_and_unjudged_empty_queries_are_read(tmp_path):
    queries = [*QUERIES[:2], {"_id": "q3", "text": ""}]
    data = load_beir(write(tmp_path / "toy", corpus=GOOD + lines([{"_id": "d4", "text": ""}]), queries=lines(queries)))
    assert data.corpus["d4"] == "" and list(data.queries) == ["q1", "q2"]


def test_refuses_missing_files(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_beir(tmp_path / "none")
    folder = write(tmp_path / "toy")
    with pytest.raises(UserError, match=r"dev\.tsv: no such file"):
        load_beir(folder, "dev")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(UserError, match=r"queries\.jsonl: no such file"):
        load_beir(folder)
