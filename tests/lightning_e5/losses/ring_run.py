"""Gathered and ring losses of the same rows on 1, 2 and 3 ranks (gloo), in one process each; not a test by itself.

Run as ``python ring_run.py OUT``. Nothing here imports Lightning or transformers, and the ranks are forked, so all of it takes seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional

from lightning_e5.distributed.collectives import gather, gather_with_grad, rank, world_size
from lightning_e5.distributed.ring import Ring
from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask, OwnColumnMask
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.losses.info_nce_ring import info_nce_by_ring
from lightning_e5.losses.matryoshka import Matryoshka, first_values
from lightning_e5.types import LossOutput

QUERIES, WIDTH, RANKS = 12, 5, (1, 2, 3)


class Case(NamedTuple):
    """What is switched on."""

    group: int = 1
    masked: bool = True
    queue: int = 0
    learned: bool = False
    own_queries: bool = False
    block_logits: int | None = None
    dimensions: tuple[int, ...] = ()
    collapsed: bool = False


CASES = {
    "plain": Case(masked=False),
    "masked": Case(),
    "hard negatives": Case(group=3),
    "blocks": Case(group=3, block_logits=17),
    "single rows": Case(block_logits=1),
    "queue": Case(group=2, queue=7, learned=True),
    "queue, not masked": Case(queue=7, masked=False),
    "query negatives": Case(group=2, own_queries=True, learned=True, block_logits=20),
    "query negatives, not masked": Case(own_queries=True, masked=False),
    "dimensions": Case(group=2, queue=5, dimensions=(5, 3, 2)),
    "collapsed": Case(group=2, masked=False, collapsed=True),
}


class Skipping(Ring):
    """A planted fault: the block of the rank before is not looked at."""

    def travelling(self, *own: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for hop, block in enumerate(super().travelling(*own)):
            if hop != 1:
                yield block


class Keeping(Ring):
    """A planted fault: what the other ranks contribute does not come home."""

    def home(self, contributions: Iterable[Tensor]) -> Tensor:
        kept: list[Tensor] = []

        def own_kept() -> Iterator[Tensor]:
            for contribution in contributions:
                kept.append(contribution.clone())
                yield contribution

        super().home(own_kept())
        return kept[0]


class Swapped(Ring):
    """A planted fault: a block's gradient goes to the wrong rank."""

    def home(self, contributions: Iterable[Tensor]) -> Tensor:
        return super().home(reversed(list(contributions)))


class Rows:
    """This rank's part of the global batch of a case, its queue (the same on all ranks) and the ids of the texts, some of them equal."""

    def __init__(self, case: Case) -> None:
        draw = torch.Generator().manual_seed(7)

        def unit(count: int) -> Tensor:
            rows = torch.full((count, 4), 0.5) if case.collapsed else torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)
            return functional.normalize(rows.double(), dim=1)

        count, share = QUERIES * case.group, QUERIES // world_size()
        part, group_part = (slice(rank() * n, (rank() + 1) * n) for n in (share, share * case.group))
        self.queries, self.passages = unit(QUERIES)[part].requires_grad_(), unit(count)[group_part].requires_grad_()
        self.queue = (unit(case.queue), torch.randint(0, 20, (case.queue,), generator=draw)) if case.queue else None
        self.query_text = torch.randint(0, 9, (QUERIES,), generator=draw)[part]
        self.text = torch.randint(0, 20, (count,), generator=draw)[group_part]
        self.own, self.positive_text = torch.arange(share), self.text[:: case.group]


def gathered(loss: InfoNCE, case: Case, rows: Rows, queries: Tensor, passages: Tensor) -> LossOutput:
    share = len(rows.own)
    candidates, text = gather_with_grad(passages), gather(rows.text)
    all_passages, target = len(candidates), (rows.own + rank() * share) * case.group
    own_text, mask = (rows.query_text, OwnColumnMask(all_passages + rows.own + rank() * share)) if case.own_queries else (None, None)
    if case.own_queries:
        candidates, text = torch.cat([candidates, gather_with_grad(queries)]), torch.cat([text, gather(rows.query_text)])
    queue, queue_text = (None, text[:0]) if rows.queue is None else (first_values(rows.queue[0], queries.shape[1]), rows.queue[1])
    duplicates = DuplicateQueries(rows.query_text, gather(rows.query_text), gather(rows.positive_text))
    if case.masked:
        mask = FalseNegativeMask(torch.cat([text, queue_text]), rows.positive_text, target, duplicates=duplicates, own_text_Q=own_text)
    return loss(queries, candidates, target, mask, queue)


def by_ring(ring: Ring, loss: InfoNCE, case: Case, rows: Rows, queries: Tensor, passages: Tensor) -> LossOutput:
    candidates, text, target = passages, rows.text, rows.own * case.group
    own_text, mask = (rows.query_text, OwnColumnMask(len(passages) + rows.own)) if case.own_queries else (None, None)
    if case.own_queries:
        candidates, text = torch.cat([passages, queries]), torch.cat([text, rows.query_text])
    duplicates = DuplicateQueries(rows.query_text, gather(rows.query_text), gather(rows.positive_text))
    if case.masked:
        mask = FalseNegativeMask(text, rows.positive_text, target, duplicates=duplicates, own_text_Q=own_text)
    queue = None if rows.queue is None else (first_values(rows.queue[0], queries.shape[1]), rows.queue[1])
    return info_nce_by_ring(loss, queries, candidates, text, target, ring, mask, queue)


def values(case: Case, ring: Ring | None) -> dict[str, Tensor]:
    """Loss, accuracy, masked share and gradients, of a loss that each rank weights differently."""
    loss, rows = InfoNCE(0.05, learned=case.learned, block_logits=case.block_logits).double(), Rows(case)

    def of(embeddings: Tensor) -> LossOutput:
        queries, passages = embeddings.tensor_split([len(rows.queries)])
        return gathered(loss, case, rows, queries, passages) if ring is None else by_ring(ring, loss, case, rows, queries, passages)

    output = (Matryoshka(of, case.dimensions) if case.dimensions else of)(torch.cat([rows.queries, rows.passages]))
    inputs = [rows.queries, rows.passages, *loss.parameters()]
    gradients = torch.autograd.grad(output.loss * (1 + 0.5 * rank()), inputs)
    found = dict(zip(("queries", "passages", "log_scale"), gradients, strict=False))
    with torch.no_grad():
        without_graph = of(torch.cat([rows.queries, rows.passages])).loss if not case.dimensions else output.loss.detach()
    return {"loss": output.loss.detach(), "accuracy": output.accuracy, "masked": output.masked_fraction, "without graph": without_graph, **found}


def order() -> dict[str, Any]:
    """Which ranks' blocks come by in which order, and what comes home: from each rank its number plus ten times the block's owner."""
    owners = [int(block) for (block,) in Ring().travelling(torch.tensor(rank()))]
    return {"owners": owners, "home": int(Ring().home(torch.tensor(rank() + 10 * owner) for owner in owners))}


def main(out: Path, ranks: int, number: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store-{ranks}", rank=number, world_size=ranks)
    results: dict[str, Any] = {"order": order()}
    for name, case in CASES.items():
        results[name] = {"gathered": values(case, None), "ring": values(case, Ring())}
        if name in ("masked", "queue") and ranks > 1:
            results[name] |= {fault.__name__: values(case, fault()) for fault in (Skipping, Keeping, Swapped)}
    torch.save(results, out / f"{ranks}-{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for ranks in RANKS:
        children = []
        for number in range(ranks):
            child = os.fork()
            if not child:
                try:
                    main(Path(sys.argv[1]), ranks, number)
                except BaseException as error:
                    print(f"rank {number} of {ranks}: {error!r}", file=sys.stderr, flush=True)
                    os._exit(1)
                os._exit(0)
            children.append(child)
        if codes := [code for child in children if (code := os.waitpid(child, 0)[1])]:
            sys.exit(f"{ranks} ranks: {codes}")
