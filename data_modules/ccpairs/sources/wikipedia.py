"""Wikipedia dumps as pairs: (entity name and section title, section).

From https://dumps.wikimedia.org/enwiki, ``*-pages-articles*.xml.bz2``::

    <page><title>Marie Curie</title><ns>0</ns><id>1</id><revision><text>'''Marie Curie''' was a [[physicist]].
    == Early life ==
    Born in Warsaw.</text></revision></page>

gives, with ``min_passage_chars: 1``, ("Marie Curie", "Marie Curie was a physicist.") and ("Marie Curie Early life", "Born in Warsaw.").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.formats.wikitext import is_tangled, sections, without_comments
from data_modules.ccpairs.formats.xml_records import xml_records
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.streams import blocks
from lightning_e5.ranges import Count
from lightning_e5.types import PairCandidate, ReadReport

#: Raise this when what is extracted changes.
VERSION = 2
#: Sections that hold lists of works, links or notes.
SKIPPED_SECTIONS = (
    "references",
    "external links",
    "see also",
    "notes",
    "footnotes",
    "further reading",
    "bibliography",
    "sources",
    "citations",
    "works cited",
    "notes and references",
    "references and notes",
    "related pages",
    "other websites",
    "gallery",
    "discography",
    "filmography",
    "publications",
    "selected works",
)
_DISAMBIGUATION = re.compile(
    r"\{\{\s{0,9}(?:[\w -]{0,40}disambig\w{0,20}|disamb|dab|hndis|geodis|set index(?: article)?|sia|surname|given name)\s{0,9}[|}]"
    r"|__DISAMBIG__",
    re.I,
)
_LIST_PAGE = re.compile(r"^(?:Lists? of|Index of|Outline of|Glossary of|Timeline of)\b")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)")


@configurable("pair source")
class WikipediaSections(FileParts):
    """Pairs (page title and section title, the section's text) of a pages-articles dump; the lead has the page title alone.

    Left out and counted: pages outside name space 0, redirects, disambiguation and list pages, sections of references
    and links, short sections. Facts: ``page`` (id), ``section`` (title, ``""`` for the lead), ``language`` where given.

    Args:
        paths: files or patterns of pages-articles XML, plain or compressed (.bz2); Simple English Wikipedia's is the same.
        min_passage_chars: shorter sections are left out.
        max_passage_chars: longer ones are cut there, after a paragraph or sentence; None for no limit.
        max_page_chars: pages with more wikitext are left out: a parser may take very long with them.
        language: ISO 639-1 code of the dump, for heuristics.
        name: the source's name.

    Source: paper section 3.1, (entity name + section title, passage).
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        min_passage_chars: Count = 100,
        max_passage_chars: Count | None = 4096,
        max_page_chars: Count = 300_000,
        language: str | None = None,
        name: str = "wikipedia",
    ) -> None:
        if min_passage_chars < 1 or (max_passage_chars is not None and max_passage_chars < min_passage_chars):
            raise UserError(
                f"min_passage_chars={min_passage_chars} and max_passage_chars={max_passage_chars} must satisfy 1 <= min <= max"
            )
        if max_page_chars < 1:
            raise UserError(f"max_page_chars={max_page_chars} must be at least 1")
        self.name, self._paths, self.language = name, expand(paths), language
        self.min_chars, self.max_chars, self.max_page_chars = min_passage_chars, max_passage_chars, max_page_chars

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        for place, page in xml_records(part, blocks(part), report, root="mediawiki", tag="page", end="</page>"):
            title = " ".join((page.findtext("title") or "").split())
            text = page.findtext("revision/text")
            if not title or text is None:
                report.reject(place, "page without title or text")
                continue
            text = without_comments(text)
            left_out = self._left_out(page, title, text)
            if left_out:
                report.skip(place, left_out)
                continue
            yield from self._pairs(place, page.findtext("id") or "", title, text, report)

    def _left_out(self, page: Any, title: str, text: str) -> str:
        """Why a page gives no pairs; empty where it does."""
        if (page.findtext("ns") or "0").strip() != "0":
            return "not an article"
        if page.find("redirect") is not None or text.lstrip()[:9].upper() == "#REDIRECT":
            return "redirect"
        if title.endswith("(disambiguation)") or _DISAMBIGUATION.search(text):
            return "disambiguation page"
        if _LIST_PAGE.match(title):
            return "list page"
        if len(text) > self.max_page_chars:
            return "page too long"
        return "page of tangled markup" if is_tangled(text) else ""

    def _pairs(self, place: str, page: str, title: str, text: str, report: ReadReport) -> Iterator[PairCandidate]:
        from mwparserfromhell.parser import ParserError

        try:
            found = list(sections(text))
        except (ParserError, RecursionError):
            report.reject(place, "wikitext that cannot be parsed")
            return
        for section, passage in found:
            if section.strip(" :.").lower() in SKIPPED_SECTIONS:
                report.skip(place, "section of references or links")
            elif len(passage) < self.min_chars:
                report.skip(place, "short section")
            else:
                facts = {"page": page, "section": section, **({"language": self.language} if self.language else {})}
                query = f"{title} {section}".strip()
                report.counts["pairs"] += 1
                yield PairCandidate(query, self._cut(passage), self.name, f"{page}#{section}", facts=facts)

    def _cut(self, passage: str) -> str:
        """The passage up to the limit, after its last paragraph or, in one that fills over half, its last sentence."""
        limit = self.max_chars
        if limit is None or len(passage) <= limit:
            return passage
        head = passage[: limit + 1]
        ends = [head.rfind("\n"), *(match.end() for match in _SENTENCE_END.finditer(head))]
        end = max(ends)
        return passage[: end if end > limit // 2 else limit].rstrip()

    def fingerprint(self) -> Mapping[str, Any]:
        return {
            "kind": "wikipedia",
            "name": self.name,
            "version": VERSION,
            "min_passage_chars": self.min_chars,
            "max_passage_chars": self.max_chars,
            "max_page_chars": self.max_page_chars,
            "language": self.language,
            "files": file_fingerprint(self._paths),
        }
