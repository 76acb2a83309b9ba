"""Callbacks of every training: verified checkpoints, an orderly stop on a signal, a progress line with an ETA."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lightning_e5.distributed import any_rank
from lightning_e5.progress import Bar
from lightning_e5.training.checkpointing import checkpoint_path, load_checkpoint, save_checkpoint


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through `lightning_e5.training.checkpointing`: atomic, with sha256, data only."""

    def __init__(self, keep: int = 2) -> None:
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(Path(path), checkpoint, keep=self.keep)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).with_suffix(".json").unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


class PeriodicCheckpoint(L.Callback):
    """Saves after a number of optimizer steps or of seconds, whichever comes first, at a step's end on all ranks."""

    def __init__(self, directory: Path, *, every_steps: int | None = None, every_seconds: float = 60.0) -> None:
        self.directory, self.every_steps, self.every_seconds = directory, every_steps, every_seconds
        self._last = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        due = self.every_steps is not None and step % self.every_steps == 0
        due = due or time.monotonic() - self._last >= self.every_seconds
        if any_rank(due, pl_module.device) and step < (trainer.max_steps or 0):
            trainer.save_checkpoint(checkpoint_path(self.directory, step))
            self._last = time.monotonic()


class StopOnSignal(L.Callback):
    """SIGTERM or SIGUSR1 to any rank: all ranks save a checkpoint at the end of the step and stop.

    The handler only sets a flag; the ranks agree on it between two steps, so no collective runs inside it.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stopped = False
        self._asked = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in self.SIGNALS}

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if any_rank(self._asked, pl_module.device):
            path = checkpoint_path(self.directory, trainer.global_step)
            if not path.is_file():
                trainer.save_checkpoint(path)
            self.stopped = trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class ProgressLine(L.Callback):
    """Steps, ETA, loss, accuracy in batch, pairs and tokens per second."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: Bar | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = Bar(trainer.max_steps, self.title, "step", done=trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._bar is None:
            return
        row = getattr(pl_module, "last_metrics", {})
        self._bar.note(
            f"loss {row.get('loss', float('nan')):.3f}, acc {row.get('accuracy', float('nan')):.2f}, "
            f"{row.get('pairs_per_second', 0):.0f} pairs/s, {row.get('tokens_per_second', 0) / 1000:.0f}k tok/s, "
            f"{row.get('mfu', 0):.0%} of peak"
        )
        self._bar(trainer.global_step - self._bar.done)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
