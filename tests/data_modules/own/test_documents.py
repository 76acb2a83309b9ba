"""Documents to pairs: titles, heading paths, first sentences; what is no prose is left out by a named rule with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_modules.own import documents
from data_modules.own.documents import document_files, document_pairs
from data_modules.own.formats.markdown import read_markdown
from data_modules.own.own_pair import OwnPair
from data_modules.own.sections import first_sentence, section_pairs, title_of_path
from lightning_e5.errors import UserError
from lightning_e5.types import ReadReport

LONG = "A sentence that says a little more than forty characters."


def pairs_of(text: str, path: str = "guide/set_up.md") -> tuple[list[OwnPair], dict[str, str]]:
    report = ReadReport()
    return list(section_pairs(read_markdown(text), path, report)), {name.partition(": ")[2]: place for name, place in report.first.items()}


def test_title_and_heading_paths() -> None:
    found, dropped = pairs_of(
        f"# Guide\n\n{LONG}\n\n## 2. Install\n\n### Linux\n\n{LONG}\n\n```sh\nx\n```\n\n## See also\n\n{LONG}\n\n### Below\n\n{LONG}\n\n## Code\n\n    x = 1\n\n"
        f"## Pages\n\n[{LONG}](a)\n\n## Short\n\nNo.\n\n## Cells\n\n|a|b|\n|-|-|\n|1|2|\n"
    )
    assert [(p.query, p.passage, p.source, p.id, p.document) for p in found] == [
        ("Guide", LONG, "titles", "guide/set_up.md", "guide/set_up.md"),
        ("Guide - Install - Linux", f"{LONG}\nx", "sections", "guide/set_up.md#Linux", "guide/set_up.md"),
        ("Guide - Below", LONG, "sections", "guide/set_up.md#Below", "guide/set_up.md"),
    ]
    assert dropped == {
        "heading without text": "guide/set_up.md#Install", "heading of no content (See also, License ...)": "guide/set_up.md#See also", "code alone": "guide/set_up.md#Code",
        "links alone": "guide/set_up.md#Pages", "text of under 40 characters": "guide/set_up.md#Short", "table alone": "guide/set_up.md#Cells",
    }  # fmt: skip


def test_the_title_is_the_only_highest_heading_or_the_files_own_or_its_name() -> None:
    assert pairs_of(f"---\ntitle: Set up\n---\n## A\n\n{LONG}\n\n## B\n\n{LONG}")[0][1].query == "Set up - B"
    assert pairs_of(f"## A\n\n{LONG}\n\n## B\n\n{LONG}")[0][0].query == "set up - A"
    assert pairs_of(f"## A\n\n{LONG}\n\n## B\n\n{LONG}", "first-steps/README.md")[0][0].query == "first steps - A"
    assert title_of_path("a/b_c.md") == "b c" and title_of_path("README.md") == ""


def test_without_headings_the_first_sentence_asks() -> None:
    found, dropped = pairs_of(f"This is the first sentence, e.g. of A. Person. {LONG} {LONG}\n\nToo short.")
    assert [(p.query, p.passage, p.source) for p in found] == [("This is the first sentence, e.g. of A. Person.", f"{LONG} {LONG} Too short.", "first sentences")] and not dropped
    assert pairs_of("No end of a sentence here")[1] == {"no first sentence": "guide/set_up.md"}
    assert pairs_of("")[1] == {"no text in the document": "guide/set_up.md"}
    assert first_sentence("Kurz. Das ist ein Satz! Äpfel folgen.") == ("Kurz. Das ist ein Satz!", "Äpfel folgen.")
    assert first_sentence("一二三四五六七八九十一二三四五六。后面。") == ("一二三四五六七八九十一二三四五六。", "后面。")


def test_a_long_section_is_cut_between_paragraphs() -> None:
    found, dropped = pairs_of("# T\n\n" + "\n\n".join(["word " * 300] * 3))
    assert len(found[0].passage) == 1499 and dropped == {"end of a text of over 2,000 characters": "guide/set_up.md"}


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "a.md": f"# A\n\n{LONG}", "b/c.rst": f"Chapter\n=======\n\n{LONG}\n", "b/d.html": f"<h1>D</h1><p>{LONG}</p>", "LICENSE.txt": LONG, "e.ipynb": "{", "f.txt": "nul\0", "g.pdf": "%PDF",
        ".git/h.md": f"# H\n\n{LONG}", "node_modules/i.md": f"# I\n\n{LONG}", "k.py": "x",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr(documents, "can_read_pdf", lambda: False)
    report = ReadReport()
    assert [pair.id for pair in document_pairs(tmp_path, report)] == ["a.md", "b/c.rst", "b/d.html"]
    assert report.counts["records"] == len(document_files(tmp_path)) == 7
    assert report.first["skipped: PDF without pypdf (pip install pypdf)"] == str(tmp_path / "g.pdf")
    assert report.first["skipped: licence, list of names or changes, generated index"] == str(tmp_path / "LICENSE.txt")
    assert [place for name, place in report.first.items() if name.startswith("skipped: unreadable document: ")] == [str(tmp_path / "e.ipynb"), str(tmp_path / "f.txt")]
    for path, said in ((tmp_path / "none", "no such file"), (tmp_path / "k.py", "has no document")):
        with pytest.raises(UserError, match=said):
            list(document_pairs(path, ReadReport()))
