"""One gradient-cached step at batch 256 to 32,768: time per pair and peak memory, each batch in a process of its own.

Two memories: that of live tensors, counted storage by storage while the step runs, and the process's resident set, in
which the batch itself, the allocator's rounding and what it keeps for reuse show too. What grows with the batch, while
chunks are encoded:

    texts x D x 4 bytes x 2 (embeddings and their gradient) + tokens x 8 bytes (the batch's, sorted)

In the loss, 6 such ``[texts, D]`` and one block of logits (at most 256 MB) live instead of a chunk's activations.
"""


from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.common import SHAPES, arguments, make_encoder, real_pairs, report

EMBEDDINGS = 2


def formula(texts: int, tokens: int, width: int) -> float:
    """Bytes that grow with the batch while its chunks are encoded."""
    return texts * width * 4.0 * EMBEDDINGS + tokens * 8.0


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active, and the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, result)
        return result

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)
        return tensor

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def child(batch: int, shape: str, graph_tokens: int, chunk_tokens: int) -> None:
    """One batch size; prints one JSON object."""
    from benchmarks.train_step import Ours

    pairs = real_pairs()
    encoder = make_encoder(shape, pairs.tokenizer)
    small = Ours(encoder, *pairs.batch(256), graph_tokens, chunk_tokens)
    with LiveBytes() as few:
        small()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = Ours(encoder, *pairs.batch(batch), graph_tokens, chunk_tokens)
    wall, cpu = time.perf_counter(), time.process_time()
    with LiveBytes() as live:
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = step.done.tokens
    print(json.dumps({
        "name": shape, "batch": batch, "precision": "fp32", "seconds": wall, "cpu_us_per_pair": cpu / batch * 1e6,
        "tokens": tokens, "cpu_us_per_token": cpu / tokens * 1e6, "peak_gb": peak / 2**30,
        "rss_more_than_at_256_mb": (peak - before) / 2**20, "live_more_than_at_256_mb": (live.peak - few.peak) / 2**20,
        "formula_mb": (formula(2 * batch, tokens, SHAPES[shape][1]) - formula(512, small.done.tokens, SHAPES[shape][1])) / 2**20,
    }))  # fmt: skip


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "",
        batch={"type": int, "nargs": "+", "default": [256, 2048, 8192, 32768]},
        shape={"default": "2x128", "choices": list(SHAPES)},
        graph_tokens={"type": int, "default": 0, "help": "tokens whose activations are kept; 0 shows the least memory"},
        chunk_tokens={"type": int, "default": 4096},
        child={"action": "store_true", "help": "measure one batch in this process"},
    )
    if chosen.child:
        child(chosen.batch[0], chosen.shape, chosen.graph_tokens, chosen.chunk_tokens)
        return
    rows: list[dict[str, Any]] = []
    for batch in chosen.batch:
        command = [
            sys.executable, "-m", "benchmarks.scaling", "--child", "--batch", str(batch), "--shape", chosen.shape,
            "--threads", str(chosen.threads), "--graph-tokens", str(chosen.graph_tokens),
            "--chunk-tokens", str(chosen.chunk_tokens),
        ]  # fmt: skip
        rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
