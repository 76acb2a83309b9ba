"""InfoNCE over a whole batch by row blocks: the ``[Q, P]`` matrix of logits is never held."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_e5.losses.false_negatives import FalseNegativeMask, OwnColumnMask
from lightning_e5.types import LossOutput

#: t of E5, of its table of hyperparameters.
TEMPERATURE = 0.01
#: Logits of one block where blocks are large enough by it: 2^22 float32 values are 16 MB.
BLOCK_LOGITS = 2**22
#: Fewer rows than this make the sum of passage gradients, which every block adds to, the slowest part ...
_BLOCK_ROWS = 512
#: ... but no block holds more logits than this (256 MB).
_MOST_LOGITS = 2**26


class InfoNCE(nn.Module):
    """``-log( exp(q.p+ / t) / sum_p exp(q.p / t) )``, averaged over the queries; from query to passage only.

    Args:
        temperature: t.
        learned: make ``log(1 / t)`` a parameter, ``log_scale`` (not in E5).
        block_logits: logits held at once; by default from the number of candidates, 2^22 to 2^26.

    Example:
        >>> pairs = torch.eye(2)  # two queries, equal to their positives, orthogonal to each other
        >>> loss = InfoNCE(temperature=1.0)(pairs, pairs, target_Q=torch.arange(2)).loss
        >>> round(float(loss), 4)  # -log(e / (e + 1))
        0.3133

    Source: paper equation 1.
    """

    def __init__(self, temperature: float = TEMPERATURE, *, learned: bool = False, block_logits: int | None = None) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: {temperature} is not above 0")
        self.block_logits = block_logits
        start = torch.tensor(-math.log(temperature), dtype=torch.float64 if learned else torch.float32)
        self.log_scale = nn.Parameter(start.float()) if learned else None
        self._temperature = temperature

    @property
    def temperature(self) -> float:
        """t as it is now."""
        return self._temperature if self.log_scale is None else math.exp(-float(self.log_scale.detach()))

    def forward(
        self,
        queries_QD: Tensor,
        passages_PD: Tensor,
        target_Q: Tensor,
        mask: FalseNegativeMask | OwnColumnMask | None = None,
        queue_KD: Tensor | None = None,
    ) -> LossOutput:
        """The loss, and what is logged with it.

        Args:
            queries_QD: unit rows, float32 or float64 (half precision is raised to float32: at E5's temperature it
                cannot tell neighbouring logits apart).
            passages_PD: unit rows, every passage of the batch.
            target_Q: int64, the column of each query's positive in the candidates, passages before queue.
            mask: candidates left out of the negatives.
            queue_KD: unit rows, further candidates that get no gradient.

        Returns:
            loss (mean over queries), share of queries whose positive has a logit above all others (a tie is no hit, so that a
            collapsed encoder has none), masked share of all logits.
        """
        queries_QD, passages_PD = self.precise(queries_QD), self.precise(passages_PD)
        queue_KD = None if queue_KD is None else queue_KD.to(queries_QD.dtype)
        candidates = len(passages_PD) + (0 if queue_KD is None else len(queue_KD))
        rows = block_rows(candidates, self.block_logits)
        return LossOutput(*_BlockedInfoNCE.apply(queries_QD, passages_PD, self.scale(queries_QD), target_Q, mask, queue_KD, rows))

    def scale(self, queries_QD: Tensor) -> Tensor:
        """``1 / t``, of the queries' type and on their device."""
        return self.log_scale.exp().to(queries_QD.dtype) if self.log_scale is not None else queries_QD.new_tensor(1 / self._temperature)

    @staticmethod
    def precise(embeddings_ND: Tensor) -> Tensor:
        """Embeddings as they are scored: half precision raised to float32."""
        return embeddings_ND if embeddings_ND.dtype in (torch.float32, torch.float64) else embeddings_ND.float()


def block_rows(candidates: int, block_logits: int | None = None) -> int:
    """Queries of one block against so many candidates."""
    if block_logits is not None:
        return max(1, block_logits // max(1, candidates))
    return max(1, min(max(_BLOCK_ROWS, BLOCK_LOGITS // max(1, candidates)), _MOST_LOGITS // max(1, candidates)))


class _BlockedInfoNCE(torch.autograd.Function):
    """Loss and gradients in one sweep over blocks of queries; the gradients wait in ``ctx`` for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        queries_QD: Tensor,
        passages_PD: Tensor,
        scale: Tensor,
        target_Q: Tensor,
        mask: FalseNegativeMask | OwnColumnMask | None,
        queue_KD: Tensor | None,
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, passages = queries_QD.shape[0], passages_PD.shape[0]
        candidates = passages + (0 if queue_KD is None else queue_KD.shape[0])
        wants_q, wants_p, wants_scale = ctx.needs_input_grad[:3]
        gradient_q = torch.empty_like(queries_QD) if wants_q or wants_scale else None
        gradient_p = torch.zeros_like(passages_PD) if wants_p else None
        loss = queries_QD.new_zeros(())
        correct = torch.zeros((), device=queries_QD.device)
        masked = torch.zeros((), device=queries_QD.device)
        buffer = queries_QD.new_empty(min(rows, count), candidates)
        for start in range(0, count, rows):
            stop = min(count, start + rows)
            queries_RD, logits_RC = queries_QD[start:stop], buffer[: stop - start]
            torch.mm(queries_RD, passages_PD.T, out=logits_RC[:, :passages])
            if queue_KD is not None:
                torch.mm(queries_RD, queue_KD.T, out=logits_RC[:, passages:])
            logits_RC.mul_(scale)
            targets_R1 = target_Q[start:stop, None]
            if mask is not None:
                left_out = mask.block(start, stop)
                masked += len(left_out[0])
                logits_RC[left_out] = -torch.inf
            positive_R1 = logits_RC.gather(1, targets_R1)
            positive_R = positive_R1.squeeze(1)
            others_R = logits_RC.scatter_(1, targets_R1, -torch.inf).amax(1)
            logits_RC.scatter_(1, targets_R1, positive_R1)
            maximum_R = torch.maximum(positive_R, others_R)
            correct += (positive_R > others_R).sum()
            logits_RC.sub_(maximum_R[:, None]).exp_()
            total_R = logits_RC.sum(1)
            loss += (total_R.log() + maximum_R - positive_R).sum()
            if gradient_q is None and gradient_p is None:
                continue
            # d loss / d logit = softmax - [target]; the scale and the mean follow.
            logits_RC.div_(total_R[:, None])
            logits_RC.scatter_add_(1, targets_R1, torch.full_like(targets_R1, -1, dtype=logits_RC.dtype))
            if gradient_q is not None:
                torch.mm(logits_RC[:, :passages], passages_PD, out=gradient_q[start:stop])
                if queue_KD is not None:
                    gradient_q[start:stop].addmm_(logits_RC[:, passages:], queue_KD)
            if gradient_p is not None:
                gradient_p.addmm_(logits_RC[:, :passages].T, queries_RD)
        # With c = (softmax - [target]) / count: d loss / d scale = sum c * (q.p) = sum over queries of (c P) . q.
        gradient_scale = (gradient_q * queries_QD).sum() / count if wants_scale and gradient_q is not None else None
        for gradient in (gradient_q, gradient_p):
            if gradient is not None:
                gradient.mul_(scale / count)
        ctx.gradients = [gradient_q if wants_q else None, gradient_p, gradient_scale]
        outputs = loss / count, correct / count, masked / (count * candidates)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None else g.mul_(gradients[0]) for g in ctx.gradients]
        del ctx.gradients  # in place, so for one backward pass only
        return (*scaled, None, None, None, None)
