"""The loss at several dimensions against loops over the first values, in float64; its rules; what it holds for the backward pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from lightning_e5.errors import UserError
from lightning_e5.losses.false_negatives import FalseNegativeMask
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.losses.matryoshka import Matryoshka, check_dimensions, first_values
from lightning_e5.types import LossOutput

QUERIES, GROUP, WIDTH, T = 5, 2, 8, 0.1
TARGET = torch.arange(QUERIES) * GROUP
TEXTS = torch.tensor([0, 1, 2, 3, 0, 5, 6, 7, 8, 2])  # copies of the positives of queries 0 and 1


def unit(count: int, seed: int) -> torch.Tensor:
    rows = torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(rows, dim=1).requires_grad_()


def info_nce(embeddings: torch.Tensor, **options: Any) -> LossOutput:
    mask = FalseNegativeMask(TEXTS, TEXTS[TARGET], TARGET)
    return InfoNCE(T, **options)(embeddings[:QUERIES], embeddings[QUERIES:], TARGET, mask)


def oracle(embeddings: torch.Tensor, dimensions: list[int], weights: list[float], renormalised: bool = True) -> float:
    """By loops over dimensions, queries, passages and values."""

    def cosine(a: list[float], b: list[float]) -> float:
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)) if renormalised else product

    rows, total = embeddings.tolist(), 0.0
    for d, weight in zip(dimensions, weights, strict=True):
        loss = 0.0
        for i in range(QUERIES):
            positive = int(TARGET[i])
            own = cosine(rows[i][:d], rows[QUERIES + positive][:d]) / T
            others = [j for j in range(QUERIES * GROUP) if j == positive or TEXTS[j] != TEXTS[positive]]
            loss += math.log(sum(math.exp(cosine(rows[i][:d], rows[QUERIES + j][:d]) / T) for j in others)) - own
        total += weight * loss / QUERIES
    return total


CASES: list[tuple[list[int], list[float] | None]] = [([8, 4, 2], None), ([2, 8, 4], [0.5, 1.0, 3.0]), ([4], None), ([6, 1], [2.0, 0.25]), ([8], [1.0])]


@pytest.mark.parametrize(("dimensions", "weights"), CASES)
def test_equals_the_oracle(dimensions: list[int], weights: list[float] | None) -> None:
    rows = torch.cat([unit(QUERIES, 1), unit(QUERIES * GROUP, 2)]).detach()
    output = Matryoshka(info_nce, dimensions, weights)(rows)
    own = weights or [1.0] * len(dimensions)
    assert float(output.loss) == pytest.approx(oracle(rows, dimensions, own), rel=1e-12)
    for d in dimensions:
        assert float(output.logs[f"loss@{d}"]) == pytest.approx(oracle(rows, [d], [1.0]), rel=1e-12)
    assert output.accuracy == output.logs[f"accuracy@{max(dimensions)}"] == info_nce(first_values(rows, max(dimensions))).accuracy
    if dimensions != [8]:  # the control: without unit length it is another loss
        assert float(output.loss) != pytest.approx(oracle(rows, dimensions, own, renormalised=False), rel=1e-3)


@pytest.mark.parametrize("block_logits", [None, 7])
def test_gradients_are_those_of_whole_matrices(block_logits: int | None) -> None:
    queries, passages = unit(QUERIES, 3), unit(QUERIES * GROUP, 4)
    output = Matryoshka(lambda rows: info_nce(rows, block_logits=block_logits), [8, 3], [1.0, 0.5])(torch.cat([queries, passages]))
    same = (TEXTS[None] == TEXTS[TARGET][:, None]).scatter(1, TARGET[:, None], False)
    plain = queries.new_zeros(())
    for d, weight in ((8, 1.0), (3, 0.5)):
        cut = [rows if d == WIDTH else rows[:, :d] / rows[:, :d].square().sum(1, keepdim=True).sqrt() for rows in (queries, passages)]
        plain = plain + weight * functional.cross_entropy((cut[0] @ cut[1].T / T).masked_fill(same, -torch.inf), TARGET)
    found, wanted = (torch.autograd.grad(loss, (queries, passages)) for loss in (output.loss, plain))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_the_whole_width_alone_is_the_loss_itself() -> None:
    rows = torch.cat([unit(QUERIES, 1), unit(QUERIES * GROUP, 2)])
    assert first_values(rows, WIDTH) is rows
    assert torch.equal(Matryoshka(info_nce, [WIDTH])(rows).loss, info_nce(rows).loss)
    assert torch.allclose(first_values(rows, 3).norm(dim=1), torch.ones(len(rows), dtype=torch.float64))


def test_values_behind_the_largest_dimension_get_no_gradient() -> None:
    rows = torch.cat([unit(QUERIES, 1), unit(QUERIES * GROUP, 2)]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(Matryoshka(info_nce, [4, 2])(rows).loss, rows)
    assert gradient[:, 4:].abs().max() == 0 and gradient[:, 2:4].abs().max() > 0


def held_values(count: int, dimensions: list[int] | None) -> int:
    """Values that the backward pass of a batch holds, whoever holds them: saved tensors, and the gradients that InfoNCE made beforehand."""
    rows = functional.normalize(torch.randn(2 * count, 32), dim=1).requires_grad_()
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    def loss(embeddings: torch.Tensor) -> LossOutput:
        return InfoNCE(T)(embeddings[:count], embeddings[count:], torch.arange(count))

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = loss(rows) if dimensions is None else Matryoshka(loss, dimensions)(rows)
    nodes, seen, made = [output.loss.grad_fn], set(), 0
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        made += sum(g.numel() for g in getattr(node, "gradients", []) if g is not None)
        nodes += [parent for parent, _ in node.next_functions]
    return sum(held.values()) + made


def test_memory_grows_with_the_batch_not_with_its_square() -> None:
    small, large = held_values(64, [32, 8]), held_values(256, [32, 8])
    assert large <= 4.2 * small and large < 256 * 256  # a matrix of logits alone would be more
    assert held_values(256, [32]) >= 256 * 2 * 32  # the control: what InfoNCE holds is counted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimensions": []}, "dimensions: is an empty list"),
        ({"dimensions": [8, 4, 8]}, "dimensions: 8 is named twice"),
        ({"dimensions": [4, 0]}, "dimensions: 0 is not >= 1"),
        ({"dimensions": [9, 4]}, "dimensions: 9 is above the 8 values of the encoder's embeddings"),
        ({"dimensions": [8, 4], "dimension_weights": [1.0]}, "dimension_weights: 1 weights for 2 dimensions"),
        ({"dimensions": [8, 4], "dimension_weights": [1.0, 0.0]}, r"dimension_weights: 0\.0 is not above 0"),
        ({"dimensions": [8], "dimension_weights": [math.nan]}, "dimension_weights: nan is not above 0"),
        ({"dimension_weights": [1.0]}, "dimension_weights: belong to dimensions"),
    ],
)  # fmt: skip
def test_dimensions_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_dimensions(arguments, WIDTH)
    check_dimensions({"dimensions": [4, 8], "dimension_weights": [1, 2]}, WIDTH)
    check_dimensions({"dimensions": [900]})  # no width is known yet
