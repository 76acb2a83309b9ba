"""Pieces of work that do not depend on one another, several at a time on the cores of one machine.

A chunk of texts is thousands of small operations. Where the threads share out each operation, they wait for one another between
any two; where each thread has a chunk of its own, they never do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Pieces at a time at most: Python runs one thread at a time, and what a chunk does in Python takes a few hundredths of its time.
MOST_AT_ONCE = 16


def pieces_at_once(device: torch.device) -> int:
    """How many pieces run at a time: one on a GPU, which computes in one order; on a CPU one per thread of torch's."""
    return max(1, min(MOST_AT_ONCE, torch.get_num_threads())) if device.type == "cpu" else 1


def map_on_cores(function: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> Iterator[Result]:
    """``function(item)`` of each item in their order, `pieces_at_once` at a time, which share torch's threads.

    No gradients are computed. Inference mode and the device's autocast are as where this is called; other states that torch keeps
    per thread are not. The first error ends it: pieces that have not begun are left out.
    """
    pieces = pieces_at_once(device)
    todo = iter(items)
    first = list(islice(todo, 2))
    if pieces == 1 or len(first) < 2:
        # Around each piece, not around all: between two the caller's code runs.
        yield from map(torch.no_grad()(function), chain(first, todo))
        return
    threads, kind = torch.get_num_threads(), device.type
    inference, cast, dtype = torch.is_inference_mode_enabled(), torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def run(item: Item) -> Result:
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast(kind, dtype, enabled=cast, cache_enabled=False):
            return function(item)

    pool = ThreadPoolExecutor(pieces, "chunks", initializer=torch.set_num_threads, initargs=(max(1, threads // pieces),))
    try:
        running: deque[Future[Result]] = deque(pool.submit(run, item) for item in [*first, *islice(todo, 2 * pieces)])
        while running:
            result = running.popleft().result()
            running.extend(pool.submit(run, item) for item in islice(todo, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
        # torch gives the number that was set last to every thread that begins.
        torch.set_num_threads(threads)
