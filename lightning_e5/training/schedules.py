"""Learning-rate schedules: the factor on the peak learning rate at a step."""

from __future__ import annotations

import math
from typing import Literal

from lightning_e5.errors import UserError

Schedule = Literal["linear", "cosine", "constant"]


def learning_rate_factor(step: int, *, warmup_steps: int, max_steps: int, schedule: Schedule = "linear") -> float:
    """Linear warm-up from 0, then linear decay to 0, cosine decay to 0, or none.

    Args:
        step: optimizer steps done before this one, from 0.
        warmup_steps: steps of the warm-up; 0 for none.
        max_steps: steps of the whole training.

    Returns:
        A factor in [0, 1].

    Example:
        >>> [round(learning_rate_factor(step, warmup_steps=1, max_steps=4), 2) for step in range(5)]
        [0.5, 1.0, 0.67, 0.33, 0.0]

    Source: warm-up steps from the paper's table of hyperparameters; the shape of the decay is not stated there and is
    ours (linear, as in the authors' SimLM code).
    """
    if not 0 <= warmup_steps <= max_steps:
        raise UserError(f"warmup_steps: {warmup_steps} is not in 0 .. max_steps = {max_steps}")
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    remaining = max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return remaining
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - remaining)))
