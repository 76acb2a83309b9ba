"""The strict reader of BEIR's layout: what it reads, and file and line of everything it refuses."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc

import pytest

from data_modules.finetune.beir import BeirRanked
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.collection import Collection
from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.types import ReadReport

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
    assert data.missing_documents == 1


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
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz: .* archive breaks off"):
        load_beir(folder)
    (folder / "corpus.jsonl.gz").write_bytes(b"not gzip at all")
    with pytest.raises(UserError, match="does not begin as a gzip file"):
        load_beir(folder)


GOOD = lines(DOCUMENTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corpus": GOOD + "{not json\n"}, r"corpus\.jsonl:4: not JSON"),
        ({"corpus": GOOD + "[" * 100_000 + "\n"}, r"corpus\.jsonl:4: not JSON \(nested too deep\)"),
        ({"corpus": GOOD + '{"_id": "d4", "text": "a", "n": ' + "1" * 10_000 + "}\n"}, r"corpus\.jsonl:4: not JSON \(Exceeds the limit"),
        ({"corpus": GOOD + '{"_id": "d4", "text": "a", "n": NaN}\n'}, r"corpus\.jsonl:4: not JSON \(NaN is no JSON value\)"),
        ({"corpus": GOOD + '{"_id": "d4", "text": "a", "text": "b"}\n'}, r"corpus\.jsonl:4: not JSON \(has the key 'text' twice\)"),
        ({"corpus": GOOD + '{"_id": "d\\ud800", "text": "a"}\n'}, r"corpus\.jsonl:4: not JSON \(holds '\\ud800', half a surrogate pair\)"),
        ({"corpus": GOOD + '{"_id": "d4", "text": "\\uDC00 a"}\n'}, r"corpus\.jsonl:4: not JSON \(holds .*half a surrogate pair\)"),
        ({"corpus": GOOD + "[1]\n"}, r"corpus\.jsonl:4: not a JSON object"),
        ({"corpus": GOOD.encode() + b'{"_id": "\xff"}\n'}, r"corpus\.jsonl:4: not UTF-8"),
        ({"corpus": GOOD + GOOD}, r"corpus\.jsonl:4: the id 'd1' was there before"),
        ({"corpus": '{"text": "a"}\n'}, r"corpus\.jsonl:1: lacks the key '_id'"),
        *(({"corpus": f'{{"_id": {key}, "text": "a"}}\n'}, r"corpus\.jsonl:1: lacks the key '_id'") for key in ('3.0', 'true', 'null', '""', '" "', '["d"]')),
        *(({"corpus": f'{{"_id": "{key}", "text": "a"}}\n'}, r"corpus\.jsonl:1: the '_id' holds a control character") for key in ("d\\t1", "\\u0000", "d\\n")),
        *(({"corpus": f'{{"_id": "d", "title": "a"{text}}}\n'}, r"corpus\.jsonl:1: lacks the key 'text'") for text in ("", ', "text": 3', ', "text": ["a"]')),
        ({"corpus": "[" + GOOD.replace("\n", ",")[:-1] + "]"}, r"corpus\.jsonl: is one JSON array, not JSONL"),
        ({"corpus": "id,text\nd1,a\n"}, r"corpus\.jsonl: is no file of JSON objects \(it begins with 'id,text'\), not JSONL"),
        ({"corpus": b"PAR1" + bytes(40)}, r"corpus\.jsonl: is a Parquet file, not JSONL"),
        ({"corpus": gzip.compress(GOOD.encode())}, r"corpus\.jsonl: is a gzip file, whose name must end in \.gz, not JSONL"),
        ({"corpus": "<!DOCTYPE html><p>404</p>"}, r"corpus\.jsonl: is a page of HTML or XML"),
        ({"corpus": '{"_id": "d", "title": 1, "text": "a"}\n'}, r"corpus\.jsonl:1: the key 'title'"),
        ({"corpus": ""}, "the corpus has 0 documents"),
        ({"queries": lines([{"_id": "q1", "text": " \u2003"}, *QUERIES[1:]])}, r"test\.tsv: 0 queries with a relevant.*of 1 judged queries queries\.jsonl has no text"),
        ({"queries": lines(QUERIES + QUERIES[:1])}, r"queries\.jsonl:4: the id 'q1'"),
        ({"qrels": ""}, r"test\.tsv: has no judgement"),
        ({"qrels": QRELS + "q1\td2\n"}, r"test\.tsv:5: another number of columns than in the first line \(2, not 3\)"),
        ({"qrels": QRELS + "q1\t0\td2\t1\n"}, r"test\.tsv:5: another number of columns than in the first line \(4, not 3\)"),
        ({"qrels": "q1\td1\thigh\n"}, r"test\.tsv:1: is neither the header query-id corpus-id score nor a judgement"),
        ({"qrels": "query-id\tcorpus-id\tscore\tsplit\nq1\td1\t1\ttest\n"}, r"test\.tsv:1: is neither the header"),
        ({"qrels": lines(QUERIES)}, r"test\.tsv: is JSON, not TSV"),
        *(({"qrels": f"{QRELS}q1\td2\t{score}\n"}, r"test\.tsv:5: the score is not a whole number of 32 bits") for score in ("0.5", "1_0", "nan", "inf", "", "1e22", "9" * 10_000, "\u0661", "-2147483648")),
        ({"qrels": QRELS + "q1\td1\t2\n"}, r"test\.tsv:5: the document was judged before with another score \(document 'd1', query 'q1': 1, then 2\)"),
        ({"qrels": QRELS + "\td1\t2\n"}, r"test\.tsv:5: an id is empty or holds a control character"),
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


HEADLESS = QRELS.split("\n", 1)[1]


@pytest.mark.parametrize(
    "qrels",
    [
        HEADLESS,
        HEADLESS.replace("\t", " "),
        HEADLESS.replace("\t1\n", "\t1.0\n").replace("\t2\n", "\t2e0\n"),
        HEADLESS.replace("q1\t", "q1\t0\t").replace("q2\t", "q2\tQ0\t"),
        HEADLESS.replace("q1\t", "q1 0 ").replace("q2\t", "q2 0 ").replace("\t", "  "),
        "corpus-id\tscore\tquery-id\nd1\t1\tq1\nd9\t2\tq1\nd2\t0\tq2\n",
        "qid\titer\tdocid\trel\n" + HEADLESS.replace("q1\t", "q1\t0\t").replace("q2\t", "q2\t0\t"),
        "\ufeff" + QRELS,
        (QRELS + QRELS.split("\n")[1] + "\n").replace("\n", "\r\n"),
    ],
)
def test_judgements_in_every_form_are_the_same(tmp_path, qrels):
    data = load_beir(write(tmp_path / "toy", qrels=qrels))
    assert data.qrels == {"q1": {"d1": 1, "d9": 2}, "q2": {"d2": 0}}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    expected = load_beir(write(tmp_path / "plain"))
    marked = [text.encode(encoding) for text in (lines(DOCUMENTS), lines(QUERIES), QRELS)]
    data = load_beir(write(tmp_path / "marked", *marked))
    assert (data.corpus, data.queries, data.qrels) == (expected.corpus, expected.queries, expected.qrels)


def test_what_a_set_lacks_is_left_out_and_counted(tmp_path):
    qrels = QRELS + "q9\td1\t1\nq3\td1\t1\nq1\td1\t1.0\nq1\td2\t-1\n"
    data = load_beir(write(tmp_path / "toy", queries=lines([*QUERIES[:2], {"_id": "q3", "text": None}]), qrels=qrels))
    assert data.qrels == {"q1": {"d1": 1, "d9": 2, "d2": -1}, "q2": {"d2": 0}} and list(data.queries) == ["q1", "q2"]
    assert data.left_out == {"queries_without_text": 2, "repeated_judgements": 1} and data.missing_documents == 1
    assert Collection(data, {}, None).facts() == {"left_out": data.left_out}


def test_integer_ids_are_their_digits_and_null_is_empty(tmp_path):
    corpus = [{"_id": 1, "title": None, "text": "a", "metadata": {"x": [1]}}, {"_id": 2, "title": "only a title", "text": None}, {"_id": 10**30, "text": ""}]
    queries = [{"_id": 7, "text": "first"}]
    data = load_beir(write(tmp_path / "toy", lines(corpus), lines(queries), "query-id\tcorpus-id\tscore\n7\t1\t1\n"))
    assert data.corpus == {"1": "a", "2": "only a title", str(10**30): ""} and data.qrels == {"7": {"1": 1}} and data.queries == {"7": "first"}
    with pytest.raises(UserError, match=r"corpus\.jsonl:2: the id '1' was there before"):
        load_beir(write(tmp_path / "twice", lines([corpus[0], {"_id": "1", "text": "b"}])))


def test_training_reads_the_layout_by_the_same_rules(tmp_path):
    corpus = GOOD + lines([{"_id": 4, "title": "-", "text": " of an integer "}, {"_id": "d5", "title": "title only", "text": None}])
    qrels = "".join(f"q{q} 0 {d} 1.0\n" for q, d in ((1, "d1"), (1, "d1"), (1, "d9"), (2, "4"), (2, "d5"), (9, "d1")))
    folder = write(tmp_path / "toy", "\ufeff" + corpus, qrels=qrels)
    data, report = load_beir(folder), ReadReport()
    found = {example.query: example.positives for example in BeirRanked(folder=folder, split="test").read(report)}
    assert found == {data.queries[q]: tuple(data.corpus[d] for d in grades if d in data.corpus) for q, grades in data.qrels.items()}
    assert report.counts == {"records": 6, "repeated judgements": 1, "skipped: judged text not there": 1}
    assert list(BeirRanked(folder=folder, split="test").corpus()) == [text for text in data.corpus.values() if text]


def test_a_line_without_end_stops_at_the_limit(tmp_path):
    folder = write(tmp_path / "toy")
    (folder / "corpus.jsonl").unlink()
    block = gzip.compress(b"x" * 2**20)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d1", "text": "') + block * 60)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"corpus\.jsonl\.gz:1: line too long"):
        load_beir(folder)
    assert tracemalloc.get_traced_memory()[1] < 48 * 2**20
    tracemalloc.stop()


def test_refuses_what_is_no_file(tmp_path):
    folder = write(tmp_path / "toy")
    (folder / "queries.jsonl").unlink()
    os.mkfifo(folder / "queries.jsonl")
    with pytest.raises(UserError, match=r"queries\.jsonl: is no regular file"):
        load_beir(folder)
    with pytest.raises(UserError, match=r"corpus\.jsonl: is a file, not a directory"):
        load_beir(folder / "corpus.jsonl")


def test_refuses_missing_files(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_beir(tmp_path / "none")
    folder = write(tmp_path / "toy")
    with pytest.raises(UserError, match=r"dev\.tsv: no such file"):
        load_beir(folder, "dev")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(UserError, match=r"queries\.jsonl: no such file"):
        load_beir(folder)
