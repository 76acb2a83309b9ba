"""Cutting a packed batch into chunks of about equally many tokens, shortest texts first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.types import TokenBatch


class Chunk(NamedTuple):
    """Some texts of a batch: their tokens, their lengths and their rows in the batch."""

    ids_T: Tensor
    lengths: list[int]
    rows_B: Tensor


def concatenate(batches: list[TokenBatch]) -> TokenBatch:
    """Several packed batches as one, in order."""
    return TokenBatch(torch.cat([b.ids_T for b in batches]), torch.cat([b.lengths_B for b in batches]))


def sorted_chunks(batch: TokenBatch, chunk_tokens: int) -> list[Chunk]:
    """The batch sorted by length (stable) and cut where the next text would exceed ``chunk_tokens``.

    A text longer than the budget makes a chunk of its own. Every text is in exactly one chunk.
    """
    lengths = batch.lengths_B.cpu()
    order = torch.argsort(lengths, stable=True)
    starts = torch.cumsum(lengths, 0) - lengths
    chunks: list[Chunk] = []
    sorted_lengths = lengths[order].tolist()
    first = tokens = 0
    for position, length in enumerate([*sorted_lengths, None]):
        if length is not None and (position == first or tokens + length <= chunk_tokens):
            tokens += length
            continue
        if position > first:
            rows = order[first:position]
            ids_T = gather_tokens(batch.ids_T, starts[rows], lengths[rows])
            chunks.append(Chunk(ids_T, sorted_lengths[first:position], rows.to(batch.ids_T.device)))
        first, tokens = position, length or 0
    return chunks


def gather_tokens(ids_T: Tensor, starts_B: Tensor, lengths_B: Tensor) -> Tensor:
    """The tokens of some texts, one behind the other."""
    total = int(lengths_B.sum())
    within_T = torch.arange(total) - torch.repeat_interleave(torch.cumsum(lengths_B, 0) - lengths_B, lengths_B)
    return ids_T[(torch.repeat_interleave(starts_B, lengths_B) + within_T).to(ids_T.device)]


def assemble(chunks: list[Chunk], outputs: list[Tensor]) -> Tensor:
    """The chunks' outputs ``[B, D]`` as one ``[N, D]`` in the order of the batch, in float32 (float64 stays), no graph."""
    rows_N = torch.cat([c.rows_B for c in chunks])
    stacked_ND = torch.cat([o.detach() for o in outputs])
    precise = stacked_ND if stacked_ND.dtype == torch.float64 else stacked_ND.float()
    return torch.empty_like(precise).index_copy_(0, rows_N, precise)
