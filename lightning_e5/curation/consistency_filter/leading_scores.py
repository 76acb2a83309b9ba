"""Scores bounded by the leading principal components: a shorter float32 product, for processors on which no format is faster.

Embeddings of a trained encoder vary mostly along few directions. With ``V`` the ``K`` leading eigenvectors of the pool's
covariance and ``m`` its mean, ``q = V b + s`` and ``p - m = V a + r``; where ``V`` is orthonormal, ``r`` and ``s`` are orthogonal
to it and Cauchy and Schwarz give ``|q·(p - m) - b·a| <= |s||r|``. The product of ``[b, |s|]`` and ``[a, |r|]``, of ``K + 1`` values
instead of ``D``, so is an upper bound on a score, and at most ``2|s||r|`` above it. What rounding adds is bounded in `LeadingScores.tile`:
``V`` is orthonormal to within the measured ``d = ||V'V - 1||``, and ``|V'r| <= (2^-24 + d + 2^-36)|p - m|``, as ``a`` is rounded to
float32; the same holds for queries. Decisions are those of exact scoring for any vectors; only the speed depends on them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.curation.consistency_filter.bounded_scores import (
    POOL_ROWS,
    Rows,
    ScoreFormat,
    Tile,
    blocks_of,
    float32_rounding,
    mean_of,
    parts_of,
    ready_rows,
    rounded_to,
)

#: Shares of the width that are tried as numbers of components.
_SHARES = (0.125, 0.1875, 0.25, 0.375, 0.5)
#: Rows of the pool, and pairs, that the spectrum and the number of components are taken from.
_SPECTRUM_ROWS, _TRIED_ROWS, _TRIED_PAIRS = 65_536, 4_096, 512
#: What counting a score costs, and scoring one of the undecided again, as shares and multiples of its float32 product.
_COUNTED, _RESCORED = 0.08, 20.0
#: The largest estimated cost, as a share of that of float32, at which components are worth their preparation.
_WORTH = 0.8


class Components(NamedTuple):
    """Mean ``[D]`` and orthonormal columns ``[D, K]`` of a pool, float64."""

    mean_D: Tensor
    basis_DK: Tensor

    def split(self, rows_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates rounded to float32, ``[N, K]``, and the norm of what they leave of each row, float64 ``[N]``.

        Args:
            rows_ND: float64; the pool's without their mean.
        """
        inside = (rows_ND @ self.basis_DK).float()
        return inside, (rows_ND - inside.double() @ self.basis_DK.T).norm(dim=1)


class LeadingScores:
    """Upper bounds on scores in float32 from the leading components; see `BoundedScores`.

    Args:
        pool_PD: float32 rows on the CPU (a mapped file, too).
        components: of the pool; a quarter of the width by default.
    """

    name: ScoreFormat = "leading"
    starts_at = 4  # bounds do not tell so soon which pairs are out

    def __init__(self, pool_PD: Tensor, components: Components | None = None) -> None:
        self.components = components or principal_components(pool_PD, max(1, pool_PD.shape[1] // 4))
        self.order_P = torch.arange(len(pool_PD))
        self.blocks = blocks_of(len(pool_PD), POOL_ROWS["cpu"])
        width = self.components.basis_DK.shape[1] + 1
        self.rounding = float32_rounding(width)
        basis = self.components.basis_DK
        self.defect = float((basis.T @ basis - torch.eye(width - 1, dtype=torch.float64)).norm()) + 2.0**-36
        self.values: list[Tensor] = []
        self.norms: list[float] = []
        self.rests: list[float] = []
        for block in self.blocks:
            part = pool_PD[block].double() - self.components.mean_D
            inside, rest = self.components.split(part)
            self.norms.append(float(part.norm(dim=1).max()) * (1 + 1e-6))
            self.values.append(_with_rest(inside, rest))
            self.rests.append(float(self.values[-1][:, -1].max()))

    def rows(self, queries_RD: Tensor, own_R: Tensor) -> Rows:
        """See `BoundedScores`; ``residual_R`` is the norm of what the components leave."""
        precise = queries_RD.double()
        inside, rest = self.components.split(precise)
        values = _with_rest(inside, rest)
        return ready_rows(values, torch.ones(len(own_R)), precise.norm(dim=1), values[:, -1].double(), precise, own_R, self.components.mean_D)

    def tile(self, rows: Rows, block: int) -> Tile:
        """See `BoundedScores`."""
        scores = rows.values_RD @ self.values[block].T
        norm, rest = self.norms[block], self.rests[block]
        # Rounding of the product, whose operands are as long as the rows; of the coordinates, twice; of V, and in float64.
        error = rows.norm_R * norm * (1 + 1e-6) * (self.rounding + 2 * 2.0**-24 + 4 * self.defect) + 2.0**-100
        error = error + rows.slack_R * (1 + norm)
        low_R = rounded_to(rows.threshold_R - error, scores.dtype, -1)
        return Tile(scores, low_R, rounded_to(rows.threshold_R + error + 2 * rows.residual_R * rest, scores.dtype, 1))


def principal_components(pool_PD: Tensor, count: int) -> Components:
    """The leading ``count`` components of up to 65,536 rows at even distances, with the mean of all rows."""
    mean_D = mean_of(pool_PD)
    sample = _evenly(pool_PD, _SPECTRUM_ROWS)
    covariance = torch.zeros(len(mean_D), len(mean_D), dtype=torch.float64)
    for part in parts_of(sample):
        centred = part.double() - mean_D
        covariance += centred.T @ centred
    if not bool(torch.isfinite(covariance).all()):  # the pool's check says so of the rows themselves
        covariance = torch.eye(len(mean_D), dtype=torch.float64)
    return Components(mean_D, torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :count].contiguous())


def worthwhile_components(pool_PD: Tensor, queries_ND: Tensor, own_N: Tensor, exact_up_to: int, dense: float) -> Components | None:
    """The components with which ranking these pairs costs least by an estimate; None where float32 costs hardly more.

    The estimate counts what a sample of the pool leaves undecided; it is the same in every run, and no decision depends on it.

    Args:
        pool_PD, queries_ND: float32 rows, on the CPU.
        own_N: the pairs' own scores.
        exact_up_to: pairs with so many better passages are out and cost nothing more.
        dense: share of undecided scores from which a row is scored in float32 instead.
    """
    width = pool_PD.shape[1]
    whole = principal_components(pool_PD, width)
    passages = _evenly(pool_PD, _TRIED_ROWS).double() - whole.mean_D
    pairs = torch.arange(0, len(queries_ND), max(1, len(queries_ND) // _TRIED_PAIRS))
    queries = queries_ND[pairs].double()
    threshold = own_N[pairs].double() - queries @ whole.mean_D
    above = (queries @ passages.T >= threshold[:, None]).sum(1)
    stays = above * (len(pool_PD) / len(passages)) <= exact_up_to
    if not bool(stays.any()):
        return None
    queries, threshold = queries[stays] @ whole.basis_DK, threshold[stays]
    passages = passages @ whole.basis_DK
    best, least = None, _WORTH
    for count in sorted({max(1, round(width * share / 8) * 8) for share in _SHARES} - {width}):
        if count > width:
            continue
        rests = queries[:, count:].norm(dim=1)[:, None] * passages[:, count:].norm(dim=1)
        undecided = (queries[:, :count] @ passages[:, :count].T + rests > threshold[:, None]).double().mean(1)
        cost = torch.where(undecided > dense, 1.0, count / width + _COUNTED + _RESCORED * undecided).mean()
        if float(cost) < least:
            best, least = count, float(cost)
    return None if best is None else Components(whole.mean_D, whole.basis_DK[:, :best].contiguous())


def _with_rest(inside_NK: Tensor, rest_N: Tensor) -> Tensor:
    """``[N, K + 1]`` float32, the rest rounded up."""
    return torch.cat([inside_NK, rounded_to(rest_N, torch.float32, 1)[:, None]], dim=1)


def _evenly(rows_ND: Tensor, count: int) -> Tensor:
    return rows_ND[:: -(-len(rows_ND) // count)] if len(rows_ND) else rows_ND
