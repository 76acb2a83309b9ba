"""Which test items a model has seen in training, and its scores without those that any training text holds.

A model says by content what it was trained on (`TrainingRecord`); the evaluation is given the places of training texts. A
share is measured only where all that a model has read is among them; of any other it is unknown, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_modules.pair_store import SHARDS, TABLE, PairStore
from lightning_e5.curation.cleaning.occurrences import Rule, TextOccurrences
from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.loaded_models import LoadedModel
from lightning_e5.evaluation.tasks.task import TaskResult
from lightning_e5.files.parquet import iter_parquet, parquet_rows
from lightning_e5.models.training_record import file_identity, texts_identity
from lightning_e5.progress import progress
from lightning_e5.result_row import TrainingOverlap
from lightning_e5.text import TextsDigest
from lightning_e5.types import Metrics

#: What an item is: the texts by any of which it is known, a query or the two sentences of a pair.
Item = tuple[str, ...]
#: Training rows read at once.
_ROWS = 8192
_SIDES = ("query", "passage")


class Contamination:
    """The test items of all sets, looked for once in all training texts.

    Args:
        items: set -> its items.
        training: name -> a folder of pairs, or a ``ranked.parquet``; none: nothing is measured and no score has a clean
            part.
        trained_on: model -> names of ``training`` that it read, for models that do not say so themselves.

    Raises:
        UserError: a damaged file of training texts.
    """

    def __init__(self, items: Mapping[str, Sequence[Item]], training: Mapping[str, Path], trained_on: Mapping[str, Sequence[str]]) -> None:
        self._sets, self._trained_on = items, trained_on
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

    def of(self, model: str, loaded: LoadedModel, name: str, result: TaskResult) -> tuple[TrainingOverlap, Metrics]:
        """What one model has seen of one set, with the main metric over the items that no training text holds (one subset for
        all models, so that scores compare), and the further metrics over those, as ``<metric>_clean``."""
        read = self._read_by(model, loaded)
        seen = None if read is None else self._seen(name, read)
        status = "unknown" if read is None else "measured" if read else "none"
        clean = np.flatnonzero(~np.any(self._flags[name], axis=0)) if self._training else None
        found = {} if clean is None or read is None else result.over(clean)
        record = loaded.training
        pairs, tokens = (None, None) if record is None else (record.pairs_seen, record.tokens_seen)
        overlap = TrainingOverlap(pairs, tokens, status, seen, None if clean is None else len(clean), found.pop(result.metric, None))
        return overlap, {f"{metric}_clean": value for metric, value in found.items()}

    def _seen(self, name: str, read: Sequence[str]) -> dict[str, float]:
        """Share and count of a set's items that lie in the training texts ``read``; of any texts also by rule."""
        flags = np.bitwise_or.reduce(self._flags[name][[self._training.index(one) for one in read]], axis=0)
        count = int((flags != 0).sum())
        found: dict[str, float] = {"share": count / max(1, len(self._sets[name])), "count": count}
        return found | ({str(rule.name).lower(): int(((flags & rule) != 0).sum()) for rule in Rule} if read else {})

    def _read_by(self, model: str, loaded: LoadedModel) -> list[str] | None:
        """Names of the training texts that the model read; None where they are not known or not all here."""
        if model in self._trained_on:
            return list(self._trained_on[model])
        texts = None if loaded.training is None else loaded.training.texts
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
        columns = {"query": "string", "positive": "string", "negatives": "list<string>"}
        if not parquet_rows(self.path, columns):
            raise UserError(f"{self.path}: has no rows")
        for part in iter_parquet(self.path, columns, _ROWS):
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
