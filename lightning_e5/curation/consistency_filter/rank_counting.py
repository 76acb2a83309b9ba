"""Ranks among a pool, exact, at the speed of low-precision products.

The rule: a pair's rank is 1 + the number of pool passages whose score (`exact_scores`, float32) is at least the pair's own;
copies of the own passage do not count. A tie so counts against the pair: an encoder that gives all texts one embedding ranks
every pair last, not first. Low-precision scores with error bounds (`bounded_scores`) decide nearly every passage; the few that
they leave undecided are scored again, in float32 and, where that cannot tell, exactly. So ranks do not depend on the number
format, the device, blocks, or threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_e5.curation.consistency_filter.bounded_scores import (
    BoundedScores,
    FloatScores,
    Int8Scores,
    Rows,
    ScoreFormat,
    Tile,
    exact_scores,
)
from lightning_e5.curation.consistency_filter.leading_scores import LeadingScores, worthwhile_components
from lightning_e5.curation.consistency_filter.score_format import fastest_format
from lightning_e5.errors import UserError

#: Scores held at once.
BLOCK_SCORES = {"cpu": 2**21, "cuda": 2**28}
_UNDECIDED_AT_ONCE = 2**22  # pairs of (row, pool row) kept for exact rescoring
_DENSE = 0.02  # a tile with more undecided scores than this share is multiplied again in float32
_EXACT_VALUES = 2**22  # values scored exactly at once


def make_scores(name: ScoreFormat, pool_PD: Tensor, device: torch.device) -> BoundedScores:
    """The scores in that format over a pool (on the CPU, a view of a mapped file allowed)."""
    if name == "leading":
        return LeadingScores(pool_PD)
    return Int8Scores(pool_PD) if name == "int8" else FloatScores(name, pool_PD, device)


class RankPool:
    """A pool of passages that pairs are ranked among.

    Args:
        pool_PD: float32 unit rows, on the CPU (a mapped file, too).
        pool_text_P: int64 ids of the normalised texts.
        exact_up_to: ranks above it are all given as ``exact_up_to + 1``, which saves most of the work; None: all exact.
        score_format: of the cheap products; None takes the fastest here, measured once per process, and where that is fp32, leading
            components if the first pairs' scores say that they are cheaper.
        device: where products are made; blocks are moved there.
        block_scores: scores held at once.

    Raises:
        UserError: ``exact_up_to`` is below 1, or a value is not finite.
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
        self._try_components = score_format is None and name == "fp32" and self.device.type == "cpu" and exact_up_to is not None
        self.scores = make_scores(name, pool_PD, self.device)
        if not all(map(math.isfinite, self.scores.norms)):  # type: ignore[attr-defined]
            raise UserError("filter: the pool's embeddings hold NaN or infinity")
        self.fine = self.scores if name == "fp32" else FloatScores("fp32", pool_PD, self.device, self.scores.order_P, self.scores.blocks)
        widest = max((b.stop - b.start for b in self.scores.blocks), default=1)
        self.rows_at_once = max(1, (block_scores or BLOCK_SCORES[self.device.type]) // widest)

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
        if self._try_components and self.exact_up_to is not None:
            self._try_components = False
            components = worthwhile_components(self.pool_PD, queries_RD, own_R, self.exact_up_to, _DENSE)
            if components is not None:
                self.scores = LeadingScores(self.pool_PD, components)  # of the same blocks as the float32 scores, which stay for the rest
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
        counted = exactly_as_high(queries_RD, self.pool_PD, own_R, rows, self.text_order_P[first[rows] + within])
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
        coarse, fine = self.pool.scores, self.pool.fine
        everyone = torch.arange(len(self.own_R))
        first = 0 if fine is coarse else coarse.starts_at
        cheap = _Group(coarse, self, everyone[: 0 if first else None])
        exacting = _Group(fine, self, everyone[len(cheap.active_R) :])
        for block in range(len(coarse.blocks)):
            if block and block == first:
                left = exacting.active_R[(self.count_R <= self.limit_R)[exacting.active_R]]
                cheap, exacting = _Group(coarse, self, left), _Group(fine, self, everyone[:0])
            moved = self._tile(cheap, block, dense=2.0 if fine is coarse else _DENSE)
            if len(moved):
                exacting = _Group(fine, self, torch.cat([exacting.active_R, moved]))
                cheap.keep(~torch.isin(cheap.active_R, moved), at_most=1.0)
            self._tile(exacting, block, dense=2.0)
            for group in (cheap, exacting):
                group.keep(self.count_R[group.active_R] <= self.limit_R[group.active_R])
            if not len(cheap.active_R) + len(exacting.active_R):
                break
            if self.waiting > _UNDECIDED_AT_ONCE:
                self._rescore()
        self._rescore()
        return self.count_R

    def _tile(self, group: _Group, block: int, dense: float) -> Tensor:
        """Count a block's scores; rows of which more than the share ``dense`` is undecided are returned, uncounted."""
        none = torch.empty(0, dtype=torch.int64)
        if not len(group.active_R):
            return none
        part = group.scores.blocks[block]
        above, row, column = count_tile(group.scores.tile(group.rows, block))
        active = group.active_R
        many = torch.bincount(row, minlength=len(active)) > dense * (part.stop - part.start)
        above = above.masked_fill(many, 0)
        self.count_R[active] += above
        keep = ((self.count_R <= self.limit_R)[active] & ~many)[row]
        if bool(keep.any()):
            self.undecided.append((active[row[keep]], group.scores.order_P[part.start + column[keep]]))
            self.waiting += int(keep.sum())
        return active[many]

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
        if self.pool.fine is not self.pool.scores:
            row, column = self._rescore_in_float32(row, column)
        counted = exactly_as_high(self.queries_RD, self.pool.pool_PD, self.own_R, row, column)
        self.count_R += torch.bincount(row[counted], minlength=len(self.own_R))

    def _rescore_in_float32(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Count what float32 decides; what it leaves undecided is returned."""
        left_rows, left_columns = [row[:0]], [column[:0]]
        found, counts = torch.unique_consecutive(row, return_counts=True)
        for one, columns in zip(found.tolist(), column.split(counts.tolist()), strict=True):
            rows = self.queries_RD[one]
            passages = self.pool.pool_PD[columns]
            scores = passages @ rows
            bound = 2 * (len(rows) + 4) * 2.0**-24 * float(rows.norm()) * float(passages.norm(dim=1).max()) + 2.0**-22 * abs(float(self.own_R[one]))
            above = scores.double() - float(self.own_R[one])
            self.count_R[one] += (above > bound).sum()
            near = columns[above.abs() <= bound]
            left_columns.append(near)
            left_rows.append(torch.full_like(near, one))
        return torch.cat(left_rows), torch.cat(left_columns)


class _Group:
    """The rows of a block that are scored in one format, as it multiplies them."""

    def __init__(self, scores: BoundedScores, work: _Block, active_R: Tensor) -> None:
        self.scores, self.active_R = scores, active_R
        self.rows: Rows = scores.rows(work.queries_RD[active_R], work.own_R[active_R])

    def keep(self, stays_R: Tensor, at_most: float = 0.9) -> None:
        """Leave the others out, where less than this share stays: a product must be so much smaller to be worth a copy of the rows."""
        if int(stays_R.sum()) < at_most * len(stays_R):
            self.rows = self.rows.select(stays_R.nonzero()[:, 0].to(self.rows.values_RD.device))
            self.active_R = self.active_R[stays_R]


def count_tile(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row the scores that are certainly above, int64 ``[R]``, and the undecided ones as (row, column), on the CPU."""
    scores, low, high = tile
    above_R = torch.zeros(len(scores), dtype=torch.int64)
    flagged = (scores.amax(1) > low).nonzero()[:, 0]
    none = torch.empty(0, dtype=torch.int64)
    if not len(flagged):
        return above_R, none, none
    if len(flagged) < len(scores):
        scores, low, high = scores[flagged], low[flagged], high[flagged]
    # A comparison written as numbers and summed is several times as fast as one written as booleans.
    number = torch.int32 if scores.dtype == torch.int32 else torch.float32
    marks = torch.empty(scores.shape, dtype=number, device=scores.device)
    total = number if number == torch.int32 else None
    above = torch.gt(scores, high[:, None], out=marks).sum(1, dtype=total)
    possible = torch.gt(scores, low[:, None], out=marks).sum(1, dtype=total)
    above_R[flagged.cpu()] = above.long().cpu()
    undecided = (possible > above).nonzero()[:, 0]
    if not len(undecided):
        return above_R, none, none
    some = scores[undecided]
    row, column = ((some > low[undecided, None]) & (some <= high[undecided, None])).nonzero(as_tuple=True)
    return above_R, flagged[undecided[row]].cpu(), column.cpu()


def exactly_as_high(queries_RD: Tensor, pool_PD: Tensor, own_R: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Whether each (row, pool row) scores at least the row's own score, bool."""
    step = max(1, _EXACT_VALUES // max(1, pool_PD.shape[1]))
    parts = [
        exact_scores(queries_RD[r], pool_PD[c]) >= own_R[r] for r, c in zip(row.split(step), column.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool)
