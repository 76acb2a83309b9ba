"""What an encoder is evaluated on while it trains: any sets of an evaluation, tokenised once, embedded by all ranks together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_e5.config.experiment import outside_path
from lightning_e5.configurable import configurable
from lightning_e5.distributed.collectives import gather, rank, world_size
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.nano import NANO_HUB, load_nano_beir, nano_set_names
from lightning_e5.evaluation.load_tasks import TaskSettings, load_tasks
from lightning_e5.evaluation.tasks.retrieval import CollectionTask
from lightning_e5.evaluation.tasks.task import EvalTask, items_identity
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import SEVERAL
from lightning_e5.ranges import Length
from lightning_e5.result_row import MAIN_METRIC
from lightning_e5.text import texts_digest
from lightning_e5.types import Embedder, Kind, TokenBatch

#: Documents retrieved per query: those that nDCG@10 looks at.
_K = 10


class _Sets:
    """Sets that are read once, and tokenised once for each model."""

    def __init__(self, max_length: int | None) -> None:
        self.max_length = max_length
        self._tasks: list[EvalTask] | None = None
        self._embedder: _TokenisedOnce | None = None

    def tasks(self) -> list[EvalTask]:
        """The tasks, read once."""
        if self._tasks is None:
            self._tasks = self._read()
        return self._tasks

    def _read(self) -> list[EvalTask]:
        raise NotImplementedError

    def values(self, model: TextEncoder) -> dict[str, float]:
        """``<set>/<metric>`` -> value, of the encoder's weights as they are; a collective call."""
        if self._embedder is None or self._embedder.encoder is not model:
            self._embedder = _TokenisedOnce(model, self.max_length)
        return {f"{task.name}/{metric}": value for task in self.tasks() for metric, value in [main_value(task, self._embedder)]}

    def identities(self) -> dict[str, str]:
        """Set -> the name by content of what is evaluated on."""
        return {task.name: items_identity(task) for task in self.tasks()}


@configurable("validation task")
class EvaluateOn(_Sets):
    """Sets of any kind that `lightning_e5.stages.evaluate.evaluate` takes, by its arguments; each gives its main metric.

    Args:
        collections: name -> folder in BEIR layout (nDCG@10).
        sts: name -> file of sentence pairs (Spearman's correlation).
        classification, clustering, pair_classification, reranking: name -> folder or file.
        split: of the judgements, of the classification sets, and of every other file that has a column ``split``.
        max_length: tokens per text; by default the encoder's.

    Raises:
        UserError: no set, or one that is damaged or not there.
    """

    def __init__(
        self,
        *,
        collections: Mapping[str, Path] | None = None,
        sts: Mapping[str, Path] | None = None,
        classification: Mapping[str, Path] | None = None,
        clustering: Mapping[str, Path] | None = None,
        pair_classification: Mapping[str, Path] | None = None,
        reranking: Mapping[str, Path] | None = None,
        split: str = "test",
        max_length: Length | None = None,
    ) -> None:
        given = {
            "collections": collections, "sts": sts, "classification": classification, "clustering": clustering,
            "pair_classification": pair_classification, "reranking": reranking,
        }  # fmt: skip
        self.places = {kind: {name: _place(place) for name, place in (places or {}).items()} for kind, places in given.items()}
        super().__init__(max_length)
        self.split = split

    def _read(self) -> list[EvalTask]:
        return list(load_tasks(self.places, TaskSettings(self.split, metrics=[MAIN_METRIC], k=_K)))


@configurable("validation task")
class NanoBEIR(_Sets):
    """NanoBEIR's sets (nDCG@10 of each), and first the mean over them, which is what is monitored by default.

    Args:
        place: folder of their Parquet files, or their name on the Hub (see `load_nano_beir`).
        sets: some of them, such as ``nano-msmarco``; all 13 by default.
        name: of the mean.
        max_length: tokens per text; by default the encoder's.

    Raises:
        UserError: as `load_nano_beir`.
    """

    def __init__(self, *, place: str = NANO_HUB, sets: Sequence[str] = (), name: str = "nano_beir", max_length: Length | None = None) -> None:
        nano_set_names(place, sets)  # refuses other names before anything is fetched
        super().__init__(max_length)
        self.place, self.sets, self.name = place, sets, name

    def _read(self) -> list[EvalTask]:
        return [CollectionTask(collection, _K, [MAIN_METRIC]) for collection in load_nano_beir(self.place, self.sets)]

    def values(self, model: TextEncoder) -> dict[str, float]:
        """The mean, then ``<set>/ndcg@10`` of each, of the encoder's weights as they are; a collective call."""
        values = super().values(model)
        return {f"{self.name}/{MAIN_METRIC}": math.fsum(values.values()) / len(values)} | values

    def identities(self) -> dict[str, str]:
        """The mean and each set -> the name by content of what is evaluated on."""
        found = super().identities()
        return {self.name: SEVERAL.join(found.values())} | found


def main_value(task: EvalTask, embedder: Embedder) -> tuple[str, float]:
    """A task's main metric and its value, of a collection without an interval, which costs more than its search."""
    if isinstance(task, CollectionTask):
        return MAIN_METRIC, task.collection.evaluate(embedder, k=_K, metrics=[MAIN_METRIC]).metrics[MAIN_METRIC]
    result = task.evaluate(embedder, seed=0)
    return result.metric, result.value


class _TokenisedOnce:
    """An `Embedder` that is given the same texts again and again; each rank embeds its share of them."""

    def __init__(self, encoder: TextEncoder, max_length: int | None) -> None:
        self.encoder, self.tokenizer = encoder, encoder.tokenizer.cut_at(max_length)
        self._tokens: dict[tuple[Kind, str], TokenBatch] = {}

    @property
    def similarity(self) -> str:
        """How its embeddings are compared."""
        return getattr(self.encoder, "similarity", "cosine")

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """float32 ``[N, D]``, the same on every rank; a collective call."""
        key = (kind, texts_digest(texts))
        if key not in self._tokens:
            ids, lengths = self.tokenizer.encode(texts[rank() :: world_size()], kind)
            self._tokens[key] = TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))
        own = self._tokens[key]
        share = -(-len(texts) // world_size())
        padded_SD = torch.zeros(share, self.encoder.width, device="cpu")
        if len(own.lengths_B):
            padded_SD[: len(own.lengths_B)] = self.encoder.embed_tokens(own, self.encoder.prompt_of(kind), normalize=normalize)
        if world_size() == 1:
            return padded_SD
        device = next(self.encoder.parameters()).device
        whole_ND = gather(padded_SD.to(device)).cpu()  # rank after rank; text i is the rank (i mod ranks)'s
        return whole_ND.view(world_size(), share, -1).transpose(0, 1).reshape(world_size() * share, -1)[: len(texts)]


def _place(place: Path | str) -> Path:
    if isinstance(place, Path):
        return place
    found = outside_path(place) or Path(place).expanduser()
    if not found.exists():
        raise UserError(f"{found}: no such file or folder to validate on")
    return found
