"""From token states to one vector per text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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


def average_pool(states_TD: Tensor, runs: Sequence[LengthRun]) -> Tensor:
    """Mean of each text's token states, special tokens and prefix included: ``[T, D] -> [B, D]``.

    Source: paper section 3.2 (average pooling over the last layer).
    """
    width = states_TD.shape[-1]
    blocks = states_TD.split([r.texts * r.length for r in runs])
    means = [block.view(r.texts, r.length, width).mean(1) for r, block in zip(runs, blocks, strict=True)]
    return torch.cat(means) if means else states_TD.new_empty(0, width)
