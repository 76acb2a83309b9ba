"""Two ranks (gloo) make the step that one rank makes, for every scheme and number of hard negatives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.distributed.ranks import Ranks
from lightning_e5.modules import strategy
from tests.lightning_e5.modules import scheme_run
from tests.lightning_e5.modules.scheme_run import CASES, STEPS
from tests.processes import outside_of_jobs

ROOT = Path(__file__).resolve().parents[3]
#: What a rank computes from its own share and the others' together.
GLOBAL_VALUES = {"loss": 1e-12, "gradient_norm": 1e-12, "temperature": 1e-6, "accuracy": 1e-6, "masked_fraction": 1e-6,
                 "pairs": 0.0, "tokens": 0.0}  # fmt: skip


def run(out: Path, ranks: int, *cases: str, strategy: str = "ddp") -> dict[str, Any]:
    if ranks == 1 and strategy == "ddp":  # needs no process of its own
        scheme_run.main(out, 1, list(cases), strategy)
        return dict(torch.load(out / "ranks-1.pt", weights_only=True))
    script = ROOT / "tests/lightning_e5/modules/scheme_run.py"
    done = subprocess.run(
        [sys.executable, str(script), str(out), str(ranks), *cases], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**outside_of_jobs(), "PYTHONPATH": str(ROOT), "SCHEME_STRATEGY": strategy},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(torch.load(out / f"ranks-{ranks}.pt", weights_only=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    return {ranks: run(tmp_path_factory.mktemp(f"ranks-{ranks}"), ranks) for ranks in (1, 2)}


@pytest.mark.parametrize("case", list(CASES))
def test_two_ranks_make_the_step_of_one(results: dict[int, dict[str, Any]], case: str) -> None:
    assert_same_training(results[1][case], results[2][case])


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("ring_")])
def test_the_ring_trains_as_gathered_passages_do(results: dict[int, dict[str, Any]], case: str) -> None:
    for ranks in (1, 2):
        assert_same_training(results[ranks][case.removeprefix("ring_")], results[ranks][case])
        assert_same_validation(results[ranks][case.removeprefix("ring_")], results[ranks][case])


def assert_same_training(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert len(one["rows"]) == len(two["rows"]) == STEPS
    for ours, theirs in zip(one["rows"], two["rows"], strict=True):
        for name, bound in (GLOBAL_VALUES | {name: 1e-12 for name in ours if name.startswith("loss@")}).items():
            assert theirs[name] == pytest.approx(ours[name], rel=bound, abs=1e-14), name
    assert one["gradients"].keys() == two["gradients"].keys()
    scale = max(float(g.abs().max()) for g in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        assert float((gradient - two["gradients"][name]).abs().max()) <= 1e-12 * scale, name
    for name, value in one["state"].items():
        assert torch.allclose(value.double(), two["state"][name].double(), rtol=1e-7, atol=1e-10), name


@pytest.mark.parametrize("case", list(CASES))
def test_two_ranks_validate_as_one_does(results: dict[int, dict[str, Any]], case: str) -> None:
    assert_same_validation(results[1][case], results[2][case])


def assert_same_validation(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert [row["step"] for row in one["validation"]] == [0, 3, 4]
    expected = {"step", "pairs", "val/loss", "val/accuracy", "val/mrr@10", "val/seven/sum"}
    for ours, theirs in zip(one["validation"], two["validation"], strict=True):
        assert expected <= set(ours) and ours == pytest.approx(theirs, rel=1e-5)
    assert one["validation"][0] != one["validation"][-1]
    for name, value in one["best"].items():
        assert torch.allclose(value, two["best"][name], rtol=1e-7, atol=1e-10), name


#: Logged at every step: name -> (lowest, highest).
LOGGED = {
    "loss": (0.0, 100.0), "accuracy": (0.0, 1.0), "temperature": (0.001, 1.0), "masked_fraction": (0.0, 1.0),
    "std_query": (0.001, 1.1), "std_passage": (0.001, 1.1), "learning_rate": (0.0, 1e-3), "gradient_norm": (1e-9, 1e6),
    "pairs_per_second": (1e-3, 1e9), "tokens_per_second": (1e-3, 1e9), "padding_share": (0.0, 0.0), "mfu": (1e-12, 1.0),
    "memory_gb": (1e-3, 1e4), "data_seconds": (0.0, 100.0),
}  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("case", list(CASES))
def test_every_step_of_all_ranks_logs_what_is_promised(results: dict[int, dict[str, Any]], case: str, ranks: int) -> None:
    for row in results[ranks][case]["rows"]:
        assert LOGGED.keys() <= row.keys()
        for name, (lowest, highest) in LOGGED.items():
            assert lowest <= row[name] <= highest, name


def test_the_schemes_differ(results: dict[int, dict[str, Any]]) -> None:
    """The control: were queue, momentum encoder or options not used, these would be equal."""
    last = {case: results[1][case]["rows"][-1]["loss"] for case in CASES}
    for negatives in (0, 1, 3):
        values = [last[f"{name}-{negatives}"] for name in ("in_batch", "pre_batch", "moco", "everything")]
        assert len(set(values)) == 4
    assert results[1]["pre_batch-1"]["rows"][-1]["queue"] == 40
    sums = results[1]["dimensions-1"]["rows"][-1]
    assert sums["loss"] == pytest.approx(sums["loss@16"] + 0.5 * sums["loss@6"] + 2 * sums["loss@3"], rel=1e-12)
    assert {"val/loss@6", "val/accuracy@6"} <= set(results[1]["dimensions-1"]["validation"][0])
    assert results[1]["everything-0"]["rows"][-1]["temperature"] != 0.05
    assert all(row["masked_fraction"] > 0 for row in results[1]["in_batch-3"]["rows"])


def test_a_rank_that_ends_before_it_has_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    own, lost = Ranks(), []
    monkeypatch.setattr(strategy, "ranks", lambda: own)
    monkeypatch.setattr(own, "lose", lost.append)
    for codes in ((0, 0), (0, 3)):
        children = [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) for code in codes]
        for child in children:
            child.wait()
        strategy._watch(children)  # type: ignore[arg-type]
    assert lost == ["rank 2 ended with exit code 3"]
