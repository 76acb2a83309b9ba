"""Nodes of a Ray cluster as a user starts them, with ``ray start``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.cluster.trainings import ROOT, environment

#: A node that says nothing for a few seconds is dead; Ray's own limits are those of busier networks.
_IMPATIENT = {"RAY_health_check_period_ms": "2000", "RAY_health_check_timeout_ms": "10000", "RAY_health_check_failure_threshold": "3"}
#: No token of the user's own is needed.
_OWN = {"RAY_AUTH_MODE": "disabled"}


class RayNode:
    """One ``ray start`` of one CPU with its processes, until it is killed.

    Args:
        address: own one, ``host:port`` of the head, which the first node is.
        ip: of this node.
        folder: of its logs and sockets; short, as names of sockets are.
        on_host: a command -> what executes it on the node's host.
    """

    def __init__(self, address: str, ip: str, folder: Path, on_host: Callable[[Sequence[str]], list[str]] = list, *, head: bool) -> None:
        port = address.rpartition(":")[2]
        place = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"] if head else [f"--address={address}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *place, f"--node-ip-address={ip}", "--num-cpus=1"]
        command += ["--object-store-memory=80000000", "--disable-usage-stats", "--block"]
        self.log = folder / ("head.txt" if head else "node.txt")
        with self.log.open("w") as log:
            self._process = subprocess.Popen(on_host(command), cwd=ROOT, env=environment(**_IMPATIENT, **_OWN), stdout=log, stderr=subprocess.STDOUT)
        until = time.monotonic() + 300
        while "Ray runtime started" not in self.log.read_text():
            assert self._process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.2)

    def processes(self) -> list[int]:
        """Its own, its daemons' and its workers'."""
        return [self._process.pid, *_descendants(self._process.pid)]

    def kill(self) -> None:
        """SIGKILL to all of them."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])


def _descendants(pid: int) -> list[int]:
    try:
        own = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*own, *(further for child in own for further in _descendants(child))]
