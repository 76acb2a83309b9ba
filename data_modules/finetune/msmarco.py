"""MS-MARCO passage ranking as public fine-tuning sets give it, with negatives: SimLM's files and Tevatron's.

A line of SimLM's ``train.jsonl`` (https://huggingface.co/datasets/intfloat/simlm-msmarco) and one of Tevatron's
(https://huggingface.co/datasets/Tevatron/msmarco-passage)::

    {"query_id": "1", "query": "who wrote dune", "positives": {"doc_id": ["7"], "score": [9.1]}, "negatives": {"doc_id": ["4", "2"], "score": [3.0, 1.5]}}
    {"query_id": "1", "query": "who wrote dune", "positive_passages": [{"docid": "7", "title": "Dune", "text": "A novel by ..."}], "negative_passages": []}

Their files may be named on the Hub: ``hf://datasets/Tevatron/msmarco-passage/train.jsonl.gz`` is fetched. (SimLM's lie there in zip
archives, which are unpacked by hand.) In BEIR's layout it has no negatives: `lightning_e5.stages.hard_negatives` mines them from its ``collection``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_modules.finetune.records import existing, files_identity, passage_text, string
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.rows import json_objects, number_of, table_rows
from lightning_e5.ranges import Count
from lightning_e5.types import RankedExample, ReadReport


@configurable("ranked source")
class SimLMRanked:
    """SimLM's ``train.jsonl`` or ``kd_train.jsonl`` with its ``passages.jsonl``, plain or gzipped.

    A line has ``query`` and, under ``positives`` and ``negatives``, the lists ``doc_id`` (row numbers of the passages'
    file, as strings) and ``score``. Passages are ``title contents`` (SimLM's ``-`` stands for no title).

    Args:
        examples: the file of queries.
        passages: the file of passages; only those that the examples name are kept in memory.
        teacher_scores: ``score`` is the cross-encoder's logit (the ``kd_`` files); else it is the retriever's, and not used.
        max_negatives: the first so many of each query (SimLM has 200; training for 3 epochs with 7 uses 21).
        name: of the source.

    Source: paper section 4.2; the files are those of SimLM's release.
    """

    def __init__(
        self, *, examples: Path, passages: Path, teacher_scores: bool, max_negatives: Count | None = None, name: str = "msmarco"
    ) -> None:
        self.examples, self.passages = existing(examples, "examples"), existing(passages, "passages")
        self.teacher_scores, self.max_negatives, self.name = teacher_scores, max_negatives, name

    def fingerprint(self) -> Mapping[str, Any]:
        """The files, and the settings."""
        return {"files": files_identity([self.examples, self.passages]), "settings": [self.teacher_scores, self.max_negatives, self.name]}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per query, in the file's order.

        Raises:
            UserError: the passages' file has another number at a row than the row's.
        """
        wanted: set[int] = set()
        for _, row in json_objects(self.examples, ReadReport()):
            parsed = self._parse(row)
            if not isinstance(parsed, str):
                wanted.update(n for ids, _ in parsed[1:] for n in ids)
        texts = self._texts(wanted, report)
        for place, row in json_objects(self.examples, report):
            parsed = self._parse(row)
            if isinstance(parsed, str):
                report.reject(place, parsed)
                continue
            query, positives, negatives = parsed
            if any(n not in texts for n in (*positives[0], *negatives[0])):
                report.reject(place, "names a passage that is not there")
                continue
            scores = (*positives[1], *negatives[1]) if self.teacher_scores else None
            yield RankedExample(query, tuple(texts[n] for n in positives[0]), tuple(texts[n] for n in negatives[0]), scores, self.name)

    def _parse(self, row: dict[str, Any]) -> str | tuple[str, _Side, _Side]:
        """Query, positives and negatives as (row numbers, scores), or what is wrong."""
        query = string(row.get("query"))
        if query is None:
            return "no query"
        sides = []
        for key, most in (("positives", None), ("negatives", self.max_negatives)):
            side = row.get(key)
            ids = side.get("doc_id") if isinstance(side, dict) else None
            scores = side.get("score") if isinstance(side, dict) else None
            if not isinstance(ids, list) or not all(isinstance(i, str | int) and str(i).isdecimal() and len(str(i)) < 19 for i in ids):
                return f"{key} without doc_id (row numbers)"
            if self.teacher_scores and not (isinstance(scores, list) and len(scores) == len(ids) and all(map(_finite, scores))):
                return f"{key} without one finite score per doc_id"
            kept = tuple(float(s) for s in scores[:most]) if self.teacher_scores and scores is not None else ()
            sides.append((tuple(int(i) for i in ids[:most]), kept))
        return (query, sides[0], sides[1]) if sides[0][0] else "no positive"

    def _texts(self, wanted: set[int], report: ReadReport) -> dict[int, str]:
        own = ReadReport()
        texts: dict[int, str] = {}
        for place, row in json_objects(self.passages, own):
            # A rejected line would shift the rows behind it, so the row is the line's number.
            number = int(place.rsplit(":", 1)[1]) - 1
            stored = row.get("id", number)
            if str(stored) != str(number):
                raise UserError(f"{place}: has the id {stored!r}, but doc_id counts the rows from 0, which gives {number}")
            if number in wanted:
                text = passage_text(row, "contents")
                if text is None:
                    own.reject(place, "no contents")
                else:
                    texts[number] = text
        own.counts["passages"] = own.counts.pop("records", 0)
        report.add(own)
        return texts


_Side = tuple[tuple[int, ...], tuple[float, ...]]


@configurable("ranked source")
class TevatronRanked:
    """Tevatron's JSONL or Parquet: ``query``, ``positive_passages`` and ``negative_passages`` of ``{docid, title, text}``.

    Args:
        path: the file; JSONL may be gzipped.
        max_negatives: the first so many of each query.
        name: of the source.
    """

    def __init__(self, *, path: Path, max_negatives: Count | None = None, name: str = "msmarco") -> None:
        self.path, self.max_negatives, self.name = existing(path, "path"), max_negatives, name

    def fingerprint(self) -> Mapping[str, Any]:
        """The file, and the settings."""
        return {"files": files_identity([self.path]), "settings": [self.max_negatives, self.name]}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per line; passages without text are left out and counted."""
        for place, row in table_rows(self.path, report):
            query = string(row.get("query"))
            lists = [row.get("positive_passages"), row.get("negative_passages", [])]
            if query is None or not all(isinstance(passages, list) for passages in lists):
                report.reject(place, "no query" if query is None else "no list of passages")
                continue
            positives, negatives = ([passage_text(p) for p in passages] for passages in lists)  # type: ignore[union-attr]
            report.skip(place, "passage without text", [*positives, *negatives].count(None))
            found = tuple(p for p in positives if p is not None)
            if not found:
                report.reject(place, "no positive")
                continue
            others = tuple(n for n in negatives if n is not None)[: self.max_negatives]
            yield RankedExample(query, found, others, None, self.name)


def _finite(value: Any) -> bool:
    return not isinstance(value, str) and number_of(value) is not None
