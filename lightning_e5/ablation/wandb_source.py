"""The runs of a W&B group as an ablation's values, through W&B's API: what `results_of` reads from a directory.

Every training stage of a run of an ablation is a W&B run ``VARIANT-seedN/STAGE`` with its curve as history, and the
run's results are one more, whose summary holds ``metrics.json``. W&B keeps no values per query, so that intervals and
tests are over the seeds alone.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.ablation.variant_results import VariantResults
from lightning_e5.config import Node
from lightning_e5.errors import UserError, suggestion

_NAME = re.compile(r"(?P<variant>.+)-seed(?P<seed>\d+)(?:/(?P<stage>.+))?")
#: The last part of the name of the W&B run that holds a run's results.
RESULTS = "results"
#: Columns of a curve, and what W&B's history may call them (before them stands ``STAGE/``, or nothing).
CURVE_KEYS = {"pairs": ("pairs_seen", "pairs"), "loss": ("loss",)}
#: Seconds that W&B may take to answer.
TIMEOUT = 20


@dataclass(frozen=True, slots=True)
class GroupRun:
    """What is read of one W&B run: its name, its final metrics, its curve (``pairs``, ``loss``), its state (``finished``, ...)."""

    name: str
    metrics: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    state: str = "finished"


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
        raise UserError(f"{where}: cannot be read while WANDB_MODE is {mode!r}; unset it, or read the ablation's directory")
    if not _logged_in():
        raise UserError(f"{where}: needs a login (`wandb login`, or WANDB_API_KEY); without one read the ablation's directory")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    try:
        found = [_read(run) for run in wandb.Api(timeout=TIMEOUT).runs(path, filters={"group": group}, lazy=False)]
    except Exception as error:  # of W&B, of requests and ValueError for a project that is not there: all mean "no data"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: W&B does not give it ({reason})") from None
    if not found:
        raise UserError(f"{where}: has no run; check the project and the group's name on the W&B page")
    return found


def results_of_group(
    runs: Iterable[GroupRun], name: str, *, baseline: str | None = None, report: Sequence[str] = (), paper: Node | None = None
) -> VariantResults:
    """The runs of a group as `VariantResults`.

    Args:
        runs: from `read_group`.
        name: shown as the ablation's.
        baseline: the variant that the others are compared with; the first by default.
        report: the metrics of interest; by default those that end in ``ndcg@10``.
        paper: the paper's figures, as in an ablation's file.

    Raises:
        UserError: no run is named ``VARIANT-seedN``, or the baseline is none of the variants.
    """
    values: dict[tuple[str, int], dict[str, float]] = {}
    curves: dict[tuple[str, int], dict[str, Sequence[Mapping[str, float]]]] = {}
    missing: dict[tuple[str, int], str] = {}
    for run in runs:
        match = _NAME.fullmatch(run.name)
        if match is None:
            continue
        key, stage = (match["variant"], int(match["seed"])), match["stage"]
        if run.state != "finished":
            missing[key] = run.state
        values.setdefault(key, {}).update(run.metrics)
        if stage not in (None, RESULTS) and run.curve:
            curves.setdefault(key, {})[stage] = run.curve
    if not values:
        raise UserError(f"{name}: none of its W&B runs is named VARIANT-seedN or VARIANT-seedN/STAGE, so it is no ablation's group")
    variants = dict.fromkeys((variant for variant, _ in values), "")
    chosen = baseline or next(iter(variants))
    if chosen not in variants:
        raise UserError(f"{name}: the baseline {chosen!r} is none of its variants{suggestion(chosen, variants)}")
    known = sorted({metric for own in values.values() for metric in own})
    reported = list(report) or [metric for metric in known if metric.endswith("/ndcg@10")]
    return VariantResults(
        name, "", (), chosen, tuple(reported), variants, {k: v for k, v in values.items() if k not in missing}, curves, {},
        [(*key, state) for key, state in missing.items()], paper,
    )  # fmt: skip


def _read(run: Any) -> GroupRun:
    name = str(run.name)
    metrics = {k: float(v) for k, v in dict(run.summary).items() if _is_metric(k, v)}
    columns = _curve_columns(metrics, name.rpartition("/")[2])
    rows = run.scan_history(keys=list(columns.values())) if len(columns) == len(CURVE_KEYS) else ()
    curve = [{ours: float(row[theirs]) for ours, theirs in columns.items()} for row in rows]
    return GroupRun(name, metrics, curve, str(run.state))


def _curve_columns(metrics: Mapping[str, float], stage: str) -> dict[str, str]:
    """Our column -> W&B's, of those that a run has."""
    found = {}
    for ours, names in CURVE_KEYS.items():
        for name in [shown for own in names for shown in (f"{stage}/{own}", own)]:
            if name in metrics:
                found.setdefault(ours, name)
    return found


def _is_metric(name: str, value: object) -> bool:
    return not name.startswith("_") and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _logged_in() -> bool:
    """Whether there is a key; asked before W&B, which would ask for one at the keyboard."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace")
