"""Any set in BEIR's layout as queries with positives: MS-MARCO, NQ, SQuAD; its negatives are mined later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_modules.finetune.records import existing, files_identity, json_lines, passage_text, string, text_lines
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.types import Kind, RankedExample, ReadReport

_HEADER = "query-id\tcorpus-id\tscore"


@configurable("ranked source")
class BeirRanked:
    """``corpus.jsonl``, ``queries.jsonl`` (or their ``.gz``) and ``qrels/<split>.tsv``.

    Args:
        folder: the collection.
        split: the file of ``qrels/`` without ``.tsv``.
        name: of the source; the folder's by default.
        passage_kind: ``query`` for sets of like texts (Quora), whose passages get the query's prefix.
    """

    def __init__(self, *, folder: Path, split: str = "train", name: str | None = None, passage_kind: Kind = "passage") -> None:
        self.folder, self.split, self.passage_kind = Path(folder), split, passage_kind
        self.name = name or self.folder.resolve().name
        self._corpus = existing(self.folder / "corpus.jsonl", "folder")
        self._queries = existing(self.folder / "queries.jsonl", "folder")
        self._qrels = existing(self.folder / "qrels" / f"{split}.tsv", "split")

    def fingerprint(self) -> Mapping[str, Any]:
        """The files, and the settings."""
        files = files_identity([self._corpus, self._queries, self._qrels])
        return {"files": files, "settings": [self.name, self.passage_kind]}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per query with a judgement above 0, without negatives; only the judged passages are in memory."""
        judged = self._judgements(report)
        queries = self._texts(self._queries, set(judged), report)
        passages = self._texts(self._corpus, {d for documents in judged.values() for d in documents}, report)
        for query, documents in judged.items():
            positives = tuple(passages[d] for d in documents if d in passages)
            if query in queries and positives:
                yield RankedExample(queries[query], positives, (), None, self.name, self.passage_kind)
            else:
                report.counts["skipped: judged text not there"] += 1

    def corpus(self) -> Iterator[str]:
        """Every passage, among which negatives can be mined."""
        for _, row in json_lines(self._corpus, ReadReport()):
            text = passage_text(row)
            if text is not None:
                yield text

    def _judgements(self, report: ReadReport) -> dict[str, list[str]]:
        lines = text_lines(self._qrels, report)
        if next(lines, ("", ""))[1] != _HEADER:
            raise UserError(f"{self._qrels}:1: lacks the header query-id corpus-id score (separated by tabs)")
        judged: dict[str, list[str]] = {}
        for place, line in lines:
            report.counts["records"] += 1
            columns = line.split("\t")
            if len(columns) != 3 or not columns[2].strip().lstrip("-").isdecimal():
                report.reject(place, "not query, document and a whole number")
            elif int(columns[2]) > 0:
                judged.setdefault(columns[0], []).append(columns[1])
        return judged

    @staticmethod
    def _texts(path: Path, wanted: set[str], report: ReadReport) -> dict[str, str]:
        own, texts = ReadReport(), {}
        for place, row in json_lines(path, own):
            key = row.get("_id")
            if not isinstance(key, str):
                own.reject(place, "no _id")
            elif key in wanted:
                text = passage_text(row) if "corpus" in path.name else string(row.get("text"))
                if text is None:
                    own.reject(place, "no text")
                else:
                    texts[key] = text
        own.counts.pop("records", None)
        report.add(own)
        return texts
