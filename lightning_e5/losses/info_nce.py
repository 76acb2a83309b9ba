"""InfoNCE over a whole batch by row blocks: the ``[Q, P]`` matrix of logits is never held."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_e5.types import LossOutput

#: Logits of one block, at most: 2^22 float32 values are 16 MB.
BLOCK_LOGITS = 2**22


class _BlockStatistics(NamedTuple):
    loss: Tensor
    correct: Tensor
    masked: Tensor


class InfoNCE(nn.Module):
    """``-log( exp(q.p+ / t) / sum_p exp(q.p / t) )``, averaged over the queries; from query to passage only.

    Args:
        temperature: t, E5's is 0.01.
        block_logits: logits held at once; the memory beside the embeddings is a few times 4 bytes of it.

    Source: paper equation 1; temperature from its table of hyperparameters.
    """

    def __init__(self, temperature: float = 0.01, *, block_logits: int = BLOCK_LOGITS) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: {temperature} is not above 0")
        self.temperature, self.block_logits = temperature, block_logits

    def forward(
        self,
        queries_QD: Tensor,
        passages_PD: Tensor,
        target_Q: Tensor,
        passage_text_P: Tensor | None = None,
        query_text_Q: Tensor | None = None,
        positive_text_Q: Tensor | None = None,
    ) -> LossOutput:
        """The loss, and what is logged with it.

        Args:
            queries_QD: unit rows, float32 or float64 (half precision is raised to float32: at t = 0.01 it cannot tell
                neighbouring logits apart).
            passages_PD: unit rows, every passage of the batch (and of a queue).
            target_Q: int64, the row of each query's positive in ``passages_PD``.
            passage_text_P: int64 text ids; passages with the id of a query's positive are no negatives of it.
            query_text_Q: int64 text ids; where given, the positives of queries with an equal text are no negatives of
                each other either (needs ``passage_text_P``).
            positive_text_Q: unused unless the positives' ids differ from ``passage_text_P[target_Q]``.

        Returns:
            loss (mean over queries), share of queries whose positive has the highest logit, masked share of all logits.
        """
        if queries_QD.dtype not in (torch.float32, torch.float64):
            queries_QD, passages_PD = queries_QD.float(), passages_PD.float()
        if passage_text_P is not None and positive_text_Q is None:
            positive_text_Q = passage_text_P[target_Q]
        loss, correct, masked = _BlockedInfoNCE.apply(
            queries_QD, passages_PD, target_Q, 1.0 / self.temperature, passage_text_P, positive_text_Q, query_text_Q,
            self.block_logits,
        )  # fmt: skip
        return LossOutput(loss, correct, masked)


class _BlockedInfoNCE(torch.autograd.Function):
    """Loss and both gradients in one sweep over blocks of queries; the gradients wait in ``ctx`` for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        queries_QD: Tensor,
        passages_PD: Tensor,
        target_Q: Tensor,
        scale: float,
        passage_text_P: Tensor | None,
        positive_text_Q: Tensor | None,
        query_text_Q: Tensor | None,
        block_logits: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, passages = queries_QD.shape[0], passages_PD.shape[0]
        wants_q, wants_p = ctx.needs_input_grad[:2]
        gradient_q = torch.empty_like(queries_QD) if wants_q else None
        gradient_p = torch.zeros_like(passages_PD) if wants_p else None
        loss = queries_QD.new_zeros(())
        correct = torch.zeros((), device=queries_QD.device)
        masked = torch.zeros((), device=queries_QD.device)
        partners = _partners(query_text_Q, positive_text_Q)
        rows = max(1, block_logits // max(1, passages))
        for start in range(0, count, rows):
            stop = min(count, start + rows)
            logits_RP = queries_QD[start:stop] @ passages_PD.T
            logits_RP.mul_(scale)
            targets_R1 = target_Q[start:stop, None]
            if passage_text_P is not None and positive_text_Q is not None:
                same_RP = passage_text_P[None, :] == positive_text_Q[start:stop, None]
                if partners is not None:
                    for row, texts in partners.get_rows(start, stop):
                        same_RP[row] |= torch.isin(passage_text_P, texts)
                same_RP.scatter_(1, targets_R1, False)
                masked += same_RP.sum()
                logits_RP.masked_fill_(same_RP, -torch.inf)
            positive_R = logits_RP.gather(1, targets_R1).squeeze(1)
            maximum_R = logits_RP.amax(1)
            correct += (positive_R >= maximum_R).sum()
            logits_RP.sub_(maximum_R[:, None]).exp_()
            total_R = logits_RP.sum(1)
            loss += (total_R.log() + maximum_R - positive_R).sum()
            if not (wants_q or wants_p):
                continue
            # d loss / d logit = softmax - [target]; the scale and the mean follow.
            logits_RP.div_(total_R[:, None])
            logits_RP.scatter_add_(1, targets_R1, torch.full_like(targets_R1, -1, dtype=logits_RP.dtype))
            if gradient_q is not None:
                torch.mm(logits_RP, passages_PD, out=gradient_q[start:stop])
            if gradient_p is not None:
                gradient_p.addmm_(logits_RP.T, queries_QD[start:stop])
        for gradient in (gradient_q, gradient_p):
            if gradient is not None:
                gradient.mul_(scale / count)
        ctx.save_for_backward(gradient_q, gradient_p)
        outputs = loss / count, correct / count, masked / (count * passages)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient_q, gradient_p = ctx.saved_tensors
        scaled = [None if g is None else g * gradients[0] for g in (gradient_q, gradient_p)]
        return (*scaled, None, None, None, None, None, None)


class _Partners:
    """For queries whose text occurs more than once: the text ids of all their positives."""

    def __init__(self, positives_of_row: dict[int, Tensor]) -> None:
        self.positives_of_row = positives_of_row

    def get_rows(self, start: int, stop: int) -> list[tuple[int, Tensor]]:
        return [(row - start, self.positives_of_row[row]) for row in range(start, stop) if row in self.positives_of_row]


def _partners(query_text_Q: Tensor | None, positive_text_Q: Tensor | None) -> _Partners | None:
    if query_text_Q is None or positive_text_Q is None:
        return None
    _, group_Q, size = torch.unique(query_text_Q, return_inverse=True, return_counts=True)
    repeated = torch.nonzero(size[group_Q] > 1).flatten().tolist()
    if not repeated:
        return None
    members: dict[int, list[int]] = {}
    for row in repeated:
        members.setdefault(int(group_Q[row]), []).append(row)
    return _Partners({row: positive_text_Q[members[int(group_Q[row])]] for row in repeated})
