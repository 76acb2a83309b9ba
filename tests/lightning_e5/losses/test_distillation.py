"""D_KL(p_ce || p_stu) against a loop-written oracle in float64, and its edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from lightning_e5.losses.distillation import distillation_loss


def example(seed: int, count: int = 5, group: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    queries = functional.normalize(torch.randn(count, 6, dtype=torch.float64, generator=draw), dim=1)
    passages = functional.normalize(torch.randn(count, group, 6, dtype=torch.float64, generator=draw), dim=2)
    return queries, passages, 3 * torch.randn(count, group, dtype=torch.float64, generator=draw)


def oracle(queries, passages, teacher, temperature):  # type: ignore[no-untyped-def]
    total = rows = 0
    for q, ps, ts in zip(queries.tolist(), passages.tolist(), teacher.tolist(), strict=True):
        if any(math.isnan(t) for t in ts):
            continue
        rows += 1
        logits = [sum(a * b for a, b in zip(q, p, strict=True)) / temperature for p in ps]
        log_stu = [x - max(logits) - math.log(sum(math.exp(y - max(logits)) for y in logits)) for x in logits]
        log_ce = [x - max(ts) - math.log(sum(math.exp(y - max(ts)) for y in ts)) for x in ts]
        total += sum(math.exp(c) * (c - s) for c, s in zip(log_ce, log_stu, strict=True) if c > -math.inf)
    return total / rows if rows else 0.0


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_equals_the_oracle(temperature: float) -> None:
    queries, passages, teacher = example(0)
    teacher[1, 2] = -math.inf
    teacher[3] = math.nan
    found = distillation_loss(queries, passages, teacher, temperature=temperature)
    assert float(found) == pytest.approx(oracle(queries, passages, teacher, temperature), rel=1e-12)


def test_gradients_are_finite_at_the_edges() -> None:
    queries, passages, teacher = example(1)
    teacher[0] = math.nan
    teacher[1, 1:] = -math.inf
    teacher[2] = 7.0
    queries.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(queries, passages, teacher), queries)
    assert torch.isfinite(gradient).all() and (gradient[0] == 0).all()


def test_no_teacher_at_all_is_0() -> None:
    queries, passages, teacher = example(2)
    assert float(distillation_loss(queries, passages, torch.full_like(teacher, math.nan))) == 0.0


def test_one_passage_per_query_is_0() -> None:
    queries, passages, teacher = example(3, group=1)
    assert float(distillation_loss(queries, passages, teacher)) == pytest.approx(0.0, abs=1e-12)


def test_a_student_that_agrees_has_loss_0() -> None:
    queries, passages, _ = example(4)
    teacher = torch.einsum("bd,bgd->bg", queries, passages) / 0.05
    assert float(distillation_loss(queries, passages, teacher, temperature=0.05)) == pytest.approx(0.0, abs=1e-12)
