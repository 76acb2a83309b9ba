"""Where and in which precision: ``auto`` takes what the hardware has; nothing is timed."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from typing import get_args

import pytest
import torch

from lightning_e5.distributed import devices as precision
from lightning_e5.distributed.devices import inference_device, native_bf16, runs_in_bf16, search_devices, whole_float32
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    native_bf16.cache_clear()
    yield
    native_bf16.cache_clear()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512f avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), ("fp asimd bf16", True), ("fpu avx512f avx512_vnni", False), ("", False)],
)
def test_auto_follows_the_cpu(monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags.split()))
    assert runs_in_bf16("auto", "cpu") is expected and runs_in_bf16("auto", torch.device("cpu")) is expected
    assert runs_in_bf16("bf16", "cpu") and not runs_in_bf16("fp32", torch.device("cpu"))


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_auto_follows_the_compute_capability(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool) -> None:
    """V100 (7.0) and T4 (7.5) emulate bfloat16, and torch says that they support it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *arguments, **settings: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert runs_in_bf16("auto", "cuda") is expected and runs_in_bf16("auto", torch.device("cuda", 0)) is expected


def test_an_encoder_with_auto_is_one_of_the_two(monkeypatch: pytest.MonkeyPatch, small_bert, small_tokenizer, texts) -> None:  # type: ignore[no-untyped-def]
    def embedded(name: str) -> torch.Tensor:
        return TextEncoder(small_bert, small_tokenizer, precision=name).embed(texts[:5], "query")  # type: ignore[arg-type]

    single, half = embedded("fp32"), embedded("bf16")
    assert not torch.equal(single, half)
    for native, expected in ((False, single), (True, half)):
        monkeypatch.setattr(precision, "native_bf16", lambda kind, native=native: native)
        assert torch.equal(embedded("auto"), expected)
    monkeypatch.undo()


@pytest.mark.parametrize(("capability", "native"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_that_a_gpu_emulates_is_never_chosen_and_said_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], capability: tuple[int, int], native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "the GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)  # as it says on V100 and T4
    precision._say_if_emulated.cache_clear()
    assert runs_in_bf16("auto", "cuda") is native
    assert runs_in_bf16("bf16", "cuda:1") and runs_in_bf16("bf16", "cuda")
    said = capsys.readouterr().err
    assert said == ("" if native else "precision: bf16: the GPU only emulates bfloat16, slower than its float32; fp32, or auto, is faster\n")


@pytest.mark.parametrize("native", [False, True])
def test_the_default_is_bfloat16_on_a_gpu_that_has_it_and_float32_on_every_cpu(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(precision, "native_bf16", lambda kind: native)
    assert runs_in_bf16("bf16-gpu", "cuda:0") is native and not runs_in_bf16("bf16-gpu", "cpu")
    assert precision.recorded_precision("bf16-gpu", "cuda") == ("bf16" if native else "fp32")
    assert [precision.recorded_precision(name, "cpu") for name in get_args(precision.Precision)] == ["fp32", "bf16", "auto", "fp32"]


def test_what_is_loaded_and_built_has_the_default() -> None:
    from lightning_e5.evaluation.loaded_models import ModelSpec
    from lightning_e5.models.cross_encoder import CrossEncoder
    from lightning_e5.stages import consistency_filter, evaluate, finetune, hard_negatives, mteb, pretrain, teacher

    stages = [getattr(module, module.__name__.rpartition(".")[2]) for module in (consistency_filter, evaluate, finetune, hard_negatives, mteb, pretrain, teacher)]
    for takes in (TextEncoder, TextEncoder.from_pretrained, CrossEncoder, CrossEncoder.from_start, ModelSpec, *stages):
        assert inspect.signature(takes).parameters["precision"].default == "bf16-gpu", takes


def test_layers_may_multiply_in_tf32_and_losses_never_do() -> None:
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    with pytest.raises(KeyError), precision.fast_float32("cuda"):
        assert products.fp32_precision == "tf32"
        with whole_float32():
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == "tf32"
        raise KeyError
    assert products.fp32_precision == before
    with precision.fast_float32("cpu"):
        assert products.fp32_precision == before


@pytest.mark.parametrize("outside", ["highest", "high"])
def test_torchs_older_name_of_tf32_can_be_read_inside(outside: str) -> None:
    """torch.compile reads it, which is an error where the older and the newer name were set apart."""
    products = torch.backends.cuda.matmul
    torch.set_float32_matmul_precision(outside)
    try:
        before = products.fp32_precision, products.allow_tf32, torch.get_float32_matmul_precision()
        with precision.fast_float32("cuda"):
            assert (products.fp32_precision, products.allow_tf32) == ("tf32", True)
        assert (products.fp32_precision, products.allow_tf32, torch.get_float32_matmul_precision()) == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("outside", [True, False])
def test_attention_on_a_gpu_takes_torchs_own_kernels(outside: bool) -> None:
    flags = torch.backends.cuda
    before = flags.cudnn_sdp_enabled()
    flags.enable_cudnn_sdp(outside)
    try:
        with pytest.raises(KeyError), precision.own_attention("cuda:1"):
            assert not flags.cudnn_sdp_enabled()
            raise KeyError
        assert flags.cudnn_sdp_enabled() is outside
        with precision.own_attention("cpu"):
            assert flags.cudnn_sdp_enabled() is outside
    finally:
        flags.enable_cudnn_sdp(before)


def test_a_step_multiplies_in_tf32_but_for_its_loss() -> None:
    from lightning_e5.training import grad_cache
    from lightning_e5.types import LossOutput, TokenBatch

    products = torch.backends.cuda.matmul
    seen: list[tuple[str, str]] = []
    weight = torch.nn.Parameter(torch.ones(3))

    def encode(ids_T: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        seen.append(("layers", products.fp32_precision))
        return weight * ids_T[: len(lengths), None]

    def loss(embeddings_ND: torch.Tensor) -> LossOutput:
        embeddings_ND.register_hook(lambda gradient: seen.append(("loss, back", products.fp32_precision)))
        seen.append(("loss", products.fp32_precision))
        return LossOutput(embeddings_ND.square().sum(), torch.zeros(()), torch.zeros(()))

    with precision.fast_float32("cuda"):
        grad_cache.GradCache(graph_tokens=0).step(TokenBatch(torch.arange(4), torch.tensor([2, 2])), encode, loss, seed=0)
    assert seen == [("layers", "tf32"), ("loss", "ieee"), ("loss, back", "ieee"), ("layers", "tf32")]


def test_what_is_sent_is_the_tensor() -> None:
    tensor = torch.arange(5)
    assert torch.equal(precision.sent(tensor, "cpu"), tensor) and precision.sent(tensor, torch.device("meta")).device.type == "meta"


def test_inference_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert inference_device() == inference_device("cpu") == torch.device("cpu") and search_devices() == ["cpu"]
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=f"device: {name}: torch sees 0 GPUs here"):
            inference_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert inference_device() == inference_device("cuda") == torch.device("cuda")
    assert inference_device("cuda:1") == torch.device("cuda", 1) and inference_device("cpu") == torch.device("cpu")
    assert search_devices() == ["cuda:0", "cuda:1"]
    with pytest.raises(UserError, match="'gpu' is no device; the rule is auto, cpu, cuda"):
        inference_device("gpu")
    with pytest.raises(UserError, match="cuda:2: torch sees 2 GPUs"):
        inference_device("cuda:2")


@pytest.mark.parametrize("allow", ["fp32_precision", "allow_tf32", "set_float32_matmul_precision"])
def test_products_are_whole_inside_whatever_is_allowed_outside(allow: str) -> None:
    """By each of torch's ways to allow TF32; the last of several threads that leaves sets it back."""
    products = torch.backends.cuda.matmul
    ways = {
        "fp32_precision": (lambda: setattr(products, "fp32_precision", "tf32"), lambda: setattr(products, "fp32_precision", "none")),
        "allow_tf32": (lambda: setattr(products, "allow_tf32", True), lambda: setattr(products, "allow_tf32", False)),
        "set_float32_matmul_precision": (lambda: torch.set_float32_matmul_precision("high"), lambda: torch.set_float32_matmul_precision("highest")),
    }
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with whole_float32():
            inside.set()
            leave.wait(10)

    ways[allow][0]()
    try:
        thread = threading.Thread(target=other)
        with whole_float32():
            thread.start()
            inside.wait(10)
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == "ieee"  # the other one is still inside
        leave.set()
        thread.join()
        assert products.fp32_precision == "tf32"
    finally:
        ways[allow][1]()


def test_whole_float32_holds_on_a_cpu_too_and_sums_of_bfloat16_are_whole() -> None:
    gpu, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = gpu.fp32_precision, cpu.fp32_precision, gpu.allow_bf16_reduced_precision_reduction
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=draw) for _ in range(2))
    exact = left.double() @ right.double()
    try:
        gpu.fp32_precision, cpu.fp32_precision, gpu.allow_bf16_reduced_precision_reduction = "tf32", "bf16", True
        with whole_float32():
            assert (gpu.fp32_precision, cpu.fp32_precision, gpu.allow_bf16_reduced_precision_reduction) == ("ieee", "ieee", False)
            assert float((left @ right - exact).abs().max()) < 1e-3
        assert (gpu.fp32_precision, cpu.fp32_precision, gpu.allow_bf16_reduced_precision_reduction) == ("tf32", "bf16", True)
    finally:
        gpu.fp32_precision, cpu.fp32_precision, gpu.allow_bf16_reduced_precision_reduction = before
