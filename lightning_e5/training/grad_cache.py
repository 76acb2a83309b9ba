"""The gradient of one big batch, with the memory of a small one.

1. The texts of the step, queries and passages together, are sorted by length and cut into chunks of a token budget.
2. Every chunk is encoded; the graphs of the first chunks are kept as far as ``graph_tokens`` allows, the others run
   without a graph.
3. The loss is computed from all embeddings, and differentiated down to them.
4. Each kept chunk is differentiated from its part of that gradient; each other chunk is encoded once more with a graph,
   and then differentiated. Dropout draws the same numbers the second time, because every chunk has its own seed.

The sum over chunks is the gradient of the whole batch. Where memory runs out, fewer graphs are kept, then chunks are
smaller, and the step is done again, on all ranks; the batch, and so its negatives, stays as it is. Where a rank is told to
stop, the step is given up between two chunks, on all ranks, as if it had not begun.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (E5 itself used many
GPUs instead).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.distributed.collectives import highest_of_ranks, world_size
from lightning_e5.rng import seed_torch
from lightning_e5.training.chunks import Chunk, Embeddings, sorted_chunks
from lightning_e5.training.out_of_memory import available_bytes, graph_bytes, is_out_of_memory, smaller_chunk
from lightning_e5.types import LossOutput, TokenBatch

#: Encodes one chunk: ([T] ids, lengths) -> [B, D].
EncodeChunk = Callable[[Tensor, list[int]], Tensor]
#: All embeddings in the order of the texts -> the loss.
EmbeddingLoss = Callable[[Tensor], LossOutput]
#: Share of the free memory that the kept graphs may take where their budget is found automatically.
_GRAPH_SHARE = 0.5
_logger = logging.getLogger(__name__)
#: How a rank's part of a step went, the most important last.
_DONE, _OUT_OF_MEMORY, _STOPPED = 0, 1, 2


class StepGivenUp(Exception):
    """A step was given up on all ranks because one was told to stop; parameters and optimizer are as before it."""


class StepReport(NamedTuple):
    """What one gradient-cached step did.

    texts and tokens encoded, those encoded twice, the tokens that padding every chunk to its longest text would make,
    chunks.
    """

    texts: int
    tokens: int
    replayed_tokens: int
    padded_tokens: int
    chunks: int


class GradCache:
    """Forward and backward of a batch by chunks.

    Args:
        chunk_tokens: tokens encoded at once.
        graph_tokens: tokens whose graphs may be held at the same time; 0 replays every chunk; None finds the number
            in the first step, from the free memory and from what the longest chunk's graph takes.
        replay_dropout: draw the same dropout in the replay (False only to show that a test would notice).
    """

    def __init__(self, *, chunk_tokens: int = 8192, graph_tokens: int | None = None, replay_dropout: bool = True) -> None:
        if chunk_tokens < 1 or (graph_tokens is not None and graph_tokens < 0):
            raise ValueError(f"chunk_tokens: {chunk_tokens} and graph_tokens: {graph_tokens} must be >= 1 and >= 0")
        self.chunk_tokens, self.graph_tokens, self.replay_dropout = chunk_tokens, graph_tokens, replay_dropout
        #: Whether this rank was told to stop; asked between two chunks.
        self.told_to_stop: Callable[[], bool] = lambda: False

    def step(
        self,
        texts: TokenBatch,
        encode: EncodeChunk,
        loss: EmbeddingLoss,
        *,
        seed: int,
        parameters: Sequence[Tensor] = (),
        loss_parameters: Sequence[Tensor] = (),
    ) -> tuple[LossOutput, StepReport]:
        """Add the gradient of ``loss(encode(texts))`` to the parameters' ``.grad``.

        Args:
            texts: all texts of the step.
            encode: the encoder; called once or twice per chunk.
            loss: from the embeddings ``[N, D]`` (float32 or float64), rows as in ``texts``.
            seed: of this step's dropout.
            parameters: those of the encoder; their gradients are set back where a step is done again for lack of memory
                (without them, running out of memory is an error).
            loss_parameters: those of the loss.

        Returns:
            The loss (detached) and what was done.

        Raises:
            StepGivenUp: a rank was told to stop.
        """
        before = [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            while (done := self._attempt(texts, encode, loss, seed, parameters, loss_parameters)) is None:
                for parameter in parameters:
                    parameter.grad = None
                self._shrink()
        except StepGivenUp:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
            raise
        for parameter, gradient in zip(parameters, before, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        return done

    def _attempt(
        self,
        texts: TokenBatch,
        encode: EncodeChunk,
        loss: EmbeddingLoss,
        seed: int,
        parameters: Sequence[Tensor],
        loss_parameters: Sequence[Tensor],
    ) -> tuple[LossOutput, StepReport] | None:
        """One try; None where memory ran out on some rank, which all ranks learn at the same two places."""
        device = texts.ids_T.device
        chunks = sorted_chunks(texts, self.chunk_tokens)
        kept: list[Tensor] = []
        embeddings = Embeddings(len(texts.lengths_B))
        outcome = _DONE
        try:
            if self.graph_tokens is None:
                self.graph_tokens = self._find_graph_tokens(chunks[-1], encode, parameters)
            graph_tokens = 0
            for index, chunk in enumerate(chunks):
                if self.told_to_stop():
                    outcome = _STOPPED
                    break
                graph_tokens += len(chunk.ids_T)
                keep = graph_tokens <= self.graph_tokens and len(kept) == index
                with torch.set_grad_enabled(keep):
                    output_BD = self._encode(chunk, encode, seed, index, replay=False)
                embeddings.put(chunk, output_BD)
                if keep:
                    kept.append(output_BD)
                del output_BD
        except (RuntimeError, MemoryError) as error:
            outcome = self._ran_out(error, parameters)
        if self._ranks_outcome(outcome, device):
            return None
        embeddings_ND = embeddings.all()
        try:
            with torch.enable_grad():
                embeddings_ND.requires_grad_(True)
                output = loss(embeddings_ND)
                gradient_ND, *of_loss = torch.autograd.grad(output.loss, [embeddings_ND, *loss_parameters])
        except (RuntimeError, MemoryError) as error:
            # Several ranks gather within the loss, so one cannot leave it alone; without kept graphs nothing is left to free.
            if world_size() > 1 or not self.graph_tokens or not self._ran_out(error, parameters):
                raise
            return None
        try:
            for index, chunk in enumerate(chunks):
                if self.told_to_stop():
                    outcome = _STOPPED
                    break
                with torch.enable_grad():
                    embedded = kept[index] if index < len(kept) else self._encode(chunk, encode, seed, index, replay=True)
                torch.autograd.backward(embedded, gradient_ND[chunk.rows_B].to(embedded.dtype))
                if index < len(kept):
                    kept[index] = embedded.detach()  # frees the graph
        except (RuntimeError, MemoryError) as error:
            outcome = self._ran_out(error, parameters)
        if self._ranks_outcome(outcome, device):
            return None
        for parameter, gradient in zip(loss_parameters, of_loss, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        replayed_tokens = sum(len(c.ids_T) for c in chunks[len(kept) :])
        padded_tokens = sum(len(c.lengths) * c.lengths[-1] for c in chunks)
        report = StepReport(len(texts.lengths_B), len(texts.ids_T), replayed_tokens, padded_tokens, len(chunks))
        return output._replace(loss=output.loss.detach()), report

    def go_on(self, stopped: bool, device: torch.device) -> None:
        """Raise StepGivenUp where this or another rank has ``stopped`` before the end of its part; a collective call."""
        self._ranks_outcome(_STOPPED if stopped else _DONE, device)

    @staticmethod
    def _ranks_outcome(outcome: int, device: torch.device) -> int:
        """What all ranks make of theirs: 0 where each did its part, else that memory ran out on some."""
        worst = highest_of_ranks(outcome, device)
        if worst == _STOPPED:
            raise StepGivenUp
        return worst

    @staticmethod
    def _ran_out(error: BaseException, parameters: Sequence[Tensor]) -> int:
        """Where memory ran out and the step can be done again, that; any other error is raised."""
        if not (is_out_of_memory(error) and parameters):
            raise error
        return _OUT_OF_MEMORY

    def _shrink(self) -> None:
        """Half the graphs, then none, then half the chunk."""
        if self.graph_tokens:
            half = self.graph_tokens // 2
            self.graph_tokens = half if half >= self.chunk_tokens else 0
        else:
            self.chunk_tokens = smaller_chunk(self.chunk_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _logger.warning(
            "out of memory: the step is done again with graph_tokens %s and chunk_tokens %s; batch and negatives stay",
            self.graph_tokens, self.chunk_tokens,
        )  # fmt: skip

    def _find_graph_tokens(self, longest: Chunk, encode: EncodeChunk, parameters: Sequence[Tensor]) -> int:
        known = {p.untyped_storage().data_ptr() for p in parameters}
        bytes_per_token = graph_bytes(lambda: encode(longest.ids_T, longest.lengths), known) / len(longest.ids_T)
        return int(_GRAPH_SHARE * available_bytes(longest.ids_T.device) / max(1.0, bytes_per_token))

    def _encode(self, chunk: Chunk, encode: EncodeChunk, seed: int, index: int, *, replay: bool) -> Tensor:
        seed_torch(seed, "chunk", index if self.replay_dropout or not replay else -1 - index)
        return encode(chunk.ids_T, chunk.lengths)
