"""Reciprocal rank fusion: several searchers' rankings as one, such as BM25's and an encoder's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.distributed.devices import inference_device
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.word_vectors import WordVectors
from lightning_e5.evaluation.beir.collection import Collection
from lightning_e5.evaluation.beir.metrics import rank_documents
from lightning_e5.evaluation.beir.retrieval import Searcher
from lightning_e5.files.storage import MANIFEST, read_manifest
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import TrainingRecord, read_record, record_of
from lightning_e5.ranges import Count, Length
from lightning_e5.retrieval.search import check_search, retrieve
from lightning_e5.types import Embedder, Kind, Run


def fuse(runs: Sequence[Run], constant: int = 60) -> Run:
    """Documents by the sum of ``1 / (constant + rank)`` over the runs that rank them; ranks from 1.

    Args:
        runs: one or more, over the same queries.
        constant: how little the first ranks stand out.

    Returns:
        query id -> document id -> score, best first, equal ones by falling id, for every query of any run.

    Source: Cormack et al. 2009.
    """
    fused: Run = {}
    for query in dict.fromkeys(query for run in runs for query in run):
        terms: dict[str, list[float]] = {}
        for run in runs:
            for rank, document in enumerate(rank_documents(run.get(query, {}), query), 1):
                terms.setdefault(document, []).append(1 / (constant + rank))
        scores = {document: math.fsum(values) for document, values in terms.items()}  # the runs' order changes nothing
        fused[query] = {document: scores[document] for document in rank_documents(scores, query)}
    return fused


@configurable("baseline")
class ReciprocalRankFusion:
    """The rankings of several models as one.

    Args:
        models: two or more, each with ``retrieve`` (BM25 ...) or ``embed`` (`StoredEncoder` ...).
        constant: see `fuse`.
        depth: documents that are taken of each model; more, where more are asked for.

    Raises:
        UserError: fewer than two models, one that neither embeds nor retrieves, or a number below 1.

    Source: Cormack et al. 2009, whose constant is 60.
    """

    def __init__(self, models: Sequence[Searcher | Embedder], *, constant: Count = 60, depth: Count = 100) -> None:
        if len(models) < 2:
            raise UserError(f"models: a fusion needs at least 2, not {len(models)}")
        for number, model in enumerate(models):
            if not hasattr(model, "retrieve") and not hasattr(model, "embed"):
                raise UserError(f"models[{number}]: {type(model).__name__} has neither 'embed' nor 'retrieve'")
        for name, value in (("constant", constant), ("depth", depth)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.models, self.constant, self.depth = list(models), constant, depth

    def fingerprint(self) -> list[Any]:
        """What the models say of their files."""
        return [model.fingerprint() if hasattr(model, "fingerprint") else None for model in self.models]

    @property
    def training_record(self) -> TrainingRecord | None:
        """All trainings of all models; None where one does not say."""
        return all_trainings([record_of(model) for model in self.models])

    def retrieve(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int = 100) -> Run:
        """Let every model search, and fuse; UserError as the models'."""
        check_search(corpus, k)
        depth = max(k, self.depth)
        runs = [
            model.retrieve(corpus, queries, depth) if hasattr(model, "retrieve") else retrieve(model, queries, corpus, depth)
            for model in self.models
        ]
        fused = fuse(runs, self.constant)
        return {query: dict(list(fused.get(query, {}).items())[:k]) for query in queries}


class FusedModels:
    """Models of one evaluation, fused: what they have found on its collection is not searched for again.

    Args:
        members: names of two or more models of the evaluation that search by themselves.
        constant: see `fuse`.
    """

    def __init__(self, members: Sequence[str], constant: int = 60) -> None:
        self.members, self.constant = list(members), constant
        self._collection: Collection | None = None
        self._fused: Run = {}

    def take(self, collection: Collection, runs: Mapping[str, Run]) -> None:
        """Fuse the runs of the members on a collection, which is the next one that is searched."""
        self._collection, self._fused = collection, fuse([runs[name] for name in self.members], self.constant)

    def retrieve(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int = 100) -> Run:
        """The first ``k`` of each query, of the collection or of one of its forums."""
        assert self._collection is not None
        forum = next((f"{name}/" for name, data in self._collection.forums.items() if data.corpus is corpus), "")
        ranked = {query: list(self._fused.get(forum + query, {}).items())[:k] for query in queries}
        return {query: {document.removeprefix(forum): score for document, score in found} for query, found in ranked.items()}


def all_trainings(records: Sequence[TrainingRecord | None]) -> TrainingRecord | None:
    """The trainings of several models as one record; None where one does not say."""
    known = [record for record in records if record is not None]
    if len(known) < len(records):
        return None
    return TrainingRecord(tuple(s for record in known for s in record.stages), all(r.known_start for r in known))


@configurable("baseline")
class StoredEncoder:
    """An `Embedder` from a folder, read at its first use: an encoder's, or averaged word vectors'.

    Args:
        path: the folder of a stage, of an encoder, or of word vectors.
        max_length: tokens per text, of an encoder; None for what it stores.

    Raises:
        UserError: on use, nothing of the kind is there.
    """

    def __init__(self, path: Path | str, *, max_length: Length | None = None) -> None:
        self.path, self.max_length = Path(path), max_length
        self._model: Embedder | None = None

    def fingerprint(self) -> list[Any]:
        """The files with sizes and times, those of a manifest with their sha256."""
        folder = self._folder()
        if (folder / MANIFEST).is_file():
            return [str(folder), read_manifest(folder)["files"]]
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]

    @property
    def training_record(self) -> TrainingRecord | None:
        """What the folder says of its training."""
        return read_record(self._folder())

    @property
    def similarity(self) -> str:
        """How the stored model's embeddings are compared."""
        return str(getattr(self._load(), "similarity", "cosine"))

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """float32 ``[N, D]``, as the stored model embeds."""
        return self._load().embed(texts, kind, normalize=normalize)

    def _load(self) -> Embedder:
        if self._model is None:
            folder = self._folder()
            if (folder / "word_vectors.safetensors").is_file():
                self._model = WordVectors.load(folder)
            else:
                self._model = TextEncoder.from_pretrained(folder, max_length=self.max_length).to(inference_device())
        return self._model

    def _folder(self) -> Path:
        inner = [self.path / name for name in ("encoder", "word_vectors")]
        return next((folder for folder in inner if folder.is_dir()), self.path)
