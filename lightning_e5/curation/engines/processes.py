"""Worker processes of this machine, one task each at a time; the death of one is noticed and its task given to another.

Why not ``concurrent.futures`` or ``joblib``: a killed worker breaks their whole pool and does not say which task it had, all
their workers start with the same arguments (ours each see other GPUs), leaving the pool at Ctrl-C waits for the tasks at work,
and their workers outlive a killed parent.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context
from typing import Any, TypeVar

from lightning_e5.distributed.launch import end_with_parent
from lightning_e5.errors import UserError
from lightning_e5.interrupts import starting_workers
from lightning_e5.redaction import remember_these, remembered

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerDied(RuntimeError):
    """A worker process ended while it had a task (killed, out of memory), on every try."""


class TaskFailed(RuntimeError):
    """A task raised something that is no mistake of the user's; the message has the worker's traceback."""


def task_name(task: object) -> str:
    """What messages call a task."""
    return f"task {getattr(task, 'name', task)!s:.200}"


def answer(function: Callable[[Task], Result], task: Task) -> tuple[bool, Any]:
    """(True, result), or (False, what was raised): an exception whose message alone says enough, or a traceback."""
    try:
        return True, function(task)
    except (UserError, OSError) as error:
        return False, error
    except Exception:
        return False, traceback.format_exc()


def value_of(reply: tuple[bool, Any], title: str, task: object) -> Any:
    """The result in a reply; raises what the task raised."""
    good, value = reply
    if good:
        return value
    if isinstance(value, BaseException):
        raise value
    raise TaskFailed(f"{title}: {task_name(task)} failed:\n{value}")


class Processes:
    """Worker processes that each take one task after the other.

    Args:
        function: what they run, importable by name.
        environments: the environment variables of each worker; as many workers as there are of these.
        title: for messages.
    """

    def __init__(self, function: Callable[..., Any], environments: Sequence[dict[str, str]], title: str) -> None:
        self.function, self.title = function, title
        self.workers: dict[connection.Connection, tuple[Any, dict[str, str]]] = {}
        self.task_of: dict[connection.Connection, int] = {}
        for environment in environments:
            self._start(environment)

    def _start(self, environment: dict[str, str]) -> connection.Connection:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, environment, remembered()), daemon=True)
        with starting_workers():
            process.start()
        theirs.close()
        self.workers[ours] = (process, environment)
        return ours

    def results(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(number of the task, its result) as they come; WorkerDied where a task's worker dies twice."""
        waiting = deque(range(len(tasks)))
        died: set[int] = set()
        idle = list(self.workers)
        while waiting or self.task_of:
            while waiting and idle:
                pipe = idle.pop()
                self.task_of[pipe] = waiting.popleft()
                self._send(pipe, tasks[self.task_of[pipe]])
            ends = {self.workers[pipe][0].sentinel: pipe for pipe in self.task_of}
            seen: list[Any] = connection.wait([*self.task_of, *ends])
            ready: set[connection.Connection] = {ends.get(thing, thing) for thing in seen}
            for pipe in ready:
                number = self.task_of.pop(pipe)
                try:
                    reply = pipe.recv()
                except (EOFError, ConnectionError):
                    process, environment = self.workers.pop(pipe)
                    process.join()
                    if number in died:
                        raise WorkerDied(f"{self.title}: the worker of {task_name(tasks[number])} died twice (exit code {process.exitcode})") from None
                    died.add(number)
                    waiting.appendleft(number)
                    idle.append(self._start(environment))
                else:
                    idle.append(pipe)
                    yield number, value_of(reply, self.title, tasks[number])

    def _send(self, pipe: connection.Connection, task: Any) -> None:
        with contextlib.suppress(ConnectionError):  # it died; the wait for its answer says so
            pipe.send((self.function, task))

    def end(self) -> None:
        """End all of them, those at work at once."""
        for pipe, (process, _) in self.workers.items():
            if pipe in self.task_of:
                process.terminate()
            pipe.close()  # an idle one sees it and returns
        for process, _ in self.workers.values():
            process.join(5)
            if process.exitcode is None:
                process.kill()
                process.join()
        self.workers.clear()


def _work(pipe: connection.Connection, environment: dict[str, str], secrets: list[str]) -> None:
    """A worker's life: answer tasks until the other end closes."""
    end_with_parent()
    remember_these(secrets)
    os.environ.update(environment)  # before the function arrives, and with it the import of its libraries
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, ConnectionError):
            return
        pipe.send(answer(function, task))
