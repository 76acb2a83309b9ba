"""An ablation's runs, each an ordinary experiment.

Its experiment is the scale's base, merged with the scale's ``over``, the variant's, the scale's for that variant, and
the command line's ``key=value``, in this order. A stage, or an input of one, that is null after that is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.config.ablation_spec import SET_HERE, Ablation
from lightning_e5.config.experiment import Node, differing_keys, load_tree, merge, resolve_experiment
from lightning_e5.errors import UserError, suggestion


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: a variant, a seed, and its resolved experiment, whose ``runs_dir`` is the ablation's directory."""

    name: str
    variant: str
    seed: int
    experiment: Node


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs of an ablation below ``directory``: ``every`` one, and those that are ``wanted`` now, in their order."""

    ablation: Ablation
    directory: Path
    every: list[PlannedRun]
    wanted: list[PlannedRun]


def plan_ablation(
    ablation: Ablation, overrides: Sequence[str] = (), *, only: Sequence[str] = (), seeds: int | None = None
) -> Plan:
    """The ablation's runs, those of one seed together, as resolved experiments.

    Args:
        ablation: from `load_ablation`.
        overrides: ``key=value`` for every run.
        only: variants wanted; all where empty.
        seeds: of each variant, only the first so many are wanted.

    Raises:
        UserError: an unknown variant, more seeds than there are, or an experiment that is wrong.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in SET_HERE or key in ("logger.group", "logger.name", "logger.tags"):
            raise UserError(f"override {override!r}: an ablation's runs get their {key} from it")
    for name in only:
        if name in ablation.skipped:
            raise UserError(f"--only {name}: is left out at scale {ablation.scale} ({ablation.skipped[name]})")
        if name not in ablation.overrides:
            raise UserError(f"--only {name}: {ablation.file} has no such variant{suggestion(name, ablation.overrides)}")
    if seeds is not None and not 1 <= seeds <= len(ablation.seeds):
        raise UserError(f"--seeds {seeds}: {ablation.file} has {len(ablation.seeds)} seeds at scale {ablation.scale}")
    base = load_tree(ablation.base)
    trees: dict[str, Node] = {}
    for variant, nodes in ablation.overrides.items():
        tree = base
        for node in nodes:
            tree = merge(tree, node)
        trees[variant] = _without_absent(tree)
    every = [_planned(ablation, v, tree, seed, overrides) for seed in ablation.seeds for v, tree in trees.items()]
    places = {run.experiment["runs_dir"] for run in every}
    if len(places) > 1:
        raise UserError(f"{ablation.file}: its variants have several runs_dir ({', '.join(sorted(places))})")
    directory = Path(places.pop()) / "ablations" / f"{ablation.name}-{ablation.scale}"
    for run in every:
        run.experiment["runs_dir"] = str(directory)
    first = ablation.seeds[: seeds or len(ablation.seeds)]
    wanted = [run for run in every if run.seed in first and run.variant in (only or trees)]
    return Plan(ablation, directory, every, wanted)


def differences(plan: Plan, variant: str) -> list[tuple[str, Any]]:
    """Dotted keys, and their values, in which a variant differs from the baseline (whose own is None where it is absent)."""
    experiments = {run.variant: run.experiment for run in reversed(plan.every)}
    old, new = (_without_names(experiments[name]) for name in (plan.ablation.baseline, variant))
    return [(key, _value(new, key)) for key in differing_keys(old, new)]


def _planned(ablation: Ablation, variant: str, tree: Node, seed: int, overrides: Sequence[str]) -> PlannedRun:
    name = f"{variant}-seed{seed}"
    logger = {"group": f"{ablation.name}-{ablation.scale}", "name": name, "tags": [ablation.name, ablation.scale, variant]}
    title = f"{ablation.file}: variant {variant} at scale {ablation.scale}"
    try:
        experiment = resolve_experiment(tree, overrides, title, last={"name": name, "seed": seed, "logger": logger})
    except UserError as error:
        raise error if str(error).startswith(title) else UserError(f"{title}: {error}") from None
    return PlannedRun(name, variant, seed, experiment)


def _without_absent(tree: Node) -> Node:
    """The tree without the stages, and without the inputs of stages, that a variant sets to null."""
    stages = {name: node for name, node in (tree.get("stages") or {}).items() if node is not None}
    for name, node in stages.items():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            stages[name] = {**node, "inputs": _without_nulls(node["inputs"])}
    return {**tree, "stages": stages}


def _without_nulls(node: Node) -> Node:
    return {k: _without_nulls(v) if isinstance(v, dict) else v for k, v in node.items() if v is not None}


def _without_names(experiment: Node) -> Node:
    return {k: v for k, v in experiment.items() if k not in ("name", "seed", "logger", "description", "runs_dir")}


def _value(tree: Any, key: str) -> Any:
    """The value under a dotted key, None where it is absent; a key may hold dots itself."""
    if not key or not isinstance(tree, Mapping):
        return tree if not key else None
    found = next((k for k in tree if key == k or key.startswith(f"{k}.")), None)
    return None if found is None else _value(tree[found], key[len(found) + 1 :])
