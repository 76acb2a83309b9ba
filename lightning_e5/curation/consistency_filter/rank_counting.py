"""Ranks among a pool, exact, at the speed of low-precision products.

The rule: a pair's rank is 1 + the number of pool passages whose score (`exact_scores`, float32) is at least the pair's own;
copies of the own passage do not count. A tie so counts against the pair: an encoder that gives all texts one embedding ranks
every pair last, not first. Low-precision scores with error bounds (`bounded_scores`) decide nearly every passage; the few that
they leave undecided are scored again, in float32 and, where that cannot tell, exactly. So ranks do not depend on the number
format, the device, blocks, or threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_e5.curation.consistency_filter.bounded_scores import (
    LONGEST,
    BoundedScores,
    FloatScores,
    Int8Scores,
    Rows,
    ScoreFormat,
    exact_scores,
    fits_beside,
    float32_rounding,
    kind_of,
)
from lightning_e5.curation.consistency_filter.leading_scores import leading_levels
from lightning_e5.curation.consistency_filter.score_format import fastest_format
from lightning_e5.curation.consistency_filter.scratch import Scratch
from lightning_e5.curation.consistency_filter.sparse_scores import scores_at
from lightning_e5.curation.consistency_filter.tile_counting import count_tile
from lightning_e5.errors import UserError

#: Scores held at once.
BLOCK_SCORES = {"cpu": 2**21, "cuda": 2**28}
_LEADING_BLOCK_SCORES = 2**24  # most rows are out before the wide blocks, and short products of few rows are not worth their calls
#: Undecided scores, as pairs of (row, pool row), that wait to be scored again; on a CPU few, as that may take the row out.
_UNDECIDED_AT_ONCE = {"cpu": 2**12, "cuda": 2**22}
_EXACT_VALUES = {"cpu": 2**22, "cuda": 2**26}  # values scored exactly at once
_FEW_ROWS = 32  # a level with fewer rows is not worth its product; they go on to the next


def make_levels(name: ScoreFormat, pool_PD: Tensor, device: torch.device) -> tuple[list[BoundedScores], FloatScores]:
    """Scores over a pool (on the CPU, a view of a mapped file allowed), from the cheapest in that format to float32, of the same blocks; and the last."""
    if name == "fp32":
        whole = FloatScores("fp32", pool_PD, device)
        return [whole], whole
    if name == "leading":
        cheaper: list[BoundedScores] = [*leading_levels(pool_PD)]
    else:
        cheaper = [Int8Scores(pool_PD) if name == "int8" else FloatScores(name, pool_PD, device)]
    whole = FloatScores("fp32", pool_PD, device, cheaper[0].order_P, cheaper[0].blocks)
    return [*cheaper, whole], whole


class RankPool:
    """A pool of passages that pairs are ranked among.

    Args:
        pool_PD: float32 unit rows, or such that are no longer than `LONGEST`, on the CPU (a mapped file, too).
        pool_text_P: int64 ids of the normalised texts.
        exact_up_to: ranks above it are all given as ``exact_up_to + 1``, which saves most of the work; None: all exact.
        score_format: of the cheap products; None takes the fastest here, measured once per process, and on a CPU where that is fp32,
            leading components, unless every rank is wanted.
        device: where products are made; blocks are moved there.
        block_scores: scores held at once.

    Raises:
        UserError: ``exact_up_to`` is below 1, a value is not finite, or a row is longer than `LONGEST`.
    """

    def __init__(
        self,
        pool_PD: Tensor,
        pool_text_P: Tensor,
        *,
        exact_up_to: int | None = None,
        score_format: ScoreFormat | None = None,
        device: str | torch.device = "cpu",
        block_scores: int | None = None,
    ) -> None:
        if exact_up_to is not None and exact_up_to < 1:
            raise UserError(f"filter: exact_up_to = {exact_up_to} must be >= 1, or null for all ranks")
        self.pool_PD, self.exact_up_to, self.device = pool_PD, exact_up_to, torch.device(device)
        self.sorted_text_P, self.text_order_P = torch.sort(pool_text_P, stable=True)
        name = score_format or fastest_format(self.device, exact_up_to is None)
        if score_format is None and name == "fp32" and self.device.type == "cpu" and exact_up_to is not None:
            name = "leading"
        self.levels, whole = make_levels(name, pool_PD, self.device)
        if not all(map(math.isfinite, whole.norms)):
            raise UserError("filter: the pool's embeddings hold NaN or infinity")
        self.longest, self.marks = max(whole.norms, default=0.0), Scratch()
        _check_length("the pool's", self.longest)
        #: The pool as exact scores take it: on a GPU where there is room, too, as of every rank there can be thousands undecided.
        self.exact_PD = pool_PD.to(self.device) if fits_beside(pool_PD.numel() * 4, self.device) else pool_PD
        widest = max((b.stop - b.start for b in self.levels[0].blocks), default=1)
        held = _LEADING_BLOCK_SCORES if name == "leading" else BLOCK_SCORES[kind_of(self.device)]
        self.rows_at_once = max(1, (block_scores or held) // widest)

    @torch.no_grad()
    def ranks(
        self, queries_ND: Tensor, passages_ND: Tensor, text_N: Tensor, progress: Callable[[int], object] = lambda rows: None
    ) -> Tensor:
        """The rank of each pair's own passage, 1 = best.

        Args:
            queries_ND, passages_ND: float32 unit rows, on the CPU.
            text_N: int64 ids of the passages' normalised texts.
            progress: called with the pairs done, block by block.

        Returns:
            int64 ``[N]``.
        """
        count = len(queries_ND)
        ranks_N = torch.empty(count, dtype=torch.int64)
        for start in range(0, count, self.rows_at_once):
            part = slice(start, min(count, start + self.rows_at_once))
            ranks_N[part] = self._block(queries_ND[part], passages_ND[part], text_N[part])
            progress(part.stop - part.start)
        return ranks_N

    def _block(self, queries_RD: Tensor, passages_RD: Tensor, text_R: Tensor) -> Tensor:
        own_R = exact_scores(queries_RD, passages_RD)
        if not bool(torch.isfinite(own_R).all()):
            raise UserError("filter: the pairs' embeddings hold NaN or infinity")
        _check_length("the pairs'", max(float(rows.norm(dim=1).max()) for rows in (queries_RD, passages_RD)))
        copies_R, as_high_R = self._copies(queries_RD, own_R, text_R)
        # Copies are counted like the others and taken off at the end, so a row is out only when it is so without them.
        limit_R = torch.full_like(copies_R, 2**62) if self.exact_up_to is None else copies_R + self.exact_up_to - 1
        work = _Block(self, queries_RD, own_R, limit_R)
        count_R = work.run()
        ranks_R = 1 + count_R - as_high_R
        return ranks_R if self.exact_up_to is None else ranks_R.clamp(max=self.exact_up_to + 1)

    def _copies(self, queries_RD: Tensor, own_R: Tensor, text_R: Tensor) -> tuple[Tensor, Tensor]:
        """How many pool passages have a row's own text, and how many of these score at least as high."""
        first = torch.searchsorted(self.sorted_text_P, text_R)
        copies_R = torch.searchsorted(self.sorted_text_P, text_R, right=True) - first
        rows = torch.repeat_interleave(torch.arange(len(text_R)), copies_R)
        within = torch.arange(len(rows)) - torch.repeat_interleave(torch.cumsum(copies_R, 0) - copies_R, copies_R)
        counted = exactly_as_high(queries_RD, self.exact_PD, own_R, rows, self.text_order_P[first[rows] + within])
        return copies_R, torch.bincount(rows[counted], minlength=len(text_R))


class _Block:
    """The ranking of some rows: counts so far, and what is still undecided."""

    def __init__(self, pool: RankPool, queries_RD: Tensor, own_R: Tensor, limit_R: Tensor) -> None:
        self.pool, self.queries_RD, self.own_R, self.limit_R = pool, queries_RD, own_R, limit_R
        self.count_R = torch.zeros(len(own_R), dtype=torch.int64)
        self.undecided: list[tuple[Tensor, Tensor]] = []
        self.waiting = 0

    def run(self) -> Tensor:
        """Passages that score at least as high as each row's own; for a row over its limit some number over it."""
        levels = self.pool.levels
        nobody, everyone = torch.empty(0, dtype=torch.int64), torch.arange(len(self.own_R))
        first = levels[0].starts_at
        start = len(levels) - 1 if first else 0
        groups = [_Group(level, self, everyone if number == start else nobody) for number, level in enumerate(levels)]
        for block in range(len(levels[0].blocks)):
            if block and block == first:
                groups = [_Group(level, self, nobody if number else groups[start].active_R) for number, level in enumerate(levels)]
            for group, following in itertools.zip_longest(groups, groups[1:]):
                few = following is not None and following.scores.layout is group.scores.layout and len(group.active_R) < _FEW_ROWS <= len(everyone)
                moved = torch.ones_like(group.active_R, dtype=torch.bool) if few else self._tile(group, block, last=following is None)
                if following is not None and bool(moved.any()):
                    following.take(group, moved, self)
                    group.keep(~moved, at_most=1.0)
            if self.waiting > _UNDECIDED_AT_ONCE[kind_of(self.pool.device)]:
                self._rescore()
            for group in groups:
                group.keep(self.count_R[group.active_R] <= self.limit_R[group.active_R])
            if not any(len(group.active_R) for group in groups):
                break
        self._rescore()
        return self.count_R

    def _tile(self, group: _Group, block: int, last: bool) -> Tensor:
        """Count a block's scores; rows, bool, that the next level is cheaper for stay uncounted."""
        active, scores = group.active_R, group.scores
        if not len(active):
            return torch.empty(0, dtype=torch.bool)
        part = scores.blocks[block]
        above, row, column, many = count_tile(scores.tile(group.rows, block), math.inf if last else scores.dense * (part.stop - part.start), self.pool.marks)
        self.count_R[active] += above
        keep = (self.count_R <= self.limit_R)[active][row]
        if bool(keep.any()):
            self.undecided.append((active[row[keep]], scores.order_P[part.start + column[keep]]))
            self.waiting += int(keep.sum())
        return many

    def _rescore(self) -> None:
        """Rescore exactly what is undecided in the rows that are not out yet."""
        if not self.undecided:
            return
        row, column = (torch.cat(parts) for parts in zip(*self.undecided, strict=True))
        self.undecided, self.waiting = [], 0
        keep = (self.count_R <= self.limit_R)[row]
        row, column = row[keep], column[keep]
        order = torch.argsort(row, stable=True)
        row, column = row[order], column[order]
        if len(self.pool.levels) > 1 and self.pool.exact_PD.device.type == "cpu":
            row, column = self._rescore_in_float32(row, column)
        counted = exactly_as_high(self.queries_RD, self.pool.exact_PD, self.own_R, row, column)
        self.count_R += torch.bincount(row[counted], minlength=len(self.own_R))

    def _rescore_in_float32(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Count what float32 decides; what it leaves undecided is returned."""
        scores, own_M = scores_at(self.queries_RD, self.pool.pool_PD, row, column), self.own_R[row].double()
        rounding, longest = float32_rounding(self.queries_RD.shape[1]), self.pool.longest
        bound = (1 + 1e-6) * rounding * longest * self.queries_RD.double().norm(dim=1)[row] + 2.0**-22 * own_M.abs() + 2.0**-100
        above = scores.double() - own_M
        self.count_R += torch.bincount(row[above > bound], minlength=len(self.own_R))
        near = above.abs() <= bound
        return row[near], column[near]


class _Group:
    """The rows of a block that are scored in one format, as it multiplies them."""

    def __init__(self, scores: BoundedScores, work: _Block, active_R: Tensor) -> None:
        self.scores, self.active_R = scores, active_R
        self.rows: Rows = scores.rows(work.queries_RD[active_R], work.own_R[active_R])

    def take(self, other: _Group, moved_R: Tensor, work: _Block) -> None:
        """Add some of another group's rows."""
        active = other.active_R[moved_R]
        same = self.scores.layout is other.scores.layout
        rows = other.rows.select(moved_R.nonzero()[:, 0]) if same else self.scores.rows(work.queries_RD[active], work.own_R[active])
        self.rows, self.active_R = self.rows.joined(rows), torch.cat([self.active_R, active])

    def keep(self, stays_R: Tensor, at_most: float = 0.9) -> None:
        """Leave the others out, where less than this share stays: a product must be so much smaller to be worth a copy of the rows."""
        if int(stays_R.sum()) < at_most * len(stays_R):
            self.rows = self.rows.select(stays_R.nonzero()[:, 0].to(self.rows.values_RD.device))
            self.active_R = self.active_R[stays_R]


def _check_length(whose: str, longest: float) -> None:
    if not longest <= LONGEST:
        raise UserError(f"filter: {whose} embeddings are up to {longest:.3g} long; the rule is unit rows, and at most {LONGEST:.0f}")


def exactly_as_high(queries_RD: Tensor, pool_PD: Tensor, own_R: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Whether each (row, pool row) scores at least the row's own score, bool; computed where the pool is, all else is on the CPU."""
    device = pool_PD.device
    step = max(1, _EXACT_VALUES[kind_of(device)] // max(1, pool_PD.shape[1]))
    queries_RD, own_R = queries_RD.to(device), own_R.to(device)
    parts = []
    for some in zip(row.split(step), column.split(step), strict=True):
        r, c = (places.to(device) for places in some)
        parts.append((exact_scores(queries_RD[r], pool_PD[c]) >= own_R[r]).cpu())
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool)
