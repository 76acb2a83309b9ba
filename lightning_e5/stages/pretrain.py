"""Stage: contrastive training of an encoder on pairs (the noisy model, and pre-training proper)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from lightning_e5.configurable import configurable
from lightning_e5.distributed.devices import Precision
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import texts_of_tokens
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.modules.fit import Trainer
from lightning_e5.modules.validation import ValidationArguments
from lightning_e5.pipeline.fingerprint import result_version
from lightning_e5.pipeline.kept_weights import KeptWeights, with_hold_out
from lightning_e5.pipeline.stage import StageContext
from lightning_e5.pipeline.training import train
from lightning_e5.ranges import Given, Share
from lightning_e5.rng import order_seed, seed_torch
from lightning_e5.training.optimizer import AdamWConfig


@configurable("stage")
@result_version(4)  # one kernel of attention with gradients and without; before (3) two, (2) other draws of dropout, (1) none
def pretrain(
    out: Path,
    *,
    encoder: Path,
    tokens: Path,
    data: Annotated[Callable[..., Any], Given(("tokens", "keep", "seed"), kind="data module")],
    optimizer: AdamWConfig,
    module: Annotated[Callable[..., BiEncoderModule], Given(("optimizer", "max_steps", "seed"), 1)],
    keep: Path | None = None,
    validation: ValidationArguments | None = None,
    validation_collections: Mapping[str, Path] | None = None,
    keep_general: Share = 0.0,
    general: Path | None = None,
    precision: Precision = "bf16-gpu",
    trainer: Trainer | None = None,
    seed: int,
    context: StageContext,
) -> dict[str, float]:
    """Train ``encoder`` on the pairs of ``tokens``, of those that ``keep`` keeps.

    Args:
        out: gets ``encoder/`` (with the record of what its weights have seen), ``metrics.jsonl`` and, until the end, ``checkpoints/``.
        encoder: folder of the initial encoder.
        tokens: token cache of the pairs, made with that encoder's tokenizer.
        data: partial data module; takes tokens, keep, seed.
        optimizer: AdamW and its schedule.
        module: partial training scheme; takes encoder, optimizer, max_steps, seed.
        keep: the consistency filter's ``ranks.parquet``; None keeps all.
        validation: when the training is validated, on what, and which step's weights are kept (see `Validation`).
        validation_collections: name -> small test collection (a folder in BEIR layout with ``qrels/test.tsv``) that is a task of it.
        keep_general: share of the general encoder's weights in those that are kept: 0.5 mixes half and half (see `interpolated`).
        general: folder of that encoder, of the same shape; by default ``encoder``.
        precision: of the backbone.
        trainer: devices, strategy, memory and checkpoint intervals (see `lightning_e5.modules.fit.fit`).

    Returns:
        Steps, pairs and tokens seen, mean loss and accuracy of the last 10 steps; with a validation also ``best_step`` and the
        monitored value of the kept weights and of the start.

    Source: paper section 4.1.
    """
    seed_torch(seed)
    model = TextEncoder.from_pretrained(encoder, precision=precision, training_start=True)
    kept = KeptWeights(out, model, validation=validation, collections=validation_collections, keep_general=keep_general, general=general)
    batches = data(tokens=tokens, keep=keep, seed=order_seed(seed), **with_hold_out(data, kept.hold_out))
    scheme = kept.attach(module(model, optimizer=optimizer, max_steps=batches.max_steps, seed=seed))
    metrics = train(out, scheme, batches, context, validation=kept.callback, **(trainer or {}))
    if metrics is None:
        return {}
    metrics = kept.keep(metrics)
    model.save_pretrained(out / "encoder")
    kept.record(encoder, context.stage, metrics, texts_of_tokens(tokens)).save(out / "encoder")
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return {"pairs": batches.pairs, **metrics}
