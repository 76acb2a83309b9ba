"""The gradient of one big batch, with the memory of a small one.

1. The texts of the step, queries and passages together, are sorted by length and cut into chunks of a token budget.
2. Every chunk is encoded; the graphs of the first chunks are kept as far as ``graph_tokens`` allows, the others run
   without a graph.
3. The loss is computed from all embeddings, and differentiated down to them.
4. Each kept chunk is differentiated from its part of that gradient; each other chunk is encoded once more with a graph,
   and then differentiated. Dropout draws the same numbers the second time, because every chunk has its own seed.

The sum over chunks is the gradient of the whole batch. Source: Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup" (E5 itself used many GPUs instead).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.rng import seed_torch
from lightning_e5.training.chunks import Chunk, sorted_chunks
from lightning_e5.types import LossOutput, TokenBatch

#: Encodes one chunk: ([T] ids, lengths) -> [B, D].
EncodeChunk = Callable[[Tensor, list[int]], Tensor]
#: All embeddings in the order of the texts -> the loss.
EmbeddingLoss = Callable[[Tensor], LossOutput]


class StepReport(NamedTuple):
    """What one gradient-cached step did: texts and tokens encoded, tokens encoded twice, chunks."""

    texts: int
    tokens: int
    replayed_tokens: int
    chunks: int


class GradCache:
    """Forward and backward of a batch by chunks.

    Args:
        chunk_tokens: tokens encoded at once.
        graph_tokens: tokens whose graphs may be held at the same time; 0 replays every chunk.
        replay_dropout: draw the same dropout in the replay (False only to show that a test would notice).
    """

    def __init__(self, *, chunk_tokens: int = 8192, graph_tokens: int = 65536, replay_dropout: bool = True) -> None:
        if chunk_tokens < 1 or graph_tokens < 0:
            raise ValueError(f"chunk_tokens: {chunk_tokens} and graph_tokens: {graph_tokens} must be >= 1 and >= 0")
        self.chunk_tokens, self.graph_tokens, self.replay_dropout = chunk_tokens, graph_tokens, replay_dropout

    def step(self, texts: TokenBatch, encode: EncodeChunk, loss: EmbeddingLoss, *, seed: int) -> tuple[LossOutput, StepReport]:
        """Add the gradient of ``loss(encode(texts))`` to the parameters' ``.grad``.

        Args:
            texts: all texts of the step.
            encode: the encoder; called once or twice per chunk.
            loss: from the embeddings ``[N, D]`` (float32 or float64), rows as in ``texts``.
            seed: of this step's dropout.

        Returns:
            The loss (detached) and what was done.
        """
        chunks = sorted_chunks(texts, self.chunk_tokens)
        kept, outputs = 0, []
        graph_tokens = 0
        for index, chunk in enumerate(chunks):
            graph_tokens += len(chunk.ids_T)
            keep = graph_tokens <= self.graph_tokens and kept == index
            kept += keep
            with torch.set_grad_enabled(keep):
                outputs.append(self._encode(chunk, encode, seed, index, replay=False))
        embeddings_ND = self._assemble(chunks, outputs)
        with torch.enable_grad():
            embeddings_ND.requires_grad_(True)
            output = loss(embeddings_ND)
            (gradient_ND,) = torch.autograd.grad(output.loss, embeddings_ND)
        for index, chunk in enumerate(chunks):
            replayed = index >= kept
            with torch.enable_grad():
                embedded = self._encode(chunk, encode, seed, index, replay=True) if replayed else outputs[index]
            torch.autograd.backward(embedded, gradient_ND[chunk.rows_B].to(embedded.dtype))
            outputs[index] = embedded.detach()  # frees the graph
        replayed_tokens = sum(len(c.ids_T) for c in chunks[kept:])
        report = StepReport(len(texts.lengths_B), len(texts.ids_T), replayed_tokens, len(chunks))
        return output._replace(loss=output.loss.detach()), report

    def _encode(self, chunk: Chunk, encode: EncodeChunk, seed: int, index: int, *, replay: bool) -> Tensor:
        seed_torch(seed, "chunk", index if self.replay_dropout or not replay else -1 - index)
        return encode(chunk.ids_T, chunk.lengths)

    @staticmethod
    def _assemble(chunks: list[Chunk], outputs: list[Tensor]) -> Tensor:
        rows_N = torch.cat([c.rows_B for c in chunks])
        stacked_ND = torch.cat([o.detach() for o in outputs])
        precise = stacked_ND if stacked_ND.dtype == torch.float64 else stacked_ND.float()
        return torch.empty_like(precise).index_copy_(0, rows_N, precise)
