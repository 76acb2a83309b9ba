"""How far an ablation's runs are: ``status.json``, and one line of progress with an ETA."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.files.run_layout import METRICS, STATUS
from lightning_e5.files.storage import write_json
from lightning_e5.redaction import hidden_message
from lightning_e5.results import result_files as shapes
from lightning_e5.results.result_files import read_result

#: Seconds between progress lines: of a terminal, where a line replaces the one before, and of a log.
_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 60.0
_ERROR = re.compile(r"^(error|stopped|\w*(Error|Exception|Interrupt|Exit)\b.*):", re.I)


class RunStatus:
    """The states of all runs below an ablation's directory, kept in ``status.json``.

    A run is finished if and only if its ``metrics.json`` is there, whatever ``status.json`` says.

    Args:
        directory: the ablation's.
        names: of all its runs.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory = directory
        before = read_result(directory / STATUS, shapes.STATUS) if (directory / STATUS).is_file() else {}
        self.rows: dict[str, dict[str, Any]] = {}
        for name in names:
            old = before.get(name) or {}
            state = "finished" if self.finished(name) else "failed" if old.get("state") == "failed" else "waiting"
            self.rows[name] = {
                "state": state,
                "exit_code": 0 if state == "finished" else old.get("exit_code"),
                "message": "" if state == "finished" else old.get("message") or "",
                "seconds": old.get("seconds") or 0.0,
            }
        self.running: dict[str, float] = {}
        self._wanted: list[str] = []
        self._jobs, self._title, self._shown_at, self._shown = 1, "", 0.0, ""

    def finished(self, name: str) -> bool:
        """Whether the run's ``metrics.json`` is there."""
        return (self.directory / name / METRICS).is_file()

    def begin(self, wanted: Sequence[str], jobs: int, title: str) -> None:
        """These runs are to be run now, ``jobs`` at a time."""
        self._wanted, self._jobs, self._title = list(wanted), jobs, title
        for name in wanted:
            self.rows[name] |= {"state": "waiting", "exit_code": None, "message": ""}
        self._write()

    def started(self, name: str) -> None:
        """A run was started."""
        self.running[name] = time.monotonic()
        self.rows[name]["state"] = "running"
        self._write()

    def queued(self, names: Collection[str]) -> None:
        """Of the runs that were started these wait for a machine; the others run."""
        changed, now = False, time.monotonic()
        for name, began in self.running.items():
            row, state = self.rows[name], "waiting" if name in names else "running"
            if row["state"] == state:
                continue
            if state == "waiting":
                row["seconds"] += now - began
            row["state"], self.running[name], changed = state, now, True
        if changed:
            self._write()

    def ended(self, name: str, code: int, message: str, *, stopped: bool) -> str:
        """A run ended; returns its state: waiting, where it was stopped with us and has more to do."""
        began, now = self.running.pop(name), time.monotonic()
        seconds = self.rows[name]["seconds"] + (now - began if self.rows[name]["state"] == "running" else 0.0)
        if self.finished(name) and code == 0:
            state, message = "finished", ""
        elif stopped:
            state, message = "waiting", ""
        else:
            state = "failed"
            message = message or (f"ended by {signal.Signals(-code).name}" if code < 0 else "left no metrics.json")
        self.rows[name] = {"state": state, "exit_code": code, "message": message, "seconds": seconds}
        self._write()
        return state

    def _write(self) -> None:
        write_json(self.directory / STATUS, self.rows)

    def show(self) -> None:
        """The progress line, where it is time for one."""
        terminal = sys.stderr.isatty()
        now, text = time.monotonic(), self.line()
        changed = text.split(", running")[0] != self._shown.split(", running")[0]
        if text == self._shown or (now - self._shown_at < (_TERMINAL_SECONDS if terminal else _LOG_SECONDS) and not changed):
            return
        self._shown_at, self._shown = now, text
        sys.stderr.write(f"\r\x1b[K{text}" if terminal else f"{text}\n")
        sys.stderr.flush()

    def line(self) -> str:
        """Counts of all wanted runs, what runs now, and the time left by the mean of what is finished."""
        from lightning_e5.results.durations import duration

        states = [self.rows[name]["state"] for name in self._wanted]
        text = f"{self._title}: {states.count('finished')} of {len(states)} runs finished"
        if states.count("failed"):
            text += f", {states.count('failed')} failed"
        now = time.monotonic()
        at_work = self._at_work()
        if len(at_work) < len(self.running):
            text += f", {len(self.running) - len(at_work)} queued"
        if at_work:
            text += ", running " + ", ".join(f"{name} ({duration(now - began)})" for name, began in at_work.items())
        left = self.seconds_left(now)
        return text + (f", about {duration(left)} left" if left is not None and self.running else "")

    def seconds_left(self, now: float) -> float | None:
        """Estimate by the mean time of the finished runs, of this sitting or an earlier one; None before there is one."""
        done = [row["seconds"] for row in self.rows.values() if row["state"] == "finished" and row["seconds"] > 0]
        if not done:
            return None
        mean = sum(done) / len(done)
        waiting = sum(self.rows[name]["state"] == "waiting" for name in self._wanted)
        rest = [max(0.0, mean - self.rows[name]["seconds"] - (now - began)) for name, began in self._at_work().items()]
        return max([(waiting * mean + sum(rest)) / self._jobs, *rest])

    def _at_work(self) -> dict[str, float]:
        """The started runs that have a machine, and since when."""
        return {name: began for name, began in self.running.items() if self.rows[name]["state"] == "running"}

    def close(self) -> None:
        """End the progress line."""
        if sys.stderr.isatty() and self._shown:
            sys.stderr.write("\n")


def last_error_line(log: Path, start: int) -> str:
    """The last line of a log, after ``start`` bytes, that reports an error; the last line at all where none does."""
    if not log.is_file():
        return ""
    with log.open("rb") as handle:
        handle.seek(start)
        text = handle.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line for line in lines if _ERROR.match(line)]
    return hidden_message((errors or lines or [""])[-1].removeprefix("error: ")[:500])
