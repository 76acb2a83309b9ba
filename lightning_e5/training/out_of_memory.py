"""How much memory there is, what kept activations take of it, and how to tell that it ran out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lightning_e5.errors import UserError
from lightning_e5.rng import deterministic_kernels

#: Of errors that torch raises as a plain RuntimeError: its CPU allocator, the CUDA driver, cuBLAS's workspace.
_SIGNS = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_CGROUP = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def smaller_chunk(chunk_tokens: int) -> int:
    """Half the tokens of a chunk, for a step that ran out of memory.

    Raises:
        UserError: ``deterministic: true`` is asked for, and other chunks give other last digits.
        MemoryError: a chunk is a single text.
    """
    if chunk_tokens <= 1:
        raise MemoryError("a single text does not fit in memory: choose a smaller model or a smaller max_length")
    if deterministic_kernels():
        raise UserError(
            f"chunk_tokens: {chunk_tokens} tokens at once do not fit in memory, and deterministic: true forbids smaller chunks only "
            f"where memory is short; set chunk_tokens to {chunk_tokens // 2}"
        )
    return chunk_tokens // 2


def available_bytes(device: torch.device) -> int:
    """Memory that can still be allocated: of the GPU, or of the machine and this process's control group.

    Pages of files that were read count as free, as the kernel drops them where memory is asked for.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = next(int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            pages = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
            free = min(free, int(limit) - int((_CGROUP / "memory.current").read_text()) + int(pages.get("inactive_file", 0)))
    except OSError:
        pass  # no control group, or one of the first version
    return free


def activation_bytes(encode: Callable[[], Tensor], without: set[int]) -> int:
    """Bytes that autograd keeps of one call, each storage counted once; ``without``: data pointers not to count."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = encode()
    del output
    return sum(size for pointer, size in kept.items() if pointer not in without)
