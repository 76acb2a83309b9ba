"""Queries with positives and hard negatives of public data sets: nomic's triples, sentence-transformers' triplets, and the lists'.

Read from a folder of the downloaded files or from the Hub, where Parquet is streamed. SimLM's and Tevatron's layouts are read by
`data_modules.finetune.msmarco`, whose files may be on the Hub, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from data_modules.finetune.records import string
from data_modules.public.files import TEXT, TEXTS, checked_tables, chosen, local_identity, split_files
from data_modules.public.lists import list_files, list_name, list_rows
from data_modules.public.pairs import VERSION, published_set
from data_modules.public.published import NOMIC_TRIPLE_SPLITS, NOMIC_TRIPLES, TRAINING_LISTS
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.ranges import Count, CountOrZero, Seed
from lightning_e5.rng import generator
from lightning_e5.text import text_id
from lightning_e5.types import Kind, RankedExample, ReadReport

#: Positives from which negatives are drawn: the first ones of a file.
_DRAWN_AMONG = 100_000


@configurable("ranked source")
class NomicTriples:
    """A split of nomic's supervised data: a query, a document, and a list of negatives mined with gte-base.

    Its files are ``data/SPLIT-00000-of-00028.parquet`` with the columns ``query``, ``document``, ``negative`` (a list) and ``dataset``.

    Args:
        split: such as ``msmarco_distillation_simlm_rescored_reranked_min15``.
        place: the data set on the Hub, or a folder with its files (in ``data/`` or not).
        max_negatives: the first so many of each query.
        fill_up_to: rows with fewer negatives get other rows' documents, drawn at random, up to so many, and stand at the end; 0
            leaves them as they are. (Some splits have one negative a row.)
        seed: of that draw.
        passage_kind: ``query`` for texts of the queries' kind; by default as nomic trained the split.
        revision: commit on the Hub; of a folder it says nothing.
        name: of the source; by default the split.

    Raises:
        UserError: no such place or split, or a file that lacks a column.

    Source: https://huggingface.co/datasets/nomic-ai/nomic-embed-supervised-data; Nussbaum et al. 2024 (arXiv 2402.01613).
    """

    def __init__(
        self,
        *,
        split: str,
        place: str = NOMIC_TRIPLES,
        max_negatives: Count | None = None,
        fill_up_to: CountOrZero = 0,
        seed: Seed = 0,
        passage_kind: Kind | None = None,
        revision: str | None = None,
        name: str | None = None,
    ) -> None:
        if max_negatives is not None and fill_up_to > max_negatives:
            raise UserError(f"fill_up_to: {fill_up_to} is more than max_negatives: {max_negatives}")
        self.split, self.place, self.revision, self.name = split, place, revision, name or split
        self.max_negatives, self.fill_up_to, self.seed = max_negatives, fill_up_to, seed
        alike = NOMIC_TRIPLE_SPLITS.get(split, (0, False))[1]
        self.passage_kind: Kind = passage_kind or ("query" if alike else "passage")

    @classmethod
    def published_rows(cls, arguments: Mapping[str, Any]) -> int | None:
        """The rows that a source with these arguments has by its card; None where the split is not in it."""
        rows = NOMIC_TRIPLE_SPLITS.get(str(arguments.get("split")))
        return None if rows is None else rows[0]

    def _files(self) -> list[str]:
        found = chosen(split_files(self.place, ["data", ""], self.revision), [self.split], self.place, "split")
        return found[self.split]

    def fingerprint(self) -> Mapping[str, Any]:
        """The place, the settings, and a folder's files."""
        settings = [self.place, self.revision, self.split, self.name, self.max_negatives, self.fill_up_to, self.seed, self.passage_kind]
        return {"kind": "nomic triples", "version": VERSION, "settings": settings, "files": local_identity(self.place, self._files)}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per row, in the files' order, those that were filled up last; bad texts are counted and left out."""
        filling = _Filling(self.fill_up_to, self.seed, self.split)
        for file in self._files():
            for place, row in _rows(file, {"query": TEXT, "document": TEXT, "negative": TEXTS}, report):
                texts = [text for text in map(string, row["negative"] or []) if text is not None]
                report.skip(place, "passage without text", len(row["negative"] or []) - len(texts))
                example = _example(row["query"], row["document"], texts[: self.max_negatives], place, report, self.name, self.passage_kind)
                if example is not None and not filling.takes(example):
                    yield example
        yield from filling.filled(report)


@configurable("ranked source")
class SentenceTransformersTriplets:
    """One of sentence-transformers' sets of triplets on the Hub, by name, such as ``msmarco-bm25/triplet-50``.

    Its files are ``SUBSET/train-00000-of-00001.parquet``; its columns stand in `data_modules.public.published.SENTENCE_TRANSFORMERS`.

    Args:
        data_set: ``NAME/SUBSET``; a set of pairs gives queries without negatives, which can be mined.
        place: the data set on the Hub (``sentence-transformers/NAME`` by default), or a folder with its files.
        split: the split that is read.
        max_negatives: the first so many of each query.
        revision: commit on the Hub; of a folder it says nothing.
        name: of the source; by default the data set's.

    Raises:
        UserError: no such set, place or split, or a file that lacks a column.

    Source: https://sbert.net/docs/sentence_transformer/dataset_overview.html
    """

    def __init__(
        self,
        *,
        data_set: str,
        place: str | None = None,
        split: str = "train",
        max_negatives: Count | None = None,
        revision: str | None = None,
        name: str | None = None,
    ) -> None:
        self.data_set, self.columns = published_set(data_set)
        own, _, self.subset = self.data_set.partition("/")
        self.place, self.split, self.revision, self.name = place or f"sentence-transformers/{own}", split, revision, name or own
        self.max_negatives, self.passage_kind = max_negatives, "query" if self.columns.alike else "passage"

    @classmethod
    def published_rows(cls, arguments: Mapping[str, Any]) -> int | None:
        """The rows that a source with these arguments has by its card; None where that is not known here."""
        return published_set(str(arguments.get("data_set")))[1].rows if arguments.get("split", "train") == "train" else None

    def _files(self) -> list[str]:
        found = chosen(split_files(self.place, [self.subset, "data", ""], self.revision), [self.split], self.place, "split")
        return found[self.split]

    def fingerprint(self) -> Mapping[str, Any]:
        """The place, the settings, and a folder's files."""
        settings = [self.place, self.revision, self.split, self.name, self.data_set, list(self.columns), self.max_negatives]
        return {"kind": "sentence-transformers triplets", "version": VERSION, "settings": settings, "files": local_identity(self.place, self._files)}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per row, in the files' order; bad texts are counted and left out."""
        negatives = self.columns.negatives[: self.max_negatives]
        for file in self._files():
            for place, row in _rows(file, dict.fromkeys((self.columns.query, self.columns.passage, *negatives), TEXT), report):
                texts = [text for name in negatives if (text := string(row[name])) is not None]
                report.skip(place, "passage without text", len(negatives) - len(texts))
                example = _example(row[self.columns.query], row[self.columns.passage], texts, place, report, self.name, self.passage_kind)
                if example is not None:
                    yield example


@configurable("ranked source")
class TrainingListGroups:
    """A list of ``sentence-transformers/embedding-training-data`` with negatives: triplets, or queries with ``pos`` and ``neg``.

    Pairs give queries without negatives, which can be mined; sets of texts that mean the same are left out and counted.

    Args:
        file: such as ``AllNLI.jsonl.gz``.
        place: the data set on the Hub, or a folder with its files.
        max_negatives: the first so many of each query.
        passage_kind: ``query`` for texts of the queries' kind (NLI, duplicate questions).
        revision: commit on the Hub; of a folder it says nothing.
        name: of the source; by default the file's.

    Raises:
        UserError: no such place or file, or a file whose first line is of none of the layouts.

    Source: https://huggingface.co/datasets/sentence-transformers/embedding-training-data
    """

    def __init__(
        self,
        *,
        file: str,
        place: str = TRAINING_LISTS,
        max_negatives: Count | None = None,
        passage_kind: Kind = "passage",
        revision: str | None = None,
        name: str | None = None,
    ) -> None:
        self.file, self.place, self.revision, self.name = file, place, revision, name or list_name(file)
        self.max_negatives, self.passage_kind = max_negatives, passage_kind

    def _files(self) -> list[str]:
        return list_files(self.place, [self.file], self.revision)

    def fingerprint(self) -> Mapping[str, Any]:
        """The place, the settings, and a folder's file."""
        settings = [self.place, self.revision, self.file, self.name, self.max_negatives, self.passage_kind]
        return {"kind": "training lists", "version": VERSION, "settings": settings, "files": local_identity(self.place, self._files)}

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """One example per line, in the file's order; bad texts are counted and left out."""
        (file,) = self._files()
        for place, row in list_rows(file, report):
            if row.alike:
                report.skip(place, "a set of texts, which has no query")
                continue
            query = string(row.query)
            positives, negatives = ([t for t in map(string, side) if t is not None] for side in (row.positives, row.negatives))
            report.skip(place, "passage without text", len(row.positives) + len(row.negatives) - len(positives) - len(negatives))
            if query is None or not positives:
                report.reject(place, "no query" if query is None else "no positive")
            else:
                yield RankedExample(query, tuple(positives), tuple(negatives[: self.max_negatives]), None, self.name, self.passage_kind)


def _rows(file: str, columns: Mapping[str, str], report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file:row n``, row) of some columns, counted as records."""
    number = 0
    for table in checked_tables(file, columns):
        for row in table.select(list(columns)).to_pylist():
            report.counts["records"] += 1
            yield f"{file}:row {number}", row
            number += 1


def _example(
    query: Any, positive: Any, negatives: list[str], place: str, report: ReadReport, name: str, kind: Any
) -> RankedExample | None:
    query, positive = string(query), string(positive)
    if query is None or positive is None:
        report.reject(place, "no query" if query is None else "no positive")
        return None
    return RankedExample(query, (positive,), tuple(negatives), None, name, kind)


class _Filling:
    """Rows with too few negatives, which get positives of other rows once these are known."""

    def __init__(self, least: int, seed: int, name: str) -> None:
        self.least, self.seed, self.name = least, seed, name
        self.short: list[RankedExample] = []
        self.positives: dict[int, str] = {}

    def takes(self, example: RankedExample) -> bool:
        """Whether the example waits for negatives; its positive may be another's."""
        if self.least and len(self.positives) < _DRAWN_AMONG:
            self.positives.setdefault(text_id(example.positives[0]), example.positives[0])
        if len(example.negatives) >= self.least:
            return False
        self.short.append(example)
        return True

    def filled(self, report: ReadReport) -> Iterator[RankedExample]:
        """The examples that waited; a query's own texts, of all its rows, are never drawn for it."""
        own: dict[int, set[int]] = {}
        for example in self.short:
            own.setdefault(text_id(example.query), {text_id(example.query)}).update(map(text_id, example.positives))
        texts = list(self.positives.items())
        for number, example in enumerate(self.short):
            taken = own[text_id(example.query)] | set(map(text_id, example.negatives))
            wanted, found = self.least - len(example.negatives), list[str]()
            for place in self._places(number, len(texts)):
                if len(found) == wanted:
                    break
                identity, text = texts[place]
                if identity not in taken:
                    taken.add(identity)
                    found.append(text)
            report.skip(self.name, "row without enough other rows to draw negatives from", int(len(found) < wanted))
            yield replace(example, negatives=(*example.negatives, *found))

    def _places(self, row: int, size: int) -> Iterator[int]:
        """Places among ``size`` texts for one row: random ones, in which there are nearly always enough, then all in a random order."""
        draw = generator(self.seed, self.name, row)
        yield from draw.integers(size, size=4 * self.least).tolist()
        yield from draw.permutation(size).tolist()
