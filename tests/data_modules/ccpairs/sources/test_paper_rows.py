"""Papers in the layouts of all years: the same title, abstract and citations from each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from data_modules.ccpairs.sources.papers import S2orc
from lightning_e5.types import PairCandidate, ReadReport

TITLE, ABSTRACT = "On bridges that stay dry", "We study how a bridge – any bridge – stays dry."
CITED = "On songs about the sea"
TEXT = f"{TITLE}\n\n{ABSTRACT}\n\nIntroduction. Bridges are long.\n\nReferences\n\n[1] {CITED}. 1999."


def spans(*texts: str, as_text: bool = True, **attributes: Any) -> Any:
    found = [{"start": str(TEXT.index(t)), "end": TEXT.index(t) + len(t), **({"attributes": attributes} if attributes else {})} for t in texts]
    return json.dumps(found) if as_text else found


def annotations(as_text: bool = True) -> dict[str, Any]:
    return {
        "title": spans(TITLE, as_text=as_text), "abstract": spans(*ABSTRACT.split(" – any bridge – "), as_text=as_text), "table": None,
        "bibentry": spans(f"[1] {CITED}. 1999", as_text=as_text, id="b0", matched_paper_id=456), "bibtitle": spans(CITED, as_text=as_text),
    }  # fmt: skip


OLD = {"title": TITLE, "abstract": ABSTRACT, "outbound_citations": ["456"], "bib_entries": {"b0": {"title": CITED, "link": "456"}}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "2020": {"paper_id": "123", **OLD},
    "2020 parsed": {"paper_id": "123", **OLD, "abstract": [{"text": ABSTRACT, "cite_spans": []}]},
    "2019": {"paper_id": "123", "metadata": {"title": TITLE}, "grobid_parse": {"abstract": [{"text": ABSTRACT}]}, "bib_entries": OLD["bib_entries"]},
    "open research corpus": {"id": "123", "title": TITLE, "paperAbstract": ABSTRACT, "outCitations": ["456"], "bib_entries": OLD["bib_entries"]},
    "API": {"paperId": "123", "title": TITLE, "abstract": ABSTRACT, "references": [{"paperId": "456", "title": CITED}]},
    "2022": {"corpusid": 123, "externalids": {"DOI": None}, "content": {"source": None, "text": TEXT, "annotations": annotations()}},
    "2022, no strings": {"corpusid": 123, "content": {"text": TEXT, "annotations": annotations(False)}},
    "2025": {"corpusid": 123, "title": TITLE, "body": {"text": TEXT, "annotations": {"abstract": spans(ABSTRACT)}},
             "bibliography": {"text": TEXT, "annotations": {"bib_entry": spans(f"[1] {CITED}. 1999", matched_paper_id="456"), "bib_title": spans(CITED)}}},
}  # fmt: skip


def read(path: Path, rows: list[Any], **settings: Any) -> tuple[list[PairCandidate], ReadReport]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, report = S2orc(str(path), **settings), ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pairs(tmp_path: Path, layout: str) -> None:
    pairs, report = read(tmp_path / "s2orc.jsonl", [LAYOUTS[layout]], kinds=["title_abstract", "title_citation"])
    abstract = ABSTRACT if layout not in ("2022", "2022, no strings") else ABSTRACT.replace(" – any bridge – ", " ")
    assert [(p.query, p.passage, p.id) for p in pairs] == [(TITLE, abstract, "123"), (TITLE, CITED, "123>456")]
    assert report.bad == [] and report.counts == {"records": 1, "pairs": 2}


def test_texts_of_cited_papers_are_found_across_layouts(tmp_path: Path) -> None:
    cited = {"paper_id": "456", "title": CITED, "abstract": "The sea is sung of."}
    pairs, _ = read(tmp_path / "s2orc.jsonl", [LAYOUTS["2022"], cited], kinds=["abstract_citation"], work_dir=str(tmp_path / "work"))
    assert [(p.passage, p.id) for p in pairs] == [("The sea is sung of.", "123>456")]


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ('[{"start": "0"}]', "an annotation of title has no offsets"),
        ('[{"start": "0", "end": "x"}]', "an annotation of title has no offsets"),
        ('[["0", "4"]]', "an annotation of title has no offsets"),
        ('[{"start": 0, "end": 100000}]', "an annotation of title lies outside of the text"),
        ('[{"start": -3, "end": 4}]', "an annotation of title lies outside of the text"),
        ('[{"start": 5, "end": 5}]', "an annotation of title lies outside of the text"),
        ('[{"start": 0', "annotations of title are not JSON"),
        ("[" * 100_000, "annotations of title are not JSON"),
        ("7", "text or annotations of the wrong kind"),
        (7, "text or annotations of the wrong kind"),
    ],
)  # fmt: skip
def test_damaged_offsets_are_counted(tmp_path: Path, title: Any, reason: str) -> None:
    damaged = {"corpusid": 1, "content": {"text": TEXT, "annotations": {**annotations(), "title": title}}}
    pairs, report = read(tmp_path / "s2orc.jsonl", [damaged, LAYOUTS["2022"]])
    assert [pair.id for pair in pairs] == ["123"]
    assert report.bad == [(f"{tmp_path / 's2orc.jsonl'}:1", reason)]


def test_rows_of_something_else_are_bad_and_papers_without_texts_are_not(tmp_path: Path) -> None:
    path = tmp_path / "s2orc.jsonl"
    rows = [{"question": "why?"}, {"paper_id": "1", "title": "A", "abstract": None}, {"corpusid": 1, "content": {"text": TEXT, "annotations": {"title": None}}}]
    pairs, report = read(path, rows)
    assert pairs == [] and report.bad == [(f"{path}:1", "neither title nor abstract, so no row of papers")]
    assert report.first == {"bad: neither title nor abstract, so no row of papers": f"{path}:1", "skipped: no passage": f"{path}:2", "skipped: no query": f"{path}:3"}


def test_any_row_gives_pairs_or_a_reason(tmp_path: Path) -> None:
    draw = random.Random(6)
    values = [None, 1, -1, "x", [], {}, [None], {"text": 1}, True, 1e300, "[{}]", [{"start": "0", "end": 3}], {"annotations": {"title": 3}, "text": None}]

    def changed(value: Any) -> Any:
        if draw.random() < 0.15:
            return draw.choice(values)
        return {k: changed(v) for k, v in value.items()} if isinstance(value, dict) else value

    rows = [changed(draw.choice(list(LAYOUTS.values()))) for _ in range(500)]
    _, report = read(tmp_path / "s2orc.jsonl", rows, kinds=["title_abstract", "title_citation", "abstract_citation"], work_dir=str(tmp_path / "work"))
    assert report.counts["pairs"] > 50 and report.counts["records"] == 500
