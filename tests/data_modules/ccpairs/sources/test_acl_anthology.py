"""ACL Anthology volumes as the tests write them, in the layouts before and after 2019."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from data_modules.ccpairs.sources import acl_anthology
from data_modules.ccpairs.sources.papers import AclAnthology
from lightning_e5.errors import UserError
from lightning_e5.types import PairCandidate, ReadReport

OLD = """<?xml version='1.0' encoding='UTF-8'?>
<volume id="Q18">
  <paper id="1000"><title>Proceedings</title><editor/></paper>
  <paper id="1001">
    <title>Parsing <fixed-case>R</fixed-case>ussian with <i>small <b>models</b></i><!-- sic --> &amp; rules</title>
    <author><first>A</first><last>B</last></author>
    <abstract>We parse <tex-math>x &lt; 1</tex-math>
      in Schütze’s way.</abstract>
    <url>https://example.org/Q18-1001</url>
  </paper>
</volume>
"""
NEW = """<?xml version='1.0' encoding='UTF-8'?>
<collection id="2020.acl">
  <volume id="main"><meta><booktitle>ACL</booktitle></meta>
    <frontmatter><url>2020.acl-main.0</url></frontmatter>
    <paper id="1"><title>One</title><abstract>First abstract.</abstract></paper>
    <paper id="2"><title>Two</title><abstract>Second abstract.</abstract></paper>
  </volume>
</collection>
"""


def read(path: Path, text: str | bytes) -> tuple[list[PairCandidate], ReadReport]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    source, report = AclAnthology([str(path)]), ReadReport()
    return [pair for part in source.parts() for pair in source.read(part, report)], report


def test_markup_gives_its_text(tmp_path: Path) -> None:
    pairs, report = read(tmp_path / "Q18.xml", OLD)
    assert [(p.query, p.passage, p.id, p.source) for p in pairs] == [
        ("Parsing Russian with small models & rules", "We parse x < 1 in Schütze’s way.", "Q18-1001", "acl_anthology")
    ]
    assert report.counts == {"records": 2, "skipped: no passage": 1, "pairs": 1} and report.bad == []


def test_the_layout_since_2019_also_compressed(tmp_path: Path) -> None:
    pairs, report = read(tmp_path / "2020.acl.xml.gz", gzip.compress(NEW.encode()))
    assert [p.query for p in pairs] == ["One", "Two"] and report.counts["pairs"] == 2


def test_a_file_is_read_up_to_where_it_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    pairs, report = read(path, NEW[: NEW.index('<paper id="2">') + 25])
    assert [p.query for p in pairs] == ["One"]
    assert report.bad == [(f"{path}:6", "not well-formed XML")]
    pairs, report = read(path, NEW.encode().replace(b"Second", b"\xff\xfe"))
    assert [p.query for p in pairs] == ["One"] and report.counts["bad: not well-formed XML"] == 1
    whole = gzip.compress(NEW.replace("Second", "".join(map(chr, range(20_000, 40_000)))).encode())
    pairs, report = read(tmp_path / "b.xml.gz", whole[: len(whole) // 2])
    assert [p.query for p in pairs] == ["One"] and report.counts["bad: archive breaks off"] == 1


@pytest.mark.parametrize("text", ["", "no XML at all", "<html><p>x</html>", "{}"])
def test_what_is_no_xml(tmp_path: Path, text: str) -> None:
    pairs, report = read(tmp_path / "a.xml", text)
    assert pairs == [] and report.counts["bad: not well-formed XML"] == 1


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    bomb = '<!ENTITY a0 "lol">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    for definitions, name in ((bomb, "a11"), (f'<!ENTITY x SYSTEM "{secret.as_uri()}">', "x")):
        text = f"<!DOCTYPE volume [{definitions}]><volume><paper><title>&{name};</title><abstract>text</abstract></paper></volume>"
        pairs, report = read(tmp_path / "a.xml", text)
        assert pairs == [] and sum(n for key, n in report.counts.items() if key.startswith("bad: ")) == 1
    text = text.replace("<title>&x;</title>", '<title t="&a;">T</title>').replace(
        "DOCTYPE volume [", f"DOCTYPE volume [{bomb}"
    )
    assert read(tmp_path / "a.xml", text.replace("&a;", "&a11;"))[0] == []


def test_deep_nesting_and_endless_elements_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, report = read(tmp_path / "a.xml", "<volume><paper><title>" + "<b>" * 100_000)
    assert pairs == [] and report.counts["bad: not well-formed XML"] == 1
    monkeypatch.setattr(acl_anthology, "MAX_ELEMENT_BYTES", 10**6)
    pairs, report = read(tmp_path / "b.xml", "<volume>" + "<other/>" * 500_000)
    assert pairs == [] and report.bad == [(str(tmp_path / "b.xml"), "element longer than 1,000,000 bytes")]
    papers = "<paper><title>T</title><abstract>Text.</abstract></paper>" * 50_000
    pairs, report = read(tmp_path / "c.xml", f"<volume>{papers}</volume>")
    assert len(pairs) == 50_000 and report.bad == []


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.xml: no such file"):
        AclAnthology([str(tmp_path / "no.xml")])
