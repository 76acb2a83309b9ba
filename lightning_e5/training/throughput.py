"""How much arithmetic a step asks for, and how much of it this machine does at best."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import torch

#: Rows, inner and outer width of the measured products, of which the fastest counts. On a GPU a chunk of tokens through a
#: feed-forward layer of BERT-base; on CPUs also smaller ones, which some of them are a third faster at.
_SHAPES = {"cuda": [(4096, 768, 3072)], "cpu": [(1024, 768, 3072), (2048, 384, 1536), (512, 512, 512)]}


def encoder_flops(config: Any, lengths: Sequence[int]) -> float:
    """Floating-point operations of one forward pass of a BERT-like encoder over texts of these lengths.

    Two per multiply-add of the linear layers and of the two attention products; embeddings, LayerNorms and softmax are
    not counted. A backward pass costs twice as much.
    """
    width, inner = int(config.hidden_size), int(getattr(config, "intermediate_size", 4 * config.hidden_size))
    tokens, squares = float(sum(lengths)), float(sum(length * length for length in lengths))
    per_layer = 2.0 * tokens * (4 * width * width + 2 * width * inner) + 4.0 * squares * width
    return int(config.num_hidden_layers) * per_layer


def gemm_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measured FLOP/s of one matrix product at BERT's shapes, the best of several; cached per device, type and threads."""
    return _gemm_peak(device.type, device.index, dtype, torch.get_num_threads(), seconds)


@functools.lru_cache
def _gemm_peak(kind: str, index: int | None, dtype: torch.dtype, threads: int, seconds: float) -> float:
    device = torch.device(kind) if index is None else torch.device(kind, index)
    shapes = _SHAPES.get(kind, _SHAPES["cuda"])
    return max(_measured(device, dtype, shape, seconds / len(shapes)) for shape in shapes)


def _measured(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    rows, inner, outer = shape
    left, right = torch.ones(rows, inner, device=device, dtype=dtype), torch.ones(inner, outer, device=device, dtype=dtype)
    result = left @ right
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        repeats = 1 if device.type == "cpu" else 20
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right, out=result)
        _wait(device)
        best = min(best, (time.perf_counter() - started) / repeats)
    return 2.0 * rows * inner * outer / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
