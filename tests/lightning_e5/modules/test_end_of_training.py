"""The end of a training, where Lightning has taken the module off its device already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import Strategy

from lightning_e5.modules import callbacks
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.training.optimizer import AdamWConfig
from tests.lightning_e5.modules.scheme_run import STEPS, RandomPairs, encoder


def test_ranks_agree_on_the_device_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks on GPUs have collectives there alone. Here the module says that it is elsewhere once Lightning has let go of it."""
    asked: list[tuple[bool, Any]] = []
    ended = False
    any_rank, teardown = callbacks.any_rank, Strategy.teardown

    def let_go(strategy: Strategy) -> None:
        nonlocal ended
        teardown(strategy)
        ended = True
        module._device = torch.device("meta")

    monkeypatch.setattr(callbacks, "any_rank", lambda flag, device: asked.append((ended, device)) or any_rank(flag))
    monkeypatch.setattr(Strategy, "teardown", let_go)
    module = InBatchModule(encoder(), optimizer=AdamWConfig(learning_rate=1e-3), max_steps=STEPS).double()
    fit(module, RandomPairs(0), checkpoints=tmp_path, title="one", accelerator="cpu", devices=1)
    assert module.device.type == "meta" and [device.type for _, device in asked] == ["cpu"] * len(asked)
    assert [at_the_end for at_the_end, _ in asked].count(True) == 1
