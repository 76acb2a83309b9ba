"""How texts of unequal length lie in one run of tokens, without padding between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.distributed.devices import sent
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


#: Groups of texts that attention has at most, where texts are padded to few lengths.
MOST_GROUPS = 32
#: Lengths that kernels with a mask take are multiples of it.
_MULTIPLE = 8


class PaddedGroups(NamedTuple):
    """Neighbouring texts padded to one length, group after group, ``P`` tokens in all.

    place_T: int64 ``[T]``, where each token lies among them; masks: ``[N, 1, 1, L]`` of each group, 0 for a text's own tokens, else -inf.
    """

    groups: list[LengthRun]
    tokens: int
    place_T: Tensor
    masks: list[Tensor]


@dataclass(frozen=True)
class Layout:
    """The runs of a packed batch, how many tokens it has, and on their device ``starts_B1``: where each text starts, and the end.

    ``training``: the same texts may be encoded with gradients and without, and the values must be the same to the bit.
    """

    runs: list[LengthRun]
    tokens: int
    starts_B1: Tensor
    training: bool = False
    _padded: dict[torch.dtype, PaddedGroups] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device, *, training: bool = False) -> Layout:
        """The layout of texts of these lengths, whose tokens are on ``device``."""
        return cls(length_runs(lengths), sum(lengths), cumulative(lengths, device), training)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(r.length for r in self.runs)

    def positions(self, device: torch.device) -> Tensor:
        """int64 ``[T]``: the place of each token in its text, from 0."""
        starts_B1 = self.starts_B1.to(device)
        starts_T = torch.repeat_interleave(starts_B1[:-1], self.lengths(), output_size=self.tokens)  # without it the host waits to learn the sum
        return torch.arange(self.tokens, device=device) - starts_T

    def padded(self, dtype: torch.dtype) -> PaddedGroups:
        """The texts padded to lengths of which there are at most `MOST_GROUPS`, made once for all layers; few groups where texts are sorted.

        ``dtype``: of the masks, that of the scores.
        """
        if dtype not in self._padded:
            self._padded[dtype] = self._pad(dtype)
        return self._padded[dtype]

    def _pad(self, dtype: torch.dtype) -> PaddedGroups:
        device = self.starts_B1.device
        multiple = _MULTIPLE * -(-self.longest // (_MULTIPLE * MOST_GROUPS))
        padded = length_runs([multiple * -(-r.length // multiple) for r in self.runs for _ in range(r.texts)])
        starts_B = torch.tensor([g.start + text * g.length for g in padded for text in range(g.texts)], dtype=torch.int64, device="cpu")
        place_T = self.positions(device) + torch.repeat_interleave(sent(starts_B, device), self.lengths(), output_size=self.tokens)
        masks = []
        for group, lengths_N in zip(padded, self.lengths().split([g.texts for g in padded]), strict=True):
            padding_NL = torch.arange(group.length, device=device) >= lengths_N[:, None]
            mask_NL = torch.zeros(padding_NL.shape, dtype=dtype, device=device).masked_fill_(padding_NL, float("-inf"))
            masks.append(mask_NL[:, None, None])
        return PaddedGroups(padded, sum(g.texts * g.length for g in padded), place_T, masks)

    def lengths(self) -> Tensor:
        """``[B]``: tokens of each text."""
        return self.starts_B1.diff()
