"""A checkpoint is whole or refused, and the one before it is used."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.training.checkpointing import checkpoint_path, latest_checkpoint, load_checkpoint, save_checkpoint


def two_checkpoints(directory: Path) -> tuple[Path, Path]:
    paths = [checkpoint_path(directory, step) for step in (10, 20)]
    for path, value in zip(paths, (1.0, 2.0), strict=True):
        save_checkpoint(path, {"weights": torch.full((50,), value), "step": int(value)})
    return paths[0], paths[1]


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(checkpoint_path(tmp_path, step), {"w": torch.tensor([float(step)])}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-0000000{s}.{e}" for s in (2, 3) for e in ("ckpt", "json")]
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and latest.step == 3
    assert load_checkpoint(latest.path)["w"].item() == 3.0


@pytest.mark.parametrize("length", [0, 1, 0.5, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, length: float) -> None:
    old, new = two_checkpoints(tmp_path)
    data = new.read_bytes()
    new.write_bytes(data[: int(length * len(data)) if 0 < length < 1 else int(length)])
    messages: list[str] = []
    latest = latest_checkpoint(tmp_path, messages.append)
    assert latest is not None and latest.path == old
    assert len(messages) == 1 and str(new) in messages[0] and "bytes" in messages[0]
    with pytest.raises(UserError, match="refused"):
        load_checkpoint(new)


def test_single_flipped_bits_are_refused(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    data = new.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        new.write_bytes(bytes(damaged))
        latest = latest_checkpoint(tmp_path)
        assert latest is not None and latest.path == old
    new.write_bytes(data)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and latest.path == new


def test_without_its_record_it_is_refused(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    new.with_suffix(".json").unlink()
    messages: list[str] = []
    latest = latest_checkpoint(tmp_path, messages.append)
    assert latest is not None and latest.path == old and "did not end" in messages[0]
    old.with_suffix(".json").write_text("{}")
    assert latest_checkpoint(tmp_path) is None


def test_a_damaged_record_never_lets_other_bytes_in(tmp_path: Path) -> None:
    old, new = two_checkpoints(tmp_path)
    record = new.with_suffix(".json")
    data = record.read_bytes()
    draw = random.Random(1)
    flips = []
    for _ in range(200):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        flips.append(bytes(damaged))
    refused = 0
    for content in [b"", data[:1], data[: len(data) // 2], b"[]", b"null", b"{}", *flips]:
        record.write_bytes(content)
        latest = latest_checkpoint(tmp_path)
        assert latest is not None and latest.path in (old, new)  # a flip in the file's name or a blank changes nothing
        refused += latest.path == old
        if latest.path == new:
            assert load_checkpoint(new)["step"] == 2
    assert refused > 100
    for content in [b"", data[:1], data[: len(data) // 2], data[:-2]]:
        record.write_bytes(content)
        latest = latest_checkpoint(tmp_path)
        assert latest is not None and latest.path == old


FULL = """
import resource, sys
from pathlib import Path
import torch
from lightning_e5.training.checkpointing import checkpoint_path, save_checkpoint
directory = Path(sys.argv[1])
save_checkpoint(checkpoint_path(directory, 1), {"w": torch.zeros(1000)}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    save_checkpoint(checkpoint_path(directory, 2), {"w": torch.zeros(1000, 1000)}, keep=1)
except OSError as error:
    print(error.filename)
"""


@pytest.mark.parametrize("limit", [0, 1, 100_000, 3_999_999, 10**8])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, limit: int) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), str(limit)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    latest = latest_checkpoint(tmp_path)
    enough = limit == 10**8
    assert latest is not None and latest.step == (2 if enough else 1)
    assert load_checkpoint(latest.path)["w"].shape == ((1000, 1000) if enough else (1000,))
    assert ("step-00000002" in done.stdout) == (not enough)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".ckpt", ".json"]


def test_temporaries_of_killed_writers_are_removed(tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    orphan = tmp_path / ".step-00000030.ckpt.99.tmp"
    orphan.write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is not None and not orphan.exists()


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (marker,)

    path = checkpoint_path(tmp_path, 1)
    save_checkpoint(path, {"bomb": Bomb()})
    with pytest.raises(UserError, match="not a checkpoint of data"):
        load_checkpoint(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert marker.exists()  # the control: the bomb works


def test_a_failed_save_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = checkpoint_path(tmp_path, 1)
    save_checkpoint(old, {"w": torch.zeros(3)})

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(checkpoint_path(tmp_path, 2), {"w": torch.zeros(3)})
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and latest.path == old
    assert not list(tmp_path.glob(".*.tmp"))
