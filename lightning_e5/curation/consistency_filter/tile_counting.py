"""What a tile of low-precision scores decides, and what it leaves undecided."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_e5.curation.consistency_filter.bounded_scores import Tile
from lightning_e5.curation.consistency_filter.scratch import Scratch

#: Rows whose largest scores are looked at together, and the share of such groups with one above zero from which rows are looked at one by one.
_ROWS_OF_A_GROUP, _DENSE_GROUPS = 8, 0.05


def count_tile(tile: Tile, most: float = math.inf, marks: Scratch | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a tile decides, on the CPU.

    Args:
        most: rows with more undecided scores are left out.
        marks: memory to work in.

    Returns:
        Of each row the scores that are certainly above, int64 ``[R]``; the undecided ones as (row, column); the rows left out, bool ``[R]``.
    """
    scores, low, high = tile[:3]
    above_R, many_R = torch.zeros(len(scores), dtype=torch.int64, device="cpu"), torch.zeros(len(scores), dtype=torch.bool, device="cpu")
    if tile.upper_bounds:
        return above_R, *_where_few(scores, low, most, above=True)
    flagged = (scores.amax(1) > low).nonzero()[:, 0]
    if not len(flagged):
        return above_R, flagged.cpu(), flagged.cpu(), many_R
    if len(flagged) < len(scores):
        scores, low, high = scores[flagged], low[flagged], high[flagged]
    number = torch.int32 if scores.dtype == torch.int32 else torch.float32
    work = (marks or Scratch()).take(scores.shape, number, scores.device)
    # A comparison written as numbers and summed is several times as fast as one written as booleans.
    above = torch.gt(scores, high[:, None], out=work).sum(1, dtype=number if number == torch.int32 else None)
    middle, half = _middle(low, high)
    row, column, many = _where_few(torch.sub(scores, middle[:, None], out=work).abs_(), half, most, above=False)
    found = scores[row, column]
    between = (found > low[row]) & (found <= high[row])
    above_R[flagged.cpu()] = above.masked_fill(many, 0).long().cpu()
    many_R[flagged.cpu()] = many.cpu()
    return above_R, flagged[row[between]].cpu(), column[between].cpu(), many_R


def _middle(low_R: Tensor, high_R: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of two thresholds, and a distance from it within which everything between them lies as it is computed."""
    if low_R.dtype == torch.int32:
        return (low_R + high_R) // 2, high_R // 2 - low_R // 2 + 2
    low, high = low_R.double(), high_R.double()
    middle = ((low + high) / 2).float()
    return middle, ((high - low) / 2 * (1 + 2.0**-20) + middle.abs() * 2.0**-22 + 2.0**-100).float()


def _where_few(values_RC: Tensor, limit_R: Tensor, most: float, *, above: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Where values are above a row's limit, or at most the limit, as (row, column); rows with more than ``most`` are left out, bool ``[R]``.

    As they are few, groups of rows that have one are found first, by their largest or smallest, several times as fast.
    """

    def found(values: Tensor, limit: Tensor) -> Tensor:
        return values > limit if above else values <= limit

    width = values_RC.shape[1]
    whole = len(values_RC) // _ROWS_OF_A_GROUP * _ROWS_OF_A_GROUP
    grouped, limits = values_RC[:whole].view(-1, _ROWS_OF_A_GROUP, width), limit_R[:whole].view(-1, _ROWS_OF_A_GROUP)
    marked = found(grouped.amax(1), limits.amin(1)[:, None]) if above else found(grouped.amin(1), limits.amax(1)[:, None])
    if int(marked.sum()) > _DENSE_GROUPS * marked.numel():
        passing_RC = found(values_RC, limit_R[:, None])
        many_R = torch.zeros_like(limit_R, dtype=torch.bool) if most >= width else passing_RC.count_nonzero(1) > most
        row, column = (passing_RC & ~many_R[:, None] if bool(many_R.any()) else passing_RC).nonzero(as_tuple=True)
        return row, column, many_R
    group, column = marked.nonzero(as_tuple=True)
    some, within = found(grouped[group, :, column], limits[group]).nonzero(as_tuple=True)
    rest, column_rest = found(values_RC[whole:], limit_R[whole:, None]).nonzero(as_tuple=True)
    row, column = torch.cat([group[some] * _ROWS_OF_A_GROUP + within, whole + rest]), torch.cat([column[some], column_rest])
    many_R = torch.bincount(row, minlength=len(values_RC)) > most
    few = ~many_R[row]
    return row[few], column[few], many_R
