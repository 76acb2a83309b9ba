"""Alignment, uniformity and isotropy against their definitions written out in loops, and at points where they are known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation import embedding_space
from lightning_e5.evaluation.embedding_space import alignment, isotropy, uniformity


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=1)


def test_alignment_is_the_mean_distance_to_alpha():
    a, b = unit(7, 5, 1), unit(7, 5, 2)
    for alpha in (1.0, 2.0, 3.0):
        loop = sum(math.dist(x, y) ** alpha for x, y in zip(a.tolist(), b.tolist(), strict=True)) / 7
        assert alignment(a, b, alpha) == pytest.approx(loop, rel=1e-12)
    assert alignment(a, a) == 0
    assert alignment(a, -a) == pytest.approx(4)  # opposite ends of the sphere


@pytest.mark.parametrize("block", [1024, 4])
def test_uniformity_is_the_log_of_the_mean_kernel(block, monkeypatch):
    monkeypatch.setattr(embedding_space, "_BLOCK", block)
    x = unit(9, 4)
    for t in (0.5, 2.0):
        kernel = [math.exp(-t * math.dist(p, q) ** 2) for p, q in itertools.combinations(x.tolist(), 2)]
        assert uniformity(x, t) == pytest.approx(math.log(sum(kernel) / len(kernel)), rel=1e-12)
    published = torch.pdist(x).pow(2).mul(-2).exp().mean().log()  # the form that its authors give in PyTorch
    assert uniformity(x) == pytest.approx(float(published), rel=1e-12)


def test_uniformity_at_known_points():
    one = unit(1, 3).repeat(5, 1)
    assert uniformity(one) == pytest.approx(0, abs=1e-12)
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)  # t |x - y|^2 = 2 * 4
    assert uniformity(unit(200, 64)) < uniformity(torch.nn.functional.normalize(unit(200, 64) + 1, dim=1))


def test_spread_in_loops():
    x = unit(8, 6, 3)
    found = isotropy(x)
    cosines = [sum(a * b for a, b in zip(p, q, strict=True)) for p, q in itertools.combinations(x.tolist(), 2)]
    assert found.mean_cosine == pytest.approx(sum(cosines) / len(cosines), rel=1e-9)
    assert found.mean_direction == pytest.approx(float(x.mean(0).norm()), rel=1e-12)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T))
    assert found.dimensions == pytest.approx(float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum()), rel=1e-9)


def test_spread_at_known_points():
    axes = torch.cat([torch.eye(5), -torch.eye(5)])  # the same in every direction
    assert isotropy(axes).mean_direction == pytest.approx(0, abs=1e-12)
    assert isotropy(axes).dimensions == pytest.approx(5)
    same = torch.eye(5)[:1].repeat(3, 1)
    assert (isotropy(same).mean_direction, isotropy(same).mean_cosine, isotropy(same).dimensions) == (1, 1, 1)


def test_what_is_no_set_of_unit_vectors_is_refused():
    with pytest.raises(UserError, match=r"row 1 has the length 2, not 1"):
        uniformity(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    with pytest.raises(UserError, match=r"row 0 has the length nan"):
        isotropy(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]))
    with pytest.raises(UserError, match=r"at least 2 vectors, not the shape \[1, 3\]"):
        uniformity(unit(1, 3))
    with pytest.raises(UserError, match=r"shapes are \[2, 3\] and \[3, 3\]"):
        alignment(unit(2, 3), unit(3, 3))
    for wrong in (lambda: alignment(unit(2, 3), unit(2, 3), 0), lambda: uniformity(unit(2, 3), -1)):
        with pytest.raises(UserError, match="is not above 0"):
            wrong()
