"""Stage: distilled fine-tuning of a pre-trained encoder on mined negatives with teacher scores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from lightning_e5.configurable import configurable
from lightning_e5.distributed.devices import Precision
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import texts_of_files
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.modules.fit import Trainer
from lightning_e5.modules.validation import ValidationArguments
from lightning_e5.pipeline.fingerprint import result_version
from lightning_e5.pipeline.kept_weights import KeptWeights, with_hold_out
from lightning_e5.pipeline.stage import StageContext
from lightning_e5.pipeline.training import train
from lightning_e5.ranges import Given, Length, Share
from lightning_e5.rng import order_seed, seed_torch
from lightning_e5.training.optimizer import AdamWConfig


@configurable("stage")
@result_version(4)  # one kernel of attention with gradients and without; before (3) two, (2) other draws of dropout, (1) none
def finetune(
    out: Path,
    *,
    encoder: Path,
    ranked: Path | Mapping[str, Path],
    data: Annotated[Callable[..., Any], Given(("ranked", "tokenizer", "cache_dir", "seed"), kind="data module")],
    optimizer: AdamWConfig,
    module: Annotated[Callable[..., BiEncoderModule], Given(("optimizer", "max_steps", "seed"), 1)],
    max_length: Length | None = None,
    train_length: Length | None = None,
    validation: ValidationArguments | None = None,
    validation_collections: Mapping[str, Path] | None = None,
    keep_general: Share = 0.0,
    general: Path | None = None,
    precision: Precision = "bf16-gpu",
    trainer: Trainer | None = None,
    seed: int,
    context: StageContext,
) -> dict[str, float]:
    """Fine-tune ``encoder``; write ``encoder/``.

    Args:
        encoder: folder of the pre-trained encoder.
        ranked: groups with, for distillation, teacher scores (``ranked.parquet``); a mapping of names for a mixture.
        data, module: partial data module and training scheme.
        optimizer: AdamW and its schedule.
        max_length: tokens per text (E5: 192 after 128 in pre-training; the position embeddings are frozen).
        train_length: tokens per text while training, where that is less than the encoder reads afterwards.
        validation, validation_collections, keep_general, general, precision, trainer: see the pre-training stage.

    Returns:
        What was seen, and the losses of the last steps.

    Source: paper sections 3.3 and 4.2.
    """
    seed_torch(seed)
    model = TextEncoder.from_pretrained(encoder, max_length=max_length, precision=precision, training_start=True)
    kept = KeptWeights(out, model, validation=validation, collections=validation_collections, keep_general=keep_general, general=general)
    tokenizer, order = model.tokenizer.cut_at(train_length), order_seed(seed)
    batches = data(ranked=ranked, tokenizer=tokenizer, cache_dir=out / "tokens", seed=order, **with_hold_out(data, kept.hold_out))
    scheme = kept.attach(module(model, optimizer=optimizer, max_steps=batches.max_steps, seed=seed))
    metrics = train(out, scheme, batches, context, validation=kept.callback, **(trainer or {}))
    if metrics is None:
        return {}
    metrics = kept.keep(metrics)
    model.save_pretrained(out / "encoder")
    kept.record(encoder, context.stage, metrics, texts_of_files(ranked)).save(out / "encoder")
    for directory in ("checkpoints", "tokens"):
        shutil.rmtree(out / directory, ignore_errors=True)
    return {"groups": batches.pairs, **metrics}
