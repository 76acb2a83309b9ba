"""InfoNCE against the passages of all ranks, which come by one rank's block at a time: none ever holds them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_e5.losses.false_negatives import FalseNegativeMask, OwnColumnMask
from lightning_e5.losses.info_nce import InfoNCE, block_rows
from lightning_e5.types import LossOutput

Mask = FalseNegativeMask | OwnColumnMask


class PassageRing(Protocol):
    """How blocks of passages come by and their gradients go home, such as `lightning_e5.distributed.ring.Ring`."""

    @property
    def ranks(self) -> int:
        """Blocks that come by, the own one included."""
        ...

    def travelling(self, *own: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The own tensors first, then those of each other rank."""
        ...

    def home(self, contributions: Iterable[Tensor]) -> Tensor:
        """The sum of what all ranks contribute to the own block."""
        ...


class _Block(NamedTuple):
    """Candidates that are here now, [C, D]; target_Q: the columns of the positives, which are all in the own block."""

    candidates_CD: Tensor
    mask: Mask | None
    target_Q: Tensor | None


class _Arguments(NamedTuple):
    """What the loss takes beside the tensors that have a gradient; see `info_nce_by_ring`."""

    text_P: Tensor
    target_Q: Tensor
    ring: PassageRing
    mask: Mask | None
    queue: tuple[Tensor, Tensor] | None
    block_logits: int | None


def info_nce_by_ring(
    loss: InfoNCE,
    queries_QD: Tensor,
    passages_PD: Tensor,
    text_P: Tensor,
    target_Q: Tensor,
    ring: PassageRing,
    mask: Mask | None = None,
    queue: tuple[Tensor, Tensor] | None = None,
) -> LossOutput:
    """`InfoNCE` with the passages of all ranks as candidates, in memory that does not grow with the number of ranks.

    The log-sum-exp is brought up to date block by block; in the backward pass the blocks come by once more, the logits are computed
    again, and each block's gradient is summed on its way home. That is four products of queries and passages where `InfoNCE` makes
    three, and as much traffic as to gather passages and reduce their gradients. A collective call, as is its backward pass.

    Args:
        loss: its temperature, and ``block_logits`` held at once.
        queries_QD: unit rows of this rank.
        passages_PD: unit rows of this rank.
        text_P: int64 ids of their texts.
        target_Q: int64, the row of each query's positive in ``passages_PD``.
        ring: of the ranks.
        mask: left-out candidates, with the columns of ``passages_PD``; those of the other ranks are known by their texts.
        queue: unit rows ``[K, D]`` and their text ids, further candidates that are the same on every rank and get no gradient.

    Returns:
        As `InfoNCE`, of this rank's queries.

    Source: Luo et al. 2024, "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss" (Inf-CL, arXiv 2410.17243).
    """
    queries_QD, passages_PD = loss.precise(queries_QD), loss.precise(passages_PD)
    queue = None if queue is None else (queue[0].to(queries_QD.dtype), queue[1])
    arguments = _Arguments(text_P, target_Q, ring, mask, queue, loss.block_logits)
    return LossOutput(*_RingInfoNCE.apply(queries_QD, passages_PD, loss.scale(queries_QD), arguments))


class _RingInfoNCE(torch.autograd.Function):
    """The loss in one tour of the passages, the gradients in a second."""

    @staticmethod
    def forward(ctx: Any, queries_QD: Tensor, passages_PD: Tensor, scale: Tensor, arguments: _Arguments) -> tuple[Tensor, Tensor, Tensor]:
        count = len(queries_QD)
        positive_Q = queries_QD.new_empty(count)
        # Of all candidates but the positive: the highest logit, and the log of the sum of their exponentials.
        highest_Q = queries_QD.new_full((count,), -torch.inf)
        others_Q = highest_Q.clone()
        candidates = masked = 0
        for block in (*_own_first(passages_PD, arguments), *_of_queue(arguments)):
            candidates += len(block.candidates_CD)
            for start, stop, logits_RC, left_out in _row_blocks(queries_QD, scale, block, arguments.block_logits):
                masked += left_out
                if block.target_Q is not None:
                    target_R1 = block.target_Q[start:stop, None]
                    positive_Q[start:stop] = logits_RC.gather(1, target_R1).squeeze(1)
                    logits_RC.scatter_(1, target_R1, -torch.inf)
                top_R = logits_RC.amax(1)
                highest_Q[start:stop] = torch.maximum(highest_Q[start:stop], top_R)
                shift_R = top_R.masked_fill(top_R == -torch.inf, 0.0)  # a row whose candidates are all left out adds nothing
                log_sum_R = logits_RC.sub_(shift_R[:, None]).exp_().sum(1).log_().add_(shift_R)
                others_Q[start:stop] = torch.logaddexp(others_Q[start:stop], log_sum_R)
        log_sum_Q = torch.logaddexp(others_Q, positive_Q)
        ctx.save_for_backward(queries_QD, passages_PD, scale, log_sum_Q)
        ctx.arguments = arguments
        hits = (positive_Q > highest_Q).sum().to(torch.float32)
        share = torch.full((), masked / (count * candidates), dtype=torch.float32, device=queries_QD.device)
        outputs = (log_sum_Q - positive_Q).sum() / count, hits / count, share
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries_QD, passages_PD, scale, log_sum_Q = ctx.saved_tensors
        arguments: _Arguments = ctx.arguments
        wants_q, wants_p, wants_scale = ctx.needs_input_grad[:3]
        of_mean = gradients[0] / len(queries_QD)
        gradient_q = torch.zeros_like(queries_QD) if wants_q or wants_scale else None

        def differentiate(block: _Block, gradient_CD: Tensor | None) -> None:
            """Add the block's part of d loss / d (q.p) = softmax - [target] to the gradients; the scale and the mean follow."""
            for start, stop, logits_RC, _ in _row_blocks(queries_QD, scale, block, arguments.block_logits):
                logits_RC.sub_(log_sum_Q[start:stop, None]).exp_()
                if block.target_Q is not None:
                    target_R1 = block.target_Q[start:stop, None]
                    logits_RC.scatter_add_(1, target_R1, torch.full_like(target_R1, -1, dtype=logits_RC.dtype))
                if gradient_q is not None:
                    gradient_q[start:stop].addmm_(logits_RC, block.candidates_CD)
                if gradient_CD is not None:
                    gradient_CD.addmm_(logits_RC.T, queries_QD[start:stop])

        def contributions() -> Iterator[Tensor]:
            """This rank's part of the gradient of each block."""
            for block in _own_first(passages_PD, arguments):
                gradient_CD = torch.zeros_like(block.candidates_CD)
                differentiate(block, gradient_CD)
                yield gradient_CD.mul_(scale * of_mean)

        gradient_p = None
        if wants_p:
            gradient_p = arguments.ring.home(contributions())
        elif gradient_q is not None:
            for block in _own_first(passages_PD, arguments):
                differentiate(block, None)
        for block in _of_queue(arguments) if gradient_q is not None else ():
            differentiate(block, None)
        gradient_scale = (gradient_q * queries_QD).sum() * of_mean if wants_scale and gradient_q is not None else None
        return (gradient_q.mul_(scale * of_mean) if wants_q and gradient_q is not None else None), gradient_p, gradient_scale, None


def _own_first(passages_PD: Tensor, arguments: _Arguments) -> Iterator[_Block]:
    """The passages of this rank, which hold the positives, then those of the others as they come by."""
    mask, target_Q = arguments.mask, arguments.target_Q
    for hop, (candidates_CD, text_C) in enumerate(arguments.ring.travelling(passages_PD, arguments.text_P)):
        if hop == 0:
            yield _Block(candidates_CD, mask, target_Q)
        else:
            yield _Block(candidates_CD, None if mask is None else mask.among(text_C), None)


def _of_queue(arguments: _Arguments) -> Iterator[_Block]:
    if arguments.queue is not None and len(arguments.queue[0]):
        candidates_CD, text_C = arguments.queue
        yield _Block(candidates_CD, None if arguments.mask is None else arguments.mask.among(text_C), None)


def _row_blocks(queries_QD: Tensor, scale: Tensor, block: _Block, block_logits: int | None) -> Iterator[tuple[int, int, Tensor, int]]:
    """The logits ``[R, C]`` of some queries after the other, ``start .. stop``, and how many of them are left out, which are ``-inf``.

    They are in one buffer, which may be changed.
    """
    count, candidates = len(queries_QD), len(block.candidates_CD)
    rows = block_rows(candidates, block_logits)
    buffer = queries_QD.new_empty(min(rows, count), candidates)
    for start in range(0, count, rows):
        stop = min(count, start + rows)
        logits_RC = buffer[: stop - start]
        torch.mm(queries_QD[start:stop], block.candidates_CD.T, out=logits_RC)
        logits_RC.mul_(scale)
        left_out = 0
        if block.mask is not None:
            places = block.mask.block(start, stop)
            left_out = len(places[0])
            logits_RC[places] = -torch.inf
        yield start, stop, logits_RC, left_out
