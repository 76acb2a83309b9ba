"""Documents to pairs: title and text, heading path and the text below it, first sentence and the rest; what is no prose is left out by named rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from data_modules.own.formats.blocks import Block, Document, one_line
from data_modules.own.own_pair import SECTIONS, SENTENCES, TITLES, OwnPair
from lightning_e5.text import normalise_text
from lightning_e5.types import ReadReport

#: Characters of a passage: at least, and about at most (a section is cut between its paragraphs); an encoder reads 512 tokens, about 2,000.
SHORTEST_PASSAGE, LONGEST_PASSAGE = 40, 2_000
#: Characters of the passages that a text without headings is cut into.
_PART_CHARACTERS = 800
_SHORTEST_SENTENCE, LONGEST_QUERY = 15, 300
#: A section in which more of the text is links leads elsewhere.
MOST_LINKED = 0.5
#: Words that a cell of a table has on average where it says something.
_WORDS_OF_PROSE_ROW = 6
#: Headings of what is no content.
NO_CONTENT = re.compile(
    r"(?:see also|(?:table of )?contents|toc|indices(?: and tables)?|licen[cs]es?|licensing|copyright(?: notice)?|references?|bibliography|footnotes?|citations?"
    r"|related(?: \w+)?|further reading|additional (?:resources|reading)|external links|links|resources|navigation|in this (?:section|article|page|document)"
    r"|on this page|next(?: steps?)?|changelog|change ?log|change history|release history|authors?|contributors?|credits|acknowledge?ments?|badges?|sponsors?)",
    re.I,
)
_NUMBERING = re.compile(r"^(?:(?:\d+|[A-Z])(?:\.\d+)*[.)]?|[IVX]+\.|Appendix [A-Z]:?|§)\s+(?=\S)")
_SENTENCE_END = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])(?:\s+(?=[\"'(\[\u201c]?[A-Z0-9\u00c0-\uffff])|(?<=[\u3002\uff01\uff1f]))")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|Dr|Mr|Mrs|Ms|Prof|St|No|Fig|al|approx|resp)|\b[A-Z])\.$")
_INDEX_NAMES = re.compile(r"(?:index|readme|read_me|__init__|main|default|contents)", re.I)


@dataclass(slots=True)
class _Section:
    """A heading path, and the blocks below its last heading."""

    headings: tuple[str, ...] = ()
    blocks: list[Block] = field(default_factory=list)


def section_pairs(document: Document, path: str, report: ReadReport) -> Iterator[OwnPair]:
    """The pairs of one document.

    Args:
        document: as a format's reader gives it.
        path: of the file below the user's folder; begins the ids.
        report: counts what is left out, by rule and first place.
    """
    if not document.blocks:
        report.skip(path, "no text in the document")
        return
    if not any(block.kind == "heading" for block in document.blocks):
        yield from _without_headings(document, path, report)
        return
    title, sections = _sections(document, path)
    for section in sections:
        names = [title, *section.headings] if title else list(section.headings)
        heading = names[-1] if section.headings else title
        place = f"{path}#{heading}" if section.headings else path
        if (rule := _rule(section, heading)) is not None:
            report.skip(place, rule)
            continue
        query = _path_of(names)
        if not query or len(query) > LONGEST_QUERY:
            report.skip(place, f"heading of over {LONGEST_QUERY} characters" if query else "text before the first heading of a document without title")
            continue
        is_title = query == names[0]
        yield OwnPair(query, _passage(section.blocks, place, report), TITLES if is_title else SECTIONS, place, path)


def title_of_path(path: str) -> str:
    """A file's name in words; that of its folder for ``index``, ``README`` and the like."""
    pure = PurePosixPath(path)
    stem = pure.name.partition(".")[0] if pure.suffix else pure.name
    if _INDEX_NAMES.fullmatch(stem):
        stem = pure.parent.name
    return one_line(re.sub(r"[_-]+", " ", stem))


def first_sentence(text: str) -> tuple[str, str] | None:
    """(first sentence, the rest) of a text on one line; None where there is none of at least 15 and at most 300 characters."""
    for end in _SENTENCE_END.finditer(text):
        sentence = text[: end.start()].strip()
        if len(sentence) >= _SHORTEST_SENTENCE and not _ABBREVIATION.search(sentence):
            return (sentence, text[end.end() :].strip()) if len(sentence) <= LONGEST_QUERY else None
    return None


def _sections(document: Document, path: str) -> tuple[str, list[_Section]]:
    """The title, and the sections with their heading paths below it."""
    headings = [block for block in document.blocks if block.kind == "heading"]
    highest = min(block.level for block in headings)
    tops = [block for block in headings if block.level == highest]
    own = len(tops) == 1 and headings[0] is tops[0] and highest < 7
    title = _heading(tops[0].text) if own else document.title or title_of_path(path)
    stack: list[tuple[int, str]] = []
    sections = [_Section()]
    for block in document.blocks:
        if block.kind != "heading":
            sections[-1].blocks.append(block)
            continue
        while stack and stack[-1][0] >= block.level:
            stack.pop()
        text = _heading(block.text)
        if own and block is tops[0]:
            sections.append(_Section())
            continue
        stack.append((block.level, text))
        # What stands below "Contents" is the content; its name says nothing about it.
        names = (*(n for _, n in stack[:-1] if normalise_text(n) != normalise_text(title) and not NO_CONTENT.fullmatch(n)), text)
        sections.append(_Section(names))
    return title, [section for section in sections if section.blocks or section.headings]


def _heading(text: str) -> str:
    return _NUMBERING.sub("", one_line(text)).rstrip(":#").strip() or one_line(text)


def _path_of(names: Sequence[str]) -> str:
    """``Title - Heading``, without a name that is there already."""
    by_text: dict[str, str] = {}
    for name in names:
        by_text.setdefault(normalise_text(name), name)
    return " - ".join(by_text.values())


def _rule(section: _Section, heading: str) -> str | None:
    """The rule by which a section is no pair, or None."""
    if section.headings and NO_CONTENT.fullmatch(heading):
        return "heading of no content (See also, License ...)"
    if not section.blocks:
        return "heading without text"
    prose = [block for block in section.blocks if block.kind == "prose"]
    tables = [block for block in section.blocks if block.kind == "table"]
    if not prose and not tables:
        return "code alone"
    letters = sum(len(block.text) for block in [*prose, *tables])
    if sum(block.linked for block in [*prose, *tables]) > MOST_LINKED * letters:
        return "links alone"
    if not prose:
        rows = [row for block in tables for row in block.text.split("\n")]
        if sum(len(row.split()) for row in rows) < _WORDS_OF_PROSE_ROW * len(rows):
            return "table alone"
    if letters < SHORTEST_PASSAGE:
        return f"text of under {SHORTEST_PASSAGE} characters"
    return None if normalise_text(heading) else "heading without a word"


def _passage(blocks: Sequence[Block], place: str, report: ReadReport) -> str:
    """The blocks' text up to the longest passage, cut between blocks; one that is longer by itself between words."""
    parts: list[str] = []
    letters = 0
    for block in blocks:
        if letters + len(block.text) > LONGEST_PASSAGE and letters >= SHORTEST_PASSAGE:
            report.counts["cut: end of a text of over 2,000 characters"] += 1
            report.first.setdefault("cut: end of a text of over 2,000 characters", place)
            break
        if len(block.text) > LONGEST_PASSAGE:
            parts.append(block.text[:LONGEST_PASSAGE].rpartition(" ")[0] or block.text[:LONGEST_PASSAGE])
            letters = LONGEST_PASSAGE
            continue
        parts.append(block.text)
        letters += len(block.text)
    return "\n".join(parts)


def _without_headings(document: Document, path: str, report: ReadReport) -> Iterator[OwnPair]:
    """First sentence and rest of each part of a text; the document's title with the first part."""
    prose = [block.text for block in document.blocks if block.kind == "prose" and block.linked <= MOST_LINKED * len(block.text)]
    if not prose:
        report.skip(path, "code alone" if any(block.kind == "code" for block in document.blocks) else "links alone")
        return
    for number, part in enumerate(_parts(prose)):
        place = f"{path}#{number + 1}" if number else path
        if number == 0 and document.title and len(part) >= SHORTEST_PASSAGE:
            yield OwnPair(document.title[:LONGEST_QUERY], part, TITLES, place, path)
            continue
        cut = first_sentence(part)
        if cut is None:
            report.skip(place, "no first sentence")
        elif len(cut[1]) < SHORTEST_PASSAGE:
            report.skip(place, f"text of under {SHORTEST_PASSAGE} characters")
        else:
            yield OwnPair(cut[0], cut[1], SENTENCES, place, path)


def _parts(paragraphs: Sequence[str]) -> Iterator[str]:
    """Neighbouring paragraphs together, as long as they have at most 800 characters; a longer one cut at 2,000."""
    held = ""
    for paragraph in paragraphs:
        if held and len(held) + len(paragraph) > _PART_CHARACTERS:
            yield held
            held = ""
        held = f"{held} {paragraph}".strip()[:LONGEST_PASSAGE]
    if held:
        yield held
