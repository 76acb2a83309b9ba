"""What the training stages share: logs, the resumable fit, and the record of what was seen."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import lightning as L

from lightning_e5.config.experiment import read_yaml
from lightning_e5.distributed.launch import is_first_process
from lightning_e5.errors import UserError
from lightning_e5.files.run_layout import VALIDATION
from lightning_e5.files.storage import read_log
from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.fit import fit
from lightning_e5.modules.validation import ValidationCallback
from lightning_e5.pipeline.stage import StageContext
from lightning_e5.tracking.metrics_log import JsonlLogger, read_metrics_log
from lightning_e5.tracking.run_directory import warn
from lightning_e5.tracking.wandb_live import WandbStage
from lightning_e5.tracking.wandb_run import wandb_mode


def train(
    out: Path, module: TrainingModule, data: L.LightningDataModule, context: StageContext, *, validation: ValidationCallback | None = None, **trainer: object
) -> dict[str, float] | None:
    """Fit, with ``metrics.jsonl``, W&B and checkpoints in ``out``; returns what was seen and the last losses.

    None in every rank but the first, whose part ends here.
    """
    if not is_first_process():
        fit(module, data, checkpoints=out / "checkpoints", title="", validation=validation, **trainer)  # type: ignore[arg-type]
        return None
    jsonl, wandb = JsonlLogger(out), _wandb(out, context)
    if validation is not None and wandb is not None:
        validation.found = wandb.log_validation

    def resumed(step: int) -> None:
        jsonl.truncate(step)
        if wandb is not None:
            jsonl.hold(wandb.start(with_validations(out, step)))

    try:
        fit(
            module,
            data,
            checkpoints=out / "checkpoints",
            title="",
            logs=[log for log in (jsonl, wandb) if log is not None],
            resumed=resumed,
            warn=warn,
            validation=validation,
            **trainer,  # type: ignore[arg-type]
        )
    except BaseException as error:
        with suppress(UserError):  # such as a full disk, which the error is about
            jsonl.finalize("failed")
        if wandb is not None:
            wandb.fail(error)
        raise
    jsonl.finalize("success")
    metrics = _seen(out)
    if wandb is not None:
        wandb.finish(metrics)
    return metrics


def with_validations(out: Path, step: int) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl``, each with the values of its step's validation, as far as ``step``."""
    validations = {row["step"]: row for row in read_log(out / VALIDATION) if row["step"] <= step}
    rows = [{**validations.pop(row["step"], {}), **row} for row in read_metrics_log(out)]
    return [*validations.values(), *rows]  # what is left is that of step 0


def _wandb(out: Path, context: StageContext) -> WandbStage | None:
    """The stage's W&B run, not yet started; None where it is disabled."""
    if wandb_mode(context.logger) == "disabled":
        return None
    whole = context.run_dir / "config.yaml"
    config = read_yaml(whole) if whole.is_file() else {"name": context.run, **context.config}
    return WandbStage(context.logger, directory=out, stage=context.stage, config=config)


def _seen(out: Path) -> dict[str, float]:
    rows = read_metrics_log(out)
    tail = rows[-min(10, len(rows)) :]
    of_dimensions = [name for name in rows[-1] if name.startswith("loss@")]
    return {
        "steps": rows[-1]["step"],
        "pairs_seen": rows[-1]["pairs"],
        "tokens_seen": rows[-1]["tokens"],
        "final_loss": sum(r["loss"] for r in tail) / len(tail),
        "final_accuracy": sum(r["accuracy"] for r in tail) / len(tail),
        **{f"final_{name}": sum(r[name] for r in tail) / len(tail) for name in of_dimensions},
    }
