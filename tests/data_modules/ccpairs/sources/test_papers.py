"""S2AG and S2ORC files as the tests write them, in the published field names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from data_modules.ccpairs.sources.papers import S2ag, S2orc
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate, ReadReport


def write(path: Path, rows: Iterable[Any]) -> str:
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines)))
    return str(path)


def read(source: S2ag | S2orc) -> tuple[list[tuple[str, str, str]], ReadReport]:
    report = ReadReport()
    pairs: list[PairCandidate] = [pair for part in source.parts() for pair in source.read(part, report)]
    return [(p.query, p.passage, p.id) for p in pairs], report


def s2ag(folder: Path, **settings: Any) -> S2ag:
    papers = [
        {"corpusid": 1, "externalids": {"DOI": None}, "title": "First  paper", "year": 2001, "authors": []},
        {"corpusid": 2, "title": "Second paper"},
        {"corpusid": 3, "title": None},
        {"corpusid": "x9", "title": "Paper with a name"},
        {"corpusid": 1, "title": "First paper again"},
        {"corpusid": None, "title": "Lost"},
        {"corpusid": 4, "title": 17},
        b'{"corpusid": 5, "title": "caf\xe9"}',
    ]
    abstracts = [
        {"corpusid": 1, "openaccessinfo": {}, "abstract": "Abstract\nof one."},
        {"corpusid": 2, "abstract": "Abstract of two."},
        {"corpusid": 3, "abstract": "Abstract of three."},
        {"corpusid": 2**80, "abstract": "?"},
        {"corpusid": 77, "abstract": None},
    ]
    citations = [
        {"citationid": 9, "citingcorpusid": 1, "citedcorpusid": 2, "isinfluential": False, "contexts": None},
        {"citingcorpusid": 2, "citedcorpusid": 3},
        {"citingcorpusid": 2, "citedcorpusid": None},
        {"citingcorpusid": 2, "citedcorpusid": 2},
        {"citingcorpusid": 2, "citedcorpusid": "1"},
        {"citingcorpusid": [], "citedcorpusid": 1},
    ]
    return S2ag(
        work_dir=str(folder / "work"), papers=[write(folder / "papers.gz", papers)],
        abstracts=[write(folder / "abstracts.gz", abstracts)], citations=[write(folder / "citations.gz", citations)], **settings,
    )  # fmt: skip


def test_s2ag_joins_titles_abstracts_and_citations(tmp_path: Path) -> None:
    pairs, report = read(s2ag(tmp_path))
    assert pairs == [
        ("First paper", "Abstract of one.", "1"),
        ("Second paper", "Abstract of two.", "2"),
        ("First paper", "Second paper", "1>2"),
        ("Second paper", "First paper", "2>1"),
        ("Abstract of one.", "Abstract of two.", "1>2"),
        ("Abstract of two.", "Abstract of three.", "2>3"),
        ("Abstract of two.", "Abstract of one.", "2>1"),
    ]
    assert report.counts["pairs"] == 7
    assert report.counts["skipped: cited paper has no id"] == report.counts["skipped: paper cites itself"] == 1
    assert report.counts["bad: citingcorpusid or citedcorpusid is no id"] == 1
    assert report.counts["index: bad: not UTF-8"] == report.counts["index: bad: title is no string"] == 1
    assert (f"{tmp_path / 'papers.gz'}:6", "corpusid is no id") in report.bad
    assert (f"{tmp_path / 'abstracts.gz'}:4", "corpusid is no id") in report.bad


def test_s2ag_kinds_and_what_they_need(tmp_path: Path) -> None:
    source = s2ag(tmp_path, kinds=["title_citation"])
    assert source.parts() == [str(tmp_path / "citations.gz")]
    assert [p[2] for p in read(source)[0]] == ["1>2", "2>1"]
    with pytest.raises(UserError, match="citations: 'abstract_citation' of kinds needs these files"):
        S2ag(work_dir="w", abstracts=[str(tmp_path / "abstracts.gz")], kinds=["abstract_citation"])
    with pytest.raises(UserError, match="kinds: 'title_abstact' is none of its values; did you mean 'title_abstract'"):
        S2ag(work_dir="w", kinds=["title_abstact"])


def test_the_index_is_made_once_and_again_when_files_change(tmp_path: Path) -> None:
    first = read(s2ag(tmp_path))
    [index] = (tmp_path / "work").glob("*.sqlite")
    (tmp_path / "work" / f".{index.name}.1.tmp").write_bytes(b"of a killed process")
    stamp = index.stat().st_mtime_ns
    source = S2ag(
        work_dir=str(tmp_path / "work"), papers=[str(tmp_path / "papers.gz")], abstracts=[str(tmp_path / "abstracts.gz")],
        citations=[str(tmp_path / "citations.gz")],
    )  # fmt: skip
    again = read(source)
    assert again[0] == first[0] and again[1].counts == first[1].counts and index.stat().st_mtime_ns == stamp
    write(tmp_path / "papers.gz", [{"corpusid": 1, "title": "Other"}])
    changed = S2ag(
        work_dir=str(tmp_path / "work"), papers=[str(tmp_path / "papers.gz")], abstracts=[str(tmp_path / "abstracts.gz")],
        kinds=["title_abstract"],
    )  # fmt: skip
    assert read(changed)[0] == [("Other", "Abstract of one.", "1")]
    assert len(list((tmp_path / "work").glob("*.sqlite"))) == 2 and not list((tmp_path / "work").glob(".*"))


def _pairs_of(source: S2ag) -> int:
    return len(read(source)[0])


def _in_child(folder: str, queue: Any) -> None:
    paths = {name: [f"{folder}/{name}.gz"] for name in ("papers", "abstracts", "citations")}
    queue.put(_pairs_of(S2ag(work_dir=f"{folder}/work", **paths)))  # type: ignore[arg-type]


def test_two_processes_share_one_index(tmp_path: Path) -> None:
    s2ag(tmp_path)
    context = get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_in_child, args=(str(tmp_path), queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [7, 7]
    for child in children:
        child.join(timeout=60)
    assert len(list((tmp_path / "work").glob("*.sqlite"))) == 1


def test_many_rows_cross_the_batches(tmp_path: Path) -> None:
    n = 1201
    papers = write(tmp_path / "p.gz", ({"corpusid": i * 7919 % n, "title": f"title {i * 7919 % n}"} for i in range(n)))
    citations = write(tmp_path / "c.gz", ({"citingcorpusid": i, "citedcorpusid": (i * 31 + 1) % n} for i in range(n)))
    pairs, report = read(
        S2ag(work_dir=str(tmp_path / "w"), papers=[papers], citations=[citations], kinds=["title_citation"])
    )
    expected = [(f"title {i}", f"title {(i * 31 + 1) % n}") for i in range(n) if i != (i * 31 + 1) % n]
    assert [p[:2] for p in pairs] == expected and report.counts["records"] == n


def s2orc_rows() -> list[Any]:
    return [
        {"paper_id": "10", "title": "Ten", "abstract": "About ten.", "outbound_citations": ["11", "99", "11"], "inbound_citations": []},
        {"paper_id": "11", "title": "Eleven", "abstract": [{"section": "Abstract", "text": "About", "cite_spans": []}, {"text": "eleven."}]},
        {"paper_id": "12", "title": "Twelve", "abstract": None, "bib_entries": {
            "BIBREF0": {"title": "Ten, as cited", "link": "10"}, "BIBREF1": {"title": "Elsewhere", "link": None}, "BIBREF2": "?"}},
        {"paper_id": "13", "title": "Thirteen", "abstract": {"text": "x"}},
        {"paper_id": "14", "title": "Fourteen", "abstract": "A.", "outbound_citations": "11"},
        ["no object"],
    ]  # fmt: skip


def test_s2orc_inline_abstracts_and_citations(tmp_path: Path) -> None:
    path = write(tmp_path / "metadata_0.jsonl.gz", s2orc_rows())
    kinds = ["title_abstract", "title_citation", "abstract_citation"]
    pairs, report = read(S2orc([path], kinds=kinds, work_dir=str(tmp_path / "w")))
    assert pairs == [
        ("Ten", "About ten.", "10"),
        ("Ten", "Eleven", "10>11"),
        ("About ten.", "About eleven.", "10>11"),
        ("Eleven", "About eleven.", "11"),
        ("Twelve", "Ten", "12>10"),
        ("Twelve", "Elsewhere", "12>"),
        ("Fourteen", "A.", "14"),
    ]
    assert report.bad == [
        (f"{path}:4", "abstract is no text"),
        (f"{path}:5", "outbound_citations is no list"),
        (f"{path}:6", "not a JSON object"),
    ]


def test_s2orc_without_an_index(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", s2orc_rows())
    pairs, _ = read(S2orc([path], kinds=["title_citation"]))
    assert [p[:2] for p in pairs] == [("Twelve", "Ten, as cited"), ("Twelve", "Elsewhere")]
    pairs, _ = read(S2orc([path], kinds=["title_citation"], citations_per_paper=1))
    assert [p[:2] for p in pairs] == [("Twelve", "Ten, as cited")]
    with pytest.raises(UserError, match="work_dir"):
        S2orc([path], kinds=["abstract_citation"])
    with pytest.raises(UserError, match="citations_per_paper=0"):
        S2orc([path], citations_per_paper=0)


def test_hostile_json_is_skipped_and_a_truncated_archive_used_up_to_its_end(tmp_path: Path) -> None:
    good = {"paper_id": "1", "title": "Good \ud800 title", "abstract": "Text."}
    path = write(
        tmp_path / "a.jsonl.gz", [good, b"[" * 100_000, b'{"paper_id": "2", "title": NaN}', b'{"a": ' * 50_000, good]
    )
    pairs, report = read(S2orc([path]))
    assert [p[0] for p in pairs] == ["Good \ufffd title"] * 2
    assert sum(n for key, n in report.counts.items() if key.startswith("bad: ")) == 3
    whole = Path(
        write(
            tmp_path / "b.jsonl.gz",
            ({"paper_id": str(i), "title": f"t{i * i}", "abstract": f"a{i}"} for i in range(5000)),
        )
    )
    whole.write_bytes(whole.read_bytes()[:-4000])
    pairs, report = read(S2orc([str(whole)]))
    assert 1000 < len(pairs) < 5000 and report.counts["bad: archive breaks off"] == 1
    (tmp_path / "c.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="does not begin as a gzip file"):
        read(S2orc([str(tmp_path / "c.jsonl.gz")]))
