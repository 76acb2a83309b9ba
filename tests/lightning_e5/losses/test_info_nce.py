"""InfoNCE against a loop-written oracle; blocks, masks and gradients against the plain matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask
from lightning_e5.losses.info_nce import InfoNCE


def unit(count: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = torch.randn(count, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(rows, dim=1).requires_grad_()


def mask(texts: torch.Tensor, target: torch.Tensor, query_texts: torch.Tensor | None = None) -> FalseNegativeMask:
    duplicates = None if query_texts is None else DuplicateQueries(query_texts, query_texts, texts[target])
    return FalseNegativeMask(texts, texts[target], target, duplicates=duplicates)


def oracle(queries, passages, target, temperature, passage_text=None, query_text=None):  # type: ignore[no-untyped-def]
    """By loops, from equation 1 of the paper."""
    total = 0.0
    for i in range(len(queries)):
        same_query = {i}
        if query_text is not None:
            same_query = {j for j in range(len(queries)) if query_text[j] == query_text[i]}
        positives = {int(passage_text[target[j]]) for j in same_query} if passage_text is not None else set()
        terms = []
        for j in range(len(passages)):
            if j != target[i] and passage_text is not None and int(passage_text[j]) in positives:
                continue
            terms.append(sum(float(a) * float(b) for a, b in zip(queries[i], passages[j], strict=True)) / temperature)
        own = sum(float(a) * float(b) for a, b in zip(queries[i], passages[int(target[i])], strict=True)) / temperature
        top = max(terms)
        total += math.log(sum(math.exp(t - top) for t in terms)) + top - own
    return total / len(queries)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
def test_equals_the_oracle(group: int, temperature: float) -> None:
    queries, passages = unit(7, 5, 0), unit(7 * group, 5, 1)
    target = torch.arange(7) * group
    output = InfoNCE(temperature)(queries, passages, target)
    assert float(output.loss) == pytest.approx(oracle(queries, passages, target, temperature), rel=1e-12)


@pytest.mark.parametrize("block_logits", [None, 7])
@pytest.mark.parametrize("group", [1, 3])
def test_a_collapsed_encoder_hits_nothing(group: int, block_logits: int | None) -> None:
    """A positive that ties with another candidate is no hit; one whose only equals are masked copies of it is one."""
    row = torch.tensor([[0.5, 0.5, 0.5, 0.5]])  # products are exact, so that all logits are equal bit for bit
    queries, passages, target = row.expand(6, -1), row.expand(6 * group, -1), torch.arange(6) * group
    loss = InfoNCE(0.01, block_logits=block_logits)
    output = loss(queries, passages, target)
    assert float(output.accuracy) == 0.0 and float(output.loss) == pytest.approx(math.log(6 * group), rel=1e-4)
    assert float(loss(queries, passages[:0], target, queue_KD=passages).accuracy) == 0.0  # against a queue, too
    assert float(loss(queries, passages, target, mask(torch.zeros(6 * group, dtype=torch.int64), target)).accuracy) == 1.0
    one = passages.clone()
    one[target[2]] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert float(loss(torch.eye(4)[:1], one, target[2:3]).accuracy) == 1.0


def test_duplicates_of_the_positive_are_masked() -> None:
    queries, passages = unit(6, 5, 2), unit(6, 5, 3)
    target = torch.arange(6)
    texts = torch.tensor([10, 11, 10, 12, 13, 13])
    output = InfoNCE(0.05)(queries, passages, target, mask(texts, target))
    assert float(output.loss) == pytest.approx(oracle(queries, passages, target, 0.05, texts), rel=1e-12)
    assert float(output.masked_fraction) == pytest.approx(4 / 36)
    query_texts = torch.tensor([1, 2, 3, 1, 4, 5])
    output = InfoNCE(0.05)(queries, passages, target, mask(texts, target, query_texts))
    assert float(output.loss) == pytest.approx(oracle(queries, passages, target, 0.05, texts, query_texts), rel=1e-12)
    plain = InfoNCE(0.05)(queries, passages, target)
    assert float(plain.loss) != pytest.approx(float(output.loss))


@pytest.mark.parametrize("block_logits", [1, 13, 24, 10_000])
def test_blocks_change_neither_loss_nor_gradient(block_logits: int) -> None:
    queries, passages = unit(9, 6, 4), unit(12, 6, 5)
    target = torch.tensor([0, 3, 1, 2, 5, 4, 11, 9, 7])
    texts = torch.tensor([0, 1, 2, 3, 0, 5, 6, 7, 8, 9, 10, 1])
    blocked = InfoNCE(0.02, block_logits=block_logits)(queries, passages, target, mask(texts, target))
    gradients = torch.autograd.grad(blocked.loss * 3, (queries, passages))
    logits = queries @ passages.T / 0.02
    same = (texts[None] == texts[target][:, None]).scatter(1, target[:, None], False)
    plain = functional.cross_entropy(logits.masked_fill(same, -torch.inf), target)
    expected = torch.autograd.grad(plain * 3, (queries, passages))
    assert float(blocked.loss) == pytest.approx(float(plain), rel=1e-12)
    for found, wanted in zip(gradients, expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()


def test_a_row_whose_negatives_are_all_masked_has_loss_0_and_finite_gradient() -> None:
    queries, passages = unit(2, 4, 6), unit(3, 4, 7)
    output = InfoNCE(0.01)(queries, passages, torch.tensor([0, 1]), mask(torch.tensor([5, 5, 5]), torch.tensor([0, 1])))
    assert float(output.loss) == pytest.approx(0.0, abs=1e-12)
    for gradient in torch.autograd.grad(output.loss, (queries, passages)):
        assert torch.isfinite(gradient).all()


def test_half_precision_embeddings_are_scored_in_float32() -> None:
    queries = unit(4, 8, 8, torch.float32).detach().bfloat16()
    output = InfoNCE(0.01)(queries, queries, torch.arange(4))
    assert output.loss.dtype == torch.float32 and torch.isfinite(output.loss)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature: 0"):
        InfoNCE(0.0)
