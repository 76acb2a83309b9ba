"""A training on two nodes, started by torchrun on each, equals that of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.hosts import ADDRESSES, INTERFACE, two_hosts
from tests.cluster.trainings import ROOT, assert_same_training, environment, experiment, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def test_torchrun_on_two_hosts_trains_as_one_process(tmp_path: Path) -> None:
    one = experiment(tmp_path, "one", "{accelerator: cpu, devices: 1}")
    two = experiment(tmp_path, "two", "{accelerator: cpu, devices: 1, num_nodes: 2, backend: gloo}")
    subprocess.run(run_command(one), cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=580)
    with two_hosts() as hosts:
        started = []
        for node in range(2):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1"]
            torchrun += [f"--master-addr={ADDRESSES[0]}", "--master-port=29511", *run_command(two)[2:]]
            log = (tmp_path / f"node{node}.txt").open("w")
            command = hosts.command(node, torchrun)
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment(GLOO_SOCKET_IFNAME=INTERFACE), stdout=log, stderr=subprocess.STDOUT))
        codes = [process.wait(timeout=580) for process in started]
    said = [(tmp_path / f"node{node}.txt").read_text() for node in range(2)]
    assert codes == [0, 0], said
    assert "pretrain: done" in said[0] and "done" not in said[1], "the first process alone runs the stages"
    assert_same_training(tmp_path / "one", tmp_path / "two")
