"""Stages: train a cross-encoder on mined negatives, and score the positives and negatives with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_e5.errors import UserError
from lightning_e5.models.cross_encoder import CrossEncoder, join_pairs
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.precision import Precision
from lightning_e5.progress import progress
from lightning_e5.rng import derive_seed, seed_torch
from lightning_e5.stages.stage import StageContext
from lightning_e5.stages.training import train
from lightning_e5.storage import read_parquet, write_parquet
from lightning_e5.training.chunks import sorted_chunks


def teacher(
    out: Path,
    *,
    encoder: Path,
    ranked: Path,
    data: Callable[..., Any],
    module: Callable[..., Any],
    max_length: int | None = None,
    precision: Precision = "fp32",
    trainer: dict[str, Any] | None = None,
    seed: int,
    context: StageContext,
) -> dict[str, float]:
    """Train a cross-encoder that starts from ``encoder``; write ``cross_encoder/``.

    Args:
        encoder: folder of the bi-encoder whose weights it starts from.
        ranked: mined groups (``ranked.parquet``).
        data: partial data module; with ``hold_out``, groups that training leaves out.
        module: partial training scheme.
        max_length: tokens of a query and of a passage, each.
        precision, trainer: see the pre-training stage.

    Returns:
        What was seen, and on the held-out groups the share whose positive it ranks first (chance is 1 / G).

    Source: paper section 3.3.
    """
    seed_torch(seed)
    model = CrossEncoder.from_encoder(TextEncoder.from_pretrained(encoder, max_length=max_length, precision=precision))
    batches = data(ranked=ranked, tokenizer=model.tokenizer, cache_dir=out / "tokens", seed=derive_seed(seed, "order"))
    metrics = train(out, module(model, max_steps=batches.max_steps, seed=seed), batches, context, **(trainer or {}))
    if metrics is None:
        return {}
    metrics |= _held_out(model, batches)
    model.save_pretrained(out / "cross_encoder")
    for directory in ("checkpoints", "tokens"):
        shutil.rmtree(out / directory, ignore_errors=True)
    return {"groups": batches.pairs, **metrics}


@torch.inference_mode()
def _held_out(model: CrossEncoder, batches: Any) -> dict[str, float]:
    rows = np.arange(batches.pairs, len(batches.passage_rows_NG))
    if not len(rows):
        return {}
    batch = batches.groups(rows)
    pairs = join_pairs(batch.queries, batch.passages)
    logits_N = torch.empty(len(pairs.lengths_B))
    model.eval()
    for chunk in sorted_chunks(pairs, 8192):
        logits_N[chunk.rows_B] = model(chunk.ids_T, chunk.lengths).squeeze(1).float()
    logits_BG = logits_N.view(len(rows), -1)
    return {"held_out_groups": len(rows), "held_out_accuracy": float((logits_BG.argmax(1) == 0).float().mean())}


def teacher_scores(
    out: Path, *, teacher: Path, ranked: Path, max_length: int | None = None, precision: Precision = "fp32"
) -> dict[str, float]:
    """Write ``ranked.parquet`` again, with ``teacher_scores``: a logit for the positive, then one per negative.

    Args:
        teacher: folder of the trained cross-encoder.
        ranked: folder or file of the mined groups.
        max_length: tokens of a query and of a passage, each; as stored by default.
        precision: of the backbone.

    Returns:
        How well the teacher separates: mean margin of the positive over the best negative, share of positives ranked
        first, the spread of its scores.

    Raises:
        UserError: the teacher has collapsed, that is, it scores all passages of nearly every query alike.
    """
    import pyarrow.parquet as pq

    path = ranked / "ranked.parquet" if ranked.is_dir() else ranked
    read_parquet(path, {"query": "string", "positive": "string", "negatives": "list<string>"})
    table = pq.read_table(path)
    folder = teacher / "cross_encoder" if (teacher / "cross_encoder").is_dir() else teacher
    model = CrossEncoder.from_pretrained(folder, max_length=max_length, precision=precision)
    groups = [[p, *ns] for p, ns in zip(table["positive"].to_pylist(), table["negatives"].to_pylist(), strict=True)]
    queries = [q for q, group in zip(table["query"].to_pylist(), groups, strict=True) for _ in group]
    with progress(len(queries), "score", "pair") as bar:
        scores = model.score(queries, [p for group in groups for p in group], progress=bar)
    lists = [part.tolist() for part in torch.split(scores, [len(g) for g in groups])]
    write_parquet(out / "ranked.parquet", table.append_column("teacher_scores", [_float_lists(lists)]))
    spread = float(np.mean([np.std(s) for s in lists]))
    if spread < 1e-4:
        raise UserError(f"{teacher}: the teacher has collapsed (its scores differ by {spread:.1e} within a query's passages)")
    return {
        "groups": len(lists),
        "positive_first": float(np.mean([s[0] >= max(s[1:]) for s in lists])),
        "margin": float(np.mean([s[0] - max(s[1:]) for s in lists])),
        "score_spread": spread,
    }


def _float_lists(lists: list[list[float]]) -> Any:
    import pyarrow as pa

    return pa.array(lists, type=pa.list_(pa.float32()))
