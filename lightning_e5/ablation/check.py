"""An ablation YAML for the ``check`` verb: the experiments of all its scales and variants, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_e5.ablation.dry_run import variant_lines
from lightning_e5.ablation.plan import Plan, plan_ablation
from lightning_e5.config.ablation_spec import Ablation, is_ablation, load_ablation, scale_names
from lightning_e5.config.experiment import Node


def expanded(path: Path, overrides: Sequence[str] = ()) -> tuple[list[tuple[str, Node]], Callable[[], list[str]]] | None:
    """Titles and experiments, one per scale and variant, and what gives the lines that describe them; None for an
    experiment's YAML.

    Args:
        path: the YAML.
        overrides: ``key=value`` for every run; ``scale=...`` leaves the other scales out.

    Raises:
        UserError: the first thing that is wrong in the YAML or in one of its experiments.
    """
    if not is_ablation(path):
        return None
    default = load_ablation(path)
    scales = [word.removeprefix("scale=") for word in overrides if word.startswith("scale=")] or scale_names(path)
    others = [word for word in overrides if not word.startswith("scale=")]
    plans = [plan_ablation(load_ablation(path, scale), others, seeds=1) for scale in scales]
    experiments = [
        (f"{path}: variant {run.variant} at scale {plan.ablation.scale}", run.experiment) for plan in plans for run in plan.wanted
    ]
    return experiments, lambda: [f"{default.name}: {default.question}", *(line for plan in plans for line in _lines(plan, default))]


def _lines(plan: Plan, default: Ablation) -> list[str]:
    ablation = plan.ablation
    lines = [
        f"scale {ablation.scale}{' (default)' if ablation.scale == default.scale else ''}: {len(plan.every)} runs of {ablation.base}, "
        f"seeds {', '.join(map(str, ablation.seeds))}, reports {', '.join(ablation.report)}"
    ]
    lines += [f"  left out: {name} ({why})" for name, why in ablation.skipped.items()]
    for run in plan.wanted:
        lines.append(f"  {run.variant}{', baseline' if run.variant == ablation.baseline else ''}")
        lines += [f"    {line}" for line in variant_lines(plan, run)]
    return lines
