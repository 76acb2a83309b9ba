"""The rows, batches and protocols that the layers exchange.

Rows are frozen dataclasses. Batches are NamedTuples: Lightning moves a NamedTuple to the device and raises on a
frozen dataclass.

Legend of shape suffixes, used in the whole project: ``B`` queries of this rank, ``P`` passages, ``G`` passages per
query (1 positive + hard negatives), ``T`` tokens, ``D`` embedding width, ``K`` queue, ``V`` vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from lightning_e5.configurable import configurable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor

Kind = Literal["query", "passage"]

#: query id -> document id -> relevance grade (0 = judged not relevant).
Qrels = dict[str, dict[str, int]]
#: query id -> document id -> score (higher is better).
Run = dict[str, dict[str, float]]
#: metric name -> value, flat; names such as ``e5/python-docs/ndcg@10``.
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class TextPair:
    """One (query, passage) pair of weak supervision (paper section 3.1).

    Example:
        >>> TextPair("sort a list", "list.sort() sorts the list in place.", source="python-docs").passage_kind
        'passage'
    """

    query: str
    passage: str
    source: str
    passage_kind: Kind = "passage"


@dataclass(frozen=True, slots=True)
class PairCandidate:
    """A pair as a source extracts it, before any heuristic has seen it.

    id: where it comes from (a post's id, a page's address), for reports. facts: what the source knows beside the texts
    and heuristics may ask for: ``score`` (votes), ``over_18`` (bool), ``language`` (ISO 639-1), ``perplexity``, ``url``;
    ``same_text`` (bool) for a pair whose texts are equal on purpose.
    """

    query: str
    passage: str
    source: str
    id: str = ""
    passage_kind: Kind = "passage"
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class ReadReport:
    """What reading files gave: counts by name (``records``, ``pairs``, ``bad: <reason>``, ``skipped: <reason>``), the
    first bad records as (place such as ``file:line``, reason), and of every such count the place of its first record."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str]] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)

    def reject(self, place: str, reason: str) -> None:
        """Count a bad record; the first 20 places are kept."""
        self._count(f"bad: {reason}", place, 1)
        if len(self.bad) < 20:
            self.bad.append((place, reason))

    def skip(self, place: str, reason: str, records: int = 1) -> None:
        """Count records that give nothing though nothing is wrong with them."""
        if records:
            self._count(f"skipped: {reason}", place, records)

    def _count(self, name: str, place: str, records: int) -> None:
        self.counts[name] += records
        self.first.setdefault(name, place)

    def add(self, other: ReadReport) -> None:
        """Add another report's counts and places."""
        self.counts.update(other.counts)
        self.bad.extend(other.bad[: 20 - len(self.bad)])
        self.first = {**other.first, **self.first}

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON object, which `of_json` reads."""
        return {"counts": dict(self.counts), "bad": [list(entry) for entry in self.bad], "first": dict(self.first)}

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> ReadReport:
        """The report that `as_json` gave."""
        return cls(Counter(found["counts"]), [(place, reason) for place, reason in found["bad"]], dict(found.get("first", {})))

    def warnings(self, source: str, made: int, unit: str = "pair") -> list[str]:
        """Sentences for a user whose files may be other ones than the reader is made for.

        Args:
            source: the source's name, which they begin with.
            made: pairs or examples that reading gave.
            unit: what they are.

        Returns:
            One where nothing was made, and one per reason that more than half of the records were left out for.
        """
        records = self.counts["records"]
        left_out = [(n, name) for name, n in self.counts.most_common() if name.startswith(("bad: ", "skipped: ")) and n]
        if not made:
            why = "".join(f"; {n:,} times {name}, first at {self.first.get(name) or 'an unknown place'}" for n, name in left_out[:1])
            return [f"{source}: gives no {unit} from {records:,} records{why}"]
        found = []
        for n, name in left_out:
            total = records if n <= records else n + made  # a record may be many pairs, each left out alone
            if 2 * n > total:
                found.append(f"{source}: {n:,} of {total:,} records are {name}; the first is {self.first.get(name) or 'at an unknown place'}")
        return found


@dataclass(frozen=True, slots=True)
class RankedExample:
    """A query with its positives, hard negatives and, where a teacher scored them, one logit per passage.

    ``teacher_scores`` follows the order positives then negatives; ``None`` where there is no teacher (NLI).
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    teacher_scores: tuple[float, ...] | None
    source: str
    passage_kind: Kind = "passage"


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """A query with one positive and its hard negatives: a row of ``ranked.parquet``.

    ``teacher_scores`` and ``retriever_scores`` (by which mining found the passages; NaN for one that was not retrieved): the
    positive's, then one per negative; ``None`` without a teacher, or without mining.
    """

    query: str
    positive: str
    negatives: tuple[str, ...]
    teacher_scores: tuple[float, ...] | None = None
    source: str = ""
    passage_kind: Kind = "passage"
    retriever_scores: tuple[float, ...] | None = None


class TokenBatch(NamedTuple):
    """Texts as one run of tokens, without padding.

    ids_T: int64 ``[T]`` token ids, text after text; lengths_B: int64 ``[B]`` tokens of each text, all >= 1, on the host.
    """

    ids_T: Tensor
    lengths_B: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """The tokens on a device; Lightning moves a batch by this method.

        The lengths stay on the host, where every step sorts by them and cuts chunks: read from a GPU, they would make it wait for
        all that the GPU was told to do before.
        """
        waits = str(device).partition(":")[0] in ("cpu", "mps")
        return self._replace(ids_T=self.ids_T.to(device, non_blocking=not waits))


class PairBatch(NamedTuple):
    """One step's rows on this rank: ``B`` queries, ``P = B * G`` passages (a query's positive first, then its negatives).

    query_text_B / passage_text_P: int64 ids of the normalised texts (equal texts have equal ids), by which duplicates
    of a positive are kept out of the negatives. rows_B: int64 row numbers in the data set, for messages.
    teacher_BG: float32 teacher logits, NaN in rows without a teacher; ``None`` in pre-training.
    """

    queries: TokenBatch
    passages: TokenBatch
    query_text_B: Tensor
    passage_text_P: Tensor
    rows_B: Tensor
    teacher_BG: Tensor | None = None


class LossOutput(NamedTuple):
    """A loss and what is logged with it; all float32 scalars without graph but ``loss``. ``logs``: further values by name."""

    loss: Tensor
    accuracy: Tensor
    masked_fraction: Tensor
    logs: Mapping[str, float | Tensor] = MappingProxyType({})


@configurable("baseline")
class Embedder(Protocol):
    """Texts to embeddings."""

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """Return float32 ``[N, D]`` on the CPU, one row per text; the prefix of ``kind`` is added here."""
        ...


def compares_by_cosine(embedder: object) -> bool:
    """Whether an embedder's texts are compared by cosine, so that search takes unit rows; False for one whose ``similarity`` is
    ``dot``, which is searched with its rows as they are."""
    return getattr(embedder, "similarity", "cosine") == "cosine"


class PairScorer(Protocol):
    """(query, passage) texts to relevance logits."""

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> Tensor:
        """Return float32 ``[N]`` logits; ``queries`` and ``passages`` have equal length."""
        ...


@configurable("pair source")
class PairFiles(Protocol):
    """Files of one kind of source, read part by part, each part by any process, in bounded memory."""

    name: str

    def parts(self) -> Sequence[Any]:
        """Independent parts of the work, in a fixed order: files by their names, or values whose text names them in manifests."""
        ...

    def read(self, part: Any, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one part, always the same ones in the same order; what cannot be read is in ``report``."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides the pairs: the files' names, sizes and times, and the settings."""
        ...


@configurable("heuristic")
class PairHeuristic(Protocol):
    """A named rule on single pairs."""

    name: str

    def __call__(self, pair: PairCandidate) -> bool:
        """Whether the pair stays."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides the rule's answers."""
        ...


@configurable("pair source")
class PairSource(Protocol):
    """A stream of text pairs."""

    name: str

    def __iter__(self) -> Iterator[TextPair]: ...


@configurable("ranked source")
class RankedSource(Protocol):
    """Queries with their positives and, where the source has them, hard negatives and a teacher's scores.

    A source whose examples have no negatives may have ``corpus() -> Iterator[str]``, the passages to mine them among.
    """

    name: str

    def read(self, report: ReadReport) -> Iterator[RankedExample]:
        """The examples, always the same ones in the same order; what cannot be read is in ``report``."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides the examples: the files' names, sizes and times, and the settings."""
        ...
