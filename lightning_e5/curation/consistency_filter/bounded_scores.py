"""Low-precision scores with error bounds: which pool passages certainly score above a pair, which certainly do not.

Queries are multiplied with blocks of the pool in a cheap number format. For a row with own score ``t`` there are two
thresholds: a low-precision score over ``high`` belongs to a passage that scores above ``t``, one of at most ``low`` to
a passage that scores below it; what lies between is undecided and must be scored exactly (`exact_scores`). The bounds hold for any
rows that are not longer than `LONGEST`, so the decisions are those of exact scoring, whichever format found them.

With rounded operands ``q = q' + r`` and ``p - m = p' + e`` (``m``: the pool's mean, which is common to all rows and would
cost precision), Cauchy and Schwarz give ``|q·p - q·m - q'·p'| <= |r||p - m| + |q'||e|``, with the residual norms as
measured. The product of the rounded operands is exact in int8 (sums of integers below 2^31); in bf16 and fp32, whose
products are summed in float32, it is off by at most ``n u / (1 - n u) |q'||p'|``, ``n = D + 2``, ``u = 2^-24``, in any
order of summation (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). A result rounded to bf16 is
compared with thresholds rounded outwards, the lower one to the number below: rounding is monotone, not strictly so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_e5.curation.consistency_filter.scratch import Scratch
from lightning_e5.distributed.devices import whole_float32
from lightning_e5.training.out_of_memory import available_bytes

ScoreFormat = Literal["int8", "bf16", "fp32", "leading"]

#: Pool rows of one product: on a CPU the scores of a tile stay near the cache.
POOL_ROWS = {"cpu": 2048, "cuda": 32768}
_FIRST_SHARE = 16  # how much smaller the first block is
_HELD_SHARE = 0.4  # of a GPU's free memory, that a pool may take there
#: The longest row: embeddings are unit rows, and sums of far longer ones would overflow.
LONGEST = 2.0**20
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_PREPARED_VALUES = 2**24  # values converted at once


def kind_of(device: torch.device) -> str:
    """``cpu`` or ``cuda``, by which sizes are chosen: every accelerator has those of CUDA."""
    return "cpu" if device.type == "cpu" else "cuda"


def fits_beside(size: int, device: torch.device) -> bool:
    """Whether an accelerator has room for so many bytes beside what it computes."""
    return device.type != "cpu" and size <= _HELD_SHARE * available_bytes(device)


class Rows(NamedTuple):
    """Queries as they are multiplied: ``[R, D]`` in its format, their scale, norms and thresholds before rounding."""

    values_RD: Tensor
    scale_R: Tensor  # float64, 1 but for int8
    norm_R: Tensor  # float64, of the rounded query
    residual_R: Tensor  # float64
    threshold_R: Tensor  # float64, own score less q·m
    slack_R: Tensor  # float64, of the rounding of an exact score to float32

    def select(self, rows: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(*(value[rows] for value in self))

    def joined(self, others: Rows) -> Rows:
        """These and others of the same format."""
        return Rows(*(torch.cat(pair) for pair in zip(self, others, strict=True)))


class Tile(NamedTuple):
    """Low-precision scores ``[R, C]`` and a row's thresholds, in the scores' type.

    ``upper_bounds``: the scores are upper bounds with their threshold taken off, so that what is above zero is undecided and nothing is certain.
    """

    scores_RC: Tensor
    low_R: Tensor
    high_R: Tensor
    upper_bounds: bool = False


class BoundedScores(Protocol):
    """Low-precision scores of queries against a pool, block by block."""

    name: ScoreFormat
    order_P: Tensor  # the pool's rows in the order of the blocks
    blocks: list[slice]  # of ``order_P``
    starts_at: int  # blocks before this one are better scored in float32
    dense: float  # share of a row's scores in a block: with more undecided ones it is cheaper to score the row at the next level
    layout: Any  # levels of the same one take each other's `Rows`

    def rows(self, queries_RD: Tensor, own_R: Tensor) -> Rows:
        """Queries made ready, with their own scores (float32)."""
        ...

    def tile(self, rows: Rows, block: int) -> Tile:
        """Their scores with one block."""
        ...


def exact_scores(left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """The inner product of each row pair as float32: products and sums in float64, summed by halves.

    Every step works on single elements in a fixed order, so equal rows have equal scores, bit for bit, on any device,
    for any number of rows and threads.
    """
    sums = left_ND.double() * right_ND.double()
    while sums.shape[1] > 1:
        half = (sums.shape[1] + 1) // 2
        rest = sums.shape[1] - half
        sums[:, :rest] += sums[:, half:]
        sums = sums[:, :half]
    return sums[:, 0].float()


#: Share of undecided scores from which a product in float32 costs less than scoring these again.
_DENSE = 0.02


class FloatScores:
    """Products in float32 (of the pool as it is) or in bfloat16 (of the pool less its mean).

    Args:
        order_P, blocks: the pool's rows in another order and cut; in their own order by default.
    """

    starts_at, dense = 0, _DENSE

    def __init__(
        self, name: ScoreFormat, pool_PD: Tensor, device: torch.device, order_P: Tensor | None = None, blocks: list[slice] | None = None
    ) -> None:
        self.name, self.device, self.pool_PD, self.layout = name, device, pool_PD, self
        count, width = pool_PD.shape
        self.order_P = torch.arange(count) if order_P is None else order_P
        self.in_order = order_P is None or torch.equal(order_P, torch.arange(count))
        self.blocks = blocks or blocks_of(count, POOL_ROWS[kind_of(device)])
        # A GPU's units for bfloat16 cut off what they add where a processor rounds it.
        self.rounding = float32_rounding(width) * (4 if name == "bf16" and device.type != "cpu" else 1)
        self.mean_D = torch.zeros(width, dtype=torch.float64)
        self.values: list[Tensor] = []
        self.scores = Scratch()
        if name == "bf16":
            self.mean_D = mean_of(pool_PD)
        self.norms: list[float] = []
        self.residuals: list[float] = []
        for block in self.blocks:
            part = self._block(block).double() - self.mean_D
            self.norms.append(float(part.norm(dim=1).max()))
            if name == "bf16":
                self.values.append(part.bfloat16())
                part -= self.values[-1].double()
            self.residuals.append(float(part.norm(dim=1).max()) if name == "bf16" else 0.0)
        if fits_beside(pool_PD.numel() * (2 if name == "bf16" else 4), device):  # then no block is copied there twice
            self.values = [block.to(device) for block in self.values or map(self._block, self.blocks)]

    def rows(self, queries_RD: Tensor, own_R: Tensor) -> Rows:
        """See `BoundedScores`."""
        precise = queries_RD.double()
        values = queries_RD.to(self.device, torch.bfloat16 if self.name == "bf16" else torch.float32)
        rounded = values.double()
        residual = (precise.to(self.device) - rounded).norm(dim=1)
        return ready_rows(values, torch.ones(len(own_R)), rounded.norm(dim=1), residual, precise, own_R, self.mean_D)

    def tile(self, rows: Rows, block: int) -> Tile:
        """See `BoundedScores`."""
        pool = (self.values[block] if self.values else self._block(self.blocks[block])).to(self.device, non_blocking=True)
        with whole_float32():
            scores = self.scores.product(rows.values_RD, pool)
        norm, residual = self.norms[block], self.residuals[block]
        error = rows.residual_R * norm + rows.norm_R * (residual + self.rounding * (norm + residual)) + 2.0**-100
        error = error + rows.slack_R * (1 + norm)
        low_R = rounded_to(rows.threshold_R - error, scores.dtype, -1)
        # A product above the threshold may be rounded to the very number that the threshold is rounded to.
        low_R = torch.nextafter(low_R, torch.full_like(low_R, -torch.inf))
        return Tile(scores, low_R, rounded_to(rows.threshold_R + error, scores.dtype, 1))

    def _block(self, block: slice) -> Tensor:
        return self.pool_PD[block] if self.in_order else self.pool_PD[self.order_P[block]]


class Int8Scores:
    """Products in 8-bit integers: each query has a scale of its own, each block of the pool one for its rows.

    The pool is sorted by its rows' largest value, so that the rows of a block want nearly the same scale. The product
    is torch's int8 one, on CPUs several times as fast as float32.
    """

    name: ScoreFormat = "int8"
    starts_at, dense = 0, _DENSE

    def __init__(self, pool_PD: Tensor) -> None:
        self.mean_D, self.layout = mean_of(pool_PD), self
        largest = [(part.double() - self.mean_D).abs().amax(1) for part in parts_of(pool_PD)]
        self.order_P = torch.argsort(torch.cat(largest), stable=True)
        self.blocks = blocks_of(len(pool_PD), POOL_ROWS["cpu"])
        self.values: list[Tensor] = []
        self.scales: list[float] = []
        self.norms: list[float] = []
        self.residuals: list[float] = []
        for block in self.blocks:
            part = pool_PD[self.order_P[block]].double() - self.mean_D
            scale = max(float(part.abs().max()) / 127, 2.0**-60)
            self.norms.append(float(part.norm(dim=1).max()))
            values = (part / scale).round().to(torch.int8)
            self.values.append(_padded(values))
            self.scales.append(scale)
            self.residuals.append(float((part - scale * values.double()).norm(dim=1).max()))

    def rows(self, queries_RD: Tensor, own_R: Tensor) -> Rows:
        """See `BoundedScores`."""
        precise = queries_RD.double()
        scale = (precise.abs().amax(1) / 127).clamp(min=2.0**-60)
        values = (precise / scale[:, None]).round().to(torch.int8)
        rounded = values.double() * scale[:, None]
        return ready_rows(_padded(values), scale, rounded.norm(dim=1), (precise - rounded).norm(dim=1), precise, own_R, self.mean_D)

    def tile(self, rows: Rows, block: int) -> Tile:
        """See `BoundedScores`."""
        scores = torch._int_mm(rows.values_RD, self.values[block].T)
        error = rows.residual_R * self.norms[block] + rows.norm_R * self.residuals[block] + rows.slack_R * (1 + self.norms[block])
        unit = rows.scale_R * self.scales[block]
        low, high = (rows.threshold_R - error) / unit, (rows.threshold_R + error) / unit
        edge = 2.0**30  # past any score: 127 * 127 * D
        # One unit more on both sides pays for the rounding of these divisions.
        return Tile(scores, (low.floor() - 1).clamp(-edge, edge).int(), (high.ceil() + 1).clamp(-edge, edge).int())


def _padded(values_ND: Tensor) -> Tensor:
    """Zeros up to a multiple of eight columns: the integer product of a single column is wrong in torch 2.13."""
    return torch.nn.functional.pad(values_ND, (0, -values_ND.shape[1] % 8))


def ready_rows(values: Tensor, scale: Tensor, norm: Tensor, residual: Tensor, precise: Tensor, own_R: Tensor, mean_D: Tensor) -> Rows:
    """The rest of `Rows`; norms get a millionth more, which pays for their own rounding."""
    own, device = own_R.double().cpu(), values.device
    norms = precise.norm(dim=1)
    # An exact score is rounded to float32 before it is compared; float64 sums, also those with the mean, are off by far less.
    slack = 2.0**-23 * own.abs() + 2.0**-40 * norms * (1 + mean_D.norm())
    more = 1 + 1e-6
    found = (scale.double(), norm * more, residual * more, own - precise @ mean_D, slack)
    return Rows(values, *(value.to(device) for value in found))


def float32_rounding(width: int) -> float:
    """The relative error of a float32 product of so many values, in any order of summation, by its operands' norms."""
    return (width + 2) * _UNIT_ROUNDOFF / (1 - (width + 2) * _UNIT_ROUNDOFF)


def rounded_to(values_R: Tensor, dtype: torch.dtype, direction: int) -> Tensor:
    """float64 values in another type, rounded down (-1) or up (1)."""
    rounded = values_R.to(dtype)
    wrong = (rounded.double() < values_R) if direction > 0 else (rounded.double() > values_R)
    return torch.where(wrong, torch.nextafter(rounded, torch.full_like(rounded, direction * torch.inf)), rounded)


def mean_of(pool_PD: Tensor) -> Tensor:
    """The mean of the rows, float64 ``[D]``."""
    total = torch.zeros(pool_PD.shape[1], dtype=torch.float64)
    for part in parts_of(pool_PD):
        total += part.double().sum(0)
    return total / max(1, len(pool_PD))


def parts_of(pool_PD: Tensor) -> Iterator[Tensor]:
    """The rows in parts of a size that may be held in float64."""
    return iter(pool_PD.split(max(1, _PREPARED_VALUES // max(1, pool_PD.shape[1]))))


def blocks_of(count: int, rows: int, first: int | None = None) -> list[slice]:
    """``count`` rows cut into blocks of ``rows``; the first ones are smaller, as most pairs that are out are so after a few passages."""
    starts, size = [0], first or max(1, rows // _FIRST_SHARE)
    while starts[-1] < count:
        starts.append(min(count, starts[-1] + size))
        size = min(rows, 2 * size)
    return [slice(start, stop) for start, stop in itertools.pairwise(starts)]
