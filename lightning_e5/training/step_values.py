"""What a step leaves on the device to be read later, so that the host launches the next step instead of waiting for this one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_e5.distributed.collectives import gather, sum_over_ranks, world_size
from lightning_e5.distributed.devices import sent
from lightning_e5.errors import TrainingStopped
from lightning_e5.types import PairBatch, TokenBatch

#: Name of the tokens of a step among its values.
TOKENS = "tokens of the step"
#: Row numbers that a message names at most, per rank.
_ROWS_NAMED = 16


class NonFiniteError(TrainingStopped):
    """A loss or gradient that is not finite: training stops before the optimizer step."""


class StepValues:
    """The values of a step, means over the ranks in float64, on their way to the host; a collective call.

    Args:
        values: numbers of the host, and scalars of the device.
        device: where the means are computed.
    """

    def __init__(self, values: Mapping[str, float | Tensor], device: torch.device) -> None:
        self.names = list(values)
        numbers = [0.0 if isinstance(v, Tensor) else float(v) for v in values.values()]
        places = [place for place, v in enumerate(values.values()) if isinstance(v, Tensor)]
        self._means_V = sent(torch.tensor(numbers, dtype=torch.float64, device="cpu"), device)
        if places:
            scalars = torch.stack([v.detach().to(device, torch.float64).reshape(()) for v in values.values() if isinstance(v, Tensor)])
            self._means_V = self._means_V.index_copy(0, sent(torch.tensor(places, device="cpu"), device), scalars)
        if world_size() > 1:
            sum_over_ranks(self._means_V)
            self._means_V /= world_size()
        self._on_host_V = self._means_V.to("cpu", non_blocking=True)  # pinned memory, where it comes from a GPU
        self._there = Mark(device)

    def not_finite(self) -> Tensor:
        """float32 scalar of the device: 1 where loss or gradient norm is not finite on some rank, else 0."""
        found = torch.stack([self._means_V[self.names.index(name)] for name in ("loss", "gradient_norm")])
        return (~torch.isfinite(found).all()).float()

    def read(self) -> dict[str, float]:
        """The values; waits until the device has computed them."""
        self._there.wait()
        return dict(zip(self.names, self._on_host_V.tolist(), strict=True))


class ReadStep(NamedTuple):
    """A step and its row: ``step`` optimizer steps came before it; ``bad_N`` says whose embeddings are not finite.

    ``batch`` is in the memory of the CPU and has no tokens; ``rows_B`` are its rows on the device.
    """

    step: int
    row: dict[str, float]
    batch: PairBatch
    rows_B: Tensor
    bad_N: Tensor


class UnreadSteps:
    """The steps whose values are not read yet, the oldest first."""

    def __init__(self) -> None:
        self._steps: deque[tuple[ReadStep, StepValues, Mark, Mark]] = deque()
        self._leave_out: Tensor | None = None

    def leave_out(self, values: StepValues) -> Tensor:
        """float32 scalar of the device: 1 where this step, or one before it, is not finite on some rank, else 0."""
        now = values.not_finite()
        self._leave_out = now if self._leave_out is None else torch.maximum(self._leave_out, now)
        return self._leave_out

    def add(self, step: int, values: StepValues, batch: PairBatch, bad_N: Tensor, began: Mark) -> None:
        """A step that was launched as a whole, from ``began`` on."""
        labels = (None if tensor is None else tensor.to("cpu", non_blocking=True) for tensor in batch[2:])
        none = TokenBatch(*(torch.empty(0, dtype=torch.long, device="cpu") for _ in range(2)))
        on_host = PairBatch(none, none, *labels)  # type: ignore[arg-type]
        ended = Mark(batch.rows_B.device)  # behind the copies, which are there once the device is
        self._steps.append((ReadStep(step, {}, on_host, batch.rows_B, bad_N), values, began, ended))

    def read(self, leave: int) -> Iterator[ReadStep]:
        """All but the last ``leave``, once the device has done them; ``seconds`` in their rows are the device's."""
        while len(self._steps) > leave:
            step, values, began, ended = self._steps.popleft()
            ended.wait()
            row = values.read()
            row["seconds"] = ended.since(began)
            yield step._replace(row=row)


def not_finite(embeddings_ND: Tensor) -> Tensor:
    """bool ``[N]``: which embeddings have a value that is not finite."""
    return ~torch.isfinite(embeddings_ND).all(1)


def refuse_step(step: int, rows_B: Tensor, bad_N: Tensor, places_N: Tensor, *, loss: float, norm: float) -> None:
    """Stop on all ranks, each with the rows of every rank whose texts were embedded as values that are not finite.

    Args:
        step: optimizer steps before this one.
        rows_B: of this rank's batch.
        bad_N: see `not_finite`.
        places_N: which of the rows each text belongs to.
        loss, norm: as they are.

    Raises:
        NonFiniteError: always.
    """
    places = places_N.to(bad_N.device)[bad_N].unique()[:_ROWS_NAMED]
    named = rows_B.new_full((_ROWS_NAMED,), -1)
    named[: len(places)] = rows_B[places]
    found = [row for row in gather(named).tolist() if row >= 0]
    culprits = ", ".join(map(str, found)) or "none, it is the loss or the backward pass"
    rows = rows_B.tolist()
    shown = ", ".join(map(str, rows[:_ROWS_NAMED])) + (" ..." if len(rows) > _ROWS_NAMED else "")
    raise NonFiniteError(
        f"step {step}: loss {loss} or gradient norm {norm} is not finite on some rank; "
        f"no optimizer step was made and the last checkpoint is good; "
        f"rows whose embeddings are not finite: {culprits}; rows of this rank's batch: {shown}"
    )


class Mark:
    """A point in a device's work; on a CPU, a time."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        self._time = time.perf_counter()

    def wait(self) -> None:
        """Until the device is there."""
        if self._event is not None:
            self._event.synchronize()

    def since(self, before: Mark) -> float:
        """Seconds of the device since an earlier point; waits for this one."""
        if self._event is None or before._event is None:
            return self._time - before._time
        self.wait()
        return before._event.elapsed_time(self._event) / 1000.0
