"""What parts are computed with: an encoder's embeddings and a cross-encoder's scores, as functions of `run_parts`.

A model that a folder names is loaded at its first use and kept with the object that holds it, so a worker loads it once, and this process no
longer than its work lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_e5.curation.engines.run_parts import Progress
from lightning_e5.distributed.devices import Precision, inference_device
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.pair_scorer import load_pair_scorer
from lightning_e5.models.sequence_classifier import SequenceClassifier
from lightning_e5.text import Prefixes
from lightning_e5.types import Kind, PairScorer, compares_by_cosine


@dataclass(frozen=True)
class EmbedBy:
    """As `EmbedTexts`, by an encoder that is loaded."""

    model: TextEncoder

    def __call__(self, work: tuple[Kind, Sequence[str]], progress: Progress) -> dict[str, NDArray[np.float32]]:
        return {"embeddings": embedded(self.model, work[1], work[0], progress).numpy()}


def embedded(model: TextEncoder, texts: Sequence[str], kind: Kind, progress: Progress, normalize: bool | None = None) -> torch.Tensor:
    """``[N, D]`` on the CPU, compared as the encoder was trained to where ``normalize`` does not say."""
    return model.embed(texts, kind, normalize=compares_by_cosine(model) if normalize is None else normalize, progress=progress)


@dataclass(frozen=True)
class EmbedTexts:
    """(kind, texts) -> ``embeddings`` float32 ``[N, D]``: unit rows, or as they are where the encoder compares by dot product.

    Args:
        folder: of a bi-encoder.
        max_length: tokens per text; None as stored with it.
        precision: of the backbone.
        device: ``auto`` is this process's GPU where it has one.
        prefixes: put before the texts; None as stored with it.
        normalize: unit rows; None where the encoder compares by cosine.
        truncate_dim: the first values of the embeddings alone; None as stored with it.
    """

    folder: Path
    max_length: int | None
    precision: Precision
    device: str = "auto"
    prefixes: Prefixes | None = None
    normalize: bool | None = None
    truncate_dim: int | None = None

    @property
    def torch_device(self) -> torch.device:
        """Where it runs."""
        return inference_device(self.device)

    @cached_property
    def model(self) -> TextEncoder:
        """The encoder, loaded."""
        encoder = TextEncoder.from_pretrained(
            self.folder, prefixes=self.prefixes, max_length=self.max_length, precision=self.precision, truncate_dim=self.truncate_dim
        )
        return encoder.to(self.torch_device)

    def embed(self, texts: Sequence[str], kind: Kind, progress: Progress) -> torch.Tensor:
        """See `embedded`."""
        return embedded(self.model, texts, kind, progress, self.normalize)

    def __call__(self, work: tuple[Kind, Sequence[str]], progress: Progress) -> dict[str, NDArray[np.float32]]:
        kind, texts = work
        return {"embeddings": self.embed(texts, kind, progress).numpy()}


@dataclass(frozen=True)
class ScoreGroups:
    """(queries, groups of passages) -> ``scores`` float32 ``[Q, longest group]``, NaN after the end of a group.

    Args: see `load_pair_scorer`.
    """

    teacher: str
    max_length: int | None
    passage_format: str
    precision: Precision

    @cached_property
    def model(self) -> CrossEncoder | SequenceClassifier:
        """The cross-encoder, loaded."""
        scorer = load_pair_scorer(self.teacher, max_length=self.max_length, passage_format=self.passage_format, precision=self.precision)
        return scorer.to(inference_device())

    def __call__(self, work: tuple[Sequence[str], Sequence[Sequence[str]]], progress: Progress) -> dict[str, NDArray[np.float32]]:
        return scored(self.model, *work)


@dataclass(frozen=True)
class ScoreBy:
    """As `ScoreGroups`, by a cross-encoder that is loaded."""

    model: PairScorer

    def __call__(self, work: tuple[Sequence[str], Sequence[Sequence[str]]], progress: Progress) -> dict[str, NDArray[np.float32]]:
        return scored(self.model, *work)


def scored(model: PairScorer, queries: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, NDArray[np.float32]]:
    """``scores`` of a part, as `ScoreGroups` gives them."""
    sizes = [len(group) for group in groups]
    asked = [query for query, group in zip(queries, groups, strict=True) for _ in group]
    scores = np.full((len(sizes), max(sizes)), np.nan, dtype=np.float32)
    scores[np.arange(max(sizes)) < np.asarray(sizes)[:, None]] = model.score(asked, [p for group in groups for p in group]).numpy()
    return {"scores": scores}
