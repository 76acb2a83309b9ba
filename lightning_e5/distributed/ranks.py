"""A connection between the processes of one job, by which each learns of the end of another at once.

Ranks meet in collectives while they train, and in the files of the run directory otherwise; in both they would wait for
hours, under SLURM until the job's time limit, for one that was killed. So every process keeps a TCP connection to the
first, whose kernel closes it whenever and however the process ends; whoever loses another ends itself, at the latest
after a grace. A process may work or wait as long as it likes: silence means nothing, and a machine that vanished is found
by the kernel's probes. The first process's address lies in a file beside the run directory, which all of them see.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_e5 import interrupts
from lightning_e5.distributed.launch import (
    is_first_process,
    job_identity,
    leave_after_first,
    on_one_machine,
    own_name,
    several_started,
    started_by,
)
from lightning_e5.errors import TrainingStopped
from lightning_e5.files.storage import atomic_path

#: Seconds in which a process that lost another may end by itself, with what it has to say, before it is ended.
GRACE_SECONDS = 10.0
#: Seconds in which the first process must have left its address.
JOIN_SECONDS = 300.0
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class Ranks:
    """This process's connections to the other processes of its job.

    Attributes:
        lost: what happened to a process that ended before its work was done; None as long as none did.
        server: where the others connect; in the first process alone.
        stop: whether a process was asked to stop, so that all do.
        first_gone: whether the first process's work is done, or it ended.
    """

    def __init__(self) -> None:
        self.lost: str | None = None
        self.stop = self.first_gone = False
        self.server: socket.socket | None = None
        self._peers: dict[socket.socket, str] = {}
        self._lock = threading.Lock()
        self._closed = False

    def ask_to_stop(self) -> None:
        """Let all processes know that one was asked to stop; each does so where it can."""
        self.stop = True
        self._send({"kind": "stop"})

    def close(self, error: BaseException | None = None) -> None:
        """Take leave of the others: the work is done, or it failed, and with it theirs."""
        self._closed = True
        stopped = isinstance(error, SystemExit | KeyboardInterrupt)
        self._send({"kind": "done"} if error is None else {"kind": "stopped" if stopped else "failed", "what": _first_line(error)})
        if error is not None:
            leave_after_first()
        with self._lock:
            peers, self._peers = list(self._peers), {}
        for peer in [*peers, *([] if self.server is None else [self.server])]:
            _hang_up(peer)

    def lose(self, what: str) -> None:
        """A process of the job ended: this one ends, too, at the latest after the grace."""
        if self._closed or self.lost is not None:
            return
        self.lost = what
        self._send({"kind": "lost", "what": what})
        timer = threading.Timer(GRACE_SECONDS, self._end)
        timer.daemon = True
        timer.start()

    def _stop_too(self) -> None:
        """A process was stopped by a signal: so is this one, where the processes have not agreed on it already."""
        if not (self.stop or self._closed or interrupts.asked()):
            self.stop = True
            self._send({"kind": "stopped"})
            os.kill(os.getpid(), signal.SIGTERM)

    def _end(self) -> None:
        if not self._closed:
            with suppress(OSError):
                os.write(2, f"stopped: {self.lost}\n".encode())
            if _path is not None and is_first_process():
                _path.unlink(missing_ok=True)
            os._exit(1)

    def talk(self, peer: socket.socket, name: str, lines: Any) -> None:
        """Listen to a process until it ends; in a thread of its own."""
        with self._lock:
            self._peers[peer] = name
        done = False
        with suppress(OSError, ValueError, KeyError):
            for line in lines:
                message = json.loads(line)
                done |= message["kind"] in ("done", "stopped", "failed")
                if message["kind"] == "stop" and not self.stop:
                    self.ask_to_stop()
                elif message["kind"] == "stopped":
                    self._stop_too()
                elif message["kind"] == "failed":
                    self.lose(f"{name} failed ({message['what']})")
                elif message["kind"] == "lost":
                    self.lose(message["what"])
        with self._lock:
            known = self._peers.pop(peer, None)
        if not done and known is not None:
            self.lose(f"{name} ended without a word: it was killed, or its machine is gone")
        self.first_gone |= name == FIRST  # last: whoever sees it asks what was lost
        _hang_up(peer)

    def _send(self, message: dict[str, str]) -> None:
        with self._lock:
            for peer in self._peers:
                with suppress(OSError):
                    peer.sendall(json.dumps(message).encode() + b"\n")


FIRST = "the first process (rank 0)"
_ranks: Ranks | None = None
_path: Path | None = None


def ranks() -> Ranks | None:
    """The connections of this process; None where it is alone."""
    return _ranks


def first_ended() -> bool:
    """Whether the job's first process, or one that it cannot go on without, is known to have ended."""
    return _ranks is not None and (_ranks.first_gone or _ranks.lost is not None)


def loss(seconds: float = 0.0) -> str | None:
    """What happened to another process, or None; waits so long for the news where there are others."""
    until = time.monotonic() + seconds
    while _ranks is not None and _ranks.lost is None and time.monotonic() < until:
        time.sleep(0.05)
    return None if _ranks is None else _ranks.lost


@contextmanager
def together(directory: Path) -> Iterator[None]:
    """Within the block the processes of this job, if it has several, know of each other's end.

    Args:
        directory: of the run, the same for all of them.

    Raises:
        TrainingStopped: another process ended, which in a collective is an error of the connection.
    """
    global _ranks, _path
    _path = directory.parent / f".{directory.name}.ranks.json"
    error: BaseException | None = None
    try:
        if not is_first_process() or several_started():
            join(directory)
        yield
    except BaseException as raised:
        error = raised
        # The end of another rank is an error of the connection in a collective, and makes some launchers stop the rest.
        follows = isinstance(raised, RuntimeError | SystemExit) and not isinstance(raised, TrainingStopped)
        if follows and (lost := loss(seconds=2.0 if isinstance(raised, RuntimeError) else 0.0)) is not None:
            raise TrainingStopped(lost) from None
        raise
    finally:
        if _ranks is not None:
            _ranks.close(error)
        if is_first_process():
            _path.unlink(missing_ok=True)
        _ranks = _path = None


def join(directory: Path) -> None:
    """Connect this process with the others of its job, where it is not; the first one before it starts the others.

    Raises:
        TrainingStopped: the first process left no address.
    """
    global _ranks
    if _ranks is not None:
        return
    path = _path or directory.parent / f".{directory.name}.ranks.json"
    _ranks = Ranks()
    if _path is None:  # outside of `together`: until this process ends
        atexit.register(_leave, _ranks, path)
    if is_first_process():
        _serve(_ranks, path)
    else:
        _connect(_ranks, path)


def _leave(own: Ranks, path: Path) -> None:
    own.close(getattr(sys, "last_value", None))
    if is_first_process():
        path.unlink(missing_ok=True)


def _serve(own: Ranks, path: Path) -> None:
    token = secrets.token_hex(16)
    if on_one_machine():
        server, hosts = socket.create_server(("127.0.0.1", 0)), ["127.0.0.1"]
    else:
        dual = socket.has_dualstack_ipv6()
        server = socket.create_server(("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual)
        hosts = list(dict.fromkeys([os.environ.get("MASTER_ADDR") or socket.gethostname(), socket.gethostname(), socket.getfqdn()]))
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)  # the token is for this user's processes
        temporary.write_text(json.dumps({"job": job_identity(), "hosts": hosts, "port": server.getsockname()[1], "token": token}), encoding="utf-8")
    own.server = server
    threading.Thread(target=_accept, args=(own, server, token), daemon=True, name="ranks").start()


def _accept(own: Ranks, server: socket.socket, token: str) -> None:
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_greet, args=(own, peer, token), daemon=True, name="rank").start()


def _greet(own: Ranks, peer: socket.socket, token: str) -> None:
    """Take in a process that knows the token; hang up on others."""
    try:
        peer.settimeout(10.0)
        lines = peer.makefile("rb")
        hello = json.loads(lines.readline(4096))
        if not secrets.compare_digest(str(hello["token"]), token):
            raise ValueError
        peer.sendall(b'{"kind": "welcome"}\n')
        if own.lost is not None:
            peer.sendall(json.dumps({"kind": "lost", "what": own.lost}).encode() + b"\n")
        _keep_alive(peer)
    except (OSError, ValueError, KeyError, TypeError):
        _hang_up(peer)
        return
    own.talk(peer, str(hello["name"])[:200], lines)


def _connect(own: Ranks, path: Path) -> None:
    parent, until, address = started_by(), time.monotonic() + JOIN_SECONDS, None
    while time.monotonic() < until and os.getppid() == parent:
        with suppress(OSError, ValueError, KeyError):
            address = json.loads(path.read_text(encoding="utf-8"))
            for host in address["hosts"] if address["job"] == job_identity() else []:
                with suppress(OSError, ValueError):
                    peer = socket.create_connection((host, address["port"]), timeout=10.0)
                    peer.sendall(json.dumps({"token": address["token"], "name": own_name()}).encode() + b"\n")
                    lines = peer.makefile("rb")
                    if json.loads(lines.readline(4096) or "null") is None:
                        continue
                    _keep_alive(peer)
                    threading.Thread(target=own.talk, args=(peer, FIRST, lines), daemon=True, name="ranks").start()
                    return
        time.sleep(0.2)
    if os.getppid() != parent:
        raise TrainingStopped("the process that started this one ended")
    if address is None or address["job"] != job_identity():
        raise TrainingStopped(f"{FIRST} left no address in {path} within {JOIN_SECONDS:.0f} s: it has not begun")
    print(f"{own_name()}: cannot reach {FIRST} on {', '.join(address['hosts'])}; where it fails, only timeouts tell", file=sys.stderr, flush=True)


def _keep_alive(peer: socket.socket) -> None:
    """Let the kernel find out, within about 20 s, that the machine at the other end is gone."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _hang_up(peer: socket.socket) -> None:
    with suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)
    peer.close()


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:400] if line else type(error).__name__
