"""What a training's validations found: the monitored value over the pairs seen, and the losses of training and validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from lightning_e5.files.run_layout import VALIDATION
from lightning_e5.report.figures.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    SKY,
    STYLE,
    WIDTH,
    grid,
    points,
    running_mean,
)
from lightning_e5.results.result_files import read_metrics, read_steps
from lightning_e5.results.run import RunData

_LOSS = "val/loss"


@dataclass(frozen=True)
class ValidatedStage:
    """The validations of one training stage; ``monitor``: the value that chose, ``best_step``: the step whose weights are kept."""

    stage: str
    rows: Sequence[Mapping[str, float]]
    monitor: str
    best_step: int

    def at(self, step: float) -> Mapping[str, float]:
        """The validation after a step."""
        return next(row for row in self.rows if row["step"] == step)


def validated_stages(run: RunData) -> list[ValidatedStage]:
    """The training stages of a run that were validated and are finished."""
    found = []
    for stage in run.stages_with(VALIDATION):
        rows, metrics = read_steps(run.stage(stage) / VALIDATION), read_metrics(run.stage(stage))
        monitor = next((name for name in metrics if f"{name}_start" in metrics), None)
        if monitor is not None and rows and all(monitor in row for row in rows):
            found.append(ValidatedStage(stage, rows, monitor, int(metrics["best_step"])))
    return found


def validation_curves(run: RunData, width: float = WIDTH) -> Figure | None:
    """Of every validated training stage the monitored value, its best and last marked, and where there are both the two losses."""
    stages = validated_stages(run)
    logs = run.learning_curves()
    panels = [(one, loss) for one in stages for loss in (False, True) if not loss or (_LOSS in one.rows[0] and one.stage in logs)]
    if not panels:
        return None
    with rc_context(STYLE):
        figure, axes = grid(len(panels), height=2.9, width=width)
        for ax, (one, loss) in zip(axes, panels, strict=True):
            if loss:
                _losses(ax, one, logs[one.stage])
            else:
                _monitored(ax, one)
            ax.set_xlabel("pairs seen")
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.legend(loc="best")
    return figure


def _monitored(ax: Axes, one: ValidatedStage) -> None:
    start, best, last = one.rows[0], one.at(one.best_step), one.rows[-1]
    ax.plot([r["pairs"] for r in one.rows], [r[one.monitor] for r in one.rows], color=BLUE, linewidth=1.6, marker="o", markersize=3)
    ax.axhline(start[one.monitor], color=GREY, linewidth=1, linestyle="--", label=f"start: {start[one.monitor]:.3f}")
    ax.plot(last["pairs"], last[one.monitor], "s", color=ORANGE, markersize=7, label=f"last, step {last['step']:,.0f}: {last[one.monitor]:.3f}")
    kept = "kept" if best is not last else "kept, the last"
    ax.plot(best["pairs"], best[one.monitor], "*", color=RED, markeredgecolor=INK, markersize=13, label=f"{kept}, step {best['step']:,.0f}: {best[one.monitor]:.3f}")
    ax.set_title(f"{one.stage}: {one.monitor.removeprefix('val/')} of the validation")
    ax.set_ylabel(one.monitor.rsplit("/", 1)[-1])


def _losses(ax: Axes, one: ValidatedStage, log: Sequence[dict[str, float]]) -> None:
    if (found := points(log)) is not None:
        x, loss, _ = found
        ax.plot(x, running_mean(loss, max(1, len(loss) // 15)), color=SKY, linewidth=1.6, label="training, running mean")
    ax.plot([r["pairs"] for r in one.rows], [r[_LOSS] for r in one.rows], color=BLUE, linewidth=1.6, marker="o", markersize=3, label="validation")
    ax.axvline(one.at(one.best_step)["pairs"], color=RED, linewidth=1, linestyle="--", label="kept")
    ax.set_title(f"{one.stage}: loss of training and validation")
    ax.set_ylabel("loss (nats)")
