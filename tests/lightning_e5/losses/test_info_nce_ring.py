"""The ring's loss and gradients are the gathered ones on 1, 2 and 3 ranks (gloo), in float64; planted faults are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lightning_e5.losses.ring_run import CASES, RANKS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of ranks -> the results of each."""
    out = tmp_path_factory.mktemp("ring")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/lightning_e5/losses/ring_run.py"), str(out)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {ranks: [torch.load(out / f"{ranks}-{number}.pt") for number in range(ranks)] for ranks in RANKS}


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference of any of the values, relative to its largest (a collapsed encoder has a gradient of zero)."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=0.1)) for name in ours)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", CASES)
def test_the_ring_is_the_gathered_loss(results: dict[int, list[dict[str, Any]]], case: str, ranks: int) -> None:
    for one in results[ranks]:
        assert difference(one[case]["ring"], one[case]["gathered"]) <= 1e-12
        assert one[case]["ring"]["accuracy"] == one[case]["gathered"]["accuracy"]
        assert ("log_scale" in one[case]["ring"]) == CASES[case].learned
    assert (results[1][0][case]["ring"]["masked"] > 0) == (CASES[case].masked or CASES[case].own_queries)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", CASES)
def test_the_ranks_mean_is_the_loss_of_one(results: dict[int, list[dict[str, Any]]], case: str, ranks: int) -> None:
    mean = sum(one[case]["ring"]["loss"] for one in results[ranks]) / ranks
    assert float(mean) == pytest.approx(float(results[1][0][case]["gathered"]["loss"]), rel=1e-12)


@pytest.mark.parametrize("ranks", RANKS[1:])
@pytest.mark.parametrize("case", ["masked", "queue"])
def test_planted_faults_are_found(results: dict[int, list[dict[str, Any]]], case: str, ranks: int) -> None:
    for one in results[ranks]:
        assert difference(one[case]["Skipping"], one[case]["gathered"]) > 1e-3
        for fault in ("Keeping", "Swapped"):  # the loss is as it was, the gradient of the passages is not
            wrong = one[case][fault]
            assert wrong["loss"] == one[case]["ring"]["loss"] and torch.equal(wrong["queries"], one[case]["ring"]["queries"])
            assert difference({"passages": wrong["passages"]}, {"passages": one[case]["gathered"]["passages"]}) > 1e-3


def test_a_collapsed_encoder_hits_nothing(results: dict[int, list[dict[str, Any]]]) -> None:
    for ranks in RANKS:
        assert all(float(one["collapsed"]["ring"]["accuracy"]) == 0.0 for one in results[ranks])


@pytest.mark.parametrize("ranks", RANKS)
def test_blocks_come_by_nearest_first_and_gradients_go_home(results: dict[int, list[dict[str, Any]]], ranks: int) -> None:
    for number, one in enumerate(results[ranks]):
        assert one["order"]["owners"] == [(number - hop) % ranks for hop in range(ranks)]
        assert one["order"]["home"] == sum(range(ranks)) + 10 * number * ranks
