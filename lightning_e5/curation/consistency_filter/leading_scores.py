"""Scores bounded by the leading principal components: shorter float32 products, for processors on which no format is faster.

Embeddings of a trained encoder vary mostly along few directions. With ``V`` the ``K`` leading eigenvectors of the pool's
covariance and ``m`` its mean (whose direction is one of ``V``), ``q = V b + s`` and ``p - m = V a + r``; where ``V`` is orthonormal, ``r`` and ``s`` are orthogonal
to it and Cauchy and Schwarz give ``|q·(p - m) - b·a| <= |s||r|``. The product of ``[b, |s|]`` and ``[a, |r|]``, of ``K + 1`` values
instead of ``D``, so is an upper bound on a score. A pair that far exceeds other passages needs few components for all of these to
stay below it, another one more: there are levels of more and more components, and a row goes on to the next where too many bounds
do not tell. What rounding adds is bounded in `LeadingScores.tile`: ``V`` is orthonormal to within the measured ``d = ||V'V - 1||``,
and ``|V'r| <= (2^-24 + d + 2^-36)|p - m|``, as ``a`` is rounded to float32; the same holds for queries. Decisions are those of
exact scoring for rows of any length up to `LONGEST`; only the speed depends on them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_e5.curation.consistency_filter.bounded_scores import (
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
from lightning_e5.curation.consistency_filter.scratch import Scratch

#: Components of the levels, as shares of the width.
SHARES = (1 / 4, 1 / 2)
#: Rows of a product, and of the first one. Most pairs are out after the first blocks, so that the later ones have to be wide.
_ROWS, _FIRST_ROWS = 8192, 128
#: Rows of the pool that the spectrum is taken from.
_SPECTRUM_ROWS = 65_536
#: What scoring one of the undecided again costs, in products of the whole width.
_RESCORED = 16.0


class LeadingPool:
    """A pool's coordinates along its leading components, a block made ready when it is first needed.

    A row is ``[1, a_1 .. a_K1, |r_1|, a_K1+1 .. a_K2, |r_2|, ...]``: the columns up to a ``|r|`` are what that level multiplies.

    Args:
        pool_PD: float32 rows on the CPU (a mapped file, too).
        counts: components of the levels, ascending.
    """

    def __init__(self, pool_PD: Tensor, counts: list[int]) -> None:
        self.pool_PD, self.counts = pool_PD, counts
        self.mean_D, self.basis_DK = principal_components(pool_PD, counts[-1])
        gram = self.basis_DK.T @ self.basis_DK
        self.defect = float((gram - torch.eye(counts[-1], dtype=torch.float64)).norm()) + 2.0**-36
        self.blocks = blocks_of(len(pool_PD), _ROWS, _FIRST_ROWS)
        self.values: dict[int, Tensor] = {}
        self.scores = Scratch()
        self.norms: dict[int, float] = {}

    def block(self, number: int) -> tuple[Tensor, float]:
        """A block's rows, float32 ``[C, 1 + K + L]``, and the norm of its longest row."""
        if number not in self.values:
            part = self.pool_PD[self.blocks[number]].double() - self.mean_D
            self.norms[number] = float(part.norm(dim=1).max()) * (1 + 1e-6)
            self.values[number] = self.laid_out(part, 1.0)
        return self.values[number], self.norms[number]

    def laid_out(self, rows_ND: Tensor, first: float) -> Tensor:
        """Rows, float64, in the order of columns described above, float32 with the rests rounded up."""
        along = rows_ND @ self.basis_DK
        inside = along.float()
        square = rows_ND.square().sum(1, keepdim=True)
        # |row - V a|^2 = |row|^2 - |V'row|^2 + |V'row - a|^2, to within V's defect and float64's rounding.
        taken = (along.square() - (along - inside.double()).square()).cumsum(1)[:, [count - 1 for count in self.counts]]
        rest = ((square - taken).clamp(min=0) + (2 * self.defect + 2.0**-40) * square).sqrt()
        rest = rounded_to(rest, torch.float32, 1)
        columns = [torch.full((len(rows_ND), 1), first)]
        for level, (start, stop) in enumerate(zip([0, *self.counts], self.counts, strict=False)):
            columns += [inside[:, start:stop], rest[:, level : level + 1]]
        return torch.cat(columns, dim=1)


class LeadingScores:
    """Upper bounds on scores in float32 from the leading components of one level; see `BoundedScores`."""

    name: ScoreFormat = "leading"
    starts_at = 4  # bounds do not tell so soon which pairs are out

    def __init__(self, pool: LeadingPool, level: int) -> None:
        self.pool, self.level, self.blocks, self.layout = pool, level, pool.blocks, pool
        self.order_P = torch.arange(len(pool.pool_PD))
        counts, width = pool.counts, pool.pool_PD.shape[1]
        self.columns = 1 + counts[level] + level + 1
        self.rounding = float32_rounding(self.columns)
        self.dense = ([*counts, width][level + 1] - counts[level]) / width / _RESCORED
        self.earlier = [1 + count + number for number, count in enumerate(counts[:level])]  # the rests of the levels before

    def rows(self, queries_RD: Tensor, own_R: Tensor) -> Rows:
        """See `BoundedScores`; the columns of all levels."""
        precise = queries_RD.double()
        values = self.pool.laid_out(precise, 0.0)
        return ready_rows(
            values,
            torch.ones(len(own_R)),
            precise.norm(dim=1),
            values[:, -1].double(),
            precise,
            own_R,
            self.pool.mean_D,
        )

    def tile(self, rows: Rows, block: int) -> Tile:
        """See `BoundedScores`."""
        pool, norm = self.pool.block(block)
        # Rounding of the product, whose operands are as long as the rows; of the coordinates, twice; of V, and in float64.
        error = rows.norm_R * norm * (1 + 1e-6) * (self.rounding + 2 * 2.0**-24 + 4 * self.pool.defect) + 2.0**-100
        error = error + rows.slack_R * (1 + norm) + self.rounding * rows.threshold_R.abs()
        queries = rows.values_RD[:, : self.columns].clone(memory_format=torch.contiguous_format)
        queries[:, self.earlier] = 0.0
        queries[:, 0] = rounded_to((1 + 2 * self.rounding) * error - rows.threshold_R, torch.float32, 1)
        zero = torch.zeros(len(queries))
        return Tile(
            self.pool.scores.product(queries, pool[:, : self.columns]),
            zero,
            torch.full_like(zero, torch.inf),
            upper_bounds=True,
        )


def leading_levels(pool_PD: Tensor) -> list[LeadingScores]:
    """The levels of a pool of float32 rows on the CPU (a mapped file, too), that of the fewest components first."""
    width = pool_PD.shape[1]
    pool = LeadingPool(pool_PD, sorted({min(width, max(1, round(width * share))) for share in SHARES}))
    return [LeadingScores(pool, level) for level in range(len(pool.counts))]


def principal_components(pool_PD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The mean of all rows, float64 ``[D]``, and ``count`` orthonormal columns, float64 ``[D, count]``.

    The first is the mean's direction, along which the pool varies little and queries are long; the others are the leading components, orthogonal
    to it, of up to 65,536 rows at even distances.
    """
    mean_D = mean_of(pool_PD)
    sample = pool_PD[:: max(1, -(-len(pool_PD) // _SPECTRUM_ROWS))]
    covariance = torch.zeros(len(mean_D), len(mean_D), dtype=torch.float64)
    for part in parts_of(sample):
        centred = part.double() - mean_D
        covariance += centred.T @ centred
    if not bool(torch.isfinite(covariance).all()):  # the pool's check says so of the rows themselves
        covariance, mean_D = torch.eye(len(mean_D), dtype=torch.float64), torch.zeros_like(mean_D)
    along = torch.nn.functional.normalize(mean_D, dim=0)[:, None]
    covariance = covariance - along @ (along.T @ covariance)
    covariance = covariance - (covariance @ along) @ along.T
    leading = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return mean_D, torch.linalg.qr(torch.cat([along, leading[:, : count - 1]], dim=1)).Q.contiguous()
