"""In which precision a backbone runs: float32, bfloat16 under autocast, or bfloat16 where the hardware computes in it."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "auto", "bf16-gpu"]
#: CPU instructions that multiply bfloat16, as Linux names them (x86, then ARM).
_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def runs_in_bf16(precision: Precision, device: torch.device | str) -> bool:
    """Whether a backbone with this precision runs in bfloat16 on this device.

    ``auto``: where `native_bf16`. ``bf16-gpu``, the default everywhere: on a GPU where `native_bf16`, and in float32 on every CPU, so
    that figures are the same on all of them.
    """
    kind = str(device).partition(":")[0]
    if precision == "bf16":
        _say_if_emulated(kind)
        return True
    return native_bf16(kind) if precision == "auto" or (precision == "bf16-gpu" and kind == "cuda") else False


def recorded_precision(precision: Precision, device: torch.device | str) -> Precision:
    """As records name it: ``bf16-gpu`` by what it is on this device, the others as they are."""
    if precision != "bf16-gpu":
        return precision
    return "bf16" if runs_in_bf16(precision, device) else "fp32"


def backbone_autocast(precision: Precision, device: torch.device | str) -> torch.autocast:
    """Autocast of a backbone: bfloat16 where `runs_in_bf16`, else as the caller's autocast is, such as that of
    ``Trainer(precision="bf16-mixed")``.

    Within a caller's autocast the copies of weights in half precision would be kept from a forward pass without a gradient to
    the next one with a gradient, which would give the weights none; so they are not kept.
    """
    import torch

    kind = str(device).partition(":")[0]
    own = runs_in_bf16(precision, device)
    dtype = torch.bfloat16 if own or not torch.is_autocast_enabled(kind) else torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, enabled=own or torch.is_autocast_enabled(kind), cache_enabled=False)


def without_autocast(device: torch.device | str) -> torch.autocast:
    """What is computed inside keeps its precision whatever the caller's autocast is: pooling, scores, losses."""
    import torch

    return torch.autocast(str(device).partition(":")[0], enabled=False)


@contextmanager
def _float32_products(device: torch.device | str, precision: str) -> Iterator[None]:
    import torch

    if torch.device(device).type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def fast_float32(device: torch.device | str) -> AbstractContextManager[None]:
    """On a GPU, products of float32 matrices take TF32 inside: float32 values rounded to 10 bits behind the point, summed in float32.

    For layers that are trained, whose noise it is far below; several times the speed from compute capability 8.0 on.
    """
    return _float32_products(device, "high")


def exact_float32(device: torch.device | str) -> AbstractContextManager[None]:
    """On a GPU, products of float32 matrices are of float32 inside: losses, ranks and scores.

    TF32 rounds each factor by up to 2^-11 of it, so a cosine is off by up to 2^-10, and a logit at temperature 0.01 by up to 0.098.
    """
    return _float32_products(device, "highest")


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the CPU on another device; the host does not wait there for what a GPU still computes, as ``.to`` would."""
    import torch

    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@functools.cache
def native_bf16(kind: str) -> bool:
    """Whether this kind of device multiplies bfloat16 itself: a fact of the hardware, the same in every run on it.

    GPUs from compute capability 8.0 (Ampere); older ones (V100, T4) emulate it, and ``torch.cuda.is_bf16_supported`` says yes.
    CPUs by their instructions; without them bfloat16 is slower than float32 (measured: half as fast).
    """
    if kind == "cuda":
        import torch

        if torch.version.hip:
            return torch.cuda.is_bf16_supported()
        return all(torch.cuda.get_device_capability(i) >= (8, 0) for i in range(torch.cuda.device_count()))
    return kind == "cpu" and not _cpu_flags().isdisjoint(_CPU_FLAGS)


def has_cuda() -> bool:
    """Whether this process sees a GPU; torch is imported only where the machine has one."""
    nodes = ("nvidia[0-9]*", "nvidiactl", "dxg", "kfd")
    if "torch" not in sys.modules and not any(found for name in nodes for found in Path("/dev").glob(name)):
        return False
    import torch

    return torch.cuda.is_available()


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    return frozenset(found[1].split()) if found else frozenset()


@functools.cache
def _say_if_emulated(kind: str) -> None:
    """Once, that what was asked for by name is slow on this GPU."""
    if kind == "cuda" and not native_bf16(kind):
        import torch

        name = torch.cuda.get_device_name()
        print(f"precision: bf16: {name} only emulates bfloat16, slower than its float32; fp32, or auto, is faster", file=sys.stderr, flush=True)
