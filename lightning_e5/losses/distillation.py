"""Knowledge distillation from a cross-encoder, the fine-tuning loss of E5, and the listwise loss of that cross-encoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.losses.info_nce import TEMPERATURE

#: A teacher's logits of a query's passages that spread less than this are all alike: the teacher has collapsed.
COLLAPSED = 1e-4


def has_teacher(teacher_BG: Tensor) -> Tensor:
    """bool ``[B]``: rows whose logits make a distribution, so without NaN and with one above ``-inf``."""
    return ~teacher_BG.isnan().any(1) & (teacher_BG > -torch.inf).any(1)


def score_spread(teacher_BG: Tensor) -> float | None:
    """Standard deviation of the teacher's logits within a query's passages, mean over the rows whose logits are all finite; None without one."""
    whole_BG = teacher_BG[teacher_BG.isfinite().all(1)]
    return float(whole_BG.float().std(1, correction=0).mean()) if len(whole_BG) and whole_BG.shape[1] > 1 else None


def positive_first(logits_BG: Tensor) -> Tensor:
    """Share of groups whose first passage, the positive, has a logit above all others: float32 scalar; a tie is no hit."""
    others_BG = logits_BG[:, 1:]
    if not others_BG.shape[1]:
        return torch.ones((), device=logits_BG.device)
    return (logits_BG[:, 0] > others_BG.amax(1)).float().mean()


def listwise_loss(logits_BG: Tensor) -> Tensor:
    """Cross-entropy of the positive (column 0) among each query's passages."""
    target_B = torch.zeros(len(logits_BG), dtype=torch.long, device=logits_BG.device)
    return functional.cross_entropy(logits_BG, target_B)


def distillation_loss(queries_BD: Tensor, passages_BGD: Tensor, teacher_BG: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """``D_KL(p_ce || p_stu)`` over each query's own group, averaged over the queries that have a teacher.

    ``p_stu`` is the softmax of the student's cosines at ``temperature``, ``p_ce`` that of the teacher's logits at 1. A
    ``-inf`` teacher logit gives its passage probability 0; rows with NaN logits, or with ``-inf`` alone, have no teacher and do not count.

    Args:
        queries_BD: unit rows.
        passages_BGD: unit rows, the positive first.
        teacher_BG: the cross-encoder's logits.
        temperature: the student's.

    Returns:
        A float32 scalar (float64 for float64 input); 0 where no row has a teacher.

    Example:
        >>> query, group = torch.tensor([[1.0, 0.0]]), torch.eye(2)[None]  # cosines 1 and 0
        >>> float(distillation_loss(query, group, torch.tensor([[1.0, 0.0]]), temperature=1.0))  # the teacher agrees
        0.0
        >>> round(float(distillation_loss(query, group, torch.tensor([[0.0, 1.0]]), temperature=1.0)), 4)
        0.4621

    Source: paper section 3.3, equation 2; the form of the divergence from the authors' SimLM.
    """
    precise = torch.float64 if queries_BD.dtype == torch.float64 else torch.float32
    student_BG = torch.einsum("bd,bgd->bg", queries_BD.to(precise), passages_BGD.to(precise)) / temperature
    has_teacher_B = has_teacher(teacher_BG)
    teacher_BG = torch.where(has_teacher_B[:, None], teacher_BG, torch.zeros_like(teacher_BG)).to(precise)
    log_teacher_BG = functional.log_softmax(teacher_BG, 1)
    log_student_BG = functional.log_softmax(student_BG, 1)
    probability_BG = log_teacher_BG.exp()
    # 0 * log 0 = 0: a passage that the teacher rules out adds nothing.
    safe_BG = torch.where(probability_BG > 0, log_teacher_BG, torch.zeros_like(log_teacher_BG))
    divergence_B = (probability_BG * (safe_BG - log_student_BG)).sum(1)
    counted_B = torch.where(has_teacher_B, divergence_B, torch.zeros_like(divergence_B))
    return counted_B.sum() / has_teacher_B.sum().clamp(min=1)
