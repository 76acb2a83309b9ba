"""Fully sharded on two ranks (gloo) is the training of one rank, holds half of it, and continues from any checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.training.checkpointing import latest_checkpoint, load_checkpoint
from lightning_e5.training.optimizer import AdamWConfig
from tests.lightning_e5.modules.scheme_run import STEPS, RandomPairs, encoder
from tests.lightning_e5.modules.test_faults import finish, result, start, wait_for_checkpoint
from tests.lightning_e5.modules.test_ranks import assert_same_training, assert_same_validation, run

CASES = ("in_batch-1", "pre_batch-1", "moco-1", "everything-1", "distilled-1")
#: The schemes with everything that a checkpoint holds: a parameter of the loss, a queue, a momentum encoder.
RESUMED = ("everything-1", "pre_batch-1", "moco-1")


class Trained:
    """The folder and the results of one run."""

    def __init__(self, out: Path, ranks: int, strategy: str, cases: tuple[str, ...] = CASES) -> None:
        self.out, self.results = out, run(out, ranks, *cases, strategy=strategy)

    def __getitem__(self, case: str) -> dict[str, Any]:
        return dict(self.results[case])

    def continued(self, out: Path, ranks: int, strategy: str) -> Trained:
        """Another run from this one's checkpoints."""
        for case in RESUMED:
            shutil.copytree(self.out / case, out / case)
        return Trained(out, ranks, strategy, RESUMED)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("one"), 1, "ddp")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("sharded"), 2, "fsdp")


@pytest.mark.parametrize("case", CASES)
def test_two_sharded_ranks_make_the_step_of_one(one: Trained, sharded: Trained, case: str) -> None:
    assert_same_training(one[case], sharded[case])
    assert_same_validation(one[case], sharded[case])


@pytest.mark.parametrize("case", CASES)
def test_a_rank_holds_half(one: Trained, sharded: Trained, case: str) -> None:
    for whole, half in zip(one[case]["rows"], sharded[case]["rows"], strict=True):
        for name in ("held_parameters", "held_moments"):
            assert 0.5 <= half[name] / whole[name] < 0.51, name
        assert half["held_gradients"] == 0


def test_the_exported_weights_are_the_trained_ones(sharded: Trained) -> None:
    from safetensors.torch import load_file

    state = sharded["in_batch-1"]["state"]
    weights = load_file(sharded.out / "in_batch-1" / "weights" / "model.safetensors")
    assert len(weights) > 20
    for name, value in weights.items():
        assert torch.equal(value, state[f"model.backbone.{name}"]), name


@pytest.mark.slow
def test_resumed_is_bit_equal(sharded: Trained, tmp_path: Path) -> None:
    resumed = sharded.continued(tmp_path, 2, "fsdp")
    for case in RESUMED:
        assert [row["loss"] for row in resumed[case]["rows"]] == [row["loss"] for row in sharded[case]["rows"][STEPS // 2 :]]
        for name, value in sharded[case]["state"].items():
            assert torch.equal(value, resumed[case]["state"][name]), name


@pytest.mark.parametrize(("ranks", "strategy"), [(1, "ddp"), pytest.param(2, "ddp", marks=pytest.mark.slow), pytest.param(4, "fsdp", marks=pytest.mark.slow)])
def test_a_sharded_checkpoint_is_anyones(sharded: Trained, tmp_path: Path, ranks: int, strategy: str) -> None:
    assert_continues(sharded, sharded.continued(tmp_path, ranks, strategy))


@pytest.mark.slow
def test_sharded_continues_from_one_device(one: Trained, tmp_path: Path) -> None:
    assert_continues(one, one.continued(tmp_path, 2, "fsdp"))


def assert_continues(whole: Trained, resumed: Trained) -> None:
    for case in RESUMED:
        rows = whole[case]["rows"][STEPS // 2 :]
        assert len(resumed[case]["rows"]) == len(rows)
        for ours, theirs in zip(rows, resumed[case]["rows"], strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-9)
        for name, value in whole[case]["state"].items():
            assert torch.allclose(value.double(), resumed[case]["state"][name].double(), rtol=1e-7, atol=1e-9), name


@pytest.mark.slow
def test_out_of_memory_changes_no_gradient(sharded: Trained, tmp_path: Path) -> None:
    code, errors = finish(start(tmp_path, 2, fault="oom", strategy="fsdp"))
    assert code == 0, errors[-2000:]
    assert "out of memory" in errors
    assert_same_training(sharded["in_batch-1"], result(tmp_path, 2))


@pytest.mark.slow
def test_a_value_that_is_not_finite_stops_all_ranks(tmp_path: Path) -> None:
    code, errors = finish(start(tmp_path, 2, fault="nan", strategy="fsdp", steps=50))
    assert code not in (0, 143)
    assert "is not finite" in errors and "rows of this rank's batch" in errors


@pytest.mark.slow
def test_a_signal_stops_all_ranks_after_a_whole_checkpoint(sharded: Trained, tmp_path: Path) -> None:
    assert_stops_after_a_whole_checkpoint(sharded, tmp_path, "fsdp")


def assert_stops_after_a_whole_checkpoint(sharded: Trained, folder: Path, strategy: str) -> None:
    """A signal ends two ranks that train so, behind a checkpoint of the whole model's shapes."""
    process = start(folder, 2, strategy=strategy, steps=100_000)
    wait_for_checkpoint(folder)
    process.terminate()
    code, errors = finish(process)
    assert code == 143, errors[-2000:]
    reached = latest_checkpoint(folder / "in_batch-1")
    assert reached is not None
    checkpoint = load_checkpoint(reached.path)
    assert checkpoint["global_step"] == reached.step
    shapes = {name: value.shape for name, value in sharded["in_batch-1"]["state"].items()}
    assert {name: value.shape for name, value in checkpoint["state_dict"].items()} == shapes


def test_one_device_is_not_sharded(tmp_path: Path) -> None:
    module = InBatchModule(encoder(), optimizer=AdamWConfig(learning_rate=1e-3), max_steps=STEPS).double()
    fit(module, RandomPairs(0), checkpoints=tmp_path, title="one", accelerator="cpu", devices=1, strategy="fsdp")
    assert module.make_shards is None and module.shards is None and all(p.numel() for p in module.parameters())


def test_an_unknown_strategy_is_named(tmp_path: Path) -> None:
    module = InBatchModule(encoder(), optimizer=AdamWConfig(learning_rate=1e-3), max_steps=STEPS).double()
    with pytest.raises(UserError, match="strategy: 'fdsp' is not one of ddp, fsdp"):
        fit(module, RandomPairs(0), checkpoints=tmp_path, title="none", accelerator="cpu", devices=1, strategy="fdsp")
