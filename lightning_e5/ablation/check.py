"""An ablation YAML for the ``check`` verb: the experiments of all its scales and variants, and what they are."""

from __future__ import annotations

from pathlib import Path

from lightning_e5.ablation.ablation_file import is_ablation, load_ablation, scale_names
from lightning_e5.ablation.dry_run import variant_lines
from lightning_e5.ablation.plan import plan_ablation
from lightning_e5.config import Node


def expanded(path: Path) -> tuple[list[tuple[str, Node]], list[str]] | None:
    """Titles and experiments, one per scale and variant, and lines that describe them; None for an experiment's YAML.

    Raises:
        UserError: the first thing that is wrong in the YAML or in one of its experiments.
    """
    if not is_ablation(path):
        return None
    experiments: list[tuple[str, Node]] = []
    lines: list[str] = []
    default = load_ablation(path)
    lines.append(f"{default.name}: {default.question}")
    for scale in scale_names(path):
        ablation = load_ablation(path, scale)
        plan = plan_ablation(ablation, seeds=1)
        lines.append(
            f"scale {scale}{' (default)' if scale == default.scale else ''}: {len(plan.every)} runs of {ablation.base}, "
            f"seeds {', '.join(map(str, ablation.seeds))}, reports {', '.join(ablation.report)}"
        )
        lines += [f"  left out: {name} ({why})" for name, why in ablation.skipped.items()]
        for run in plan.wanted:
            mark = ", baseline" if run.variant == ablation.baseline else ""
            lines.append(f"  {run.variant}{mark}")
            lines += [f"    {line}" for line in variant_lines(plan, run)]
            experiments.append((f"{path}: variant {run.variant} at scale {scale}", run.experiment))
    return experiments, lines
