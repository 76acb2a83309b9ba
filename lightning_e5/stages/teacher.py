"""Stages: train a cross-encoder on mined negatives, and score the positives and negatives with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from lightning_e5.configurable import configurable
from lightning_e5.curation.engines.engine import Engine
from lightning_e5.curation.engines.inference import ScoreGroups
from lightning_e5.curation.engines.run_parts import Part
from lightning_e5.curation.mining import teacher_scores as teacher_scores_module
from lightning_e5.curation.mining.stored_groups import SeparationInFiles, StoredGroups, scores_of_part
from lightning_e5.curation.mining.teacher_scores import checked
from lightning_e5.distributed.devices import Precision, inference_device
from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path
from lightning_e5.losses.distillation import positive_first
from lightning_e5.models.cross_encoder import CrossEncoder, join_pairs
from lightning_e5.modules.cross_encoder import CrossEncoderModule
from lightning_e5.modules.fit import Trainer
from lightning_e5.modules.validation import ValidationArguments
from lightning_e5.pipeline.fingerprint import result_version
from lightning_e5.pipeline.kept_weights import KeptWeights, with_hold_out
from lightning_e5.pipeline.stage import StageContext
from lightning_e5.pipeline.training import train
from lightning_e5.ranges import Given, Length, Weight, WorkersOrZero
from lightning_e5.rng import order_seed, seed_torch
from lightning_e5.training.optimizer import AdamWConfig


@configurable("stage")
@result_version(3)  # dropout draws 16 bits a value on CPUs; before (2) other numbers, and (1) it was off
def teacher(
    out: Path,
    *,
    encoder: Path,
    ranked: Path,
    data: Annotated[Callable[..., Any], Given(("ranked", "tokenizer", "cache_dir", "seed"), kind="data module")],
    optimizer: AdamWConfig,
    module: Annotated[Callable[..., CrossEncoderModule], Given(("optimizer", "max_steps", "seed"), 1)],
    max_length: Length | None = None,
    validation: ValidationArguments | None = None,
    precision: Precision = "bf16-gpu",
    trainer: Trainer | None = None,
    seed: int,
    context: StageContext,
) -> dict[str, float]:
    """Train a cross-encoder that starts from ``encoder``; write ``cross_encoder/``.

    Args:
        encoder: folder of the bi-encoder, or of any Hugging Face encoder, whose weights it starts from.
        ranked: mined groups (``ranked.parquet``).
        data: partial data module; with ``hold_out``, groups that training leaves out.
        optimizer: see `AdamWConfig`.
        module: partial training scheme.
        max_length: tokens of a query and of a passage, each.
        validation: held-out groups and when they are looked at (see `Validation`; a cross-encoder takes no tasks).
        precision, trainer: see the pre-training stage.

    Returns:
        What was seen, and on the held-out groups the share whose positive it ranks above all others (chance is 1 / G).

    Source: paper section 3.3.
    """
    seed_torch(seed)
    model = CrossEncoder.from_start(encoder, max_length=max_length, precision=precision)
    if validation is not None and validation.get("tasks"):
        raise UserError("validation.tasks: are of encoders; a cross-encoder is validated on held-out groups, by pairs: {hold_out: N}")
    kept = KeptWeights(out, model, validation=validation)
    batches = data(ranked=ranked, tokenizer=model.tokenizer, cache_dir=out / "tokens", seed=order_seed(seed), **with_hold_out(data, kept.hold_out))
    scheme = kept.attach(module(model, optimizer=optimizer, max_steps=batches.max_steps, seed=seed))
    metrics = train(out, scheme, batches, context, validation=kept.callback, **(trainer or {}))
    if metrics is None:
        return {}
    device = inference_device("cpu" if (trainer or {}).get("accelerator") == "cpu" else "auto")
    metrics = kept.keep(metrics) | _held_out(model.to(device), batches)  # Lightning leaves a trained model on the CPU
    model.cpu()
    model.save_pretrained(out / "cross_encoder")
    for directory in ("checkpoints", "tokens"):
        shutil.rmtree(out / directory, ignore_errors=True)
    return {"groups": batches.pairs, **metrics}


def _held_out(model: CrossEncoder, batches: Any) -> dict[str, float]:
    if not len(batches.held_out):
        return {}
    batch = batches.rows_batch(batches.held_out)
    logits_BG = model.score_tokens(join_pairs(batch.queries, batch.passages)).view(len(batches.held_out), -1)
    return {"held_out_groups": len(batches.held_out), "held_out_accuracy": float(positive_first(logits_BG))}


@configurable("stage")
def teacher_scores(
    out: Path,
    *,
    teacher: Path | str,
    ranked: Path,
    max_length: Length | None = None,
    passage_format: str = "{passage}",
    retriever_scale: Weight = 0.0,
    precision: Precision = "bf16-gpu",
    engine: Engine | Literal["local", "ray"] | None = None,
    gpus_per_task: WorkersOrZero = 0,
) -> dict[str, float]:
    """Write ``ranked.parquet`` again, with ``teacher_scores``: a logit for the positive, then one per negative.

    Args:
        teacher: folder of a trained cross-encoder of ours, or folder or hub name of a released one (a sequence classifier
            with one label, such as ``intfloat/simlm-msmarco-reranker``).
        ranked: folder or file of the mined groups; scores it has already are replaced.
        max_length: tokens of a query and of a passage, each (released ones: of both together); as stored by default.
        passage_format: how a released teacher reads a passage, see `SequenceClassifier`.
        retriever_scale: add the score by which mining found a passage, times this, to the teacher's logit (not in E5): a small
            teacher then corrects the retriever instead of replacing it. For cosines the reciprocal of the student's
            temperature; a passage that was not retrieved, but filled in at random, leaves its row without a teacher.
        precision: of the backbone.
        engine: ``local``, ``ray`` or an engine with settings scores parts of the groups as tasks; None in this process.
        gpus_per_task: GPUs of each task.

    Returns:
        How well the teacher separates: mean margin of the positive over the best negative, share of positives ranked
        first, the standard deviation of its scores.

    Raises:
        UserError: the teacher has collapsed, that is, it scores all passages of nearly every query alike.
    """
    path = ranked / "ranked.parquet" if ranked.is_dir() else ranked
    groups = StoredGroups(path, teacher_scores_module.GROUPS, retrieved=retriever_scale > 0)
    scorer = ScoreGroups(str(teacher), max_length, passage_format, precision)
    parts = groups.score(scorer, out / "parts", engine=engine, gpus_per_task=gpus_per_task)
    scratch = out / "scratch"
    found = SeparationInFiles(scratch / "separation")
    for part in parts:
        found.add(scores_of_part(part))
    metrics = checked(str(teacher), found.found())
    metrics |= _write_scores(out, groups, parts, retriever_scale, scratch)
    for folder in (out / "parts", scratch):
        shutil.rmtree(folder, ignore_errors=True)
    return metrics


def _write_scores(out: Path, groups: StoredGroups, parts: Sequence[Part], retriever_scale: float, scratch: Path) -> dict[str, float]:
    """The groups again, with a column of scores, part by part; what is to be said of scores with the retriever's added."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = SeparationInFiles(scratch / "with-retriever")
    numbers = pa.list_(pa.float32())
    with atomic_path(out / "ranked.parquet") as temporary, ExitStack() as stack:
        writer: Any = None
        for part, table in zip(parts, groups.tables(), strict=True):
            scores = scores_of_part(part)
            if retriever_scale:
                retrieved = groups.retriever_scores(part.work, [len(s) for s in scores])
                scores = [s + retriever_scale * r for s, r in zip(scores, retrieved, strict=True)]
                whole.add([s for s in scores if not np.isnan(s).any()])
            if "teacher_scores" in table.column_names:
                table = table.drop_columns(["teacher_scores"])
            table = table.append_column("teacher_scores", pa.array([s.tolist() for s in scores], type=numbers))
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(temporary, table.schema, compression="zstd", write_statistics=False))
            writer.write_table(table)
    return {f"with_retriever_{key}": value for key, value in whole.found().items()}
