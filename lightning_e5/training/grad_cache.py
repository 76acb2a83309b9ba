"""The gradient of one big batch, with the memory of a small one: the gradient cache.

The steps are numbered as in the paper; what is ours beside them: texts are sorted by length and cut into chunks of a token budget
(`lightning_e5.training.chunks`), and the activations of the first chunks are kept as far as ``graph_tokens`` allows, so that these
chunks need not be encoded twice.

Where memory runs out, fewer activations are kept, then chunks are smaller, and the step is done again, on all ranks; the batch,
and so its negatives, stays as it is. Where a rank is told to stop, the step is given up between two chunks, on all ranks, as if it
had not begun.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (E5 itself used many
GPUs instead).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.distributed.collectives import highest_of_ranks, world_size
from lightning_e5.distributed.devices import whole_float32
from lightning_e5.rng import seed_torch
from lightning_e5.training.chunks import Chunk, Embeddings, sorted_chunks
from lightning_e5.training.out_of_memory import activation_bytes, available_bytes, is_out_of_memory, smaller_chunk
from lightning_e5.types import LossOutput, TokenBatch

#: Encodes one chunk: ([T] ids, lengths) -> [B, D].
EncodeChunk = Callable[[Tensor, list[int]], Tensor]
#: All embeddings in the order of the texts -> the loss.
EmbeddingLoss = Callable[[Tensor], LossOutput]
#: Share of the free memory that the kept activations may take where their budget is found automatically.
_KEPT_SHARE = 0.5
_logger = logging.getLogger(__name__)
#: How a rank's part of a step went, the most important last.
_DONE, _OUT_OF_MEMORY, _STOPPED = 0, 1, 2


class StepGivenUp(Exception):
    """A step was given up on all ranks because one was told to stop; parameters and optimizer are as before it."""


class _ToldToStop(Exception):
    """This rank was told to stop."""


class _RunAgain(Exception):
    """Memory ran out on some rank: all ranks do the step again with less."""


class CachedStep(NamedTuple):
    """What one gradient-cached step gave and did.

    loss: detached. embeddings_ND: of all texts, without graph. tokens encoded, those encoded twice, and those that padding every
    chunk to its longest text would make.
    """

    loss: LossOutput
    embeddings_ND: Tensor
    tokens: int
    recomputed_tokens: int
    padded_tokens: int


class GradCache:
    """Forward and backward of a batch by chunks.

    Args:
        chunk_tokens: tokens encoded at once.
        graph_tokens: tokens whose activations may be kept at the same time; 0 recomputes every chunk; None finds the number
            in the first step, from the free memory and from what the longest chunk's activations take.
    """

    def __init__(self, *, chunk_tokens: int = 8192, graph_tokens: int | None = None) -> None:
        if chunk_tokens < 1 or (graph_tokens is not None and graph_tokens < 0):
            raise ValueError(f"chunk_tokens: {chunk_tokens} and graph_tokens: {graph_tokens} must be >= 1 and >= 0")
        self.chunk_tokens, self.graph_tokens = chunk_tokens, graph_tokens
        #: Whether each chunk is a collective call, as with `lightning_e5.training.sharding.layers`: all ranks encode equally many, and none leaves.
        self.in_step = False
        #: Whether this rank was told to stop; asked between two chunks.
        self.told_to_stop: Callable[[], bool] = lambda: False
        #: Called with the tokens of a chunk where lack of memory made it smaller.
        self.shrunk: Callable[[int], object] = lambda chunk_tokens: None

    def step(
        self,
        texts: TokenBatch,
        encode: EncodeChunk,
        loss: EmbeddingLoss,
        *,
        seed: int,
        parameters: Sequence[Tensor] = (),
        loss_parameters: Sequence[Tensor] = (),
        shared: Callable[[], Sequence[Tensor]] = tuple,
    ) -> CachedStep:
        """Add the gradient of ``loss(encode(texts))`` to the parameters' ``.grad``; again with less memory where it runs out.

        Args:
            texts: all texts of the step.
            encode: the encoder; called once or twice per chunk.
            loss: from the embeddings ``[N, D]`` (float32 or float64), rows as in ``texts``.
            seed: of this step's dropout.
            parameters: those of the encoder; their gradients are set back where a step is done again for lack of memory
                (without them, running out of memory is an error).
            loss_parameters: those of the loss.
            shared: gives what all chunks' graphs hold beside the parameters, which is not counted as a chunk's activations.

        Raises:
            StepGivenUp: a rank was told to stop.
        """
        before = [p.grad for p in parameters]
        done: CachedStep | None = None
        try:
            while done is None:
                for parameter in parameters:
                    parameter.grad = None
                with suppress(_RunAgain):
                    done = self._gradients(texts, encode, loss, seed, parameters, loss_parameters, shared)
                if done is None:  # only here is the exception gone, which holds on to the activations
                    self._shrink()
        except StepGivenUp:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
            raise
        for parameter, gradient in zip(parameters, before, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient.add_(parameter.grad)
        return done

    def _gradients(
        self,
        texts: TokenBatch,
        encode: EncodeChunk,
        loss: EmbeddingLoss,
        seed: int,
        parameters: Sequence[Tensor],
        loss_parameters: Sequence[Tensor],
        shared: Callable[[], Sequence[Tensor]],
    ) -> CachedStep:
        """The algorithm."""
        device, again = texts.ids_T.device, bool(parameters) and not self.in_step
        chunks = sorted_chunks(texts, self.chunk_tokens)
        # Where chunks are collective calls, a rank with fewer does its first (of the shortest texts) again, without effect.
        idle = [chunks[0]] * (highest_of_ranks(len(chunks), device) - len(chunks)) if self.in_step else []
        embeddings = Embeddings(len(texts.lengths_B))
        kept: list[Tensor] = []  # outputs with their activations, of the first chunks

        # Step 1, graph-less forward: embed all chunks (with a graph as far as its activations may be kept).
        with self._part(device, again):
            if self.in_step:
                self.graph_tokens = 0
            if self.graph_tokens is None:
                self.graph_tokens = self._find_graph_tokens(chunks[-1], encode, parameters, shared)
            tokens = 0
            for index, chunk in enumerate(chunks):
                self._check_stop()
                tokens += len(chunk.ids_T)
                keep = tokens <= self.graph_tokens and len(kept) == index
                with torch.set_grad_enabled(keep):
                    output_BD = _encode(chunk, encode, seed, index)
                embeddings.put(chunk, output_BD)
                if keep:
                    kept.append(output_BD)
                del output_BD
            for chunk in idle:
                with torch.no_grad():
                    _encode(chunk, encode, seed, 0)

        # Step 2, representation gradient computation and caching: the loss, differentiated down to the embeddings.
        embeddings_ND = embeddings.all()
        # Its collectives let no rank of several leave alone; and without kept activations nothing is left to free.
        with self._part(device, again and world_size() == 1 and bool(self.graph_tokens)), torch.enable_grad(), whole_float32():
            embeddings_ND.requires_grad_(True)
            output = loss(embeddings_ND)
            gradient_ND, *loss_gradients = torch.autograd.grad(output.loss, [embeddings_ND, *loss_parameters])

        # Step 3, sub-batch gradient accumulation: each chunk is encoded once more (or its activations were kept) and differentiated
        # from its rows of the cached gradient. Dropout draws the same numbers, because every chunk has its own seed.
        with self._part(device, again):
            for index, chunk in enumerate(chunks):
                self._check_stop()
                with torch.enable_grad():
                    output_BD = kept[index] if index < len(kept) else _encode(chunk, encode, seed, index)
                torch.autograd.backward(output_BD, gradient_ND[chunk.rows_B].to(output_BD.dtype))
                if index < len(kept):
                    kept[index] = output_BD.detach()  # frees the activations
            for chunk in idle:
                with torch.enable_grad():
                    output_BD = _encode(chunk, encode, seed, 0)
                torch.autograd.backward(output_BD, torch.zeros_like(output_BD))
        for parameter, gradient in zip(loss_parameters, loss_gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

        # Step 4, optimization, is the caller's.
        return CachedStep(
            output._replace(loss=output.loss.detach()),
            embeddings_ND.detach(),
            tokens=len(texts.ids_T),
            recomputed_tokens=sum(len(c.ids_T) for c in chunks[len(kept) :]),
            padded_tokens=sum(len(c.lengths) * c.lengths[-1] for c in chunks),
        )

    @torch.no_grad()
    def embed(self, texts: TokenBatch, encode: EncodeChunk) -> Tensor:
        """Embeddings ``[N, D]`` without gradient, in smaller chunks where this rank's memory runs out; a collective call.

        Raises:
            StepGivenUp: a rank was told to stop.
        """
        chunk_tokens = self.chunk_tokens
        with self._part(texts.ids_T.device, again=False):
            while True:
                embeddings = Embeddings(len(texts.lengths_B))
                try:
                    for chunk in sorted_chunks(texts, chunk_tokens):
                        self._check_stop()
                        embeddings.put(chunk, encode(chunk.ids_T, chunk.lengths))
                    break
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                chunk_tokens = smaller_chunk(chunk_tokens)
        return embeddings.all()

    def _check_stop(self) -> None:
        if self.told_to_stop() and not self.in_step:
            raise _ToldToStop

    @contextmanager
    def _part(self, device: torch.device, again: bool) -> Iterator[None]:
        """A part of a step that all ranks finish or none: what ends it on one, ends it on all.

        ``again``: where memory runs out, the step can be done again.
        """
        outcome = _DONE
        try:
            yield
        except _ToldToStop:
            outcome = _STOPPED
        except (RuntimeError, MemoryError) as error:
            if not (again and is_out_of_memory(error)):
                raise
            outcome = _OUT_OF_MEMORY
        worst = highest_of_ranks(outcome, device)
        if worst != _DONE:
            raise StepGivenUp if worst == _STOPPED else _RunAgain

    def _shrink(self) -> None:
        """Half the kept activations, then none, then half the chunk."""
        if self.graph_tokens:
            half = self.graph_tokens // 2
            self.graph_tokens = half if half >= self.chunk_tokens else 0
        else:
            self.chunk_tokens = smaller_chunk(self.chunk_tokens)
            self.shrunk(self.chunk_tokens)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _logger.warning(
            "out of memory: the step is done again with graph_tokens %s and chunk_tokens %s; batch and negatives stay",
            self.graph_tokens, self.chunk_tokens,
        )  # fmt: skip

    def _find_graph_tokens(self, longest: Chunk, encode: EncodeChunk, parameters: Sequence[Tensor], shared: Callable[[], Sequence[Tensor]]) -> int:
        with torch.no_grad():
            encode(longest.ids_T[: longest.lengths[0]], longest.lengths[:1])  # makes what is shared
        known = {p.untyped_storage().data_ptr() for p in (longest.ids_T, *parameters, *shared())}
        bytes_per_token = activation_bytes(lambda: encode(longest.ids_T, longest.lengths), known) / len(longest.ids_T)
        return int(_KEPT_SHARE * available_bytes(longest.ids_T.device) / max(1.0, bytes_per_token))


def _encode(chunk: Chunk, encode: EncodeChunk, seed: int, index: int) -> Tensor:
    seed_torch(seed, "chunk", index)
    return encode(chunk.ids_T, chunk.lengths)


def under_autocast(encode: EncodeChunk, ids_T: Tensor, lengths: list[int]) -> Tensor:
    """A chunk as ``Trainer(precision="bf16-mixed")`` has it encoded."""
    with torch.autocast(ids_T.device.type, dtype=torch.bfloat16):
        return encode(ids_T, lengths)
