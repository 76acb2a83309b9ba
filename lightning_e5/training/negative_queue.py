"""A first-in-first-out queue of passage embeddings that serve as negatives; part of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class NegativeQueue(nn.Module):
    """The last ``size`` passages pushed, with the ids of their texts.

    Its buffers are persistent, so a resumed training continues with the same negatives.

    Args:
        size: K, embeddings held (the paper's ablation: 65,536 pre-batch, 131,072 MoCo).
        width: D.

    Example:
        >>> queue = NegativeQueue(size=2, width=1)
        >>> _ = queue.push(torch.tensor([[1.0], [2.0]]), text_P=torch.tensor([10, 20]))
        >>> _ = queue.push(torch.tensor([[3.0]]), text_P=torch.tensor([30]))  # the oldest makes room
        >>> sorted(queue.entries()[1].tolist())
        [20, 30]
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
        positions_P = self._next(len(embeddings_PD))
        self.embeddings_KD[positions_P] = embeddings_PD.to(self.embeddings_KD.dtype)
        self.text_K[positions_P] = text_P
        self.pushed += len(positions_P)
        return positions_P

    @contextmanager
    def pushing(self, embeddings_PD: Tensor, text_P: Tensor) -> Iterator[Tensor]:
        """`push`, taken back where the block ends with an exception: a step that is given up has pushed nothing."""
        positions_P = self._next(len(embeddings_PD))
        before = self.embeddings_KD[positions_P], self.text_K[positions_P], self.pushed.clone()
        try:
            yield self.push(embeddings_PD, text_P)
        except BaseException:
            self.embeddings_KD[positions_P], self.text_K[positions_P] = before[:2]
            self.pushed.copy_(before[2])
            raise

    def _next(self, count: int) -> Tensor:
        """Positions of the next rows."""
        if count > self.size:
            raise ValueError(f"queue_size: {self.size} is below the {count} passages of one global batch")
        return (int(self.pushed) + torch.arange(count, device=self.text_K.device)) % self.size
