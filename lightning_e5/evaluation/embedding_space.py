"""What an embedding space looks like: alignment of pairs, uniformity, and how far the vectors share one direction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_e5.errors import UserError

_BLOCK = 1024  # rows compared with all others at a time: memory of 1024 x N float64
_UNIT = 1e-3  # how far from 1 the length of a unit row may be


@dataclass(frozen=True, slots=True)
class Spread:
    """How unit vectors are spread over the sphere.

    ``mean_direction``: length of the mean vector, 0 (balanced) to 1 (all the same); ``mean_cosine``: of two different
    rows, near 0 in an isotropic space; ``dimensions``: how many directions carry the variance, the participation ratio
    of its eigenvalues, 1 to D.
    """

    mean_direction: float
    mean_cosine: float
    dimensions: float


def alignment(a_ND: Tensor, b_ND: Tensor, alpha: float = 2.0) -> float:
    """The mean of ``|a - b| ** alpha`` over positive pairs of unit vectors; 0 is best.

    Args:
        a_ND: ``[N, D]`` unit rows.
        b_ND: ``[N, D]`` unit rows, of each row of ``a_ND`` the positive.
        alpha: above 0.

    Raises:
        UserError: shapes that differ, no row, rows that are not of length 1, or ``alpha`` out of range.

    Source: Wang and Isola, ICML 2020 (arXiv 2005.10242), equation 2.
    """
    if a_ND.shape != b_ND.shape:
        raise UserError(f"alignment: a pair has two vectors, but the shapes are {list(a_ND.shape)} and {list(b_ND.shape)}")
    if alpha <= 0:
        raise UserError(f"alignment: alpha = {alpha} is not above 0")
    a, b = _unit(a_ND, "alignment", 1), _unit(b_ND, "alignment", 1)
    return float((a - b).norm(dim=1).pow(alpha).mean())


def uniformity(x_ND: Tensor, t: float = 2.0) -> float:
    """The logarithm of the mean of ``exp(-t |x - y|^2)`` over different rows; lower is more uniform, 0 is all in one point.

    Args:
        x_ND: ``[N, D]`` unit rows, N >= 2; memory grows with N, time with its square.
        t: above 0.

    Raises:
        UserError: fewer than two rows, rows that are not of length 1, or ``t`` out of range.

    Source: Wang and Isola, ICML 2020 (arXiv 2005.10242), equation 3.
    """
    if t <= 0:
        raise UserError(f"uniformity: t = {t} is not above 0")
    x = _unit(x_ND, "uniformity", 2)
    total = 0.0
    for first in range(0, len(x), _BLOCK):
        cosines = x[first : first + _BLOCK] @ x.T
        exponents = -2 * t * (1 - cosines)  # |x - y|^2 = 2 - 2 cos
        exponents[torch.arange(len(cosines)), torch.arange(len(cosines)) + first] = -math.inf  # a row and itself
        total += float(exponents.exp().sum())
    return math.log(total / (len(x) * (len(x) - 1))) if total else -math.inf


def spread(x_ND: Tensor) -> Spread:
    """How the rows are spread.

    Args:
        x_ND: ``[N, D]`` unit rows, N >= 2.

    Raises:
        UserError: fewer than two rows, or rows that are not of length 1.

    Source: mean cosine of random texts as anisotropy: Ethayarajh, EMNLP 2019 (arXiv 1909.00512), section 3.3.
    """
    x = _unit(x_ND, "spread", 2)
    mean = x.mean(dim=0)
    length = float(mean.norm())
    rows = len(x)
    cosine = (rows * length**2 - 1) / (rows - 1)  # |sum|^2 = N + the cosines of all ordered pairs
    variances = torch.linalg.svdvals(x - mean) ** 2
    total = float(variances.sum())
    dimensions = total**2 / float((variances**2).sum()) if total > 1e-12 * rows else 1.0
    return Spread(length, cosine, dimensions)


def _unit(x_ND: Tensor, what: str, least: int) -> Tensor:
    if x_ND.ndim != 2 or len(x_ND) < least:
        raise UserError(f"{what}: needs a matrix of at least {least} vectors, not the shape {list(x_ND.shape)}")
    x = x_ND.double()
    lengths = x.norm(dim=1)
    wrong = ~((lengths - 1).abs() <= _UNIT)  # also what is not a number
    if wrong.any():
        row = int(wrong.double().argmax())
        raise UserError(f"{what}: row {row} has the length {float(lengths[row]):.4g}, not 1; normalise the vectors")
    return x
