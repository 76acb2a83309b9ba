"""An encoder whose embeddings of many texts are the tasks of an engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lightning_e5.curation.engines.engine import Engine
from lightning_e5.curation.engines.inference import EmbedTexts
from lightning_e5.curation.engines.run_parts import Part, parts_of, run_parts
from lightning_e5.models import encoder as encoders
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.text import check_texts, texts_digest
from lightning_e5.types import Kind


@dataclass(frozen=True)
class TasksOn:
    """Where an encoder's embeddings are computed.

    Args:
        engine: see `run_parts`.
        gpus_per_task: GPUs that each task sees.
        folder: of the finished parts; all nodes see it under this path.
    """

    engine: Engine | str
    gpus_per_task: int
    folder: Path


class EncoderOnEngine(TextEncoder):
    """A `TextEncoder` that has more than `TEXTS_AT_ONCE` texts embedded on an engine, to the bits that it would give itself.

    A part is what `TextEncoder.embed` sorts together. A killed process goes on behind the last finished part.
    """

    @classmethod
    def of(cls, by: EmbedTexts, where: TasksOn) -> EncoderOnEngine:
        """The encoder that ``by`` loads, here and in the tasks."""
        encoder = cls.from_pretrained(
            by.folder, prefixes=by.prefixes, max_length=by.max_length, precision=by.precision, truncate_dim=by.truncate_dim
        )
        assert isinstance(encoder, cls)
        encoder._by, encoder._where = by, where
        return encoder.to(by.torch_device)

    _by: EmbedTexts
    _where: TasksOn

    def embed(
        self,
        texts: Sequence[str],
        kind: Kind,
        *,
        normalize: bool = True,
        chunk_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> torch.Tensor:
        """See `TextEncoder.embed`; with ``chunk_tokens`` it embeds here."""
        if not self._has_tasks(texts) or chunk_tokens is not None:
            return super().embed(texts, kind, normalize=normalize, chunk_tokens=chunk_tokens, progress=progress)
        check_texts(texts)
        parts = self._parts(texts, kind, normalize)
        result_ND = torch.empty(len(texts), self.width, device="cpu")
        first = 0
        for block in self._run(parts, normalize):
            own = torch.from_numpy(block["embeddings"])
            result_ND[first : first + len(own)] = own
            first += len(own)
            if progress is not None:
                progress(len(own))
        shutil.rmtree(parts[0].path.parent)
        return result_ND

    def embed_ahead(self, lists: Sequence[Sequence[str]], kind: Kind, *, normalize: bool = True) -> None:
        """Have the tasks of several lists of texts done together; `embed` of each list then finds its own finished."""
        parts = [part for texts in lists if self._has_tasks(texts) for part in self._parts(texts, kind, normalize)]
        for _ in self._run(parts, normalize):
            pass

    @staticmethod
    def _has_tasks(texts: Sequence[str]) -> bool:
        return len(texts) > encoders.TEXTS_AT_ONCE

    def _parts(self, texts: Sequence[str], kind: Kind, normalize: bool) -> list[Part]:
        folder = self._where.folder / f"{kind}-{'unit' if normalize else 'raw'}-{texts_digest(texts)[:32]}"
        return parts_of(folder / "part", len(texts), encoders.TEXTS_AT_ONCE, lambda rows: (kind, texts[rows]), what="texts")

    def _run(self, parts: Sequence[Part], normalize: bool) -> Iterator[dict[str, Any]]:
        by, where = replace(self._by, normalize=normalize), self._where
        return run_parts(by, parts, title="embed", unit="text", engine=where.engine, gpus_per_task=where.gpus_per_task)
