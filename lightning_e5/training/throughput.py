"""How much arithmetic a step asks for, and how much of it this machine does at best."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from lightning_e5.distributed.devices import fast_float32, runs_in_bf16

#: Rows, inner and outer width of the measured products, of which the fastest counts. On a GPU a chunk of tokens through a
#: feed-forward layer of BERT-base; on CPUs also smaller ones, which some of them are a third faster at.
_SHAPES = {"cuda": [(4096, 768, 3072)], "cpu": [(1024, 768, 3072), (2048, 384, 1536), (512, 512, 512)]}


def encoder_flops(config: Any, lengths: Sequence[int]) -> float:
    """Floating-point operations of one forward pass of a BERT-like encoder over texts of these lengths.

    Two per multiply-add of the linear layers and of the two attention products (in a local layer of ModernBERT, of the pairs
    of tokens within its window); embeddings, LayerNorms and softmax are not counted. A backward pass costs twice as much.
    """
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    inner = int(getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None) or 4 * width)
    gated = getattr(config, "model_type", None) == "modernbert"  # by a second product of the same size
    linear = 4 * width * width + (3 if gated else 2) * width * inner
    windows = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types] if gated else [None] * layers
    pairs = float(sum(_pairs_of_tokens(length, window) for window in windows for length in lengths))
    return 2.0 * layers * float(sum(lengths)) * linear + 4.0 * width * pairs


def model_peak(model: nn.Module, device: torch.device, *, tf32: bool = False) -> float:
    """The measured peak of a device at the precision that the model runs in there, FLOP/s; ``tf32``: as `fast_float32` has it."""
    half = runs_in_bf16(getattr(model, "precision", "fp32"), device) or torch.is_autocast_enabled(device.type)
    return gemm_peak(device, torch.bfloat16 if half else torch.float32, tf32=tf32)


def model_flops(model: nn.Module, lengths: Sequence[int]) -> float:
    """`encoder_flops` by the configuration of the encoder in a model; 0 where none says how many layers it has."""
    configs = (m.config for m in model.modules() if hasattr(getattr(m, "config", None), "num_hidden_layers"))
    config = next(configs, None)
    return 0.0 if config is None else encoder_flops(config, lengths)


def _pairs_of_tokens(length: int, window: int | None) -> int:
    """How many pairs of a text's tokens attention computes: all, or those at most ``window`` tokens apart."""
    beyond = 0 if window is None else max(0, length - 1 - window)
    return length * length - beyond * (beyond + 1)


def gemm_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2, *, tf32: bool = False) -> float:
    """Measured FLOP/s of one matrix product at BERT's shapes, the best of several; cached per device, type and threads."""
    return _gemm_peak(device.type, device.index, dtype, torch.get_num_threads(), seconds, tf32 and device.type == "cuda")


@functools.lru_cache
def _gemm_peak(kind: str, index: int | None, dtype: torch.dtype, threads: int, seconds: float, tf32: bool) -> float:
    device = torch.device(kind) if index is None else torch.device(kind, index)
    shapes = _SHAPES.get(kind, _SHAPES["cuda"])
    with fast_float32(device) if tf32 else nullcontext():
        return max(matmul_rate(device, dtype, shape, seconds / len(shapes)) for shape in shapes)


def matmul_rate(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    """Measured FLOP/s of the product ``[rows, inner] @ [inner, outer]``, the best within these seconds."""
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
