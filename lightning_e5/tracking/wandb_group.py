"""The runs of a W&B group, fetched as an ablation's directory, so that all that reads such a directory reads a group.

Every training stage of a run of an ablation is a W&B run ``VARIANT-seedN/STAGE`` with its curve as history; the results of
a run are one more, whose summary holds ``metrics.json``. W&B keeps no values per query, so that intervals and tests are
over the seeds alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_e5.config.experiment import Node, check_name
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.run_layout import ABLATION, CONFIG, LOG, METRICS, STATUS, TIMING
from lightning_e5.files.storage import empty_directory, write_json, write_text
from lightning_e5.redaction import redact
from lightning_e5.tracking.wandb_run import ABLATION_RUN, RENAMED, RESULTS, wandb_mode

#: Columns of a curve.
_CURVE = ("pairs", "loss")
#: Seconds that W&B may take to answer.
TIMEOUT = 20


@dataclass(frozen=True, slots=True)
class GroupRun:
    """What is read of one W&B run: name, final metrics, curve (``pairs``, ``loss``), state (``finished``, ...), experiment."""

    name: str
    metrics: Mapping[str, float]
    curve: Sequence[Mapping[str, float]] = ()
    state: str = "finished"
    config: Node = field(default_factory=dict)


def read_group(path: str, group: str) -> list[GroupRun]:
    """The runs of a group, with their final metrics and curves.

    Args:
        path: ``ENTITY/PROJECT``, or ``PROJECT`` of one's own.
        group: an ablation's is ``ABLATION-SCALE``.

    Raises:
        UserError: W&B is switched off or not logged in to, does not answer, or has no such group.
    """
    where = f"W&B group {group!r} of {path}"
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        raise UserError(f"{where}: cannot be read while WANDB_MODE is {mode!r}; unset it, or read the ablation's own directory")
    if wandb_mode({}) != "online":  # asked before W&B, which would ask for a key at the keyboard
        raise UserError(f"{where}: needs a login (`wandb login`, or WANDB_API_KEY); without one read the ablation's own directory")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    try:
        found = [_read(run) for run in wandb.Api(timeout=TIMEOUT).runs(path, filters={"group": group}, lazy=False)]
    except Exception as error:  # W&B's own, those of requests, ValueError where there is no such project: all mean "no data"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: W&B does not give it ({reason})") from None
    if not found:
        raise UserError(f"{where}: has no run; check the project and the group's name on its W&B page")
    return found


def write_group(
    runs: Iterable[GroupRun], group: str, directory: Path, *, baseline: str | None = None, report: Sequence[str] = ()
) -> Path:
    """Write the runs of a group as an ablation's directory: ``ablation.json``, and of each run configuration, curves, metrics.

    Args:
        runs: from `read_group`.
        group: its name, ``ABLATION-SCALE``.
        directory: is made, or emptied if an earlier call made it.
        baseline: the variant that the others are compared with; the first by default.
        report: the metrics of interest; by default those that end in ``ndcg@10``.

    Raises:
        UserError: no run is of an ablation, the baseline is no variant, or ``directory`` holds anything else.
    """
    by_run: dict[tuple[str, int], dict[str, GroupRun]] = {}
    for run in runs:
        if match := ABLATION_RUN.fullmatch(run.name):
            by_run.setdefault((match["variant"], int(match["seed"])), {})[match["stage"]] = run
    check_name(group, "a W&B group")
    for variant, stage in ((variant, stage) for (variant, _), stages in by_run.items() for stage in stages):
        check_name(variant, f"W&B group {group!r}: a run's variant")
        check_name(stage, f"W&B group {group!r}: a run's stage")
    if not by_run:
        raise UserError(f"W&B group {group!r}: none of its runs is named VARIANT-seedN/STAGE, so it is no ablation's")
    variants = list(dict.fromkeys(variant for variant, _ in by_run))
    chosen = baseline or variants[0]
    if chosen not in variants:
        raise UserError(f"W&B group {group!r}: the baseline {chosen!r} is none of its variants{suggestion(chosen, variants)}")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / ABLATION).is_file():
        raise UserError(f"{directory}: holds something that is no ablation; name another directory for the W&B group")
    empty_directory(directory)
    name, _, scale = group.rpartition("-")
    known = sorted({metric for stages in by_run.values() for run in stages.values() for metric in run.metrics})
    plan = {
        "ablation": name or group, "scale": scale, "file": f"W&B group {group}", "question": f"The runs of the W&B group {group}.",
        "held_constant": [], "baseline": chosen, "report": list(report) or [m for m in known if m.endswith("/ndcg@10")],
        "seeds": sorted({seed for _, seed in by_run}), "paper": None,
        "variants": {v: {"description": "", "runs": {str(s): f"{v}-seed{s}" for w, s in by_run if w == v}} for v in variants},
    }  # fmt: skip
    write_text(directory / ABLATION, json.dumps(plan, indent=1, ensure_ascii=False))  # variants in their order
    for (variant, seed), stages in by_run.items():
        _write_run(directory / f"{variant}-seed{seed}", seed, stages)
    status = {f"{v}-seed{s}": {"state": _state(stages), "exit_code": None, "message": None, "seconds": None} for (v, s), stages in by_run.items()}
    write_json(directory / STATUS, status)
    return directory


def _write_run(directory: Path, seed: int, stages: Mapping[str, GroupRun]) -> None:
    """A run directory with what W&B has of it; its metrics, the mark of a finished run, last and only where it is finished."""
    curves = {stage: run for stage, run in stages.items() if stage != RESULTS and run.curve}
    given: Node = next((run.config for run in stages.values() if "stages" in run.config), {})
    nodes = {**{stage: {} for stage in curves}, **(given.get("stages") or {})}
    config = {**given, "name": directory.name, "seed": seed, "runs_dir": str(directory.parent), "threads": given.get("threads"), "stages": nodes}
    write_text(directory / CONFIG, yaml.safe_dump(redact(config), sort_keys=False))
    for stage, run in curves.items():
        rows = [json.dumps({"step": number, **row}) for number, row in enumerate(run.curve, 1)]
        write_text(directory / "stages" / stage / LOG, "\n".join([*rows, ""]))
    results = stages[RESULTS].metrics if RESULTS in stages else {}
    for stage in nodes:  # the results also hold each stage's time
        if f"{stage}/seconds" in results:
            facts = {key: results.get(f"{stage}/{key}", 0.0) for key in ("seconds", "peak_memory_gb")}
            write_json(directory / "stages" / stage / TIMING, facts)
    if _state(stages) == "finished":
        found = stages[RESULTS].metrics if RESULTS in stages else {k: v for run in stages.values() for k, v in run.metrics.items()}
        write_json(directory / METRICS, dict(found))


def _state(stages: Mapping[str, GroupRun]) -> str:
    """How a run stands: as its results where they are there, else as the first of its stages that is not finished."""
    if RESULTS in stages:
        return stages[RESULTS].state
    return next((run.state for run in stages.values() if run.state != "finished"), "finished")


def _read(run: Any) -> GroupRun:
    name = str(run.name)
    metrics = {k: float(v) for k, v in dict(run.summary).items() if _is_metric(k, v)}
    columns = _curve_columns(metrics, name.rpartition("/")[2])
    rows = run.scan_history(keys=list(columns.values())) if len(columns) == len(_CURVE) else ()
    curve = [{ours: float(row[theirs]) for ours, theirs in columns.items()} for row in rows]
    return GroupRun(name, metrics, curve, str(run.state), dict(run.config))


def _curve_columns(metrics: Mapping[str, float], stage: str) -> dict[str, str]:
    """Our column -> W&B's, of those that a run has; W&B's may be our name or the metric's, with ``STAGE/`` before it or not."""
    found: dict[str, str] = {}
    for ours in _CURVE:
        names = [shown for own in (RENAMED.get(ours, ours), ours) for shown in (f"{stage}/{own}", own)]
        if there := [name for name in names if name in metrics]:
            found[ours] = there[0]
    return found


def _is_metric(name: str, value: object) -> bool:
    return not name.startswith("_") and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
