"""Time and memory of InfoNCE over large batches, on top of the embeddings and their gradients; of several ranks, gathered and by the ring."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.nn import functional

from benchmarks.common import arguments, report
from lightning_e5.distributed.collectives import gather, gather_with_grad
from lightning_e5.distributed.ring import Ring
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.losses.info_nce_ring import info_nce_by_ring
from lightning_e5.types import LossOutput


def forget_peak() -> None:
    """What `peak_bytes` says begins now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most this process has had in memory since `forget_peak`."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def measure(chosen: argparse.Namespace, batch: int, *, number: int = 0, ranks: int = 1, ring: bool = False) -> dict[str, Any]:
    """One forward and backward pass; ``batch`` passages are this rank's."""
    torch.manual_seed(number)
    passages, queries = torch.randn(batch, chosen.width), torch.randn(chosen.rows or batch, chosen.width)
    passages, queries = (functional.normalize(rows, dim=1, out=rows).requires_grad_() for rows in (passages, queries))
    target = torch.arange(len(queries))
    forget_peak()
    before = peak_bytes()
    started = time.perf_counter()
    output = _loss(queries, passages, target, number, ranks, ring)
    output.loss.backward()
    seconds = time.perf_counter() - started
    held = 2 * (passages.nbytes + queries.nbytes)
    on_top = peak_bytes() - before - held // 2
    name = f"InfoNCE forward and backward{'' if ranks == 1 else ', ring' if ring else ', gathered'}"
    return {
        "name": name, "ranks": ranks, "passages_per_rank": batch, "queries": len(queries), "width": chosen.width, "seconds": seconds,
        "embeddings_and_gradients_gb": held / 2**30, "on_top_gb": on_top / 2**30, "matrix_gb": 4.0 * len(queries) * batch * ranks / 2**30,
        "loss": float(output.loss.detach()),
    }  # fmt: skip


def _loss(queries: torch.Tensor, passages: torch.Tensor, target: torch.Tensor, number: int, ranks: int, ring: bool) -> LossOutput:
    if ring:
        return info_nce_by_ring(InfoNCE(0.01), queries, passages, target + number * len(passages), target, Ring())
    if ranks == 1:
        return InfoNCE(0.01)(queries, passages, target)
    return InfoNCE(0.01)(queries, gather_with_grad(passages), target + number * len(passages))


def _rank(number: int, ranks: int, store: str, chosen: argparse.Namespace, ring: bool, results: Any) -> None:
    """One of several ranks; the first hands back the row of the rank that took most."""
    torch.set_num_threads(max(1, chosen.threads // ranks))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=ranks)
    gather(torch.zeros(1))  # connected, before anything is measured
    row = measure(chosen, chosen.batch // ranks, number=number, ranks=ranks, ring=ring)
    for key in ("seconds", "on_top_gb"):
        row[key] = float(gather(torch.tensor([row[key]], dtype=torch.float64)).max())
    if number == 0:
        results.put(row)
    dist.barrier()
    dist.destroy_process_group()


def of_ranks(chosen: argparse.Namespace, ring: bool) -> dict[str, Any]:
    """The same on several ranks (gloo) of this machine."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Forked before anything was differentiated, so that no rank has to import everything again.
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        places = [(n, chosen.ranks, str(Path(folder) / "store"), chosen, ring, results) for n in range(chosen.ranks)]
        ranks = [context.Process(target=_rank, args=place) for place in places]
        for one in ranks:
            one.start()
        row: dict[str, Any] = results.get()
        for one in ranks:
            one.join()
    return row


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "", batch={"type": int, "default": 131072, "help": "passages of all ranks"}, width={"type": int, "default": 384},
        rows={"type": int, "help": "queries of a rank that are computed, against all passages (for a shorter run); default all"},
        ranks={"type": int, "default": 1, "help": "processes, of which each has its share of the batch"},
    )  # fmt: skip
    rows = [measure(chosen, chosen.batch)] if chosen.ranks == 1 else [of_ranks(chosen, ring) for ring in (False, True)]
    report(rows, chosen.json)


if __name__ == "__main__":
    main()
