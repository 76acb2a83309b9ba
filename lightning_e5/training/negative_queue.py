"""A first-in-first-out queue of passage embeddings that serve as negatives; part of the checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NegativeQueue(nn.Module):
    """The last ``size`` passages pushed, with the ids of their texts.

    Its buffers are persistent, so a resumed training continues with the same negatives.

    Args:
        size: K, embeddings held (the paper's ablation: 65,536 pre-batch, 131,072 MoCo).
        width: D.
    """

    embeddings_KD: Tensor
    text_K: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"queue_size: {size} is not >= 1")
        self.size = size
        self.register_buffer("embeddings_KD", torch.zeros(size, width))
        self.register_buffer("text_K", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> int:
        """Entries in use."""
        return min(self.size, int(self.pushed))

    def entries(self) -> tuple[Tensor, Tensor]:
        """The embeddings ``[filled, D]`` and text ids in use, as views in no particular order."""
        return self.embeddings_KD[: self.filled], self.text_K[: self.filled]

    @torch.no_grad()
    def push(self, embeddings_PD: Tensor, text_P: Tensor) -> Tensor:
        """Add rows, the oldest making room; returns the int64 position of each in `entries`.

        Raises:
            ValueError: more rows than the queue holds.
        """
        count = len(embeddings_PD)
        if count > self.size:
            raise ValueError(f"queue_size: {self.size} is below the {count} passages of one global batch")
        positions_P = (int(self.pushed) + torch.arange(count, device=self.text_K.device)) % self.size
        self.embeddings_KD[positions_P] = embeddings_PD.to(self.embeddings_KD.dtype)
        self.text_K[positions_P] = text_P
        self.pushed += count
        return positions_P
