"""Titles, highlights and texts of news articles: CC-News as JSON lines.

As news-please (https://github.com/fhamborg/news-please) writes CC-News (https://data.commoncrawl.org/crawl-data/CC-NEWS)::

    {"title": "Rain ahead", "maintext": "It will rain. Take a coat.", "description": "Weather of the week", "language": "en",
     "url": "https://n.example/1"}

gives ("Rain ahead", "It will rain. Take a coat.") and ("Weather of the week", "It will rain. Take a coat.").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.sources.pair_text import VERSION, PassageRule, candidate, one_line, some_of, string_of
from lightning_e5.configurable import configurable
from lightning_e5.files.lines import json_rows
from lightning_e5.ranges import Count
from lightning_e5.types import PairCandidate, ReadReport

KINDS = ("title", "highlight")
#: The first of these fields that an article has is its text, or its highlight.
_TEXTS = ("maintext", "text")
_HIGHLIGHTS = ("highlight", "description")


@configurable("pair source")
class CcNews(FileParts):
    """Pairs (title, passage) and, where there is one, (highlight, passage) of news articles in JSON lines.

    The text is ``maintext`` or ``text``, the highlight ``highlight`` or ``description``. Facts: ``url``,
    ``language``.

    Args:
        paths: .jsonl files or patterns, also compressed.
        kinds: of ``title``, ``highlight``: what is paired with the passages.
        passage_words: most words of a passage, or null.
        passage_chars: most characters of a passage, or null; exactly one of the two is given.
        passages_per_page: passages per article, from its beginning; a highlight is paired with the first alone.
        name: the pairs' source.

    Source: paper section 3.1.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        kinds: Sequence[str] = KINDS,
        passage_words: Count | None = 200,
        passage_chars: Count | None = None,
        passages_per_page: Count = 1,
        name: str = "news",
    ) -> None:
        self.name, self.kinds = name, some_of("kinds", kinds, KINDS)
        self.rule = PassageRule(passage_words, passage_chars, passages_per_page)
        self._paths = expand(paths)

    def fingerprint(self) -> dict[str, Any]:
        """The files and the settings."""
        rule = [self.rule.words, self.rule.chars, self.rule.most]
        settings = {"name": self.name, "kinds": self.kinds, "passages": rule}
        return {"kind": "cc-news", "version": VERSION, "files": file_fingerprint(self._paths), **settings}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, article by article."""
        for place, row in json_rows(part, report):
            text = _first(row, _TEXTS, place, report)
            strings = [string_of(row, key, place, report) for key in ("title", "url", "language")]
            highlight = _first(row, _HIGHLIGHTS, place, report) if "highlight" in self.kinds else ""
            if text is None or highlight is None or None in strings:
                continue
            title, url, language = (one_line(value or "") for value in strings)
            facts = {key: value for key, value in (("url", url), ("language", language)) if value}
            passages = self.rule.cut(text)
            if not passages:
                report.skip(place, "no passage")
                continue
            for number, passage in enumerate(passages):
                id = url if len(passages) == 1 else f"{url}#{number}"
                if "title" in self.kinds:
                    yield from candidate(report, title, passage, source=self.name, id=id, place=place, facts=facts)
            if highlight.strip():
                query = one_line(highlight)
                yield from candidate(report, query, passages[0], source=self.name, id=f"{url}#highlight", facts=facts)


def _first(row: dict[str, Any], keys: Sequence[str], place: str, report: ReadReport) -> str | None:
    """The first of the keys' strings that is not empty; None where one is no string."""
    for key in keys:
        value = string_of(row, key, place, report)
        if value is None or value.strip():
            return value
    return ""
