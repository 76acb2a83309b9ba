"""How texts of unequal length lie in one run of tokens, without padding between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.models.packed.varlen import cumulative


class LengthRun(NamedTuple):
    """Neighbouring texts of equal length in a packed batch: ``texts`` texts of ``length`` tokens from token ``start``."""

    start: int
    texts: int
    length: int


def length_runs(lengths: Sequence[int]) -> list[LengthRun]:
    """The runs of equal length; few where texts are sorted by length."""
    runs: list[LengthRun] = []
    start = 0
    for length in lengths:
        if runs and runs[-1].length == length:
            runs[-1] = runs[-1]._replace(texts=runs[-1].texts + 1)
        else:
            runs.append(LengthRun(start, 1, length))
        start += length
    return runs


class Layout(NamedTuple):
    """The runs of a packed batch, how many tokens it has, and on their device ``starts_B1``: where each text starts, and the end."""

    runs: list[LengthRun]
    tokens: int
    starts_B1: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Layout:
        """The layout of texts of these lengths, whose tokens are on ``device``."""
        return cls(length_runs(lengths), sum(lengths), cumulative(lengths, device))

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(r.length for r in self.runs)

    def positions(self, device: torch.device) -> Tensor:
        """int64 ``[T]``: the place of each token in its text, from 0."""
        starts_B1 = self.starts_B1.to(device)
        starts_T = torch.repeat_interleave(starts_B1[:-1], self.lengths(), output_size=self.tokens)  # without it the host waits to learn the sum
        return torch.arange(self.tokens, device=device) - starts_T

    def lengths(self) -> Tensor:
        """``[B]``: tokens of each text."""
        return self.starts_B1.diff()
