"""Batches that are made, and copied to the GPU, ahead of the steps that train on them."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_e5.types import PairBatch

#: How long the end of a training waits for a batch that is being made.
_PATIENCE_SECONDS = 10.0


class _Made(NamedTuple):
    """A batch, and what must have happened on the GPU before it is read; or the error that its making ended with."""

    batch: PairBatch | None = None
    copied: torch.cuda.Event | None = None
    error: BaseException | None = None


class Prefetcher(DataLoader[PairBatch]):
    """A loader whose batches a thread makes, in their order, while the step before trains.

    The thread asks for the next batch as soon as there is room for it, from the data workers where there are some; an error in
    there is raised where the batch would have come. What was made and is not taken is of no consequence: the state of a training
    counts the batches that were trained.

    Args:
        dataset: gives the batches.
        depth: batches that may wait, beside the one that is being made; 0 makes each when it is asked for.
        device: of the training; to a GPU the thread copies them, from page-locked memory and on a stream of their own.
        **loader: of ``torch.utils.data.DataLoader``.
    """

    def __init__(self, dataset: Dataset[PairBatch], *, depth: int, device: torch.device | None = None, **loader: Any) -> None:
        super().__init__(dataset, **loader)
        self.depth, self.device = depth, device
        #: Seconds that the last batch was waited for.
        self.waited = 0.0
        self._stop: Callable[[], object] = lambda: None

    def __iter__(self) -> Iterator[PairBatch]:  # type: ignore[override]
        self.close()
        # Here and not in the thread: a loader's iterator draws a seed from this process's generator.
        batches = super().__iter__()
        if not self.depth:
            return self._timed(batches)
        ready: queue.Queue[_Made] = queue.Queue(self.depth)
        stopped = threading.Event()
        thread = threading.Thread(target=_make, args=(batches, ready, stopped, self.device), daemon=True, name="batches")
        taken = self._timed(_taken(ready))
        self._stop = weakref.finalize(taken, _end, thread, ready, stopped)
        thread.start()
        return taken

    def close(self) -> None:
        """End the thread; its batches are dropped."""
        self._stop()

    def _timed(self, batches: Iterator[PairBatch]) -> Iterator[PairBatch]:
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited = time.perf_counter() - started
            yield batch


def _taken(ready: queue.Queue[_Made]) -> Iterator[PairBatch]:
    while True:
        made = ready.get()
        if made.error is not None:
            raise made.error
        if made.batch is None:
            return
        if made.copied is not None:
            torch.cuda.current_stream().wait_event(made.copied)
            apply_to_collection(made.batch, Tensor, _used_here)
        yield made.batch


def _used_here(tensor: Tensor) -> None:
    """Its memory is of the stream that copied it, which must not have it again before this one is through with it."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def _make(batches: Iterator[PairBatch], ready: queue.Queue[_Made], stopped: threading.Event, device: torch.device | None) -> None:
    """Fill the queue; without a reference to who takes from it, so that its end ends this."""
    try:
        copied = _CopiesToGpu(device) if device is not None and device.type == "cuda" else _Made
        for batch in batches:
            ready.put(copied(batch))
            if stopped.is_set():
                return
        ready.put(_Made())
    except BaseException as error:  # raised in the training
        ready.put(_Made(error=error))


def _end(thread: threading.Thread, ready: queue.Queue[_Made], stopped: threading.Event) -> None:
    stopped.set()
    until = time.monotonic() + _PATIENCE_SECONDS
    while thread.is_alive() and time.monotonic() < until:  # it may wait for room
        try:
            ready.get(timeout=0.01)
        except queue.Empty:
            continue


class _CopiesToGpu:
    """Batch -> the same on the GPU, copied while the GPU computes."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.set_device(device)  # of this thread
        self.device, self.stream = device, torch.cuda.Stream(device)

    def __call__(self, batch: Any) -> _Made:
        pinned = apply_to_collection(batch, Tensor, Tensor.pin_memory)
        with torch.cuda.stream(self.stream):
            moved = move_data_to_device(pinned, self.device)
        return _Made(moved, self.stream.record_event())
