"""A process that is told to end does so soon, with its exit code and one line, also while a library computes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Computes in C, where Python runs no handlers, or in Python; says when it has begun.
PROCESS = """
import sys, time
from lightning_e5 import interrupts
from lightning_e5.cli.ending import ending
interrupts.GRACE_SECONDS = float(sys.argv[2])

def verb(arguments):
    print("begun", flush=True)
    if sys.argv[1] == "library":
        import hashlib
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)
    while True:
        time.sleep(0.01)

with interrupts.ending_on_signals():
    sys.exit(ending(lambda: verb(None)))
"""
SAID = {130: "interrupted; the same command continues\n", 143: "stopped; the same command continues\n"}


def pending(process: int) -> bool:
    """Whether it has not taken a signal yet that was sent to it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))) and not any("zombie" in line for line in lines)


def ends(kind: str, numbers: list[int], grace: float = 60.0, *, ignores: bool = False) -> tuple[int, str, float]:
    """Exit code, what it said and how long it took; it ignores SIGINT from the start as a shell's background jobs do, or does not, however the tests were started."""

    def prepared() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if ignores else signal.SIG_DFL)

    command = [sys.executable, "-c", PROCESS, kind, str(grace)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepared)
    try:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(0.2)
        began = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.3)
            while pending(process.pid):  # or a second one like it would be none
                time.sleep(0.01)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()  # one that does not end would take a core until it is killed by hand
    return process.returncode, errors, time.monotonic() - began


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_the_first_signal_ends_it_in_order(number: int, code: int) -> None:
    ended, errors, seconds = ends("python", [number])
    assert (ended, errors) == (code, SAID[code]) and seconds < 10


def test_a_signal_that_was_ignored_from_the_start_stays_so() -> None:
    ended, errors, _ = ends("python", [signal.SIGINT, signal.SIGTERM], ignores=True)
    assert (ended, errors) == (143, SAID[143])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_one_ends_it_at_once(number: int, code: int) -> None:
    ended, errors, seconds = ends("library", [number, number])
    assert (ended, errors) == (code, SAID[code]) and seconds < 10


def test_what_a_library_holds_up_ends_after_the_grace() -> None:
    ended, errors, seconds = ends("library", [signal.SIGTERM], grace=1.0)
    assert (ended, errors) == (143, SAID[143]) and 1.0 <= seconds < 10


def test_handlers_and_the_thread_are_gone_afterwards() -> None:
    import threading

    from lightning_e5 import interrupts

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    heard: list[int] = []
    with interrupts.ending_on_signals():
        with interrupts.handlers(lambda number, frame: None, (signal.SIGUSR1,)), interrupts.listening(heard.append):
            os.kill(os.getpid(), signal.SIGUSR1)
            until = time.monotonic() + 10
            while not heard and time.monotonic() < until:
                time.sleep(0.01)
        assert heard == [signal.SIGUSR1] and not interrupts.asked(), "the innermost listener alone is told"
        with pytest.raises(SystemExit) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert stopped.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    assert not interrupts.asked() and not [t for t in threading.enumerate() if t.name == "signals"]
