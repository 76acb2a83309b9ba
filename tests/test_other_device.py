"""What would end with an error on a GPU, seen without one: everything that runs there runs on a device that refuses tensors of the CPU.

Values are the CPU's, so the outcomes are compared, too. On CUDA, as far as it can be had without a GPU: without gradients. With gradients,
optimizer steps included, on a device that is registered with torch (see `tests.other_device_training`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.backend_registration

from tests.other_device import CudaDevice, OnOther
from tests.other_device_cases import CASES, bi_encoder, cross_encoder, differences, on, scheme_run, tokens

#: Those that `tests.other_device_training` trains.
SCHEMES = ("in_batch-1", "moco-1", "distilled-3")
ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """Autograd ends the process where it is asked for CUDA without a GPU."""
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CASES)
def test_no_tensor_of_the_cpu_is_met_on_cuda(name: str) -> None:
    expected = CASES[name](torch.device("cpu"))
    with CudaDevice():
        assert differences(CASES[name](CUDA), expected, 1e-5) == []


@pytest.mark.parametrize("name", ["bi-encoder", "cross-encoder", "padded"])
def test_no_model_takes_cudnns_attention(name: str) -> None:
    """It makes a plan for each shape, and packed texts have new ones in every step."""
    seen: list[bool] = []
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with CudaDevice():
        model: Any = cross_encoder("bert", CUDA) if name == "cross-encoder" else bi_encoder("bert", CUDA)
        if name == "padded":
            model.packed = None
        model.backbone.embeddings.LayerNorm.register_forward_hook(lambda *given: seen.append(torch.backends.cuda.cudnn_sdp_enabled()))
        model(on(CUDA, tokens((5, 7))).ids_T, [5, 7])
    assert seen == [False] and torch.backends.cuda.cudnn_sdp_enabled()


def gather_tokens_before(ids_T: Any, starts_B: Any, lengths_B: Any) -> Any:
    """As it was written before: places on the CPU, lengths where the batch is."""
    within_T = torch.arange(int(lengths_B.sum())) - torch.repeat_interleave(torch.cumsum(lengths_B, 0) - lengths_B, lengths_B)
    return ids_T[(torch.repeat_interleave(starts_B, lengths_B) + within_T).to(ids_T.device)]


@pytest.mark.parametrize(
    "fault",
    [
        lambda batch, x: gather_tokens_before(batch.ids_T, torch.zeros_like(batch.lengths_B), batch.lengths_B),
        lambda batch, x: x + torch.ones(5),
        lambda batch, x: torch.cat([x, torch.ones(2)]),
        lambda batch, x: torch.where(x > 0, x, torch.zeros(5)),
        lambda batch, x: x.index_select(0, torch.tensor([1])),
        lambda batch, x: x[:, None].gather(0, torch.tensor([[1]])),
        lambda batch, x: torch.nn.functional.embedding(torch.tensor([1]), x[:, None]),
        lambda batch, x: torch.ones(5)[x.argsort()],
        lambda batch, x: torch.mm(x[:, None], x[None], out=torch.empty(5, 5)),
        lambda batch, x: x.index_copy_(0, torch.tensor([1]), x[:1] + 0),
        lambda batch, x: torch.nn.Linear(5, 2)(x),
    ],
    ids=["gather_tokens", "add", "cat", "where", "index_select", "gather", "embedding", "index", "out", "index_copy", "module"],
)  # fmt: skip
def test_a_planted_fault_is_caught(fault: Any) -> None:
    fault(tokens(), torch.arange(5.0))  # no fault on the CPU
    with CudaDevice(), pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        fault(on(CUDA, tokens()), torch.arange(5.0, device=CUDA))


def test_what_cuda_takes_of_the_cpu_is_no_fault() -> None:
    """A number, an index of its own tensors, and a copy."""
    with CudaDevice():
        x = torch.arange(5.0, device=CUDA)
        x[torch.tensor([1, 2])] = torch.tensor(9.0)
        x += torch.tensor(1.0)
        x[:1].copy_(torch.tensor([7.0]))
        assert isinstance(x, OnOther) and x.is_cuda and x.tolist() == [7.0, 10.0, 10.0, 4.0, 5.0] and x.cpu().device.type == "cpu"


def trained(*arguments: str) -> dict[str, Any]:
    """Name -> what differs on the second device, with ``all`` of every scheme and case."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch registers no device from Python")
    done = subprocess.run([sys.executable, "-m", "tests.other_device_training", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_training_on_a_second_device_is_the_cpus() -> None:
    """Gradients, AdamW's steps and rows of the schemes; a tensor of the CPU in a backward pass alone is caught, too."""
    found = trained()
    assert "expected all tensors to be on the same device" in found.pop("planted")
    assert found == {f"training {name}": [] for name in (*SCHEMES, "teacher")}


@pytest.mark.slow
def test_every_scheme_and_case_on_a_second_device_is_the_cpus() -> None:
    found = trained("all")
    assert "expected all tensors to be on the same device" in found.pop("planted")
    assert found == {name: [] for name in (*(f"training {name}" for name in scheme_run.CASES), "training teacher", *CASES)}
