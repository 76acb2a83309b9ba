"""A small test collection that an encoder in training is evaluated on again and again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_e5.evaluation.beir.data import load_beir
from lightning_e5.evaluation.beir.retrieval import RetrievalTask
from lightning_e5.files.beir_layout import either
from lightning_e5.files.storage import sha256_file, sha256_text
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.ranges import Length
from lightning_e5.result_row import MAIN_METRIC
from lightning_e5.types import Kind, TokenBatch

_FILES = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")


class ValidationCollection:
    """The nDCG@10 of an encoder's present weights on a collection, whose texts are tokenised once.

    Args:
        folder: in BEIR's layout, with ``qrels/test.tsv``.
        encoder: as it is trained; it is evaluated in evaluation mode, without a gradient and without random numbers.
        max_length: tokens per text; by default the encoder's.

    Raises:
        UserError: as `load_beir`.
    """

    metric = MAIN_METRIC

    def __init__(self, folder: Path, encoder: TextEncoder, max_length: Length | None = None) -> None:
        self.folder = Path(folder)
        self.task = RetrievalTask(load_beir(self.folder, "test", "validation"), k=10, metrics=[MAIN_METRIC], queries_are_documents=False)
        self.embedder = _TokenisedOnce(encoder, max_length)

    def __call__(self) -> dict[str, float]:
        """Query id -> nDCG@10 of each judged query, by the weights as they are now."""
        return self.task.evaluate(self.embedder).per_query[MAIN_METRIC]

    def identity(self) -> str:
        """The collection's name by content, for the record of what chose a model's weights."""
        return f"collection {sha256_text(' '.join(sha256_file(either(self.folder, name)) for name in _FILES))}"


class _TokenisedOnce:
    """An `Embedder` that is always given the same texts of each kind."""

    def __init__(self, encoder: TextEncoder, max_length: int | None) -> None:
        self.encoder, self.tokenizer = encoder, encoder.tokenizer.cut_at(max_length)
        self._tokens: dict[Kind, TokenBatch] = {}

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """float32 ``[N, D]``."""
        if kind not in self._tokens:
            ids, lengths = self.tokenizer.encode(texts, kind)
            self._tokens[kind] = TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))
        return self.encoder.embed_tokens(self._tokens[kind], self.encoder.prompt_of(kind), normalize=normalize)
