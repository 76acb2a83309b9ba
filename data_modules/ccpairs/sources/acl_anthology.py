"""Titles and abstracts of the ACL Anthology's XML volumes.

From https://github.com/acl-org/acl-anthology, ``data/xml/*.xml``::

    <collection id="2020.acl"><volume id="main">
      <paper id="1"><title>Parsing <fixed-case>R</fixed-case>ussian</title><abstract>We parse Russian.</abstract></paper>

gives ("Parsing Russian", "We parse Russian.").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.sources.pair_text import VERSION, candidate, one_line
from lightning_e5.configurable import configurable
from lightning_e5.files.streams import DamagedFile, blocks
from lightning_e5.types import PairCandidate, ReadReport

#: An element may be this long in the file; a file with a longer one is read no further.
MAX_ELEMENT_BYTES = 16 * 2**20


@configurable("pair source")
class AclAnthology(FileParts):
    """Pairs (title, abstract) of the Anthology's XML files, those up to 2019 (``volume``) and later (``collection``).

    Markup inside titles and abstracts gives its text; white space is folded. An XML file is read up to where it is not
    well-formed; entities of its own are refused, none is expanded.

    Args:
        paths: XML files or patterns, also compressed.
        name: the pairs' source.
    """

    def __init__(self, paths: str | Sequence[str], *, name: str = "acl_anthology") -> None:
        self.name = name
        self._paths = expand(paths)

    def fingerprint(self) -> dict[str, Any]:
        """The files and the name."""
        return {"kind": "acl-anthology", "version": VERSION, "files": file_fingerprint(self._paths), "name": self.name}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, paper by paper."""
        from lxml import etree

        volume = Path(part).name.split(".")[0]
        for place, paper in _elements(part, "paper", report):
            report.counts["records"] += 1
            if next(paper.iter(etree.Entity), None) is not None:
                report.reject(place, "uses an entity of its own")
                continue
            query, passage = (_text(paper.find(tag)) for tag in ("title", "abstract"))
            yield from candidate(report, query, passage, source=self.name, place=place, id=f"{volume}-{paper.get('id', '')}")


def _text(element: Any) -> str:
    return "" if element is None else one_line("".join(element.itertext()))


def _elements(path: str, tag: str, report: ReadReport) -> Iterator[tuple[str, Any]]:
    """(place, element) of every ``tag``, forgotten after its turn, up to where the file breaks."""
    from lxml import etree

    parser = etree.XMLPullParser(
        ("end",), tag=tag, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False,
        remove_comments=True, remove_pis=True,
    )  # fmt: skip
    held = 0
    try:
        for block in blocks(path):
            parser.feed(block)
            held += len(block)
            for found in _finished(path, parser):
                held = 0
                yield found
            if held > MAX_ELEMENT_BYTES:
                report.reject(path, f"element longer than {MAX_ELEMENT_BYTES:,} bytes")
                return
        parser.close()
    except DamagedFile as damage:
        report.reject(damage.place, damage.reason)
        yield from _finished(path, parser)
    except etree.XMLSyntaxError as error:
        report.reject(f"{path}:{error.lineno or 0}", "not well-formed XML")
        yield from _finished(path, parser)


def _finished(path: str, parser: Any) -> Iterator[tuple[str, Any]]:
    for _, element in parser.read_events():
        yield f"{path}:{element.sourceline}", element
        element.clear()
        parent = element.getparent()
        while parent is not None and parent[0] is not element:
            del parent[0]
