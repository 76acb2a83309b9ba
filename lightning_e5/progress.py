"""Progress with an ETA, on stderr, for everything that takes more than a moment.

On a terminal it is one line, which is gone when the work is done; in a file or a pipe, where nothing can be overwritten, a line
of its own now and then.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_e5.redaction import hidden

#: Seconds between two lines where stderr is no terminal.
LINE_SECONDS = 30.0
#: What is being done as a whole, innermost last: the stage of a run, which stands before every title.
_stages: list[str] = []
#: A terminal's line of a bar without a rate; what its figures leave of the line is the bar's.
_WITHOUT_RATE = "{desc}: {n_fmt}/{total_fmt} {bar} ETA {remaining}{postfix}"
#: What `say` has said.
_said: set[str] = set()
#: What moves a terminal's cursor, changes its state or turns its text round; and what no stream can encode.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Bar:
    """Shows how far some work is.

    Args:
        total: of the whole work; None where it is not known.
        title: what is being done.
        unit: of ``total``.
        done: what was done before.
        rate: show ``unit`` per second and the time that has passed; without them there is room for the figures of `note`.
    """

    def __init__(self, total: int | None, title: str, unit: str = "it", done: int = 0, *, rate: bool = True) -> None:
        self.total, self.unit, self.done = total, unit, done
        self.title = printable(" ".join([*_stages[-1:], *([title] if title else [])]).rstrip(":"))
        self._began, self._before, self._noted = time.monotonic(), done, ""
        self._shown_at = self._began
        self._bar: Any = None
        if on_terminal():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=self.title, unit=unit, unit_scale=True, file=sys.stderr, mininterval=0.2, leave=False,
                dynamic_ncols=True, bar_format=None if rate else _WITHOUT_RATE,
            )  # fmt: skip

    def __call__(self, count: int) -> None:
        """Add to what is done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._shown_at >= LINE_SECONDS:
            self._shown_at = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Further figures, shown behind the bar from the next update on."""
        self._noted = text = printable(text)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self) -> str:
        parts = [f"{self.done:,} of {self.total:,} {self.unit}s" if self.total is not None else f"{self.done:,} {self.unit}s"]
        gained = self.done - self._before
        if self.total is not None and gained > 0:
            left = (time.monotonic() - self._began) / gained * max(0, self.total - self.done)
            parts.append(f"about {_duration(left)} left")
        return f"{self.title}: {', '.join([*parts, *filter(None, [self._noted])])}"


@contextmanager
def progress(total: int | None, title: str, unit: str = "it") -> Iterator[Callable[[int], object]]:
    """A bar for the block's duration; the value is a function that adds to it (arguments: see `Bar`)."""
    bar = Bar(total, title, unit)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def stage_title(title: str, description: str = "") -> Iterator[None]:
    """Put ``title`` before the titles of all bars in the block; until there is one, a terminal shows what is being done."""
    _stages.append(title)
    if on_terminal():
        line = printable(f"{title} {description} ...").replace("\n", " ")[: shutil.get_terminal_size().columns - 1]
        print(line, end="\r", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        _stages.pop()
        clear_line()


def printable(text: str) -> str:
    """A text for a terminal: control characters, such as those of a name's escape sequence, as ``\\x1b``; lines stay lines."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), hidden(text))


def on_terminal() -> bool:
    """Whether progress is one line that is overwritten."""
    return sys.stderr.isatty()


def clear_line() -> None:
    """Take away what progress left on the terminal's line, before something that stays is written there."""
    if on_terminal():
        print("\x1b[2K", end="\r", file=sys.stderr, flush=True)


def say(message: str) -> None:
    """A line to the user beside the bars, on stderr: once in a process however often it comes up, and from the first rank only."""
    if message not in _said and os.environ.get("RANK", "0") == "0":
        _said.add(message)
        clear_line()
        print(message, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} min" if whole >= 60 else f"{whole} s"
