"""What the annotations of configurable arguments say beside the type: the range of a number, and what a slot is given.

An argument's range is written once, in its annotation (``batch_size: BatchSize``); `lightning_e5.config.annotations` reads it for
``check``, for the building of objects, and for messages. NaN and infinity are in no range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

#: Above every count of pairs, tokens or bytes that one machine or cluster can hold.
MOST = 2**40


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from ``least`` (without it, where ``above``) to ``most``."""

    least: float
    most: float = MOST
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether the number is in the range; False for NaN."""
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def rule(self, value: float | None = None) -> str:
        """The range in words; of a value that is not in it, the bound that it breaks."""
        low = f"above {_said(self.least)}" if self.above else f">= {_said(self.least)}"
        high = f"<= {_said(self.most)}" if self.most < MOST else "<= 2^40"
        if value is not None:
            return high if value > self.most else low
        if self.most >= MOST:
            return low
        return f"{low} and {high}" if self.above else f"from {_said(self.least)} to {_said(self.most)}"


def _said(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else f"{number:,.0f}"


@dataclass(frozen=True, slots=True)
class Given:
    """Of a slot that takes a class or function with ``_partial_``, what the stage adds when it calls it.

    Args:
        names: arguments that it passes by name.
        positional: how many it passes by position.
        kind: what the class or function has declared to be, where its result's type does not tell.
    """

    names: tuple[str, ...] = ()
    positional: int = 0
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class ArgumentsOf:
    """Of a mapping, that its keys are arguments of ``function``, of those in ``names``."""

    function: Callable[..., Any]
    names: tuple[str, ...]


Seed = Annotated[int, Range(0, 2**31 - 1)]
Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
#: Rows of a global batch; one alone has no in-batch negatives.
BatchSize = Annotated[int, Range(2, 2**24)]
#: Tokens of a text, its special tokens counted; fewer leave no room for a text.
Length = Annotated[int, Range(4, 2**20)]
#: Layers, widths and the like of a model.
Size = Annotated[int, Range(1, 2**20)]
#: Processes, threads, GPUs.
Workers = Annotated[int, Range(1, 4096)]
WorkersOrZero = Annotated[int, Range(0, 4096)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, above=True)]
#: A speed or another measure.
Positive = Annotated[float, Range(0, 1e15, above=True)]
Weight = Annotated[float, Range(0, 1e6)]
LearningRate = Annotated[float, Range(1e-12, 1)]
#: Below the least, cosines divided by it leave the precision of float32 sums.
Temperature = Annotated[float, Range(1e-4, 100)]
Epochs = Annotated[float, Range(0, 1e4, above=True)]
Seconds = Annotated[float, Range(0, 1e9)]
