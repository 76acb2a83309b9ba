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


def scalar_oracle(queries: torch.Tensor, passages: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The same in loops over float64 scalars that keep their graph."""
    rows: list[torch.Tensor] = []
    for q, ps, ts in zip(queries, passages, teacher.tolist(), strict=True):
        if any(math.isnan(t) for t in ts) or max(ts) == -math.inf:
            continue
        logits = [sum(q[d] * p[d] for d in range(len(q))) / temperature for p in ps]
        top = max(float(x.detach()) for x in logits)  # type: ignore[union-attr]
        total = sum(torch.exp(x - top) for x in logits)
        mass = [math.exp(t - max(ts)) for t in ts]
        shares = [m / sum(mass) for m in mass]
        rows.append(sum(w * (math.log(w) - (x - top - torch.log(total))) for w, x in zip(shares, logits, strict=True) if w > 0))  # type: ignore[arg-type]
    return sum(rows) / len(rows) if rows else queries.sum() * 0  # type: ignore[return-value]


def edge(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    queries, passages, teacher = example(7, count=6, group=2 if name == "one negative" else 5)
    if name == "no teacher":
        teacher[:] = math.nan
    elif name == "some without":
        teacher[[0, 3]] = math.nan
    elif name == "equal scores":
        teacher[:] = 3.25
    elif name == "equal students":
        passages[:] = passages[:, :1]
    elif name == "masked":
        teacher[0, 1:] = -math.inf
        teacher[1, 0] = -math.inf
        teacher[2, 2:4] = -math.inf
        teacher[3] = -math.inf
    elif name == "far apart":
        teacher[:, 0] += 900.0
    return queries, passages, teacher


EDGES = ("plain", "one negative", "no teacher", "some without", "equal scores", "equal students", "masked", "far apart")


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("name", EDGES)
def test_value_and_gradients_equal_the_oracle_at_every_edge(name: str, temperature: float) -> None:
    queries, passages, teacher = edge(name)
    found, wanted = [], []
    for function, result in ((lambda *a: distillation_loss(*a, temperature=temperature), found), (lambda *a: scalar_oracle(*a, temperature), wanted)):
        q, p = queries.clone().requires_grad_(), passages.clone().requires_grad_()
        loss = function(q, p, teacher)
        result += [loss.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip((q, p), torch.autograd.grad(loss, (q, p), allow_unused=True), strict=True))]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.isfinite(ours).all()
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    if name in ("plain", "masked"):
        assert float(found[0]) > 0 and float(found[1].abs().sum()) > 0


def test_a_passage_that_the_teacher_rules_out_is_pushed_away_and_adds_nothing_itself() -> None:
    queries, passages, teacher = edge("plain")
    teacher[:, 2] = -math.inf
    passages.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(queries, passages, teacher, temperature=0.2), passages)
    towards = torch.einsum("bd,bd->b", gradient[:, 2], queries)
    assert (towards > 0).all(), "the loss falls when its cosine falls"
