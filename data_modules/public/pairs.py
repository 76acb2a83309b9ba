"""Pairs of public data sets: nomic's, sentence-transformers', and the lists of embedding-training-data.

Each is read from a folder of the downloaded files or from the Hub, a part per file, so that a killed build goes on behind the last
file that was read. On the Hub the parts' names hold the commit: give a ``revision``, so that the pairs stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from data_modules.ccpairs.sources.pair_columns import PairColumns
from data_modules.ccpairs.sources.pair_text import candidate
from data_modules.public.files import TEXT, checked_tables, chosen, is_folder, local_identity, split_files, split_of
from data_modules.public.lists import list_files, list_name, list_rows
from data_modules.public.published import (
    NOMIC_FILTER,
    NOMIC_PAIR_SPLITS,
    NOMIC_PAIRS,
    SENTENCE_TRANSFORMERS,
    TRAINING_LISTS,
    PublishedSet,
)
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError, suggestion
from lightning_e5.types import PairCandidate, ReadReport

#: Raise this when the pairs that these readers give change.
VERSION = 1


@configurable("pair source")
class NomicPairs:
    """nomic's unsupervised pairs, 239 million of 29 sources; a pair's source is its split.

    Their files are ``data/SPLIT-00000-of-00159.parquet`` with the columns ``query``, ``document``, ``dataset`` and ``shard``.

    Args:
        place: the data set on the Hub, or a folder with its files (in ``data/`` or not).
        splits: those that are read, all by default.
        revision: commit on the Hub; of a folder it says nothing.
        name: of this reader.

    Raises:
        UserError: no such place or split, or a file that lacks a column.

    Source: https://huggingface.co/datasets/nomic-ai/nomic-embed-unsupervised-data; Nussbaum et al. 2024 (arXiv 2402.01613).
    """

    #: What filtered the pairs before they were published, for the report of a filter that runs on them.
    filtered_by = NOMIC_FILTER

    def __init__(self, place: str = NOMIC_PAIRS, *, splits: Sequence[str] | None = None, revision: str | None = None, name: str = "nomic") -> None:
        self.place, self.splits, self.revision, self.name = place, None if splits is None else list(splits), revision, name

    @classmethod
    def published_rows(cls, arguments: Mapping[str, Any]) -> int | None:
        """The rows that a source with these arguments has by its card; None where a split is not in it."""
        splits = arguments.get("splits") or list(NOMIC_PAIR_SPLITS)
        return sum(NOMIC_PAIR_SPLITS[split] for split in splits) if all(split in NOMIC_PAIR_SPLITS for split in splits) else None

    @cached_property
    def _files(self) -> list[str]:
        found = chosen(split_files(self.place, ["data", ""], self.revision), self.splits, self.place)
        return [file for files in found.values() for file in files]

    def parts(self) -> list[str]:
        """The files, split after split."""
        return self._files

    def fingerprint(self) -> dict[str, Any]:
        """The place, the splits, and a folder's files."""
        return {"kind": "nomic", "version": VERSION, "place": [self.place, self.revision, self.splits], "files": local_identity(self.place, self.parts)}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, row by row."""
        yield from _column_pairs(part, split_of(part), PublishedSet("query", "document"), report)


@configurable("pair source")
class SentenceTransformersPairs:
    """One of sentence-transformers' sets on the Hub, by name: its pairs, of triplets anchor and positive.

    Its files are ``SUBSET/train-00000-of-00001.parquet``; which columns are query and passage stands in
    `data_modules.public.published.SENTENCE_TRANSFORMERS`.

    Args:
        data_set: ``NAME/SUBSET``, such as ``gooaq/pair``, or ``NAME`` where it has but one.
        place: the data set on the Hub (``sentence-transformers/NAME`` by default), or a folder with its files.
        split: the split that is read.
        revision: commit on the Hub; of a folder it says nothing.
        name: the pairs' source; by default the data set's.

    Raises:
        UserError: no such set, place or split, or a file that lacks a column.

    Source: https://sbert.net/docs/sentence_transformer/dataset_overview.html
    """

    def __init__(self, data_set: str, *, place: str | None = None, split: str = "train", revision: str | None = None, name: str | None = None) -> None:
        self.data_set, self.columns = published_set(data_set)
        own, _, self.subset = self.data_set.partition("/")
        self.place, self.split, self.revision, self.name = place or f"sentence-transformers/{own}", split, revision, name or own

    @classmethod
    def published_rows(cls, arguments: Mapping[str, Any]) -> int | None:
        """The rows that a source with these arguments has by its card; None where that is not known here."""
        return published_set(str(arguments.get("data_set")))[1].rows if arguments.get("split", "train") == "train" else None

    @cached_property
    def _files(self) -> list[str]:
        found = chosen(split_files(self.place, [self.subset, "data", ""], self.revision), [self.split], self.place, "split")
        return found[self.split]

    def parts(self) -> list[str]:
        """The files."""
        return self._files

    def fingerprint(self) -> dict[str, Any]:
        """The place, the set, and a folder's files."""
        settings = [self.place, self.revision, self.split, self.name, self.data_set, self.columns.query, self.columns.passage]
        return {"kind": "sentence-transformers", "version": VERSION, "place": settings, "files": local_identity(self.place, self.parts)}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, row by row."""
        yield from _column_pairs(part, self.name, self.columns, report)


@configurable("pair source")
class TrainingListPairs:
    """Pairs of the lists of ``sentence-transformers/embedding-training-data``; a pair's source is its file (``AllNLI`` of ``AllNLI.jsonl.gz``).

    A line is ``["text1", "text2"]``, ``["anchor", "positive", "negative"]``, ``{"set": [...]}`` (each text with the next one),
    or ``{"query": ..., "pos": [...], "neg": [...]}`` (a pair for each of ``pos``). Negatives are not read.

    Args:
        place: the data set on the Hub, or a folder with its files; those on the Hub are fetched one after the other.
        files: names such as ``AllNLI.jsonl.gz``; of a folder all by default, of the Hub, which has hundreds of GB, to be given.
        revision: commit on the Hub; of a folder it says nothing.
        name: of this reader.

    Raises:
        UserError: no such place or file, or a file whose first line is none of these.

    Source: https://huggingface.co/datasets/sentence-transformers/embedding-training-data
    """

    def __init__(
        self, place: str = TRAINING_LISTS, *, files: Sequence[str] | None = None, revision: str | None = None, name: str = "training-lists"
    ) -> None:
        if files is None and not is_folder(place):
            raise UserError(f"files: names none of the lists of {place}; give those that are to be read")
        self.place, self.files, self.revision, self.name = place, None if files is None else list(files), revision, name

    @cached_property
    def _files(self) -> list[str]:
        return list_files(self.place, self.files, self.revision)

    def parts(self) -> list[str]:
        """The files."""
        return self._files

    def fingerprint(self) -> dict[str, Any]:
        """The place, and a folder's files."""
        return {"kind": "training lists", "version": VERSION, "place": [self.place, self.revision, self.files], "files": local_identity(self.place, self.parts)}

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file, line by line."""
        source = list_name(part)
        for place, row in list_rows(part, report):
            pairs = [*zip(row.alike, row.alike[1:], strict=False), *((row.query, positive) for positive in row.positives)]
            report.skip(place, "no second text", 0 if pairs else 1)
            for query, passage in pairs:
                yield from candidate(report, query, passage, source=source, place=place)


def published_set(data_set: str) -> tuple[str, PublishedSet]:
    """``NAME/SUBSET`` and its columns; UserError for a set that the table does not have, or a subset that is to be chosen."""
    if data_set in SENTENCE_TRANSFORMERS:
        return data_set, SENTENCE_TRANSFORMERS[data_set]
    subsets = [name for name in SENTENCE_TRANSFORMERS if name.partition("/")[0] == data_set]
    if len(subsets) == 1:
        return subsets[0], SENTENCE_TRANSFORMERS[subsets[0]]
    if subsets:
        raise UserError(f"data_set: {data_set!r} has several subsets; name one of {', '.join(subsets)}")
    known = [*SENTENCE_TRANSFORMERS, *(name.partition("/")[0] for name in SENTENCE_TRANSFORMERS)]
    raise UserError(f"data_set: {data_set!r} is none of sentence-transformers' sets that are known here{suggestion(data_set, known)}")


def _column_pairs(file: str, source: str, columns: PublishedSet, report: ReadReport) -> Iterator[PairCandidate]:
    read = PairColumns.of(source, columns.query, columns.passage, None, None, ())
    first = 0
    for table in checked_tables(file, {columns.query: TEXT, columns.passage: TEXT}):
        yield from read.table_pairs(table, f"{file}:row ", first, report)
        first += table.num_rows

