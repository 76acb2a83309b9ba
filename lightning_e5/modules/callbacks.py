"""Callbacks of every training: each step's row, verified checkpoints, an orderly stop on a signal, a progress line with an ETA."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lightning_e5.distributed.collectives import any_rank
from lightning_e5.distributed.ranks import ranks
from lightning_e5.interrupts import STOPPING, end_now, handlers, listening
from lightning_e5.progress import Bar, say
from lightning_e5.training.background_writer import BackgroundWriter
from lightning_e5.training.checkpointing import checkpoint_path, load_checkpoint, save_checkpoint
from lightning_e5.training.grad_cache import StepGivenUp


class StepLog(Protocol):
    """A log of a training with one row per optimizer step."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the row of ``step``, the number of steps done, this one included."""
        ...


class StepRecords(L.Callback):
    """Hands the row of every step to logs that keep each one, as it was computed.

    Lightning's loggers get rows as float32, under the names of ``self.log``, and only every ``log_every_n_steps``.
    """

    def __init__(self, logs: Sequence[StepLog]) -> None:
        self.logs = logs

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if not getattr(pl_module, "reads_late", False):
            self.on_step_read(trainer, pl_module, trainer.global_step, getattr(pl_module, "last_metrics", {}), None)

    def on_step_read(self, trainer: L.Trainer, module: L.LightningModule, step: int, row: Mapping[str, float], batch: Any) -> None:
        """The row of a step, which may be one before the last."""
        for log in self.logs:
            log.log_metrics(row, step=step)


#: ``trainer.save_checkpoint(path, storage_options=IN_BACKGROUND)``: a thread writes it, and training goes on; see `VerifiedCheckpointIO`.
IN_BACKGROUND = {"background": True}


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through `lightning_e5.training.checkpointing`: atomic, with sha256, data only.

    A checkpoint that is not saved `IN_BACKGROUND` is there when ``save_checkpoint`` returns, and all before it are.
    """

    def __init__(self, keep: int = 2) -> None:
        self.keep = keep
        #: Of the rank that writes; that of others has nothing to do.
        self.writer = BackgroundWriter(partial(save_checkpoint, keep=keep))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if storage_options == IN_BACKGROUND:
            self.writer.submit(Path(path), checkpoint)
            return
        self.writer.finish()
        save_checkpoint(Path(path), checkpoint, keep=self.keep)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).with_suffix(".json").unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)

    def teardown(self) -> None:
        if (error := self.writer.wait()) is not None:
            say(str(error))  # another error ends the training already


def _writer(trainer: L.Trainer) -> BackgroundWriter | None:
    """What writes this training's checkpoints in the background; None where nothing does."""
    plugin = trainer.strategy.checkpoint_io
    return plugin.writer if isinstance(plugin, VerifiedCheckpointIO) else None


class PeriodicCheckpoint(L.Callback):
    """Saves after a number of optimizer steps or of seconds, whichever comes first, at a step's end on all ranks.

    Args:
        directory: of the checkpoints.
        every_steps: None for no number of steps.
        every_seconds: by default 600 on a GPU and 60 elsewhere.
        background: a thread writes while training goes on (see `BackgroundWriter`), which needs `VerifiedCheckpointIO`; by default
            on a GPU alone: elsewhere the thread would take the cores and the memory that training computes with.

    Raises:
        OSError: a checkpoint could not be written; one of the background at the end of a later step.
    """

    def __init__(
        self, directory: Path, *, every_steps: int | None = None, every_seconds: float | None = None, background: bool | None = None
    ) -> None:
        self.directory, self.every_steps, self.every_seconds, self.background = directory, every_steps, every_seconds, background
        self._last = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        on_gpu = pl_module.device.type == "cuda"
        self.every_seconds = self.every_seconds if self.every_seconds is not None else 600.0 if on_gpu else 60.0
        self.background = on_gpu and _writer(trainer) is not None if self.background is None else self.background
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if (writer := _writer(trainer)) is not None:
            writer.check()
        step = trainer.global_step
        due = self.every_steps is not None and step % self.every_steps == 0
        due = due or (self.every_seconds is not None and time.monotonic() - self._last >= self.every_seconds)
        if any_rank(due, pl_module.device) and step < (trainer.max_steps or 0):
            _read_steps(pl_module)
            trainer.save_checkpoint(checkpoint_path(self.directory, step), storage_options=IN_BACKGROUND if self.background else None)
            self._last = time.monotonic()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (writer := _writer(trainer)) is not None:
            writer.finish()


class StopOnSignal(L.Callback):
    """SIGTERM, SIGUSR1 or SIGINT to any rank: all ranks save a checkpoint between two chunks or steps, and stop.

    A step that is not done by then is given up on all ranks; the checkpoint is of the step before. A second SIGINT ends the
    process at once. The rank that hears of a signal tells the others over their own connection (`lightning_e5.distributed.ranks`), as it
    may be waiting for them in a collective; they agree in collectives that they run anyway.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        #: Whether the ranks agreed to stop.
        self.stopped = False
        #: The signal that this rank got.
        self.signal: int | None = None
        self._heard_at: float | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals within the block stop the training."""
        with handlers(self._noted, (*STOPPING, signal.SIGINT)), listening(self._heard):
            yield

    def _noted(self, number: int, frame: Any) -> None:
        """The handler, in the main thread: where it runs before `_heard` does, no other chunk is begun."""
        if self.signal is None:
            self.signal = number

    def _heard(self, number: int) -> None:
        if number not in (*STOPPING, signal.SIGINT):
            return
        again = self._heard_at is not None and time.monotonic() - self._heard_at > 0.5  # and not one key that a launcher passes on
        if again and number == signal.SIGINT:
            end_now(number)
        if self._heard_at is None:
            self._heard_at = time.monotonic()
        if self.signal is None:
            self.signal = number
        if (others := ranks()) is not None:
            others.ask_to_stop()

    def told(self) -> bool:
        """Whether this rank knows that one was asked to stop."""
        others = ranks()
        return self.signal is not None or (others is not None and others.stop)

    def agree(self, device: Any) -> None:
        """Stop where any rank was told to; a collective call."""
        self.stopped = self.stopped or any_rank(self.told(), device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        cache = getattr(pl_module, "grad_cache", None)
        if cache is not None:
            cache.told_to_stop = self.told

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.agree(pl_module.device)
        if self.stopped:
            self._save(trainer, pl_module.device)
            trainer.should_stop = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, StepGivenUp):
            self.stopped = True
            self._save(trainer, pl_module.device)

    def _save(self, trainer: L.Trainer, device: Any) -> None:
        """A checkpoint of the last step, where there is none; a collective call."""
        path = checkpoint_path(self.directory, trainer.global_step)
        if (writer := _writer(trainer)) is not None:
            writer.finish()  # it may be the one that is being written
        # The first rank alone knows that it is written: another must not begin to save what that one has.
        if trainer.global_step and any_rank(trainer.is_global_zero and not path.is_file(), device):
            _read_steps(trainer.lightning_module)
            trainer.save_checkpoint(path)


def _read_steps(module: L.LightningModule) -> None:
    """Let the callbacks have the rows of all steps before their own states are saved."""
    if (read := getattr(module, "read_steps", None)) is not None:
        read()


class ProgressLine(L.Callback):
    """Steps, time left, loss, last validation, pairs and tokens per second, and memory, within the 100 columns of a terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: Bar | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = Bar(trainer.max_steps, self.title, "step", done=trainer.global_step, rate=False)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._bar is None:
            return
        validated, monitored = getattr(pl_module, "last_validation", {}), getattr(pl_module, "monitored", None)
        self._bar.note(figures(getattr(pl_module, "last_metrics", {}), validated, monitored))
        self._bar(trainer.global_step - self._bar.done)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def figures(row: Mapping[str, float], validated: Mapping[str, float], monitored: str | None = None) -> str:
    """The figures of a progress line, the most important first.

    Args:
        row: of the last step; what it lacks is left out.
        validated: name -> value of the last validation, such as ``val/nano_beir/ndcg@10``; where it is empty, the accuracy in the batch is shown.
        monitored: the one of them that is shown; the first by default.
    """
    shown = [f"loss {row['loss']:.{2 if row['loss'] < 9.995 else 1}f}"] if "loss" in row else []
    if validated:
        name = monitored if monitored is not None and monitored in validated else next(iter(validated))
        short = name.rpartition("/")[2]
        label = f"val {short}".replace("accuracy", "acc") if short in row else short  # the training has a figure of that name, too
        shown.append(f"{label} {validated[name]:.3f}")
    elif "accuracy" in row:
        shown.append(f"acc {row['accuracy']:.2f}")
    shown += [f"{short_number(row[key])} {unit}" for key, unit in (("pairs_per_second", "pairs/s"), ("tokens_per_second", "tok/s")) if key in row]
    if "memory_gb" in row:
        shown.append(f"{row['memory_gb']:.{0 if row['memory_gb'] >= 10 else 1}f} GB")
    return ", ".join(shown)


def short_number(value: float) -> str:
    """A rate in at most four characters: 7.5, 123, 45k, 1.2M."""
    power = 2 if value >= 999_500 else 1 if value >= 999.5 else 0
    scaled = value / 1000**power
    return f"{scaled:.{1 if scaled < 9.95 else 0}f}{('', 'k', 'M')[power]}"
