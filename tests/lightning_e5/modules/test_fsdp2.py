"""Sharded layer by layer on two ranks (gloo) is the training of one rank, holds half of it, and its checkpoints are anyone's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lightning_e5.modules.scheme_run import STEPS
from tests.lightning_e5.modules.test_faults import finish, start
from tests.lightning_e5.modules.test_fsdp import (
    CASES,
    RESUMED,
    Trained,
    assert_continues,
    assert_stops_after_a_whole_checkpoint,
)
from tests.lightning_e5.modules.test_ranks import assert_same_training, assert_same_validation

#: The first two are trained in every run of the tests, one of them with a parameter of the loss.
QUICK = ("in_batch-1", "everything-1")
REST = (*(case for case in CASES if case not in QUICK), "ring_everything-1")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Trained]:
    """The results of one rank, and of two."""
    return Trained(tmp_path_factory.mktemp("one"), 1, "ddp", QUICK), Trained(tmp_path_factory.mktemp("layers"), 2, "fsdp2", QUICK)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("one"), 1, "ddp", (*QUICK, *REST))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("layers"), 2, "fsdp2", (*QUICK, *REST))


@pytest.mark.parametrize("case", QUICK)
def test_two_ranks_make_the_step_of_one(quick: tuple[Trained, Trained], case: str) -> None:
    assert_same_training(quick[0][case], quick[1][case])
    assert_same_validation(quick[0][case], quick[1][case])


@pytest.mark.slow
@pytest.mark.parametrize("case", REST)
def test_two_ranks_make_the_step_of_one_in_every_scheme(one: Trained, sharded: Trained, case: str) -> None:
    assert_same_training(one[case], sharded[case])
    assert_same_validation(one[case], sharded[case])


@pytest.mark.parametrize("case", QUICK)
def test_a_rank_holds_half(quick: tuple[Trained, Trained], case: str) -> None:
    for whole, half in zip(quick[0][case]["rows"], quick[1][case]["rows"], strict=True):
        for name in ("held_parameters", "held_moments"):
            assert 0.5 <= half[name] / whole[name] < 0.51, name
        assert half["held_gradients"] == 0


def test_the_exported_weights_are_the_trained_ones(quick: tuple[Trained, Trained]) -> None:
    from safetensors.torch import load_file

    state = quick[1]["in_batch-1"]["state"]
    weights = load_file(quick[1].out / "in_batch-1" / "weights" / "model.safetensors")
    assert len(weights) > 20
    for name, value in weights.items():
        assert torch.equal(value, state[f"model.backbone.{name}"]), name


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "strategy"), [(1, "ddp"), (2, "ddp"), (2, "fsdp"), (2, "fsdp2"), (4, "fsdp2")])
def test_its_checkpoint_is_anyones(sharded: Trained, tmp_path: Path, ranks: int, strategy: str) -> None:
    assert_continues(sharded, sharded.continued(tmp_path, ranks, strategy))


@pytest.mark.slow
def test_resumed_is_bit_equal(sharded: Trained, tmp_path: Path) -> None:
    resumed = sharded.continued(tmp_path, 2, "fsdp2")
    for case in RESUMED:
        assert [row["loss"] for row in resumed[case]["rows"]] == [row["loss"] for row in sharded[case]["rows"][STEPS // 2 :]]
        for name, value in sharded[case]["state"].items():
            assert torch.equal(value, resumed[case]["state"][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_it_continues_from_others(one: Trained, tmp_path: Path, strategy: str) -> None:
    whole = one if strategy == "ddp" else Trained(tmp_path / "whole", 2, "fsdp", RESUMED)
    assert_continues(whole, whole.continued(tmp_path / "layers", 2, "fsdp2"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["oom", "nan"])
def test_a_rank_that_fails_ends_the_job(tmp_path: Path, fault: str) -> None:
    code, errors = finish(start(tmp_path, 2, fault=fault, strategy="fsdp2", steps=50), seconds=120)
    assert code not in (0, 143)
    assert ("planted" if fault == "oom" else "is not finite") in errors


@pytest.mark.slow
def test_a_signal_stops_all_ranks_after_a_whole_checkpoint(sharded: Trained, tmp_path: Path) -> None:
    assert_stops_after_a_whole_checkpoint(sharded, tmp_path, "fsdp2")
