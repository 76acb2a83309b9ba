"""The bi-encoder of E5: one Transformer for queries and passages, average pooling, unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_e5.models.packed_bert import PackedBert, is_packable
from lightning_e5.models.padded import padded_states, usable_positions
from lightning_e5.models.pooling import average_pool, length_runs
from lightning_e5.models.precision import Precision, runs_in_bf16
from lightning_e5.text import E5_PREFIXES, Prefixes, TextTokenizer
from lightning_e5.training.chunks import sorted_chunks
from lightning_e5.types import Kind, TokenBatch


class TextEncoder(nn.Module):
    """Texts or tokens to embeddings.

    Args:
        backbone: a Hugging Face encoder; a ``BertModel`` runs without padding, any other padded and sorted by length.
        tokenizer: with the prefixes and the length limit that belong to the weights.
        precision: ``bf16`` runs the backbone under autocast, ``auto`` where that is faster; pooling, normalisation and all scores stay float32.

    Source: paper section 3.2.
    """

    def __init__(self, backbone: Any, tokenizer: TextTokenizer, *, precision: Precision = "fp32") -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.precision = precision
        self.packed: PackedBert | None = PackedBert(backbone) if is_packable(backbone) else None
        limit = usable_positions(backbone)
        if limit is not None and tokenizer.max_length > limit:
            raise ValueError(f"max_length: {tokenizer.max_length} is above the {limit} positions that the model has for tokens")

    @property
    def width(self) -> int:
        """D, the number of values in an embedding."""
        return int(self.backbone.config.hidden_size)

    @classmethod
    def from_pretrained(
        cls,
        directory: Path | str,
        *,
        prefixes: Prefixes | None = None,
        max_length: int | None = None,
        precision: Precision = "fp32",
    ) -> TextEncoder:
        """Load a Hugging Face or sentence-transformers folder (or hub name).

        Args:
            directory: the folder or name.
            prefixes: where not given, those stored in the folder; E5's own for a folder that stores none.
            max_length: tokens per text; where not given, as stored, at most the model's positions.
            precision: of the backbone.

        Raises:
            UserError: not there, not fetchable, or no encoder.
        """
        from lightning_e5.models.pretrained import load_pretrained

        backbone, backend, stored = load_pretrained(str(directory))
        length = max_length or stored.max_length or min(512, usable_positions(backbone) or 512)
        tokenizer = TextTokenizer(backend, prefixes or stored.prefixes or E5_PREFIXES, length)
        return cls(backbone, tokenizer, precision=precision).eval()

    def save_pretrained(self, directory: Path | str) -> None:
        """Write the Hugging Face + sentence-transformers layout, prompts and length limit included."""
        from lightning_e5.models.pretrained import save_pretrained

        save_pretrained(Path(directory), self.backbone, self.tokenizer)

    def forward(self, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Pooled, not normalised embeddings ``[B, D]`` (float32; float64 for a float64 model) of packed tokens."""
        with self._autocast(ids_T.device.type):
            states_TD = self.packed(ids_T, lengths) if self.packed is not None else padded_states(self.backbone, ids_T, lengths)
        precise = states_TD if states_TD.dtype == torch.float64 else states_TD.float()
        return average_pool(precise, length_runs(lengths))

    @torch.inference_mode()
    def embed(
        self,
        texts: Sequence[str],
        kind: Kind,
        *,
        normalize: bool = True,
        chunk_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Embeddings of texts, in evaluation mode.

        Args:
            texts: any number of texts.
            kind: ``query`` or ``passage``; decides the prefix.
            normalize: unit rows (cosine similarity is then the dot product).
            chunk_tokens: tokens encoded at once; by default 2,048 in float32 and 4,096 in bfloat16 (fastest on CPUs), 32,768 on a GPU.
            progress: called with the number of texts done, chunk by chunk.

        Returns:
            float32 ``[N, D]`` on the CPU.
        """
        result_ND = torch.empty(len(texts), self.width)
        device = next(self.parameters()).device
        chunk_tokens = chunk_tokens or (32768 if device.type == "cuda" else 4096 if runs_in_bf16(self.precision, device) else 2048)
        with self._evaluating():
            for first in range(0, len(texts), _TEXTS_AT_ONCE):
                part = texts[first : first + _TEXTS_AT_ONCE]
                ids, lengths = self.tokenizer.encode(part, kind)
                batch = TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))
                for chunk in sorted_chunks(batch, chunk_tokens):
                    embedded = self(chunk.ids_T.to(device), chunk.lengths).float()
                    if normalize:
                        embedded = functional.normalize(embedded, dim=1)
                    result_ND[first + chunk.rows_B] = embedded.cpu()
                    if progress is not None:
                        progress(len(chunk.lengths))
        return result_ND

    def _autocast(self, device: str) -> torch.autocast:
        return torch.autocast(device, dtype=torch.bfloat16, enabled=runs_in_bf16(self.precision, device))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)


#: Texts tokenised and sorted together by ``embed``.
_TEXTS_AT_ONCE = 32768
