"""A checkpoint that a thread writes holds the values of the moment when it was asked for, and its bytes are those of a direct one."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.files.storage import read_checked, sha256_file
from lightning_e5.training.background_writer import BackgroundWriter, HostCopy
from lightning_e5.training.checkpointing import checkpoint_path, latest_checkpoint, load_checkpoint, save_checkpoint


class SlowDisk:
    """`os.write` of the thread that writes checkpoints, which waits at the gate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        write = os.write

        def slow(handle: int, data: Any) -> int:
            if threading.current_thread().name == "checkpoint":
                self.reached.set()
                assert self.gate.wait(30.0)
            return write(handle, data)

        monkeypatch.setattr(os, "write", slow)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


def state() -> dict[str, Any]:
    """Of everything that a training's checkpoint holds: tied weights, views, scalars, other precisions, counters."""
    weights = torch.arange(24.0).view(4, 6)
    named = OrderedDict({"model.w": weights, "encoder.w": weights.detach(), "encoder.row": weights[2], "encoder.turned": weights.t()})
    named._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.full((4, 6), 0.5, dtype=torch.bfloat16)}, 1: {"exp_avg": torch.empty(0)}}
    return {
        "state_dict": named, "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1]}]}],
        "loops": {"done": 3, "nothing": None}, "global_step": 3, "callbacks": {"best": {"value": torch.tensor([1, 2]), "step": [1, 2]}},
    }  # fmt: skip


def test_its_file_has_the_bytes_of_a_direct_one(tmp_path: Path) -> None:
    save_checkpoint(checkpoint_path(tmp_path / "direct", 3), state())
    writer = BackgroundWriter(save_checkpoint)
    for _ in range(2):  # the second into the memory of the first
        writer.submit(checkpoint_path(tmp_path / "thread", 3), state())
        writer.finish()
        ours, theirs = (checkpoint_path(tmp_path / name, 3) for name in ("thread", "direct"))
        assert ours.read_bytes() == theirs.read_bytes()
    loaded = load_checkpoint(ours)["state_dict"]
    assert loaded["model.w"].data_ptr() == loaded["encoder.w"].data_ptr() and torch.equal(loaded["encoder.turned"], torch.arange(24.0).view(4, 6).t())


def test_what_was_hashed_on_the_way_is_the_files_sha256(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, {"w": torch.rand(300_000), "small": torch.rand(3)})
    record = read_checked(path.with_suffix(".json"))
    assert (record["sha256"], record["bytes"]) == (sha256_file(path), path.stat().st_size)


def test_the_memory_of_a_copy_is_used_again(tmp_path: Path) -> None:
    copy = HostCopy()
    first = [tensor.data_ptr() for tensor in copy.take(state())[0]["state_dict"].values()]
    other = state()
    other["state_dict"]["model.w"].add_(1.0)
    second, events = copy.take(other)
    assert [tensor.data_ptr() for tensor in second["state_dict"].values()] == first and events == []
    assert torch.equal(second["state_dict"]["encoder.turned"], other["state_dict"]["encoder.turned"])
    assert first[0] == first[1] != other["state_dict"]["model.w"].data_ptr(), "what shares memory does so in the copy"
    larger = copy.take({"w": torch.rand(1000)})[0]
    assert len(copy._buffers) == 1 and larger["w"].numel() == 1000


def changed_meanwhile(directory: Path, disk: SlowDisk) -> dict[str, Any]:
    """A checkpoint whose state changes between the request and the first byte."""
    values = state()
    writer = BackgroundWriter(save_checkpoint)
    writer.submit(checkpoint_path(directory, 3), values)
    assert disk.reached.wait(30.0)
    values["state_dict"]["model.w"].zero_()
    values["optimizer_states"][0]["state"][0]["step"] += 1
    values["optimizer_states"][0]["param_groups"][0]["lr"] = 0.0
    values["callbacks"]["best"]["step"].append(3)
    disk.gate.set()
    writer.finish()
    return load_checkpoint(checkpoint_path(directory, 3))


def test_it_holds_the_values_of_its_step(tmp_path: Path, slow_disk: SlowDisk) -> None:
    found = changed_meanwhile(tmp_path, slow_disk)
    optimizer = found["optimizer_states"][0]
    assert torch.equal(found["state_dict"]["model.w"], torch.arange(24.0).view(4, 6))
    assert optimizer["state"][0]["step"] == 3 and optimizer["param_groups"][0]["lr"] == 1e-3 and found["callbacks"]["best"]["step"] == [1, 2]


def test_the_copy_matters(tmp_path: Path, slow_disk: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a thread that is given the state itself writes what it has become."""
    monkeypatch.setattr(HostCopy, "take", lambda self, state: (state, []))
    found = changed_meanwhile(tmp_path, slow_disk)
    assert not found["state_dict"]["model.w"].any() and found["optimizer_states"][0]["state"][0]["step"] == 4


def test_one_at_a_time(tmp_path: Path, slow_disk: SlowDisk) -> None:
    writer = BackgroundWriter(partial(save_checkpoint, keep=2))
    writer.submit(checkpoint_path(tmp_path, 1), {"w": torch.ones(3)})
    second = threading.Thread(target=writer.submit, args=(checkpoint_path(tmp_path, 2), {"w": torch.zeros(3)}))
    second.start()
    assert slow_disk.reached.wait(30.0)
    second.join(0.2)
    assert second.is_alive() and [t.name for t in threading.enumerate()].count("checkpoint") == 1
    slow_disk.gate.set()
    second.join(30.0)
    writer.finish()
    assert [float(load_checkpoint(checkpoint_path(tmp_path, step))["w"].sum()) for step in (1, 2)] == [3.0, 0.0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO])
def test_a_disk_that_is_full_is_raised_once_and_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    writer = BackgroundWriter(partial(save_checkpoint, keep=1))
    writer.submit(checkpoint_path(tmp_path, 1), {"w": torch.ones(3)})
    writer.finish()

    def full(handle: int, data: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        writer.submit(checkpoint_path(tmp_path, 2), {"w": torch.zeros(3)})
        assert writer._thread is not None
        writer._thread.join()
        words = "Input/output error" if number == errno.EIO else "the checkpoint could not be written"
        with pytest.raises(OSError, match=f"{words}.*step-00000002"):
            writer.check()
    writer.check()
    writer.finish()
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and latest.step == 1 and sorted(p.suffix for p in tmp_path.iterdir()) == [".ckpt", ".json"]
