"""Titles and passages of web pages: Common Crawl's WARC and WET archives, and cc_net's JSON.

From https://data.commoncrawl.org (``warc.paths.gz``, ``wet.paths.gz`` of a crawl) or made of it by
https://github.com/facebookresearch/cc_net. A record of a WET file, and one of cc_net::

    WARC/1.0
    WARC-Type: conversion
    WARC-Target-URI: https://a.example/river

    The river
    It rises in the north.

    {"url": "https://a.example/river", "title": "The river", "raw_content": "It rises in the north.", "language": "en",
     "perplexity": 231.5, "bucket": "head"}

both give ("The river", "It rises in the north."). WARC files hold the pages as HTML (``WARC-Type: response``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.formats.web_archive import Page, pages
from data_modules.ccpairs.sources.pair_text import VERSION, PassageRule, candidate, one_line, some_of, string_of
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.charset import decode_page
from lightning_e5.files.lines import json_rows
from lightning_e5.ranges import Count
from lightning_e5.types import PairCandidate, ReadReport

#: A page's language is told from its first characters; more change nothing but the time.
LANGUAGE_CHARS = 2000
#: Longer pages are skipped; Common Crawl itself cuts pages at 1 MiB.
MAX_PAGE_BYTES = 2 * 2**20
#: Pages with more ``<`` are skipped: extraction takes time with the square of the elements on some.
MAX_TAGS = 40_000


@cache
def _identifier() -> Any:
    import py3langid

    return py3langid


def language_of(text: str) -> str:
    """ISO 639-1 code of the language that the beginning of ``text`` is most likely in, by py3langid."""
    return str(_identifier().classify(text[:LANGUAGE_CHARS])[0])


class _Pages(FileParts):
    """What the three readers share: files as parts, passages cut by one rule, languages told."""

    def __init__(
        self,
        paths: str | Sequence[str],
        passage_words: int | None,
        passage_chars: int | None,
        passages_per_page: int,
        name: str,
    ) -> None:
        self.name = name
        self.rule = PassageRule(passage_words, passage_chars, passages_per_page)
        self._paths = expand(paths)

    def fingerprint(self) -> dict[str, Any]:
        """The files and the settings."""
        rule = [self.rule.words, self.rule.chars, self.rule.most]
        kind = [type(self).__name__, VERSION]
        return {"kind": kind, "files": file_fingerprint(self._paths), "name": self.name, "passages": rule}

    def _pairs(
        self, report: ReadReport, place: str, title: str, text: str, id: str, facts: dict[str, Any]
    ) -> Iterator[PairCandidate]:
        title = one_line(title)
        if not title:
            report.skip(place, "no query")
            return
        first, _, rest = text.lstrip().partition("\n")
        # Most main texts begin with the page's heading; a passage must not hold its own query as a line.
        passages = self.rule.cut(rest if one_line(first).casefold() == title.casefold() else text)
        if not passages:
            report.skip(place, "no passage")
            return
        if not facts.get("language"):
            facts["language"] = language_of(text)
        for number, passage in enumerate(passages):
            name = id if len(passages) == 1 else f"{id}#{number}"
            yield from candidate(report, title, passage, source=self.name, id=name, place=place, facts=facts)


@configurable("pair source")
class WarcPages(_Pages):
    """Pairs (title, passage) of the HTML pages of WARC files: main text and title as trafilatura finds them.

    Facts: ``url``, ``language``. Pages that were not answered with 200, are no HTML, are longer than
    ``max_page_bytes`` or have more than 40,000 tags are counted and skipped.

    Args:
        paths: .warc or .warc.gz files or patterns.
        passage_words: most words of a passage, or null.
        passage_chars: most characters of a passage, or null; exactly one of the two is given.
        passages_per_page: passages per page, from its beginning.
        max_page_bytes: longest page, in bytes of HTML.
        fast: one extraction method alone; false lets trafilatura fall back to slower ones, which find more text.
        name: the pairs' source.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        passage_words: Count | None = 200,
        passage_chars: Count | None = None,
        passages_per_page: Count = 1,
        max_page_bytes: Count = MAX_PAGE_BYTES,
        fast: bool = True,
        name: str = "common_crawl",
    ) -> None:
        super().__init__(paths, passage_words, passage_chars, passages_per_page, name)
        self.max_page_bytes, self.fast = max_page_bytes, fast

    def fingerprint(self) -> dict[str, Any]:
        """The files, the settings and the extractor's version."""
        from importlib.metadata import version

        versions = {package: version(package) for package in ("trafilatura", "py3langid")}
        return {**super().fingerprint(), "max_page_bytes": self.max_page_bytes, "fast": self.fast, "versions": versions}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one archive, page by page."""
        for page in pages(part, report, "response", self.max_page_bytes):
            document = self._extract(page, report)
            if document is not None:
                facts = {"url": page.url}
                yield from self._pairs(report, page.place, document.title or "", document.text or "", page.url, facts)

    def _extract(self, page: Page, report: ReadReport) -> Any:
        if page.content.count(b"<") > MAX_TAGS:
            report.skip(page.place, "too many tags")
            return None
        try:
            from trafilatura import bare_extraction
        except ImportError as error:
            raise UserError(f"reading WARC files needs trafilatura, which cannot be imported ({error})") from None
        try:
            # Dates are not asked for, and searching for them takes most of the time of the metadata.
            document = bare_extraction(
                decode_page(page.content, page.content_type), url=page.url or None, fast=self.fast, with_metadata=True, include_comments=False,
                include_tables=False, date_extraction_params={"extensive_search": False, "original_date": False, "max_date": "2000-01-01"},
            )  # fmt: skip
        except (Exception, RecursionError) as error:  # hostile HTML meets many of lxml's and the extractor's errors
            report.reject(page.place, f"page cannot be extracted ({type(error).__name__})")
            return None
        if document is None:
            report.skip(page.place, "no main text")
        return document


@configurable("pair source")
class WetPages(_Pages):
    """Pairs (first line, passage) of the plain-text pages of WET files.

    WET files hold no titles; most pages begin with what stood in ``<title>``. Facts: ``url``, ``language``.

    Args:
        paths: .warc.wet or .warc.wet.gz files or patterns.
        first_line_is_title: must be true, so that nobody takes the first lines for titles unknowingly.
        passage_words: most words of a passage, or null.
        passage_chars: most characters of a passage, or null; exactly one of the two is given.
        passages_per_page: passages per page, from its beginning.
        max_page_bytes: longest page, in bytes of text.
        name: the pairs' source.

    Raises:
        UserError: ``first_line_is_title`` is false.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        first_line_is_title: bool = False,
        passage_words: Count | None = 200,
        passage_chars: Count | None = None,
        passages_per_page: Count = 1,
        max_page_bytes: Count = MAX_PAGE_BYTES,
        name: str = "common_crawl",
    ) -> None:
        if not first_line_is_title:
            raise UserError(
                "first_line_is_title: WET files hold no titles, so without it they give no pair; set it to true to take "
                "a page's first line, or read the WARC files with WarcPages"
            )
        super().__init__(paths, passage_words, passage_chars, passages_per_page, name)
        self.max_page_bytes = max_page_bytes

    def fingerprint(self) -> dict[str, Any]:
        """The files and the settings."""
        return {**super().fingerprint(), "max_page_bytes": self.max_page_bytes}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one archive, page by page."""
        for page in pages(part, report, "conversion", self.max_page_bytes):
            try:
                text = page.content.decode("utf-8-sig")
            except UnicodeDecodeError:
                report.reject(page.place, "not UTF-8")
                continue
            title, _, rest = text.lstrip().partition("\n")
            yield from self._pairs(report, page.place, title, rest, page.url, {"url": page.url})


@configurable("pair source")
class CcNetPages(_Pages):
    """Pairs (title, passage) of the pages of cc_net's .json.gz files: ``title`` and ``raw_content``.

    Facts: ``url``, ``language``, ``perplexity``, ``bucket``, as cc_net found them.

    Args:
        paths: .json.gz files or patterns.
        buckets: of ``head``, ``middle``, ``tail``, which are read; null for all, also for files without buckets.
        passage_words: most words of a passage, or null.
        passage_chars: most characters of a passage, or null; exactly one of the two is given.
        passages_per_page: passages per page, from its beginning.
        name: the pairs' source.

    Source: paper section 3.1, which takes pages of low perplexity.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        buckets: Sequence[str] | None = None,
        passage_words: Count | None = 200,
        passage_chars: Count | None = None,
        passages_per_page: Count = 1,
        name: str = "common_crawl",
    ) -> None:
        super().__init__(paths, passage_words, passage_chars, passages_per_page, name)
        self.buckets = None if buckets is None else some_of("buckets", buckets, ("head", "middle", "tail", "all"))

    def fingerprint(self) -> dict[str, Any]:
        """The files and the settings."""
        return {**super().fingerprint(), "buckets": self.buckets}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, row by row."""
        for place, row in json_rows(part, report):
            if self.buckets is not None and row.get("bucket") not in self.buckets:
                report.skip(place, "bucket")
                continue
            texts = [string_of(row, key, place, report) for key in ("title", "raw_content", "url", "language")]
            perplexity = row.get("perplexity")
            if perplexity is not None and (isinstance(perplexity, bool) or not isinstance(perplexity, int | float)):
                report.reject(place, "perplexity is no number")
                continue
            if None in texts:
                continue
            title, text, url, language = (value or "" for value in texts)
            facts = {"url": url, "language": language}
            facts |= {key: row[key] for key in ("perplexity", "bucket") if row.get(key) is not None}
            yield from self._pairs(report, place, title, text, url, facts)
