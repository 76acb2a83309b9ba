"""Scientific papers: (title, abstract), (title, title of a cited paper), (abstract, abstract of a cited paper).

From https://api.semanticscholar.org/datasets/v1/release (S2AG, and S2ORC from 2022 on). A line of each of S2AG's files, and
one of S2ORC as published in 2020::

    {"corpusid": 1, "title": "First paper"}
    {"corpusid": 1, "abstract": "We begin."}
    {"citingcorpusid": 1, "citedcorpusid": 2}

    {"paper_id": "1", "title": "First paper", "abstract": "We begin.", "outbound_citations": ["2"],
     "bib_entries": {"BIBREF0": {"title": "Second paper", "link": "2"}}}

give ("First paper", "We begin."), ("First paper", "Second paper") and, with the texts of paper 2, the abstracts of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from data_modules.ccpairs.formats.files import FileParts, expand, file_fingerprint
from data_modules.ccpairs.sources.acl_anthology import AclAnthology
from data_modules.ccpairs.sources.pair_text import VERSION, candidate, one_line, some_of, string_of
from data_modules.ccpairs.sources.paper_index import Field, OpenIndex, PaperId, PaperIndex, paper_id
from data_modules.ccpairs.sources.paper_rows import cited_papers, row_id, title_and_abstract
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.lines import json_rows
from lightning_e5.ranges import Count
from lightning_e5.types import PairCandidate, ReadReport

__all__ = ["AclAnthology", "S2ag", "S2orc"]

KINDS = ("title_abstract", "title_citation", "abstract_citation")
#: Rows whose texts are looked up together, and the longest of them: what is held is bounded by the product.
_ROWS_AT_ONCE = 200
_ROW_BYTES = 2**20
#: The order in which a paper's texts come.
FIELDS: tuple[Field, Field] = ("titles", "abstracts")
#: kind of citation -> the texts that it pairs
_CITED: dict[str, Field] = {"title_citation": "titles", "abstract_citation": "abstracts"}


@configurable("pair source")
class S2ag:
    """Pairs from the files ``papers``, ``abstracts`` and ``citations`` of the Semantic Scholar Academic Graph.

    An index of titles and abstracts (see `PaperIndex`) is made in ``work_dir`` first, about as large as the texts.

    Args:
        work_dir: directory for the index.
        papers: files with ``corpusid`` and ``title``.
        abstracts: files with ``corpusid`` and ``abstract``.
        citations: files with ``citingcorpusid`` and ``citedcorpusid``.
        kinds: of ``title_abstract`` (needs papers, abstracts), ``title_citation`` (papers, citations),
            ``abstract_citation`` (abstracts, citations).
        name: the pairs' source.

    Raises:
        UserError: a kind is unknown, or files that it needs are not given.

    Source: paper section 3.1.
    """

    def __init__(
        self,
        *,
        work_dir: str,
        papers: str | Sequence[str] = (),
        abstracts: str | Sequence[str] = (),
        citations: str | Sequence[str] = (),
        kinds: Sequence[str] = KINDS,
        name: str = "s2ag",
    ) -> None:
        self.name, self.kinds = name, some_of("kinds", kinds, KINDS)
        given = {"papers": papers, "abstracts": abstracts, "citations": citations}
        needs = {"title_abstract": ("papers", "abstracts"), "title_citation": ("papers", "citations")}
        needs["abstract_citation"] = ("abstracts", "citations")
        for kind in self.kinds:
            for argument in needs[kind]:
                if not given[argument]:
                    raise UserError(f"{argument}: {kind!r} of kinds needs these files, and none is given")
        self._files = {argument: expand(paths) if paths else [] for argument, paths in given.items()}
        self._cited = [kind for kind in self.kinds if kind in _CITED]
        titles = self._files["papers"] if {"title_abstract", "title_citation"} & set(self.kinds) else []
        indexed = [*titles, *(self._files["abstracts"] if "abstract_citation" in self.kinds else [])]
        key = ["s2ag", VERSION, len(titles), file_fingerprint(indexed)]
        self._index = PaperIndex(Path(work_dir), indexed, key, partial(_graph_rows, frozenset(titles)))

    def parts(self) -> list[str]:
        """The files of abstracts, where (title, abstract) is asked for, and those of citations."""
        abstracts = self._files["abstracts"] if "title_abstract" in self.kinds else []
        return [str(path) for path in (*abstracts, *(self._files["citations"] if self._cited else []))]

    def fingerprint(self) -> dict[str, Any]:
        """The files and the settings."""
        files = {argument: file_fingerprint(paths) for argument, paths in self._files.items()}
        return {"kind": "s2ag", "version": VERSION, "files": files, "name": self.name, "kinds": self.kinds}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file; what was wrong with the indexed files is in the first part's report."""
        with self._index.opened() as index:
            if part == self.parts()[0]:
                report.add(index.report())
            is_citations = part in map(str, self._files["citations"])
            rows = json_rows(part, report, _ROW_BYTES)
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                yield from (self._citations if is_citations else self._abstracts)(some, index, report)

    def _abstracts(
        self, rows: list[tuple[str, dict[str, Any]]], index: OpenIndex, report: ReadReport
    ) -> Iterator[PairCandidate]:
        ids = [paper_id(row.get("corpusid")) for _, row in rows]
        titles = index.texts("titles", (paper for paper in ids if paper is not None))
        for (place, row), paper in zip(rows, ids, strict=True):
            abstract = string_of(row, "abstract", place, report)
            if paper is None:
                report.reject(place, "corpusid is no id")
            elif abstract is not None:
                query, passage = titles.get(paper, ""), one_line(abstract)
                yield from candidate(report, query, passage, source=self.name, id=str(paper), place=place)

    def _citations(
        self, rows: list[tuple[str, dict[str, Any]]], index: OpenIndex, report: ReadReport
    ) -> Iterator[PairCandidate]:
        pairs: list[tuple[PaperId, PaperId]] = []
        for place, row in rows:
            citing, cited = paper_id(row.get("citingcorpusid")), paper_id(row.get("citedcorpusid"))
            if row.get("citedcorpusid") is None and "citedcorpusid" in row:
                report.skip(place, "cited paper has no id")
            elif citing is None or cited is None:
                report.reject(place, "citingcorpusid or citedcorpusid is no id")
            elif citing == cited:
                report.skip(place, "paper cites itself")
            else:
                pairs.append((citing, cited))
        for kind in self._cited:
            texts = index.texts(_CITED[kind], (paper for pair in pairs for paper in pair))
            for citing, cited in pairs:
                query, passage = texts.get(citing, ""), texts.get(cited, "")
                yield from candidate(report, query, passage, source=self.name, id=f"{citing}>{cited}")


@configurable("pair source")
class S2orc(FileParts):
    """Pairs from S2ORC's JSON lines, in which a paper holds its abstract and its citations.

    Read are the layouts of 2019 and 2020 (``title``, ``abstract``, ``outbound_citations``, ``bib_entries``), those from 2022
    on (one text and the offsets of title, abstract and cited titles), the Open Research Corpus's and the API's; see
    `paper_rows`. Texts of cited papers are found by their ids in the same files, through an index in ``work_dir``; without
    one, titles come from the papers' own entries alone.

    Args:
        paths: .jsonl or .jsonl.gz files or patterns.
        kinds: of ``title_abstract``, ``title_citation``, ``abstract_citation`` (needs ``work_dir``).
        work_dir: directory for the index; null for none.
        citations_per_paper: most cited papers of a paper, from the first; null for all.
        name: the pairs' source.

    Raises:
        UserError: a kind is unknown, or needs a ``work_dir``.

    Source: paper section 3.1.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        kinds: Sequence[str] = ("title_abstract",),
        work_dir: str | None = None,
        citations_per_paper: Count | None = None,
        name: str = "s2orc",
    ) -> None:
        self.name, self.kinds, self.citations_per_paper = name, some_of("kinds", kinds, KINDS), citations_per_paper
        if citations_per_paper is not None and citations_per_paper < 1:
            raise UserError(f"citations_per_paper={citations_per_paper} must be at least 1, or null for all")
        if "abstract_citation" in self.kinds and work_dir is None:
            raise UserError("work_dir: 'abstract_citation' of kinds needs a directory for the index of abstracts")
        self._paths = expand(paths)
        self._cited = [kind for kind in self.kinds if kind in _CITED]
        fields = sorted({_CITED[kind] for kind in self._cited})

        self._index: PaperIndex | None = None
        if self._cited and work_dir is not None:
            self._index = PaperIndex(
                Path(work_dir), self._paths, ["s2orc", VERSION, fields, file_fingerprint(self._paths)], partial(_orc_rows, tuple(fields))
            )

    def fingerprint(self) -> dict[str, Any]:
        """The files and the settings."""
        settings = {
            "kinds": self.kinds,
            "citations_per_paper": self.citations_per_paper,
            "index": self._index is not None,
        }
        return {
            "kind": "s2orc",
            "version": VERSION,
            "files": file_fingerprint(self._paths),
            "name": self.name,
            **settings,
        }

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, paper by paper."""
        with ExitStack() as stack:
            index = stack.enter_context(self._index.opened()) if self._index is not None else None
            papers = self._papers(part, report)
            while some := list(islice(papers, _ROWS_AT_ONCE)):
                yield from self._pairs(some, index, report)

    def _papers(self, part: str, report: ReadReport) -> Iterator[_Paper]:
        """What is needed of the rows, which hold whole papers."""
        for place, row in json_rows(part, report):
            texts = title_and_abstract(row, place, report)
            if texts is not None:
                cited = cited_papers(row, place, report)[: self.citations_per_paper] if self._cited else []
                id = row_id(row)
                yield _Paper(place, "" if id is None else str(id), *texts, cited)

    def _pairs(self, papers: list[_Paper], index: OpenIndex | None, report: ReadReport) -> Iterator[PairCandidate]:
        wanted = {key for paper in papers for key, _ in paper.cited if key is not None}
        found = {_CITED[kind]: index.texts(_CITED[kind], wanted) if index else {} for kind in self._cited}
        for paper in papers:
            if "title_abstract" in self.kinds:
                yield from candidate(report, paper.titles, paper.abstracts, source=self.name, id=paper.id, place=paper.place)
            for kind in self._cited:
                field = _CITED[kind]
                for key, title in paper.cited:
                    text = found[field].get(key, "") if key is not None else ""
                    text = text or (title if field == "titles" else "")
                    query, id = getattr(paper, field), f"{paper.id}>{'' if key is None else key}"
                    yield from candidate(report, query, text, source=self.name, id=id, place=paper.place)


class _Paper(NamedTuple):
    place: str
    id: str
    #: Named as the fields of the index.
    titles: str
    abstracts: str
    cited: list[tuple[PaperId | None, str]]


def _graph_rows(papers: frozenset[Path], path: Path, report: ReadReport) -> Iterator[tuple[Field, PaperId, str]]:
    """What the index takes of a file of ``papers`` (titles) or of another one (abstracts)."""
    field: Field = "titles" if path in papers else "abstracts"
    for place, row in json_rows(path, report):
        paper, text = paper_id(row.get("corpusid")), string_of(row, field[:-1], place, report)
        if paper is None:
            report.reject(place, "corpusid is no id")
        elif text and (line := one_line(text)):
            yield field, paper, line


def _orc_rows(fields: tuple[Field, ...], path: Path, report: ReadReport) -> Iterator[tuple[Field, PaperId, str]]:
    """What the index takes of a file of papers."""
    for place, row in json_rows(path, report):
        paper = paper_id(row_id(row))
        texts = title_and_abstract(row, place, report)
        if paper is None:
            report.reject(place, "the paper has no id")
        elif texts is not None:
            for field, text in zip(FIELDS, texts, strict=True):
                if text and field in fields:
                    yield field, paper, text
