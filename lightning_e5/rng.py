"""The one place of randomness: every draw is a function of (seed, what it is for, where we are), never of history.

So a run that was killed and resumed draws exactly what the uninterrupted run would have drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one purpose: ``derive_seed(seed, "dropout", step, rank)``; distinct paths are independent."""
    text = "/".join([str(seed), *(f"{type(p).__name__}:{p}" for p in path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *path: int | str) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(derive_seed(seed, *path))


def seed_torch(seed: int, *path: int | str) -> None:
    """Seed torch's global generators (CPU and GPUs), from which dropout and initialisation draw."""
    torch.manual_seed(derive_seed(seed, *path))
