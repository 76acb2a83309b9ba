"""Cutting a packed batch into chunks of about equally many tokens, shortest texts first."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.distributed.cores import map_on_cores
from lightning_e5.distributed.devices import Precision, runs_in_bf16, sent
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
    # All texts in their order at once: on a GPU a gather per chunk would be a copy of its index per chunk.
    ids_T, rows_N = gather_tokens(batch.ids_T, starts[order], lengths[order]), sent(order, batch.ids_T.device)
    first = tokens = begin = 0
    for position, length in enumerate([*sorted_lengths, None]):
        if length is not None and (position == first or tokens + length <= chunk_tokens):
            tokens += length
            continue
        if position > first:
            chunks.append(Chunk(ids_T[begin : begin + tokens], sorted_lengths[first:position], rows_N[first:position]))
            begin += tokens
        first, tokens = position, length or 0
    return chunks


def gather_tokens(ids_T: Tensor, starts_B: Tensor, lengths_B: Tensor, total: int | None = None) -> Tensor:
    """The tokens of some texts, one behind the other, on the device where they are.

    Args:
        ids_T: ``[T]``, or ``[T, D]`` of something else that each token has.
        starts_B, lengths_B: int64 ``[B]``, first token and number of tokens of each text; on any device.
        total: the sum of the lengths, where it is known: lengths on a GPU would have to be waited for.
    """
    total = int(lengths_B.sum()) if total is None else total
    starts_B, lengths_B = sent(starts_B, ids_T.device), sent(lengths_B, ids_T.device)
    moved_B = starts_B - (torch.cumsum(lengths_B, 0) - lengths_B)  # by how much each text's tokens change their place
    place_T = torch.arange(total, device=ids_T.device) + torch.repeat_interleave(moved_B, lengths_B, output_size=total)
    return ids_T.index_select(0, place_T)


class Embeddings:
    """The chunks' outputs as one ``[N, D]`` in the order of the batch, in float32 (float64 stays), without a graph.

    Rows are copied where they belong chunk by chunk, so that no chunk's own output is kept beside them.

    Args:
        texts: N.
    """

    def __init__(self, texts: int) -> None:
        self._texts = texts
        self._all_ND: Tensor | None = None

    def put(self, chunk: Chunk, output_BD: Tensor) -> None:
        """Copy one chunk's rows."""
        output_BD = output_BD.detach()
        if self._all_ND is None:
            dtype = torch.float64 if output_BD.dtype == torch.float64 else torch.float32
            self._all_ND = torch.empty(self._texts, *output_BD.shape[1:], dtype=dtype, device=output_BD.device)
        self._all_ND.index_copy_(0, chunk.rows_B, output_BD.to(self._all_ND.dtype))

    def all(self) -> Tensor:
        """``[N, D]``, once every chunk was put."""
        assert self._all_ND is not None
        return self._all_ND


def inference_tokens(precision: Precision, device: torch.device) -> int:
    """Tokens of a chunk where no gradient is asked for, the fastest measured: 1,024 in float32 and 2,048 in bfloat16 for each core of a CPU,
    32,768 on a GPU (not measured there)."""
    if device.type != "cpu":
        return 32768
    return 2048 if runs_in_bf16(precision, device) else 1024


def chunk_outputs(
    batch: TokenBatch,
    compute: Callable[[Chunk], Tensor],
    device: torch.device,
    *,
    chunk_tokens: int,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """What a model gives for each text, without a graph; chunks run as `lightning_e5.distributed.cores.map_on_cores` has it.

    Args:
        batch: N > 0 texts, on any device.
        compute: ``[B, ...]`` of one chunk, whose tokens are on ``device``.
        device: the model's.
        chunk_tokens: tokens of a chunk.
        progress: called with the number of texts done, chunk by chunk; a GPU may still compute them.

    Returns:
        float32 (float64 stays) ``[N, ...]`` on ``device``.
    """
    outputs = Embeddings(len(batch.lengths_B))
    chunks = sorted_chunks(TokenBatch(sent(batch.ids_T, device), batch.lengths_B), chunk_tokens)
    for chunk, output in zip(chunks, map_on_cores(compute, chunks, device), strict=True):
        outputs.put(chunk, output)
        if progress is not None:
            progress(len(chunk.lengths))
    return outputs.all()
