"""What ``ablate`` would do, without importing anything heavy: runs, what differs, and which stages they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_e5.ablation.plan import Plan, PlannedRun, differences
from lightning_e5.config.experiment import Node, config_hash
from lightning_e5.pipeline.fingerprint import deciding
from lightning_e5.pipeline.plan import training_lines
from lightning_e5.pipeline.runner import METRICS
from lightning_e5.redaction import redact

_SHOWN_VALUE = 60


def plan_text(plan: Plan) -> list[str]:
    """The plan as lines for a terminal."""
    ablation = plan.ablation
    finished = [run for run in plan.wanted if (plan.directory / run.name / METRICS).is_file()]
    seeds = sorted({run.seed for run in plan.wanted})
    lines = [
        f"{ablation.name} at scale {ablation.scale}: {ablation.question}",
        f"{len(plan.wanted)} runs in {plan.directory} ({len(plan.wanted) // max(1, len(seeds))} variants x seeds "
        f"{', '.join(map(str, seeds))}), {len(finished)} finished",
        *(f"left out at this scale: {name} ({why})" for name, why in ablation.skipped.items()),
        *only_without_baseline(plan),
    ]
    shared = shared_stages(plan)
    described: set[str] = set()
    for run in plan.wanted:
        state = "finished" if run in finished else "to do"
        lines += ["", f"{run.name}: {state}" + (", baseline" if run.variant == ablation.baseline else "")]
        if run.variant not in described:
            described.add(run.variant)
            lines += [f"  {line}" for line in variant_lines(plan, run)]
        computed = [stage for stage in run.experiment["stages"] if stage not in shared[run.name]]
        groups: dict[str, list[str]] = {}
        for stage, other in shared[run.name].items():
            groups.setdefault(other, []).append(stage)
        lines += [f"  computes: {', '.join(computed) or 'nothing'}"]
        lines += [f"  shares with {other}: {', '.join(stages)}" for other, stages in groups.items()]
    return lines


def only_without_baseline(plan: Plan) -> list[str]:
    """A line where the baseline is not among the runs wanted."""
    if any(run.variant == plan.ablation.baseline for run in plan.wanted):
        return []
    return [f"note: without the baseline {plan.ablation.baseline}, which the variants are compared with"]


def variant_lines(plan: Plan, run: PlannedRun) -> list[str]:
    """What a variant is: its description, what differs from the baseline, and its trainings' sizes."""
    lines = [plan.ablation.descriptions[run.variant]]
    if run.variant != plan.ablation.baseline:
        found = [f"{key}={_short(redact(value, key.rpartition('.')[2], run.experiment))}" for key, value in differences(plan, run.variant)]
        lines += [f"differs: {text}" for text in found] or ["differs in nothing from the baseline"]
    max_length = int((run.experiment.get("encoder") or {}).get("max_length", 128))
    for name, node in run.experiment["stages"].items():
        lines += [f"{name}: {line}" for line in training_lines(node, None, max_length)]
    return lines


def shared_stages(plan: Plan) -> dict[str, dict[str, str]]:
    """Run -> stage -> the earlier run that has the same stage: equal configuration, seed and, so on down, inputs."""
    first: dict[str, str] = {}
    shared: dict[str, dict[str, str]] = {}
    for run in plan.wanted:
        shared[run.name] = {}
        keys: dict[str, str] = {}
        for name, node in run.experiment["stages"].items():
            keys[name] = _stage_key(run.experiment, name, node, keys)
            other = first.setdefault(keys[name], run.name)
            if other != run.name and run.experiment.get("stage_cache"):
                shared[run.name][name] = other
    return shared


def _stage_key(experiment: Node, name: str, node: Node, keys: Mapping[str, str]) -> str:
    inputs = _with_keys(node.get("inputs") or {}, keys)
    seed = node.get("seed", experiment["seed"])
    return config_hash([name, deciding(node), seed, inputs, experiment["threads"], experiment.get("stage_cache")])


def _with_keys(reference: Any, keys: Mapping[str, str]) -> Any:
    if isinstance(reference, dict):
        return {k: _with_keys(v, keys) for k, v in reference.items()}
    return [reference, keys.get(str(reference).split("/")[0])]


def _short(value: Any) -> str:
    text = str(value) if value is not None else "null"
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}..."
