"""One training from its data module to its last step, resumed from the newest whole checkpoint."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger

from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.callbacks import PeriodicCheckpoint, ProgressLine, VerifiedCheckpointIO
from lightning_e5.training.checkpointing import latest_checkpoint


def fit(
    module: TrainingModule,
    data: L.LightningDataModule,
    *,
    checkpoints: Path,
    title: str,
    loggers: Sequence[Logger] = (),
    resumed: Callable[[int], object] = lambda step: None,
    warn: Callable[[str], None] = lambda message: None,
    checkpoint_seconds: float = 60.0,
    checkpoint_steps: int | None = None,
    accelerator: str = "auto",
    devices: int | str = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
) -> None:
    """Train ``module`` for its ``max_steps`` with Lightning.

    Args:
        module: the training scheme.
        data: its batches.
        checkpoints: directory of the checkpoints; the newest whole one is continued from.
        title: of the progress line.
        loggers: Lightning loggers.
        resumed: called with the step that training continues after, before it does.
        warn: called with messages for the user (a refused checkpoint).
        checkpoint_seconds: save at least this often.
        checkpoint_steps: and after every so many steps.
        accelerator, devices, num_nodes, strategy: as for ``lightning.Trainer``.
    """
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    start = latest_checkpoint(checkpoints, warn)
    resumed(start.step if start else 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        trainer: Any = L.Trainer(
            max_steps=module.max_steps,
            max_epochs=1,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            logger=list(loggers) or False,
            callbacks=[
                PeriodicCheckpoint(checkpoints, every_seconds=checkpoint_seconds, every_steps=checkpoint_steps),
                ProgressLine(title),
            ],
            plugins=[VerifiedCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, datamodule=data, ckpt_path=str(start.path) if start else None, weights_only=True)
