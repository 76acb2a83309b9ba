"""Time and memory of InfoNCE over large batches, on top of the embeddings and their gradients."""

from __future__ import annotations

import resource
import time

import torch
from torch.nn import functional

from benchmarks.common import arguments, report
from lightning_e5.losses.info_nce import InfoNCE


def peak_bytes() -> int:
    """The most this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "", batch={"type": int, "default": 131072}, width={"type": int, "default": 384},
        rows={"type": int, "help": "queries computed, against all passages (for a shorter run); default all"},
    )  # fmt: skip
    torch.manual_seed(0)
    passages = functional.normalize(torch.randn(chosen.batch, chosen.width), dim=1).requires_grad_()
    queries = functional.normalize(torch.randn(chosen.rows or chosen.batch, chosen.width), dim=1).requires_grad_()
    before = peak_bytes()
    started = time.perf_counter()
    output = InfoNCE(0.01)(queries, passages, torch.arange(len(queries)))
    output.loss.backward()
    seconds = time.perf_counter() - started
    held = 2 * (passages.nbytes + queries.nbytes)
    on_top = peak_bytes() - before - held // 2
    report(
        [{
            "name": "InfoNCE forward and backward", "batch": chosen.batch, "queries": len(queries), "width": chosen.width,
            "seconds": seconds, "embeddings_and_gradients_gb": held / 2**30, "on_top_gb": on_top / 2**30,
            "matrix_gb": 4.0 * len(queries) * chosen.batch / 2**30,
        }],
        chosen.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
