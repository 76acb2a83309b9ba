"""One figure, from the evaluation to the page: what a model reached on a collection, and what must be known to read it.

The evaluation makes rows, a run keeps them in ``table.json`` (retrieval) and ``tasks.json`` (all else), and whatever shows them
reads them back. The flat names of ``metrics.json`` are made from rows; nothing takes such a name apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lightning_e5.errors import UserError

#: Row of a retrieval task; its files say ``collection`` and ``queries`` where those of other tasks say ``set`` and ``items``.
RETRIEVAL = "retrieval"
#: The metric of retrieval that intervals and differences are given for.
MAIN_METRIC = "ndcg@10"
#: Fields of a `Comparison`, and what the files call them.
_FIELDS = ("difference", "low", "high", "p_value", "p_holm", "shown")
_DIFFERENCE = ("difference", "difference_low", "difference_high", "p_value", "p_holm", "verdict")
_TEXTS = ("prefix", "max_length", "truncated", "precision", "similarity", "prefix_ablation", "dimensions")
Encoder = TypeVar("Encoder")
_OVERLAP = ("pairs_seen", "tokens_seen", "contamination", "contaminated", "clean_items")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row's paired difference to another model on the same queries.

    ``model``: the other one, empty where it is the reference of the whole table; ``low`` and ``high``: the 95% interval;
    ``p_holm``: adjusted over the table; ``shown``: ``a is higher`` (the row's own model), ``b is higher`` or ``no difference shown``.
    """

    difference: float
    low: float
    high: float
    p_value: float | None
    p_holm: float | None
    shown: str
    model: str = ""

    def as_json(self) -> dict[str, Any]:
        """The keys of a file's row."""
        values = (self.difference, self.low, self.high, self.p_value, self.p_holm, self.shown)
        found = {key: value for key, value in zip(_DIFFERENCE, values, strict=True) if value is not None}
        return {"model": self.model, **found} if self.model else found

    @classmethod
    def of_json(cls, node: Mapping[str, Any]) -> Comparison:
        """What `as_json` gave."""
        return cls(**dict(zip(_FIELDS, map(node.get, _DIFFERENCE), strict=True)), model=node.get("model", ""))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class TextsRead:
    """How a model read a collection's texts; None where it knows no such thing (BM25 has no limit of tokens).

    ``prefix``: kind of text -> prefix; ``max_length``: tokens; ``truncated``: share of the texts that are longer; ``precision``:
    fp32 or bf16, what ran; ``similarity``: ``cosine`` or ``dot``; ``prefix_ablation``: the prefixes are not the model's own;
    ``dimensions``: the first values of an embedding that were compared, None for all of them.
    """

    prefix: Mapping[str, str] | None = None
    max_length: int | None = None
    truncated: float | None = None
    precision: str | None = None
    similarity: str = "cosine"
    prefix_ablation: bool = False
    dimensions: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The keys of a file's row."""
        found = {"prefix": self.prefix, "max_length": self.max_length, "truncated": self.truncated, "precision": self.precision}
        found |= {} if self.similarity == "cosine" else {"similarity": self.similarity}
        found |= {} if self.dimensions is None else {"dimensions": self.dimensions}
        return found | ({"prefix_ablation": True} if self.prefix_ablation else {})


@dataclass(frozen=True, slots=True)
class TrainingOverlap:
    """What a model has seen in training, and which of the test items were in it.

    ``pairs_seen`` and ``tokens_seen``: in all trainings of the weights, None where that is not known; ``status``: ``measured``,
    ``none`` (trained on nothing) or ``unknown``; ``seen``: ``share`` and ``count`` of the items, and counts by rule, None where
    unknown; ``clean_items``: items in no training text that the evaluation was given; ``clean``: the row's metric over those.
    """

    pairs_seen: int | None
    tokens_seen: int | None
    status: str
    seen: Mapping[str, float] | None
    clean_items: int | None
    clean: float | None


@dataclass(frozen=True)
class ResultRow:
    """One model on one collection by one task.

    Args:
        model: its name.
        collection: the test collection or set.
        task: ``retrieval``, ``sts``, ``classification`` ...
        metric: the main one.
        value: of it.
        low: lower end of its 95% interval, None where there is none.
        high: the upper end.
        queries: how many queries (pairs, texts: items) the interval is over.
        others: further metrics, by name.
        split: of the collection.
        texts: how the texts were read; None in rows of older runs, and of averages.
        overlap: with the training texts; None as ``texts``.
        difference: to the reference, None for the reference itself.
        previous: further comparisons, that with the step before first.
        published: metric -> figure of others.
        sets: of an average over collections: each one's value.
        facts: settings and counts that only this task has, by the names of the files.
        seconds: how long the evaluation took.
    """

    model: str
    collection: str
    task: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    queries: int | None = None
    others: Mapping[str, float] = field(default_factory=dict)
    split: str | None = None
    texts: TextsRead | None = None
    overlap: TrainingOverlap | None = None
    difference: Comparison | None = None
    previous: tuple[Comparison, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    sets: Mapping[str, float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = field(default=None, compare=False)

    @property
    def is_retrieval(self) -> bool:
        """Whether queries were searched in a collection: a row of ``table.json``."""
        return self.task == RETRIEVAL and self.sets is None

    @property
    def metrics(self) -> dict[str, float]:
        """Every figure by its name: the main one with ``_low``, ``_high`` and ``_clean`` (the score over items not seen), and the others."""
        found = {self.metric: self.value, **self.others}
        clean = None if self.overlap is None else self.overlap.clean
        ends = {"low": self.low, "high": self.high, "clean": clean}
        return found | {f"{self.metric}_{end}": value for end, value in ends.items() if value is not None}

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison with another model."""
        return (() if self.difference is None else (self.difference,)) + self.previous

    def as_json(self) -> dict[str, Any]:
        """The row as ``table.json`` and ``tasks.json`` have it."""
        named, counted = ("collection", "queries") if self.is_retrieval else ("set", "items")
        found = {"model": self.model, named: self.collection, "task": self.task, "metric": self.metric, "value": self.value}
        known = {"low": self.low, "high": self.high, counted: self.queries, "split": self.split}
        found |= {key: value for key, value in known.items() if value is not None}
        found |= {"others": dict(self.others), **self.facts}
        found |= {"sets": dict(self.sets)} if self.sets is not None else {}
        found |= self.texts.as_json() if self.texts is not None else {}
        if (seen := self.overlap) is not None:
            found |= {"pairs_seen": seen.pairs_seen, "tokens_seen": seen.tokens_seen, "contamination": seen.status}
            found |= {"contaminated": seen.seen, "clean_items": seen.clean_items, f"{self.metric}_clean": seen.clean}
        found |= self.difference.as_json() if self.difference is not None else {}
        found |= {"previous": [one.as_json() for one in self.previous]} if self.previous else {}
        if self.published:
            found["published"] = dict(self.published) if self.is_retrieval else self.published[self.metric]
        return found

    @classmethod
    def of_json(cls, node: Mapping[str, Any]) -> ResultRow:
        """What `as_json` gave; of a row of an older run its ``metric`` and ``value`` must be filled in before."""
        left: dict[str, Any] = dict(node)
        metric, sets = left.pop("metric"), left.pop("sets", None)
        named, counted = ("collection", "queries") if "collection" in left else ("set", "items")
        published = left.pop("published", None) or {}
        texts = overlap = None
        if "precision" in left:
            texts = TextsRead(**{key: left.pop(key) for key in _TEXTS if key in left})
        if "contamination" in left:
            overlap = TrainingOverlap(*(left.pop(key, None) for key in (*_OVERLAP, f"{metric}_clean")))
        compared = {key: left.pop(key) for key in _DIFFERENCE if key in left}
        return cls(
            model=left.pop("model"), collection=left.pop(named), task=left.pop("task", RETRIEVAL), metric=metric, value=left.pop("value"),
            low=left.pop("low", None), high=left.pop("high", None), queries=left.pop(counted, None), others=left.pop("others", None) or {},
            split=left.pop("split", None), texts=texts, overlap=overlap, sets=sets,
            difference=Comparison.of_json(compared) if compared.get("difference") is not None else None,
            previous=tuple(Comparison.of_json(one) for one in left.pop("previous", None) or ()),
            published=published if isinstance(published, Mapping) else {metric: published}, facts=left,
        )  # fmt: skip


def at_dimensions(encoders: Mapping[str, Encoder], dimensions: int | Sequence[int] | None) -> dict[str, tuple[Encoder, int | None]]:
    """Model -> what is evaluated under this name, and at how many first values of its embeddings (None for what it stores).

    Args:
        encoders: name -> encoder.
        dimensions: one number, at which every encoder is evaluated under its own name, or several, at each of which it is a model
            ``NAME@NUMBER``.

    Raises:
        UserError: a number or a name that is there twice.
    """
    if dimensions is None or isinstance(dimensions, int) or len(dimensions) == 1:
        alone = dimensions if dimensions is None or isinstance(dimensions, int) else dimensions[0]
        return {name: (encoder, alone) for name, encoder in encoders.items()}
    if not dimensions or len({*dimensions}) < len(dimensions):
        raise UserError(f"truncate_dim: {list(dimensions)}: {'a number is there twice' if dimensions else 'names no number'}")
    found: dict[str, tuple[Encoder, int | None]] = {f"{name}@{number}": (encoder, number) for name, encoder in encoders.items() for number in dimensions}
    if len(found) < len(encoders) * len(dimensions):
        raise UserError(f"truncate_dim: two models have one name ({', '.join(encoders)}, each followed by @NUMBER)")
    return found


def evaluated_encoders(stage: Mapping[str, Any]) -> dict[str, tuple[Any, int | None]]:
    """The models of an evaluation's node in a configuration, by `at_dimensions`: each one's reference and its dimension."""
    return at_dimensions((stage.get("inputs") or {}).get("encoders") or {}, stage.get("truncate_dim"))


def flat(rows: Iterable[ResultRow]) -> dict[str, float]:
    """The figures of all rows under the names of ``metrics.json``: ``<model>/<collection>/<metric>``."""
    return {f"{row.model}/{row.collection}/{name}": value for row in rows for name, value in row.metrics.items()}
