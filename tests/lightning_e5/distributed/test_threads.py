"""How many threads a process computes with: its share of the cores that it may use, or what OMP_NUM_THREADS says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lightning_e5.distributed import devices


@pytest.fixture
def eight_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with eight cores and no quota; the value is the control group's folder."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("quota", "cpus"), [("max 100000", 8), ("300000 100000", 3), ("250000 100000", 3), ("50000 100000", 1), ("9900000 100000", 8), ("", 8), ("300000 0", 8)])
def test_affinity_and_quota_limit_the_cores(eight_cores: Path, quota: str, cpus: int) -> None:
    (eight_cores / "cpu.max").write_text(quota + "\n")
    assert devices.usable_cpus() == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", 8), ("200000", 2)])
def test_the_first_version_of_control_groups(eight_cores: Path, quota: str, cpus: int) -> None:
    (eight_cores / "cpu").mkdir()
    (eight_cores / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (eight_cores / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert devices.usable_cpus() == cpus


def test_ranks_share_the_cores_and_a_set_number_wins(eight_cores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [devices.threads_per_process(n) for n in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    for given, threads in (("5", 5), ("6,2", 6), ("0", 4), ("many", 4), ("", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert devices.threads_per_process(2) == threads


def test_a_training_of_several_ranks_has_its_share_alone(eight_cores: Path) -> None:
    before = torch.get_num_threads()
    try:
        devices.use_threads(None)
        with devices.shared_threads(4):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 8
        devices.use_threads(3)  # what the YAML asks for is each process's own number
        with devices.shared_threads(4):
            assert torch.get_num_threads() == 3
    finally:
        devices.use_threads(before)
        devices._threads = None
