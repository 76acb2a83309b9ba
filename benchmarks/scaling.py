"""One gradient-cached step at batch 256 to 32,768: time per pair and peak memory, each batch in a process of its own.

The memory that grows with the batch is that of the embeddings: ``texts x D x 4 bytes x 4`` (chunk outputs, embeddings,
their gradient, and the loss's own gradient), beside the tokens (8 bytes each, three copies at most).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import SHAPES, arguments, make_encoder, real_pairs, report

PARTS = 4


def formula(texts: int, tokens: int, width: int) -> float:
    """Bytes that a step of so many texts takes beside those that no batch size changes."""
    return texts * width * 4.0 * PARTS + tokens * 8.0 * 3


def child(batch: int, shape: str, graph_tokens: int, chunk_tokens: int) -> None:
    """One batch size; prints one JSON object."""
    from benchmarks.train_step import Ours

    pairs = real_pairs()
    encoder = make_encoder(shape, pairs.tokenizer)
    small = Ours(encoder, *pairs.batch(256), graph_tokens, chunk_tokens)
    small()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = Ours(encoder, *pairs.batch(batch), graph_tokens, chunk_tokens)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = step.report.tokens
    print(json.dumps({
        "name": shape, "batch": batch, "precision": "fp32", "seconds": wall, "cpu_us_per_pair": cpu / batch * 1e6,
        "tokens": tokens, "cpu_us_per_token": cpu / tokens * 1e6, "peak_gb": peak / 2**30,
        "more_than_at_256_mb": (peak - before) / 2**20,
        "formula_mb": (formula(2 * batch, tokens, SHAPES[shape][1]) - formula(512, small.report.tokens, SHAPES[shape][1])) / 2**20,
    }))  # fmt: skip


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "",
        batch={"type": int, "nargs": "+", "default": [256, 2048, 8192, 32768]},
        shape={"default": "2x128", "choices": list(SHAPES)},
        graph_tokens={"type": int, "default": 0, "help": "tokens whose graphs are kept; 0 shows the least memory"},
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
