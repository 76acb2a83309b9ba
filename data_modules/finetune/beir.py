"""Any set in BEIR's layout as queries with positives: MS-MARCO, NQ, SQuAD; its negatives are mined later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_modules.finetune.records import files_identity
from lightning_e5.configurable import configurable
from lightning_e5.files.beir_layout import either, read_judgements, stored_texts
from lightning_e5.types import Kind, RankedExample, ReadReport


@configurable("ranked source")
class BeirRanked:
    """``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv`` (or their ``.gz``), by the rules of `lightning_e5.files.beir_layout`.

    Args:
        folder: the collection.
        split: the file of ``qrels/`` without ``.tsv``.
        name: of the source; the folder's by default.
        passage_kind: ``query`` for sets of like texts (Quora), whose passages get the query's prefix.
    """

    def __init__(self, *, folder: Path, split: str = "train", name: str | None = None, passage_kind: Kind = "passage") -> None:
        self.folder, self.split, self.passage_kind = Path(folder), split, passage_kind
        self.name = name or self.folder.resolve().name
        self._corpus, self._queries, self._qrels = (either(self.folder, n) for n in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv"))

    def fingerprint(self) -> Mapping[str, Any]:
        """The files, and the settings."""
        files = files_identity([self._corpus, self._queries, self._qrels])
        return {"files": files, "settings": [self.name, self.passage_kind]}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per query with a judgement above 0, without negatives; only the judged passages are in memory."""
        judged, repeated = read_judgements(self._qrels, report)
        relevant = {query: found for query, grades in judged.items() if (found := [d for d, grade in grades.items() if grade > 0])}
        queries = self._texts(self._queries, set(relevant), report)
        passages = self._texts(self._corpus, {d for documents in relevant.values() for d in documents}, report)
        for query, documents in relevant.items():
            positives = tuple(passages[d] for d in documents if d in passages)
            if query in queries and positives:
                yield RankedExample(queries[query], positives, (), None, self.name, self.passage_kind)
            else:
                report.skip(f"{self._qrels}: query {query}", "judged text not there")
        report.counts.update({"repeated judgements": repeated} if repeated else {})

    def corpus(self) -> Iterator[str]:
        """Every passage, among which negatives can be mined."""
        for row in stored_texts(self._corpus, ReadReport()):
            if text := row.with_title():
                yield text

    def _texts(self, path: Path, wanted: set[str], report: ReadReport) -> dict[str, str]:
        own, texts = ReadReport(), dict[str, str]()
        for row in stored_texts(path, own):
            text = row.with_title() if path == self._corpus else row.text.strip()
            if row.id in wanted and texts.setdefault(row.id, text) != text:
                own.reject(row.place, "an id that was there before, with another text")
        own.counts.pop("records", None)
        report.add(own)
        return {key: text for key, text in texts.items() if text}
