"""Wikipedia's dumps: sections, what is skipped, damaged files, pages on which a parser would hang, bounded memory."""

from __future__ import annotations

import bz2
import html
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from data_modules.ccpairs.formats import wikitext
from data_modules.ccpairs.formats.wikitext import is_tangled, sections, without_comments
from data_modules.ccpairs.sources.wikipedia import WikipediaSections
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate, ReadReport

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>enwiki</dbname>
    <namespaces><namespace key="0" case="first-letter" /></namespaces>
  </siteinfo>
"""
CURIE = """{{Short description|French chemist}}
{{Infobox person|name=Marie|birth={{birth date|1867|11|7}}}}
[[File:Marie.jpg|thumb|right|A [[photo]] of her, see [https://x.org here]]]
'''Marie Curie''' ({{IPA|x}}; born '''Maria''' ({{lang|pl|y}}), 7&nbsp;November 1867) was a [[Poland|Polish]]-[[French people|French]] [[physicist]]<ref name="a">{{cite web|url=http://x}}</ref> & chemist.<!-- hidden -->
She won [https://nobel.org the Nobel prize] twice.<ref name="b" />

{| class="wikitable"
! a !! b
|-
| 1 || {{nowrap|2}}
|}
* item ''one''
* item two
== Early ''life'' ==
Born in Warsaw.<br>Second &lt;line&gt; &#x41;&#xD800;.
<blockquote>quoted</blockquote>
: indented <math>x^2</math> formula [http://bare.org]
=== School ===
Text of [[school (a)|school]]. [[Category:People]] [[de:Marie Curie]]
__NOTOC__
== References ==
{{Reflist}} Some text of references that is long enough.
== External links ==
* [https://a.org A site with a title that is long enough]
"""


def page(title: str, text: str, ns: int = 0, key: int = 1, redirect: str = "") -> str:
    mark = f'    <redirect title="{redirect}" />\n' if redirect else ""
    return (
        f"  <page>\n    <title>{html.escape(title)}</title>\n    <ns>{ns}</ns>\n    <id>{key}</id>\n{mark}    <revision>\n"
        f"      <id>9</id>\n      <contributor><username>U</username><id>5</id></contributor>\n      <model>wikitext</model>\n"
        f'      <text bytes="{len(text)}" xml:space="preserve">{html.escape(text, quote=False)}</text>\n'
        "    </revision>\n  </page>\n"
    )


def document(pages: list[str]) -> bytes:
    return (HEAD + "".join(pages) + "</mediawiki>\n").encode("utf-8", "surrogateescape")


def read(path: Path, data: bytes, **settings: Any) -> tuple[list[PairCandidate], ReadReport]:
    path.write_bytes(data)
    source = WikipediaSections(str(path), **settings)
    report = ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


def test_sections_as_text() -> None:
    assert list(sections(without_comments(CURIE)))[:3] == [
        (
            "",
            "Marie Curie (born Maria (y), 7\xa0November 1867) was a Polish-French physicist & chemist.\n".replace(
                "\xa0", " "
            )
            + "She won the Nobel prize twice.\nitem one\nitem two",
        ),
        ("Early life", "Born in Warsaw.\nSecond <line> A\ufffd.\nquoted"),
        ("School", "Text of school."),
    ]


def test_what_is_taken_off_before_the_parser_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        CURIE + "== A ==\nx {{cn|{{b|{{{c|d}}}|}}}} y <ref>{{q|<b>r</b>}}</ref>z <ref name=s/>{{t\n|u=[[v]]\n}} <ref>w\n"
    )
    text += (
        "== B ==\n{{{p|q}}} {{#if:{{{x}}}|a|b}} {{{{a}}}} } {{ <REF name='a'>b</REF> {{lead|a {b} c}}\n"
        + ":" * 30
        + "deep\n"
    )
    short = list(sections(text))
    monkeypatch.setattr(wikitext, "_shortened", lambda text: text)
    assert list(sections(text)) == short
    assert ("A", "x y z w") in short


def test_pages_as_pairs(tmp_path: Path) -> None:
    pages = [
        page("Marie Curie", CURIE, key=12),
        page("M. Curie", "#REDIRECT [[Marie Curie]]", redirect="Marie Curie"),
        page("Old redirect", " #redirect [[Marie Curie]]"),
        page("Talk:Marie Curie", CURIE, ns=1),
        page("Curie (disambiguation)", CURIE),
        page("Curie", "Curie may mean:\n* [[Marie Curie]]\n{{Disambiguation|surname}}"),
        page("Kuri", "Text {{hndis}}"),
        page("List of chemists", CURIE),
        page("Too long", "x" * 5000),
        page("AT&T", "A company & more. " * 3),
    ]
    for name, data in (("simplewiki.xml", document(pages)), ("simplewiki.xml.bz2", bz2.compress(document(pages)))):
        pairs, report = read(tmp_path / name, data, min_passage_chars=40, max_page_chars=4000, language="en")
        assert [(p.query, p.id) for p in pairs] == [
            ("Marie Curie", "12#"),
            ("Marie Curie Early life", "12#Early life"),
            ("AT&T", "1#"),
        ]
        assert pairs[1].facts == {"page": "12", "section": "Early life", "language": "en"}
        assert pairs[2].passage == "A company & more. A company & more. A company & more."
        assert report.counts == {
            "records": 10,
            "pairs": 3,
            "skipped: redirect": 2,
            "skipped: not an article": 1,
            "skipped: disambiguation page": 3,
            "skipped: list page": 1,
            "skipped: page too long": 1,
            "skipped: short section": 1,
            "skipped: section of references or links": 2,
        }


def test_long_sections_are_cut_at_a_sentence(tmp_path: Path) -> None:
    text = "A sentence of some words. " * 40
    for limit, length in ((130, 129), (1000, 987), (None, 1039)):
        [pair] = read(tmp_path / "w.xml", document([page("T", text)]), max_passage_chars=limit)[0]
        assert pair.passage.endswith(".") and len(pair.passage) == length
    [pair] = read(tmp_path / "w.xml", document([page("T", "x" * 999)]), max_passage_chars=100)[0]
    assert len(pair.passage) == 100
    with pytest.raises(UserError, match="1 <= min <= max"):
        WikipediaSections(str(tmp_path / "w.xml"), min_passage_chars=50, max_passage_chars=40)


def test_bad_pages_cost_themselves_alone(tmp_path: Path) -> None:
    good = page("Good", "A sentence that is long enough. " * 5)
    pages = [
        good,
        page("Bytes", "caf\udce9 " * 50),
        page("Entity", "x" * 200).replace("xxx", "&bomb;", 1),
        page("No end", "y" * 200).replace("</page>", ""),
        good,
        page("Huge", "z" * 5_000_000),
        page("No text", "").replace("<text", "<other").replace("</text", "</other"),
        page("Tangled", "[[a|" * 5000),
        page("Deep XML", "d").replace("<revision>", "<revision>" + "<a>" * 5000 + "</a>" * 5000),
        good,
    ]
    path = tmp_path / "w.xml"
    pairs, report = read(path, document(pages))
    assert [pair.query for pair in pairs] == ["Good"] * 3
    assert [reason for _, reason in report.bad] == [
        "not UTF-8",
        "not well-formed XML",
        "record without its end",
        "record too long",
        "page without title or text",
        "not well-formed XML",
    ]
    assert report.bad[0][0] == f"{path}:18"
    assert report.counts["skipped: page of tangled markup"] == 1


def test_broken_off_files_and_other_documents(tmp_path: Path) -> None:
    pages = [page(f"Page {n}", "A sentence that is long enough. " * 5, key=n) for n in range(20)]
    data = document(pages)
    pairs, report = read(tmp_path / "w.xml", data[: data.index(b"Page 15") + 99])
    assert len(pairs) == 15
    assert [reason for _, reason in report.bad] == ["file breaks off"]
    pairs, report = read(tmp_path / "w.xml.bz2", bz2.compress(data[:5000]) + bz2.compress(data[5000:])[:-30])
    assert 5 < len(pairs) < 20
    assert [reason for _, reason in report.bad] == ["archive breaks off"]
    bomb = '<!DOCTYPE mediawiki [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    with pytest.raises(UserError, match="declares a document type"):
        read(tmp_path / "w.xml", bomb.encode() + data)
    with pytest.raises(UserError, match="does not begin with <mediawiki>"):
        read(tmp_path / "w.xml", b"<posts></posts>")


@pytest.mark.parametrize(
    "text",
    [
        *(piece * (300_000 // len(piece)) for piece in ("[[a|", "{{a|", "{{{a|", "<b>", "<ref>", "<b a=\"x ", "[http://a ", "[[", "<!--", "<ref", "<ref a", "<ref></ref", "{{}", "{{}}}")),
        *(piece * (300_000 // len(piece)) for piece in ("'''", "==\n", "<", "&", "|", "* ", "{|\n|", "__A", " ", "( ", "<nowiki>", ":")),
        "{{" + " " * 300_000,
        "<b>" * 11 + "text [[a]] {{b|c}} " * 2000,
        "[[a|" * 20 + "{{b|" * 20 + "]]" * 20 + "}}" * 20,
    ],
)  # fmt: skip
def test_no_page_takes_long(tmp_path: Path, text: str) -> None:
    start = time.process_time()
    read(tmp_path / "w.xml", document([page("T", text[:299_000])]))
    assert time.process_time() - start < 15


def test_ordinary_pages_are_not_tangled() -> None:
    assert not is_tangled(CURIE * 20)
    assert not is_tangled("{{a|" * 30 + "}}" * 30)
    assert not is_tangled("[[File:a.jpg|thumb|See [https://b.org c]]] <br> <li> a < b <ref name=x/> {{{1|}}} " * 200)
    assert is_tangled("{{a|" * 50 + "}}" * 50)
    assert is_tangled("]]" * 20 + "[[" * 20)


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    path = tmp_path / "w.xml.bz2"
    filler = page("Talk:T", "words of a talk page " * 500, ns=1)
    with bz2.open(path, "wb", 1) as file:
        file.write(HEAD.encode())
        for n in range(2500):  # 26 MB
            file.write((filler if n % 50 else page("T", "A sentence of some words. " * 9)).encode())
        file.write(b"</mediawiki>")
    source = WikipediaSections(str(path))
    report = ReadReport()
    tracemalloc.start()
    try:
        assert sum(1 for _ in source.read(source.parts()[0], report)) == 50
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.counts["records"] == 2500 and not report.bad
    assert peak < 6_000_000
