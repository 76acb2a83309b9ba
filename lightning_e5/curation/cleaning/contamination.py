"""Which test items a judged model has seen in training, and its scores without those that any training text holds.

A model says by content what it was trained on (`TrainingRecord`); the evaluation is given the places of training texts. A
share is measured only where all that a model has read is among them; of any other it is unknown, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_store import SHARDS, TABLE, PairStore
from lightning_e5.curation.cleaning.occurrences import Rule, TextOccurrences
from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.loaded_models import Judged
from lightning_e5.evaluation.tasks.task import Task, TaskResult
from lightning_e5.files.parquet import read_parquet
from lightning_e5.models.training_record import file_identity, texts_identity
from lightning_e5.progress import progress
from lightning_e5.text import TextsDigest

#: What an item is: the texts by any of which it is known, a query or the two sentences of a pair.
Item = tuple[str, ...]
#: Training rows read at once.
_ROWS = 8192
_SIDES = ("query", "passage")


@dataclass(frozen=True)
class JudgedQueries:
    """The judged queries of one collection.

    ``groups``: ids, in groups whose means count the same; ``texts``: id -> text; ``per_query``: model -> metric -> id ->
    value.
    """

    groups: Sequence[Sequence[str]]
    texts: Mapping[str, str]
    per_query: Mapping[str, Mapping[str, Mapping[str, float]]]

    def items(self) -> list[Item]:
        """The queries, group after group."""
        return [(self.texts[query],) for group in self.groups for query in group]

    def clean_means(self, model: str, clean: NDArray[np.bool_]) -> dict[str, float]:
        """Metric -> mean over the groups of the means over their clean queries; empty where there is none.

        Args:
            model: whose values.
            clean: bool ``[items]``.
        """
        kept = [list(group) for group in self.groups]
        flags = iter(clean)
        kept = [found for group in kept if (found := [query for query in group if next(flags)])]
        values = self.per_query[model]
        return {m: float(np.mean([np.mean([v[q] for q in group]) for group in kept])) for m, v in values.items()} if kept else {}


@dataclass(frozen=True)
class Occurrence:
    """The items of one set that one model has seen.

    ``status``: ``measured``, ``none`` (the model was trained on nothing) or ``unknown``; ``items`` and ``clean``: how many
    items there are, and how many of them are in no training text at all; ``seen``: by rule, of `Rule`'s names and ``any``.
    """

    status: str
    items: int
    clean: int | None
    seen: dict[str, int] | None

    def row(self) -> dict[str, Any]:
        """The keys of a result's row: ``contamination``, ``contaminated`` (counts and share) and ``clean_items``."""
        found = None if self.seen is None else {"share": self.seen["any"] / max(1, self.items), "count": self.seen["any"]}
        if found is not None and self.status == "measured":
            assert self.seen is not None
            found |= {name: count for name, count in self.seen.items() if name != "any"}
        return {"contamination": self.status, "contaminated": found, "clean_items": self.clean}


class Contamination:
    """The test items of all sets, looked for once in all training texts.

    Args:
        collections: name -> the judged queries of a collection.
        tasks: the other sets.
        training: name -> a folder of pairs, or a ``ranked.parquet``; none: nothing is measured and no score has a clean
            part.
        trained_on: model -> names of ``training`` that it read, for models that do not say so themselves.

    Raises:
        UserError: a damaged file of training texts.
    """

    def __init__(
        self,
        collections: Mapping[str, JudgedQueries],
        tasks: Sequence[Task],
        training: Mapping[str, Path],
        trained_on: Mapping[str, Sequence[str]],
    ) -> None:
        self._collections, self._trained_on = collections, trained_on
        self._sets = {name: queries.items() for name, queries in collections.items()} | {t.name: list(t.items()) for t in tasks}
        self._training = tuple(training)
        self._identity: dict[str, str] = {}
        texts = list(dict.fromkeys(text for items in self._sets.values() for item in items for text in item))
        number = {text: place for place, text in enumerate(texts)}
        search = TextOccurrences(texts)
        flags_TN = np.zeros((len(training), len(texts)), dtype=np.uint8)
        for row, (name, place) in enumerate(training.items()):
            reader = _reader(place)
            with progress(reader.rows, f"look for the test texts in {name}", "row") as bar:
                flags_TN[row] = search.find(reader.texts(bar))
            self._identity[reader.identity()] = name
        #: set -> uint8 ``[training, items]``: rules that hold of any of an item's texts.
        self._flags = {name: _of_items(flags_TN, items, number) for name, items in self._sets.items()}

    def of(self, model: str, judged: Judged, name: str) -> Occurrence:
        """What one model has seen of one set."""
        items = len(self._sets[name])
        clean = int(self.clean(name).sum()) if self._training else None
        read = self._read_by(model, judged)
        if read is None:
            return Occurrence("unknown", items, clean, None)
        if not read:
            return Occurrence("none", items, clean, {"any": 0})
        rows = [self._training.index(one) for one in read]
        flags = np.bitwise_or.reduce(self._flags[name][rows], axis=0)
        seen = {"any": int((flags != 0).sum())} | {str(rule.name).lower(): int(((flags & rule) != 0).sum()) for rule in Rule}
        return Occurrence("measured", items, clean, seen)

    def clean(self, name: str) -> NDArray[np.bool_]:
        """bool ``[items]``: those of a set that no training text holds; one subset for all models, so that scores compare."""
        found: NDArray[np.bool_] = ~np.any(self._flags[name], axis=0)
        return found

    def retrieval(self, table: Sequence[dict[str, Any]], models: Mapping[str, Judged], metric: str) -> dict[str, float]:
        """Add to the rows of the retrieval table, with ``<metric>_clean`` of the main metric; the flat metrics of all."""
        flat: dict[str, float] = {}
        for row in table:
            model, name = row["model"], row["collection"]
            row |= self.of(model, models[model], name).row()
            means = self._collections[name].clean_means(model, self.clean(name)) if self._known(row) else {}
            row[f"{metric}_clean"] = means.get(metric)
            flat |= {f"{model}/{name}/{measure}_clean": value for measure, value in means.items()}
        return flat

    def task(self, row: dict[str, Any], judged: Judged, result: TaskResult) -> dict[str, float]:
        """As `retrieval`, for one row of the tasks' table."""
        model, name = row["model"], row["set"]
        row |= self.of(model, judged, name).row()
        value = None
        if self._known(row) and result.measure is not None:
            kept = np.flatnonzero(self.clean(name))
            found = result.measure(kept) if len(kept) else float("nan")
            value = None if np.isnan(found) else float(found)
        row[f"{result.metric}_clean"] = value
        return {} if value is None else {f"{model}/{name}/{result.metric}_clean": value}

    def _known(self, row: Mapping[str, Any]) -> bool:
        return bool(self._training) and row["contamination"] != "unknown"

    def _read_by(self, model: str, judged: Judged) -> list[str] | None:
        """Names of the training texts that the model read; None where they are not known or not all here."""
        if model in self._trained_on:
            return list(self._trained_on[model])
        texts = None if judged.training is None else judged.training.texts
        if texts is None or not texts <= set(self._identity):
            return None
        return [self._identity[one] for one in sorted(texts)]


def check_training_texts(
    training: Mapping[str, Path], trained_on: Mapping[str, Sequence[str]], models: Mapping[str, object]
) -> None:
    """UserError, before anything is computed, for a place without training texts and for a wrong name in ``trained_on``."""
    for place in training.values():
        _reader(place)
    for model, names in trained_on.items():
        if model not in models:
            raise UserError(f"evaluate.trained_on: {model!r} is not one of the models{suggestion(model, models)}")
        for name in names:
            if name not in training:
                raise UserError(f"evaluate.trained_on.{model}: {name!r} is not one of the training texts{suggestion(name, training)}")


class _Pairs:
    """The texts of a folder of pairs."""

    def __init__(self, folder: Path) -> None:
        self.store = PairStore(folder)
        self.rows = self.store.rows
        self.digests = {side: TextsDigest() for side in _SIDES}

    def texts(self, bar: Any) -> Iterator[str]:
        for table in self.store.iter_batches(_SIDES, _ROWS):
            for side in _SIDES:
                texts = table[side].to_pylist()
                self.digests[side].update(texts)
                yield from texts
            bar(len(table))

    def identity(self) -> str:
        """By content, once all texts were read."""
        return texts_identity({side: digest.hexdigest() for side, digest in self.digests.items()})


class _Ranked:
    """The texts of ranked groups: queries, positives and negatives."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, None

    def texts(self, bar: Any) -> Iterator[str]:
        table = read_parquet(self.path, {"query": "string", "positive": "string", "negatives": "list<string>"})
        for first in range(0, len(table), _ROWS):
            part = table.slice(first, _ROWS)
            yield from part["query"].to_pylist()
            yield from part["positive"].to_pylist()
            for negatives in part["negatives"].to_pylist():
                yield from negatives or ()
            bar(len(part))

    def identity(self) -> str:
        return file_identity(self.path)


def _reader(place: Path) -> _Pairs | _Ranked:
    if place.is_file() and place.suffix == ".parquet":
        return _Ranked(place)
    if place.is_dir() and any((place / name).exists() for name in (TABLE, SHARDS)):
        return _Pairs(place)
    raise UserError(f"evaluate.training_texts: {place}: is no folder of pairs and no Parquet file of ranked groups")


def _of_items(flags_TN: NDArray[np.uint8], items: Sequence[Item], number: Mapping[str, int]) -> NDArray[np.uint8]:
    found = np.zeros((len(flags_TN), len(items)), dtype=np.uint8)
    for place, item in enumerate(items):
        for text in item:
            found[:, place] |= flags_TN[:, number[text]]
    return found
