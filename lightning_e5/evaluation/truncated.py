"""One encoder evaluated at several dimensions: its texts are embedded once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.models.encoder import TextEncoder
from lightning_e5.text import check_texts, texts_digest
from lightning_e5.types import Kind

#: Bytes of whole embeddings that are kept for the next dimension; more texts than these hold are embedded for each dimension again.
KEPT_BYTES = 2**31


class WholeEmbeddings:
    """The whole embeddings that an encoder made last, by their texts.

    Args:
        encoder: its own truncation is taken away.
        kept_bytes: of all that is kept.
    """

    def __init__(self, encoder: TextEncoder, kept_bytes: int = KEPT_BYTES) -> None:
        encoder.head.truncate(None)
        self.encoder, self.kept_bytes = encoder, kept_bytes
        self._kept: dict[tuple[Kind, str], Tensor] = {}

    def embed(self, texts: Sequence[str], kind: Kind, **options: Any) -> Tensor:
        """``[N, full width]``, not normalised; options as `TextEncoder.embed` has them."""
        if 4 * len(texts) * self.encoder.width > self.kept_bytes:
            return self.encoder.embed(texts, kind, normalize=False, **options)
        key = (kind, texts_digest(texts))
        if key not in self._kept:
            made = self.encoder.embed(texts, kind, normalize=False, **options)
            while self._kept and sum(rows.nbytes for rows in self._kept.values()) + made.nbytes > self.kept_bytes:
                del self._kept[next(iter(self._kept))]  # the oldest
            self._kept[key] = made
        return self._kept[key]


class TruncatedEncoder(TextEncoder):
    """An encoder with the weights of another one whose embeddings are the first values of that one's.

    Args:
        whole: embeddings of the other encoder, which it shares with the truncated ones.
        dimensions: values of an embedding.

    Raises:
        UserError: the encoder has fewer.
    """

    def __init__(self, whole: WholeEmbeddings, dimensions: int) -> None:
        encoder = whole.encoder
        head = copy.copy(encoder.head)  # the same layers, settings of its own
        head.truncate(dimensions)
        super().__init__(encoder.backbone, encoder.tokenizer, head=head, precision=encoder.precision)
        self.embed_whole: Callable[..., Tensor] = whole.embed
        self.eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True, **options: Any) -> Tensor:
        """As `TextEncoder.embed`."""
        check_texts(texts)
        embeddings_ND = self.head.first_values(self.embed_whole(texts, kind, **options))
        return functional.normalize(embeddings_ND, dim=1) if normalize else embeddings_ND.clone()
