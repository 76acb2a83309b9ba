"""Trains every scheme for a few steps through `fit`, on one or several ranks, and saves what came of it.

Run as ``python scheme_run.py OUT RANKS [CASE ...]``; not a test by itself. Dropout is off, so that ranks may not matter.
``SCHEME_STEPS`` and ``SCHEME_WORKERS`` in the environment change the steps (4) and data workers (0); ``SCHEME_FAULT`` is
``oom`` or ``nan``: the last rank's encoder fails once so in its 12th call; or ``ring``: it runs out of memory within the ring; ``SCHEME_STRATEGY`` is that of `fit`, with many
small buckets where it is ``fsdp``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertModel

from data_modules.base import StepDataModule
from lightning_e5.distributed.collectives import rank_means
from lightning_e5.distributed.launch import is_first_process, leave_after_first
from lightning_e5.evaluation.validation_tasks import _TokenisedOnce
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules import base
from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.modules.distilled import DistilledModule
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.moco import MoCoModule
from lightning_e5.modules.pre_batch import PreBatchModule
from lightning_e5.modules.symmetric import SymmetricModule
from lightning_e5.modules.validation import Validation, ValidationCallback
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import PairBatch, TokenBatch

STEPS, BATCH = int(os.environ.get("SCHEME_STEPS", "4")), 8
WORKERS, FAULT = int(os.environ.get("SCHEME_WORKERS", "0")), os.environ.get("SCHEME_FAULT", "")
STRATEGY = os.environ.get("SCHEME_STRATEGY", "ddp")
RING = {"passages_of_ranks": "ring"}
CASES: dict[str, tuple[type[TrainingModule], int, dict[str, Any]]] = {
    f"{name}-{negatives}": (scheme, negatives, options)
    for name, scheme, options in (
        ("in_batch", InBatchModule, {}),
        ("pre_batch", PreBatchModule, {"queue_size": 40}),
        ("moco", MoCoModule, {"queue_size": 48, "momentum": 0.9}),
        ("everything", SymmetricModule, {"symmetric": True, "query_negatives": True, "learn_temperature": True}),
        ("distilled", DistilledModule, {}),
        ("dimensions", InBatchModule, {"dimensions": [16, 6, 3], "dimension_weights": [1.0, 0.5, 2.0]}),
        ("dimensions_moco", MoCoModule, {"queue_size": 48, "momentum": 0.9, "dimensions": [16, 6]}),
        ("ring_in_batch", InBatchModule, RING),
        ("ring_pre_batch", PreBatchModule, {"queue_size": 40, **RING}),
        ("ring_everything", SymmetricModule, {"symmetric": True, "query_negatives": True, "learn_temperature": True, **RING}),
        ("ring_distilled", DistilledModule, RING),
        ("ring_dimensions", InBatchModule, {"dimensions": [16, 6, 3], "dimension_weights": [1.0, 0.5, 2.0], **RING}),
    )
    for negatives in (0, 1, 3)
    if not (name == "distilled" and negatives == 0) and not (name.startswith(("dimensions", "ring")) and negatives != 1)
}


class Words:
    """The tokenizer's part that a module asks for."""

    max_length = 64

    def encode(self, texts: list[str], kind: str) -> tuple[Any, Any]:
        """A token per character, of one prefix."""
        ids = [[5, 6, 7, 8] + [10 + ord(c) % 80 for c in text] for text in texts]
        return np.array([i for one in ids for i in one]), np.array([len(one) for one in ids])

    def cut_at(self, length: int | None) -> Words:
        return self


class SevenTexts:
    """A validation task whose value depends on the order of its embeddings."""

    def values(self, model: TextEncoder) -> dict[str, float]:
        embedded_ND = _TokenisedOnce(model, None).embed([chr(97 + i) * (1 + i) for i in range(7)], "passage")
        return {"seven/sum": float((torch.arange(1.0, 8.0)[:, None] * embedded_ND).sum())}

    def identities(self) -> dict[str, str]:
        return {"seven": "items seven"}


class RandomPairs(StepDataModule):
    """Random tokens; texts get longer with the row, so that ranks differ; some texts occur more than once."""

    def __init__(self, negatives: int) -> None:
        super().__init__(batch_size=BATCH, max_steps=STEPS, seed=0, num_workers=WORKERS)
        self.negatives, self.held_out = negatives, np.arange(2 * BATCH + 3)

    def rows_batch(self, rows: Any) -> PairBatch:
        group = 1 + self.negatives
        rows_B = torch.from_numpy(rows)
        text_P = (200 + group * rows_B[:, None] + torch.arange(group)).flatten()
        teacher_BG = torch.stack([torch.randn(group, generator=torch.Generator().manual_seed(int(row))) for row in rows_B])
        return PairBatch(
            queries=_texts([5 + int(row) % 7 for row in rows_B], rows_B % 15, slice(None)),
            passages=_texts([6 + int(text) % 5 for text in text_P], text_P, slice(None)),
            query_text_B=rows_B % 15, passage_text_P=text_P, rows_B=rows_B, teacher_BG=teacher_BG if self.negatives else None,
        )  # fmt: skip

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        draw = torch.Generator().manual_seed(step)
        group = 1 + self.negatives
        text_B = torch.randint(0, 12, (BATCH,), generator=draw)
        text_P = torch.randint(0, 30, (BATCH * group,), generator=draw)
        part = self.rank_slice(rank, world_size)
        group_part = slice(part.start * group, part.stop * group)
        teacher_BG = torch.randn(BATCH, group, generator=draw)
        teacher_BG[1] = float("nan")
        return PairBatch(
            queries=_texts([5 + 2 * i for i in range(BATCH)], text_B, part),
            passages=_texts([6 + i for i in range(BATCH * group)], text_P + 100, group_part),
            query_text_B=text_B[part],
            passage_text_P=text_P[group_part],
            rows_B=torch.arange(step * BATCH, (step + 1) * BATCH)[part],
            teacher_BG=teacher_BG[part] if self.negatives else None,
        )


def _texts(lengths: list[int], texts_N: torch.Tensor, part: slice) -> TokenBatch:
    pieces = [torch.randint(5, 90, (n,), generator=torch.Generator().manual_seed(int(t))) for n, t in zip(lengths, texts_N, strict=True)]
    return TokenBatch(torch.cat(pieces[part]), torch.tensor(lengths[part]))


class Recorder:
    """Gradients at the first optimizer step, and the logged rows with the values held between steps per rank."""

    def __init__(self, module: TrainingModule) -> None:
        self.kept = False
        self.gradients: dict[str, torch.Tensor] = {}
        self.rows: list[dict[str, float]] = []
        configure, log = module.configure_optimizers, module._log_step

        def configured() -> torch.optim.Optimizer:
            optimizer = configure()
            optimizer.register_step_pre_hook(lambda *_: self.keep(module))
            return optimizer

        def logged(*args: Any) -> None:
            log(*args)
            self.rows.append({**module.last_metrics, **held(module)})

        module.configure_optimizers = configured  # type: ignore[method-assign]
        module._log_step = logged  # type: ignore[method-assign]

    def keep(self, module: TrainingModule) -> None:
        if self.kept:
            return
        self.kept = True
        found = {p: p.grad.clone() for p in module.parameters() if p.grad is not None}
        if module.shards is not None:
            found |= module.shards.whole([s.grad for s in module.shards.local])  # type: ignore[misc]
        self.gradients = {n: found[p] for n, p in module.named_parameters() if p in found}


def held(module: TrainingModule) -> dict[str, float]:
    """Values of the trained parameters, of gradients and of AdamW's moments that a rank has in memory, mean over ranks."""
    shards = module.shards.local if module.shards is not None else []
    parameters = [*module.trained_parameters(), *shards]
    storages = {s.data_ptr(): s.nbytes() // 8 for p in parameters if (s := local(p).untyped_storage()).nbytes()}
    gradients = sum(p.grad.numel() for p in parameters if p.grad is not None)
    state = module.optimizers().optimizer.state  # type: ignore[union-attr]
    moments = sum(v.numel() for values in state.values() for k, v in values.items() if k != "step")
    names = ("held_parameters", "held_gradients", "held_moments")
    return dict(zip(names, rank_means([float(sum(storages.values())), float(gradients), float(moments)]), strict=True))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()  # type: ignore[no-any-return]


def encoder() -> TextEncoder:
    """A small BERT in float64 without dropout, always the same."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=80, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return TextEncoder(BertModel(config, add_pooling_layer=False), Words()).double()  # type: ignore[arg-type]


def plant_fault(module: BiEncoderModule) -> None:
    """Let the last rank's encoder fail once."""
    calls, embed = [0], module.embed_chunk
    if FAULT == "ring" and module.ring is not None:
        travelling = module.ring.travelling

        def leaving(*own: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
            for hop, block in enumerate(travelling(*own)):
                calls[0] += hop
                if module.global_rank == module.trainer.world_size - 1 and calls[0] == 8:
                    raise torch.OutOfMemoryError("planted")
                yield block

        module.ring.travelling = leaving  # type: ignore[method-assign]
        return

    def failing(ids_T: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        calls[0] += 1
        last = module.global_rank == module.trainer.world_size - 1
        if last and calls[0] == 12 and FAULT == "oom":
            raise torch.OutOfMemoryError("planted")
        factor = float("nan") if last and calls[0] == 12 and FAULT == "nan" else 1.0
        return embed(ids_T, lengths) * factor

    module.embed_chunk = failing  # type: ignore[method-assign]


def main(out: Path, ranks: int, cases: list[str], strategy: str = STRATEGY) -> None:
    torch.set_num_threads(1)
    results = {}
    for case in cases or list(CASES):
        scheme, negatives, options = CASES[case]
        module = scheme(encoder(), temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=STEPS, **options).double()
        recorder = Recorder(module)
        module.validation_tasks = [SevenTexts()]
        validation = ValidationCallback(Validation(every_n_steps=3), module.model)
        if FAULT:
            assert isinstance(module, BiEncoderModule)
            plant_fault(module)
        fit(
            module, RandomPairs(negatives), checkpoints=out / case, title=case, accelerator="cpu", devices=ranks,
            backend="gloo", checkpoint_steps=2, strategy=strategy, chunk_tokens=64, graph_tokens=200, validation=validation,
        )  # fmt: skip
        if strategy != "ddp" and is_first_process():
            module.model.backbone.save_pretrained(out / case / "weights")  # type: ignore[operator,union-attr]
        results[case] = {"gradients": recorder.gradients, "rows": recorder.rows, "state": module.state_dict(), "validation": validation.rows, "best": validation.best}
    if is_first_process():
        torch.save(results, out / f"ranks-{ranks}.pt")


if __name__ == "__main__":
    base.ParameterShards = partial(base.ParameterShards, bucket_values=1000)  # type: ignore[misc,assignment]
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    finally:
        leave_after_first()
