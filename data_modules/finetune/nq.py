"""Natural Questions as DPR publishes it for training retrievers (``biencoder-nq-train.json``, ``-dev.json``).

From https://dl.fbaipublicfiles.com/dpr/data/retriever/biencoder-nq-train.json.gz, one array of elements such as::

    {"question": "who wrote dune", "answers": ["Frank Herbert"], "positive_ctxs": [{"title": "Dune", "text": "A novel by ..."}],
     "hard_negative_ctxs": [{"title": "Dune", "text": "A hill of sand ..."}], "negative_ctxs": []}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_modules.finetune.records import existing, files_identity, json_array, passage_text, string
from lightning_e5.configurable import configurable
from lightning_e5.ranges import Count
from lightning_e5.types import RankedExample, ReadReport


@configurable("ranked source")
class DprRanked:
    """DPR's training file: one JSON array of ``question``, ``positive_ctxs``, ``hard_negative_ctxs``, ``negative_ctxs``.

    Args:
        path: the file, plain or gzipped; it is read an element at a time.
        random_negatives: the ``negative_ctxs`` (positives of other questions) follow the hard ones.
        max_negatives: the first so many of each question.
        name: of the source.

    Source: paper section 4.2.
    """

    def __init__(self, *, path: Path, random_negatives: bool = True, max_negatives: Count | None = None, name: str = "nq") -> None:
        self.path, self.random_negatives, self.max_negatives, self.name = existing(path, "path"), random_negatives, max_negatives, name

    def fingerprint(self) -> Mapping[str, Any]:
        """The file, and the settings."""
        return {"files": files_identity([self.path]), "settings": [self.random_negatives, self.max_negatives, self.name]}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per question that has a positive passage; passages without text are left out and counted."""
        for place, row in json_array(self.path, report):
            question = string(row.get("question"))
            if question is None:
                report.reject(place, "no question")
                continue
            positives = self._passages(place, row, "positive_ctxs", report)
            if not positives:
                # DPR's own file has such questions and trains without them.
                report.skip(place, "no positive passage")
                continue
            negatives = self._passages(place, row, "hard_negative_ctxs", report)
            if self.random_negatives:
                negatives += self._passages(place, row, "negative_ctxs", report)
            yield RankedExample(question, tuple(positives), tuple(negatives[: self.max_negatives]), None, self.name)

    @staticmethod
    def _passages(place: str, row: dict[str, Any], key: str, report: ReadReport) -> list[str]:
        contexts = row.get(key) or []
        texts = [passage_text(c) for c in contexts] if isinstance(contexts, list) else [None]
        found = [t for t in texts if t is not None]
        report.skip(place, "passage without text", len(texts) - len(found))
        return found
