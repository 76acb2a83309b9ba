"""Progress with an ETA, on stderr, for everything that takes more than a moment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int | None, title: str, unit: str = "it") -> Iterator[Callable[[int], object]]:
    """A bar for the block's duration; the value is a function that adds to it.

    Args:
        total: of the whole work; None where it is not known.
        title: what is being done.
        unit: of ``total``.
    """
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(total=total, desc=title, unit=unit, unit_scale=True, file=sys.stderr, mininterval=interval) as bar:
        yield bar.update
