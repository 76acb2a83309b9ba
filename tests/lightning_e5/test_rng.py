"""``deterministic: true`` selects kernels that give the same bits each time, or refuses in a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lightning_e5 import rng
from lightning_e5.__main__ import main
from lightning_e5.cli import check
from lightning_e5.config.experiment import load_experiment
from lightning_e5.errors import UserError
from lightning_e5.training.grad_cache import GradCache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    rng.use_deterministic_kernels(False)


def test_it_sets_what_decides_the_order_of_sums() -> None:
    rng.use_deterministic_kernels(True)
    assert rng.deterministic_kernels() and torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.backends.cudnn.deterministic and not torch.backends.cuda.cudnn_sdp_enabled()
    rng.use_deterministic_kernels(False)
    assert not rng.deterministic_kernels() and not torch.backends.cudnn.deterministic and torch.backends.cuda.cudnn_sdp_enabled()


def test_it_refuses_where_it_comes_too_late_or_is_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG=:0:0 leaves the order of sums open"):
        rng.use_deterministic_kernels(True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UserError, match="CUDA is at work in this process already"):
        rng.use_deterministic_kernels(True)
    assert not rng.deterministic_kernels()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    rng.use_deterministic_kernels(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_an_operation_without_such_a_kernel_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(arguments: object) -> int:
        rng.use_deterministic_kernels(True)
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))  # which of the two stays?
        return 0

    monkeypatch.setattr(check, "run", verb)
    assert main(["check", "any.yaml"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: deterministic: put_ has no kernel here") and errors.count("\n") == 1
    rng.use_deterministic_kernels(False)
    assert rng.refusal(RuntimeError("something else")) is None


def test_memory_that_runs_out_changes_no_chunk_without_a_word() -> None:
    cache = GradCache(chunk_tokens=512, graph_tokens=0)
    cache._shrink()
    assert cache.chunk_tokens == 256
    rng.use_deterministic_kernels(True)
    with pytest.raises(UserError, match=r"chunk_tokens: 256 tokens at once do not fit .* set chunk_tokens to 128"):
        cache._shrink()


def test_it_is_a_key_of_an_experiment_that_decides_its_stages(tmp_path: Path) -> None:
    from lightning_e5.files.digests import MEMORY, FileDigests
    from lightning_e5.pipeline.fingerprint import stage_fingerprint

    smoke = ROOT / "experiments" / "smoke.yaml"
    digests = FileDigests(tmp_path / MEMORY)
    prints = [stage_fingerprint(e, "pairs", e["stages"]["pairs"], {}, {}, digests) for e in (load_experiment(smoke), load_experiment(smoke, ["deterministic=true"]))]
    assert prints[1] == {**prints[0], "deterministic": True}
    with pytest.raises(UserError, match="deterministic: 'yes please' is not true or false"):
        load_experiment(smoke, ["deterministic=yes please"])
