"""The W&B run of a training stage while it trains: every step exactly once, also over kills and resumes.

Three things can go wrong when a process is killed: W&B loses rows that it had not written yet, it holds rows of steps
after the last checkpoint, which are computed again, and nobody says how the run ended. So a resumed stage first reads
W&B's files back: rows of ``metrics.jsonl`` that are not in them are logged, and steps that are in them are not logged again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from lightning_e5.config.experiment import Node
from lightning_e5.files.run_layout import VALIDATED, VALIDATION
from lightning_e5.modules.validation import LOWER
from lightning_e5.tracking.metrics_log import TIMED
from lightning_e5.tracking.run_directory import warn
from lightning_e5.tracking.wandb_run import first_line, history_name, log_columns, read_history, start_run

#: What a process that SIGTERM stopped ends with.
_STOPPED = 143


class WandbStage(Logger):
    """A Lightning logger that mirrors ``metrics.jsonl`` to W&B; where W&B fails it warns once and does nothing more.

    Args:
        settings: the ``logger`` node of the experiment.
        directory: the stage's folder.
        stage: its name, and the first part of its metrics' names.
        config: the resolved experiment.
    """

    def __init__(self, settings: Node, *, directory: Path, stage: str, config: Node) -> None:
        super().__init__()
        self.settings, self.directory, self.stage, self.config = settings, directory, stage, config
        self._run: Any = None
        #: Step -> the row that W&B has of it from an earlier process; of an online run the steps alone.
        self._written: dict[int, Node] = {}
        self._differs = self._given_up = False

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str | None:
        return None if self._run is None else str(self._run.id)

    def start(self, rows: Sequence[Mapping[str, float]]) -> dict[int, dict[str, float]]:
        """Start or continue the run.

        Args:
            rows: all of ``metrics.jsonl`` up to the step that training continues after, each with the values of its validation.

        Returns:
            Step -> the row of ``metrics.jsonl`` that earlier processes gave to W&B.
        """
        before: dict[int, Node] = {}
        self._attempt(lambda: before.update(read_history(self.directory)))
        self._attempt(lambda: self._start(rows, before))
        return {step: log_columns(self.stage, row) for step, row in before.items()}

    def _start(self, rows: Sequence[Mapping[str, float]], before: dict[int, Node]) -> None:
        self._run = run = start_run(self.settings, directory=self.directory, job_type=self.stage, config=self.config)
        # Online, the server knows which steps it has.
        self._written = before if run.offline else {step: before.get(step, {}) for step in range(run.starting_step)}
        axes = [history_name(self.stage, column) for column in ("pairs", "tokens", "step")]
        for axis in axes:
            run.define_metric(axis)
        run.define_metric(f"{self.stage}/*", step_metric=axes[0])
        run.define_metric(f"{VALIDATED}*", step_metric=axes[0], summary="max")
        for name in LOWER:
            run.define_metric(f"{VALIDATED}{name}", step_metric=axes[0], summary="min")
        for row in rows:
            self._log({k: v for k, v in row.items() if k != "step"}, int(row["step"]))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is not None:
            self._with_run(lambda run: self._log(metrics, step))

    def log_validation(self, row: Mapping[str, float]) -> None:
        """Add what a validation found to the row of its step, which W&B writes with the next step's."""
        step = int(row["step"])
        self._with_run(lambda run: self._log({name: value for name, value in row.items() if name != "step"}, step))

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        row = {history_name(self.stage, name): value for name, value in {**metrics, "step": step}.items()}
        before = self._written.get(step)
        if before is None:
            self._run.log(row, step=step)  # not committed: a validation of the step adds to it
        elif before and any(name.startswith(VALIDATED) and name not in before for name in row):
            warn(f"W&B: lacks the validation of step {step} of {self.stage}, which was stopped in it; {VALIDATION} has it")
        elif before and not self._differs and any(before.get(name) != value for name, value in _untimed(row, self.stage).items()):
            self._differs = True
            warn(f"W&B: step {step} of {self.stage} came out differently after the resume; W&B keeps the first values, metrics.jsonl the last")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run starts with the whole resolved experiment."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        """End a run that is done, with its stage's last figures in the summary."""
        self._with_run(lambda run: run.summary.update({f"{self.stage}/{k}": v for k, v in metrics.items()}))
        self._with_run(lambda run: run.finish(exit_code=0))
        self._run = None

    def fail(self, error: BaseException) -> None:
        """End a run that an error or a signal stopped, so that it never counts as finished."""
        code = error.code if isinstance(error, SystemExit) else 130 if isinstance(error, KeyboardInterrupt) else 1
        code = code if isinstance(code, int) and code != 0 else 1
        if code == _STOPPED:  # the same command continues it
            self._with_run(lambda run: run.mark_preempting())
        self._with_run(lambda run: run.finish(exit_code=code))
        self._run = None

    def _with_run(self, action: Callable[[Any], object]) -> None:
        if (run := self._run) is not None:
            self._attempt(lambda: action(run))

    def _attempt(self, action: Callable[[], object]) -> None:
        """Do it; W&B's failure is not the training's."""
        if self._given_up:
            return
        try:
            action()
        except Exception as error:
            run, self._run, self._given_up = self._run, None, True
            if run is not None:
                with suppress(Exception):
                    run.finish(exit_code=1)
            warn(f"W&B: {first_line(error)}; {self.stage} goes on without it, metrics.jsonl has everything")


def _untimed(row: Mapping[str, float], stage: str) -> dict[str, float]:
    timed = {history_name(stage, name) for name in TIMED}
    return {name: value for name, value in row.items() if name not in timed}
