"""What the training stages share: loggers, the resumable fit, and the record of what was seen."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from lightning_e5.launch import is_first_process
from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.fit import fit
from lightning_e5.stages.stage import StageContext
from lightning_e5.tracking import JsonlLogger, read_metrics_log, wandb_logger, warn


def train(out: Path, module: TrainingModule, data: L.LightningDataModule, context: StageContext, **trainer: object) -> dict[str, float] | None:
    """Fit, with ``metrics.jsonl``, W&B and checkpoints in ``out``; returns what was seen and the last losses.

    None in every rank but the first, whose part ends here.
    """
    if not is_first_process():
        fit(module, data, checkpoints=out / "checkpoints", title=context.stage, **trainer)  # type: ignore[arg-type]
        return None
    jsonl = JsonlLogger(out)
    wandb = wandb_logger(context.logger, directory=out / "wandb", run=context.run, stage=context.stage, config=context.config)
    fit(
        module,
        data,
        checkpoints=out / "checkpoints",
        title=context.stage,
        loggers=[logger for logger in (jsonl, wandb) if logger is not None],
        resumed=jsonl.truncate,
        warn=warn,
        **trainer,  # type: ignore[arg-type]
    )
    jsonl.finalize("success")
    if wandb is not None:
        wandb.experiment.finish()  # type: ignore[attr-defined]
    rows = read_metrics_log(out)
    tail = rows[-min(10, len(rows)) :]
    return {
        "steps": rows[-1]["step"],
        "pairs_seen": rows[-1]["pairs"],
        "tokens_seen": rows[-1]["tokens"],
        "final_loss": sum(r["loss"] for r in tail) / len(tail),
        "final_accuracy": sum(r["accuracy"] for r in tail) / len(tail),
    }
