"""A checkpoint is whole or refused, and the one before it is used."""

from __future__ import annotations

import pickle
import random
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
