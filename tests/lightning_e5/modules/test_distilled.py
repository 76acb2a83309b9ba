"""The fine-tuning loss: the divergence over the rows with a teacher, plus alpha times InfoNCE over all passages, in loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.distilled import DistilledModule
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import PairBatch, TokenBatch
from tests.lightning_e5.modules.loss_of_step import loss_of_step

COUNT, GROUP, TEMPERATURE = 4, 3, 0.05


def example(teacher: torch.Tensor | None) -> tuple[PairBatch, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    queries = functional.normalize(torch.randn(COUNT, 6, dtype=torch.float64, generator=draw), dim=1).requires_grad_()
    passages = functional.normalize(torch.randn(COUNT * GROUP, 6, dtype=torch.float64, generator=draw), dim=1).requires_grad_()
    tokens = TokenBatch(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    batch = PairBatch(tokens, tokens, torch.arange(COUNT), torch.arange(100, 100 + COUNT * GROUP), torch.arange(COUNT), teacher)
    return batch, queries, passages


def oracle(batch: PairBatch, queries: torch.Tensor, passages: torch.Tensor, alpha: float) -> torch.Tensor:
    total = queries.sum() * 0
    for row, query in enumerate(queries):
        logits = [query @ p / TEMPERATURE for p in passages]
        total = total + alpha * (torch.logsumexp(torch.stack(logits), 0) - logits[row * GROUP])
        scores = [math.nan] if batch.teacher_BG is None else batch.teacher_BG[row].tolist()
        if any(math.isnan(s) for s in scores) or max(scores) == -math.inf:
            continue
        own = torch.log_softmax(torch.stack(logits[row * GROUP : (row + 1) * GROUP]), 0)
        mass = [math.exp(s - max(scores)) for s in scores]
        for m, student in zip(mass, own, strict=True):
            if m > 0:
                total = total + m / sum(mass) * (math.log(m / sum(mass)) - student)
    return total / COUNT


NAN, INF = math.nan, math.inf
TEACHERS = {
    "all": [[3.0, 1.0, -2.0], [0.5, 0.5, 0.5], [9.0, -9.0, 0.0], [1.0, 2.0, 3.0]],
    "some": [[3.0, 1.0, -2.0], [NAN] * 3, [9.0, -9.0, 0.0], [NAN] * 3],
    "none": [[NAN] * 3] * 4,
    "masked": [[3.0, -INF, -2.0], [-INF, -INF, 1.0], [-INF] * 3, [1.0, 2.0, 3.0]],
    "no column": None,
}


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("name", TEACHERS)
def test_loss_and_gradients_are_the_papers(name: str, alpha: float, small_bert: Any, small_tokenizer: Any) -> None:
    scores = TEACHERS[name]
    module = DistilledModule(TextEncoder(small_bert, small_tokenizer), alpha=alpha, temperature=TEMPERATURE, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=2)
    batch, queries, passages = example(None if scores is None else torch.tensor(scores))
    found = loss_of_step(module, batch, torch.cat([queries, passages])).loss
    wanted = oracle(batch, queries, passages, alpha)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6, abs=1e-9)
    ours, theirs = torch.autograd.grad(found, (queries, passages)), torch.autograd.grad(wanted, (queries, passages))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all() and torch.allclose(a, b, rtol=1e-6, atol=1e-8)


def test_alpha_below_0_is_refused(small_bert: Any, small_tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"alpha: -0\.1 is below 0"):
        DistilledModule(TextEncoder(small_bert, small_tokenizer), alpha=-0.1, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=2)
