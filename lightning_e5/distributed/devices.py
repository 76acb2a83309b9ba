"""Where, in which precision and with how many threads we compute: the one place that decides.

A backbone runs in float32, in bfloat16 under autocast, or in bfloat16 where the hardware computes in it.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_e5.errors import UserError

if TYPE_CHECKING:
    import torch

#: Where a stage computes, as a YAML names it: on this process's GPUs where it sees one, else on the CPU; or on the one that is said.
DeviceName = Literal["auto", "cpu", "cuda"]

Precision = Literal["fp32", "bf16", "auto", "bf16-gpu"]
#: CPU instructions that multiply bfloat16, as Linux names them (x86, then ARM).
_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
_CGROUP = Path("/sys/fs/cgroup")
#: Threads that the configuration asked for; None where it leaves them to us.
_threads: int | None = None
#: Of `whole_float32`: how many are inside, and what was allowed before the first.
_whole_lock = threading.Lock()
_whole_inside = 0
_allowed_before: Any = None


def visible_gpus() -> int:
    """GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()


def inference_device(name: str = "auto") -> torch.device:
    """Where a stage that only embeds, scores or searches runs.

    Args:
        name: ``auto`` is the first GPU that this process sees, else the CPU; every other one is torch's name of a device.

    Raises:
        UserError: it is no name of a device, or that of a GPU that this process does not see.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is no device; the rule is auto, cpu, cuda, or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= visible_gpus():
        raise UserError(f"device: {name}: torch sees {visible_gpus()} GPUs here; the rule is auto, cpu, or one that is there")
    return device


def search_devices() -> list[str]:
    """Where a large search is shared out: on all GPUs that this process sees, else on the CPU."""
    return [f"cuda:{number}" for number in range(visible_gpus())] or ["cpu"]


@contextmanager
def whole_float32() -> Iterator[None]:
    """Inside, products of float32 are made in float32, and not in TF32 on GPUs or bfloat16 on CPUs, whatever is allowed outside; those of bfloat16 are
    summed in float32.

    TF32 keeps 10 of float32's 23 bits, so that neighbouring scores change places. Several threads may be inside at once.
    """
    import torch

    global _whole_inside, _allowed_before
    gpu: Any = torch.backends.cuda.matmul
    cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _whole_lock:
        if not _whole_inside:
            _allowed_before = gpu.fp32_precision, cpu.fp32_precision, gpu.allow_bf16_reduced_precision_reduction
            gpu.fp32_precision, cpu.fp32_precision, gpu.allow_bf16_reduced_precision_reduction = "ieee", "ieee", False
        _whole_inside += 1
    try:
        yield
    finally:
        with _whole_lock:
            _whole_inside -= 1
            if not _whole_inside:
                gpu.fp32_precision, cpu.fp32_precision, gpu.allow_bf16_reduced_precision_reduction = _allowed_before


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
def own_attention(device: torch.device | str) -> Iterator[None]:
    """Inside, attention on a GPU takes torch's own kernels and not cuDNN's, which torch prefers on some GPUs.

    cuDNN's makes a plan for each new shape, which packed texts have without end (others measured half a second each), rounds the rate of
    dropout to a multiple of 1/16, and does not heed torch's setting of deterministic kernels.
    """
    import torch

    if torch.device(device).type == "cpu":
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def fast_float32(device: torch.device | str) -> Iterator[None]:
    """On a GPU, products of float32 matrices take TF32 inside: float32 values rounded to 10 bits behind the point, summed in float32.

    For layers that are trained, whose noise it is far below; several times the speed from compute capability 8.0 on. Losses, ranks
    and scores are computed in `whole_float32` within it: TF32 rounds each factor by up to 2^-11 of it, so a cosine is off by up to
    2^-10, and a logit at temperature 0.01 by up to 0.098.
    """
    import torch

    if torch.device(device).type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    if before == "tf32":
        yield
        return
    products.allow_tf32 = True  # the older name sets both; where they differ, torch.compile's reading of it is an error
    try:
        yield
    finally:
        products.allow_tf32 = False
        products.fp32_precision = before


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the CPU on another device; the host does not wait there for what a GPU still computes, as ``.to`` would."""
    import torch

    if torch.device(device).type != "cuda" or tensor.device.type != "cpu" or not torch.cuda.is_available():
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


def usable_cpus() -> int:
    """Cores that this process may use: those of its affinity, at most what its control group's quota gives."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):  # no control group, or one of the first version
        try:
            quota, period = ((_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return cpus
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:  # "max" or -1: no quota
        return cpus
    return max(1, min(cpus, math.ceil(int(quota) / int(period))))


def threads_per_process(processes: int = 1) -> int:
    """Threads of each of so many processes of this machine: OMP_NUM_THREADS where it is set, else an equal share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, usable_cpus() // max(1, processes))


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many threads; None: `threads_per_process`, in a training shared with the machine's other ranks."""
    import torch

    global _threads
    _threads = threads
    torch.set_num_threads(threads or threads_per_process())
    # AdamW's moments of rarely used word embeddings fade into denormal numbers, which are many times slower.
    torch.set_flush_denormal(True)


@contextmanager
def shared_threads(processes: int) -> Iterator[None]:
    """Within the block, torch's threads are those of one of so many processes that compute at the same time on this machine."""
    import torch

    before = torch.get_num_threads()
    if _threads is None and processes > 1:
        torch.set_num_threads(threads_per_process(processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)
