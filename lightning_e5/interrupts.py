"""Signals that end a process: at the next safe point, at once where they are sent twice, and never much later.

Python runs signal handlers in the main thread and between two of its own instructions, so one that comes while a library
computes, or waits for another rank, is handled when that returns. Here a thread hears of signals as they come.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

#: Signals at which work is given up so that the same command continues it (SIGUSR1: SLURM's warning before the time limit).
STOPPING = (signal.SIGTERM, signal.SIGUSR1)
#: Seconds that an orderly end may take.
GRACE_SECONDS = 10.0
#: Those who are told of signals; the last one alone.
_listeners: list[Callable[[int], object]] = []
#: The graces that signals began.
_graces: list[threading.Timer] = []


def exit_code(number: int) -> int:
    """What a process that a signal stopped ends with: 130 for SIGINT, 143 for the others."""
    return 130 if number == signal.SIGINT else 143


def end_now(number: int) -> None:
    """End this process without another word than what it does next; every file that it was writing keeps its old state."""
    flushing = threading.Thread(target=sys.stdout.flush, daemon=True)  # which waits where the main thread is writing
    flushing.start()
    flushing.join(0.5)
    with suppress(OSError):
        os.write(2, f"{said_of(number)}\n".encode())
    os._exit(exit_code(number))


def said_of(number: int) -> str:
    """The last line of a process that a signal ended."""
    return f"{'interrupted' if number == signal.SIGINT else 'stopped'}; the same command continues"


@contextmanager
def listening(listener: Callable[[int], object]) -> Iterator[None]:
    """Within the block ``listener`` gets the numbers of this process's signals, in a thread, as soon as they come.

    Only of signals that have a Python handler. Elsewhere than in the main thread, which alone may ask for it, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _listeners.append(listener)
    try:
        if len(_listeners) > 1:
            yield
        else:
            with _hearing():
                yield
    finally:
        _listeners.remove(listener)


@contextmanager
def _hearing() -> Iterator[None]:
    """Within the block the interpreter writes the number of each signal into a pipe, which a thread reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_hear, args=(reader, before), daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join(1.0)
        if not thread.is_alive():  # one that waits in a listener would read from whatever has the number next
            os.close(reader)


def _hear(reader: int, others: int) -> None:
    while numbers := os.read(reader, 64):
        if others >= 0:
            with suppress(OSError):
                os.write(others, numbers)
        for number in numbers:
            if _listeners:
                _listeners[-1](number)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Within the block SIGINT raises KeyboardInterrupt and `STOPPING` SystemExit(143); what a library holds up ends after a grace.

    A second signal ends the process at once.
    """
    def listener(number: int) -> None:
        if number not in (signal.SIGINT, *STOPPING):
            return
        if _graces:
            end_now(number)
        grace = threading.Timer(GRACE_SECONDS, end_now, [number])
        grace.daemon = True
        _graces.append(grace)
        grace.start()

    try:
        with handlers(_stop, STOPPING), listening(listener):
            yield
    finally:
        for grace in _graces:
            grace.cancel()
        _graces.clear()


def asked() -> bool:
    """Whether this process is ending because a signal asked it to."""
    return bool(_graces)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes that are started in the block never see the terminal's SIGINT: it is for this one, which ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(exit_code(number))


@contextmanager
def handlers(handler: Callable[[int, Any], object], numbers: tuple[int, ...]) -> Iterator[None]:
    """Within the block ``handler`` is called at these signals, in the main thread; ignored ones stay ignored."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
