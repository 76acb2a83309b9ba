"""Blocks of embeddings and of cross-encoder scores as tasks of an engine: what costs most, on as many workers as there are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_e5.curation.engines.blocks import KeptBlocks, write_block
from lightning_e5.curation.engines.engine import Engine
from lightning_e5.curation.mining.candidates import TEXTS
from lightning_e5.curation.mining.collections import MiningData
from lightning_e5.curation.mining.teacher_scores import GROUPS, padded_scores
from lightning_e5.distributed.devices import Precision
from lightning_e5.memory import inference_device
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.pair_scorer import load_pair_scorer
from lightning_e5.models.sequence_classifier import SequenceClassifier
from lightning_e5.types import Kind, compares_by_cosine


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """What `load_pair_scorer` is given."""

    teacher: str
    max_length: int | None
    passage_format: str
    precision: Precision


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """A bi-encoder's folder, tokens per text (None: as stored) and precision."""

    folder: Path
    max_length: int | None
    precision: Precision


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Score some groups; the logits go to ``path``."""

    name: str
    path: Path
    scorer: ScorerSettings
    queries: Sequence[str]
    groups: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class EmbedTask:
    """Embed some texts; the unit rows go to ``path``."""

    name: str
    path: Path
    encoder: EncoderSettings
    kind: Kind
    texts: Sequence[str]


def score_on(
    engine: Engine, scorer: ScorerSettings, queries: Sequence[str], groups: Sequence[Sequence[str]], blocks: KeptBlocks,
    gpus_per_task: int = 0,
) -> None:  # fmt: skip
    """Compute the blocks that `group_scores` would find missing, by tasks."""
    missing = blocks.missing("scores", len(queries), GROUPS)
    tasks = [ScoreTask(f"groups {p.start} to {p.stop}", path, scorer, queries[p], groups[p]) for path, p in missing]
    for _ in engine.map(score_block, tasks, title="score", gpus_per_task=gpus_per_task) if tasks else ():
        pass


def embed_on(
    engine: Engine, encoder: EncoderSettings, data: MiningData, blocks: KeptBlocks, *, passage_kind: Kind,
    gpus_per_task: int = 0,
) -> None:  # fmt: skip
    """Compute the blocks of embeddings that `dense_candidates` would find missing, by tasks."""
    sides: tuple[tuple[str, Sequence[str], Kind], ...] = (("queries", data.queries, "query"), ("passages", data.corpus, passage_kind))
    tasks = [
        EmbedTask(f"{name} {part.start} to {part.stop}", path, encoder, kind, texts[part])
        for name, texts, kind in sides
        for path, part in blocks.missing(name, len(texts), TEXTS)
    ]
    for _ in engine.map(embed_block, tasks, title="embed", gpus_per_task=gpus_per_task) if tasks else ():
        pass


def score_block(task: ScoreTask) -> int:
    """Write the logits; returns the number of groups."""
    write_block(task.path, {"scores": padded_scores(task.queries, task.groups, _scorer(task.scorer))})
    return len(task.queries)


def embed_block(task: EmbedTask) -> int:
    """Write the embeddings; returns the number of texts."""
    model = _encoder(task.encoder)
    write_block(task.path, {"embeddings": model.embed(task.texts, task.kind, normalize=compares_by_cosine(model)).numpy()})
    return len(task.texts)


def load_scorer(settings: ScorerSettings) -> CrossEncoder | SequenceClassifier:
    """The cross-encoder, on this process's GPU where it has one."""
    model = load_pair_scorer(
        settings.teacher, max_length=settings.max_length, passage_format=settings.passage_format, precision=settings.precision
    )
    return model.to(inference_device())


#: A worker loads its model once.
_scorer = functools.lru_cache(maxsize=1)(load_scorer)


def load_encoder(settings: EncoderSettings) -> TextEncoder:
    """The bi-encoder, on this process's GPU where it has one."""
    encoder = TextEncoder.from_pretrained(settings.folder, max_length=settings.max_length, precision=settings.precision)
    return encoder.to(inference_device())


_encoder = functools.lru_cache(maxsize=1)(load_encoder)
