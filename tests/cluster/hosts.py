"""Two hosts on one machine: network namespaces with a wire between them, each with an address and nothing else in common but the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

#: Addresses of the two, and the name that the wire's end has in each.
ADDRESSES = ("10.213.77.1", "10.213.77.2")
INTERFACE = "wire"


class Hosts:
    """The two hosts, numbered 0 and 1."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """What executes a command on a host."""
        return ["ip", "netns", "exec", self.names[host], *command]

    def processes(self, host: int) -> list[int]:
        """Of a host."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def shut_down(self, host: int) -> None:
        """End every process with SIGKILL."""
        for _ in range(50):
            if not (pids := self.processes(host)):
                return
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        raise AssertionError(f"{self.names[host]} does not end")


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Within the block there are two hosts; skips the test, with the reason, where this machine allows none."""
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces here: there is no `ip` (Debian: iproute2)")
    names = [f"e5-{os.getpid()}-{number}" for number in range(2)]
    hosts = Hosts(names)
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
            _ip("link", "add", INTERFACE, "netns", names[0], "type", "veth", "peer", "name", INTERFACE, "netns", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
                _ip("-n", name, "link", "set", INTERFACE, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield hosts
    finally:
        for number, name in enumerate(names):
            for pid in hosts.processes(number):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
