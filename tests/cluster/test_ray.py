"""Two Ray nodes: every curation stage gives the bytes that it gives here, also where one of the nodes dies in the middle."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lightning_e5.models.encoder import TextEncoder
from tests.cluster.hosts import ADDRESSES, two_hosts
from tests.cluster.ray_nodes import RayNode, free_port
from tests.cluster.trainings import ROOT, environment
from tests.lightning_e5.curation.engines import all_stages
from tests.lightning_e5.curation.engines.all_stages import PARTS, digests, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of Ray's sockets, whose names are limited to 107 letters."""
    pytest.importorskip("ray")
    path = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def data(tmp_path: Path, texts: list[str], small_bert, small_tokenizer) -> Path:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "data", texts, TextEncoder(small_bert, small_tokenizer))
    return tmp_path / "data"


def driver(data: Path, out: Path, address: str, *more: str) -> list[str]:
    return [sys.executable, "-m", all_stages.__name__, str(data), str(out), address, *more]


def build_and_kill(data: Path, out: Path, address: str, on_host: Callable[[Sequence[str]], list[str]], processes: Callable[[], list[int]], kill: Callable[[], None]) -> None:
    """Build a pool on the cluster; while the second node, whose processes are given, reads a part, kill it."""
    begun, errors = data / "raw" / "started", out.with_suffix(".txt")
    shutil.rmtree(begun, ignore_errors=True)
    with errors.open("w") as log:
        building = subprocess.Popen(on_host(driver(data, out, address, "3")), cwd=ROOT, env=environment(), stdout=log, stderr=log)

    def reading() -> list[Path]:
        """The marks of parts that the second node reads now."""
        own = {str(pid) for pid in processes()}
        marks = [mark for mark in begun.glob("*") if mark.suffix[1:] in own]
        finished = {path.parent.name[-5:] for path in (out / "work" / "parts").glob("*/record.json")}
        return [mark for mark in marks if f"{int(mark.name[5]):05d}" not in finished]

    until = time.monotonic() + 600
    while not (found := reading()):
        assert building.poll() is None and time.monotonic() < until, errors.read_text()
        time.sleep(0.05)
    kill()
    assert building.wait(timeout=900) == 0, errors.read_text()
    again = len(list(begun.glob(f"{found[0].stem}.*")))
    assert again == 2, "the part that it was reading was read by the other node"
    assert len(list(begun.iterdir())) <= PARTS + 2, "it cost its own tasks only"


def test_two_nodes_give_the_same_bytes_and_one_may_die(tmp_path: Path, folder: Path, data: Path) -> None:
    all_stages.run_stages(data, tmp_path / "local", None)
    all_stages.build(data, tmp_path / "pairs", None)
    address = f"127.0.0.1:{free_port()}"
    nodes = [RayNode(address, "127.0.0.1", folder, head=head) for head in (True, False)]
    try:
        done = subprocess.run(driver(data, tmp_path / "ray", address), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr
        assert digests(tmp_path / "ray") == digests(tmp_path / "local")
        build_and_kill(data, tmp_path / "survived", address, list, nodes[1].processes, nodes[1].kill)
        assert digests(tmp_path / "survived") == digests(tmp_path / "pairs")
    finally:
        for node in reversed(nodes):
            node.kill()


def test_a_host_that_vanishes_costs_its_tasks_only(tmp_path: Path, folder: Path, data: Path) -> None:
    """Two hosts that share the disk alone: one is shut down."""
    all_stages.build(data, tmp_path / "pairs", None)
    address = f"{ADDRESSES[0]}:6379"
    with two_hosts() as hosts:
        for number in (0, 1):
            RayNode(address, ADDRESSES[number], folder, lambda command, number=number: hosts.command(number, command), head=number == 0)  # type: ignore[misc]
        build_and_kill(data, tmp_path / "survived", address, lambda command: hosts.command(0, command), lambda: hosts.processes(1), lambda: hosts.shut_down(1))
    assert digests(tmp_path / "survived") == digests(tmp_path / "pairs")
