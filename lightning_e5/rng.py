"""The one place of randomness: every draw is a function of (seed, what it is for, where we are), never of history.

So a run that was killed and resumed draws exactly what the uninterrupted run would have drawn. What is then left to chance
on a GPU, the order in which its threads add, is chosen here, too.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
import torch

import lightning_e5.vector_math  # noqa: F401 - made ready before any thread computes
from lightning_e5.errors import UserError

#: Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS's sums have one order.
_CUBLAS_WORKSPACES = (":4096:8", ":16:8")
_REFUSED = "does not have a deterministic implementation"


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one purpose: ``derive_seed(seed, "dropout", step, rank)``; distinct paths are independent."""
    text = "/".join([str(seed), *(f"{type(p).__name__}:{p}" for p in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def stage_seed(seed: int, stage: str) -> int:
    """The seed that an experiment with ``seed: SEED`` gives to its stage of a name.

    With it, as the ``seed`` of a training module and of its data module, Python trains what the YAML trains.
    """
    return derive_seed(seed, stage) % 2**31


def order_seed(seed: int) -> int:
    """The seed of the order of a training's batches, from that of the training."""
    return derive_seed(seed, "order")


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *path))


def seed_torch(seed: int, *path: int | str) -> None:
    """Seed torch's global generators (CPU and GPUs), from which dropout and initialisation draw."""
    torch.manual_seed(derive_seed(seed, *path))


def use_deterministic_kernels(wanted: bool) -> None:
    """Let torch compute with kernels alone that give the same bits each time, and refuse operations that have none.

    On a CPU all of ours do. On CUDA the order of sums in matrix products, `index_add`, attention and convolutions is fixed
    by it; slower by some percent. Must be asked for before CUDA is started.

    Raises:
        UserError: it is too late, or CUBLAS_WORKSPACE_CONFIG has a value that leaves the order open.
    """
    if wanted:
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        if workspace is not None and workspace not in _CUBLAS_WORKSPACES:
            raise UserError(f"deterministic: CUBLAS_WORKSPACE_CONFIG={workspace} leaves the order of sums open; the rule is {' or '.join(_CUBLAS_WORKSPACES)}, or unset")
        if workspace is None and torch.cuda.is_initialized():
            raise UserError("deterministic: CUDA is at work in this process already; set CUBLAS_WORKSPACE_CONFIG=:4096:8 before it starts")
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace or _CUBLAS_WORKSPACES[0]
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cuda.enable_cudnn_sdp(not wanted)  # torch's other kernels for attention heed the setting


def deterministic_kernels() -> bool:
    """Whether `use_deterministic_kernels` is in force."""
    return torch.are_deterministic_algorithms_enabled()


def refusal(error: BaseException) -> str | None:
    """A sentence, where an operation was refused because it has no deterministic kernel."""
    name, found, _ = str(error).partition(_REFUSED)
    if not found or not isinstance(error, RuntimeError):
        return None
    return f"deterministic: {name.strip()} has no kernel here that gives the same bits each time; use another device or leave deterministic out"
