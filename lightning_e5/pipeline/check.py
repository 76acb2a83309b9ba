"""What ``check`` and ``run`` look at before anything is built: every stage, its arguments, and what stages give each other."""

from __future__ import annotations

from typing import Any

from lightning_e5.config.annotations import arguments_of, check_value
from lightning_e5.config.experiment import Node, outside_path
from lightning_e5.config.instantiate import check_node
from lightning_e5.configurable import resolve_target
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.storage import check_component
from lightning_e5.pipeline.agreement import check_agreement
from lightning_e5.pipeline.stage import special_keys
from lightning_e5.ranges import Seed

#: Parameters of a stage function that the runner gives; a stage takes those it names.
GIVEN = ("out", "seed", "context")


def check_experiment(experiment: Node, *, paths: bool = True) -> None:
    """Check every stage: targets, arguments, types, inputs; UserError names the key. Builds nothing.

    ``paths``: whether the files and folders named as ``path:...`` must be there.
    """
    from lightning_e5.tracking.run_directory import check_logger

    check_logger(experiment.get("logger") or {})
    seen: list[str] = []
    for name, node in experiment["stages"].items():
        key = f"stages.{name}"
        function = resolve_target(node["_target_"], key, "stage")
        inputs = node.get("inputs") or {}
        if not isinstance(inputs, dict):
            raise UserError(f"{key}.inputs: {inputs!r} is not a mapping of argument to stage")
        parameters = arguments_of(function)[0]
        for argument, reference in inputs.items():
            if argument not in parameters:
                raise UserError(f"{key}.inputs: {function.__name__} has no argument {argument!r}{suggestion(argument, parameters)}")
            _check_reference(reference, f"{key}.inputs.{argument}", seen, paths)
            check_value(reference, parameters[argument].annotation, f"{key}.inputs.{argument}")
        given = [g for g in (*GIVEN, *inputs) if g in parameters and not (g == "seed" and g in node)]
        check_node(node, key, given=given, special=special_keys(parameters))
        check_value(node.get("seed", 0), Seed, f"{key}.seed")
        check_value(node.get("description"), str | None, f"{key}.description")
        seen.append(name)
    check_agreement(experiment)
    final = experiment.get("final_encoder")
    if final is not None and final not in seen:
        raise UserError(f"final_encoder: no stage {final!r}{suggestion(str(final), seen)}")


def _check_reference(reference: Any, key: str, seen: list[str], paths: bool) -> None:
    if isinstance(reference, dict):
        for name, inner in reference.items():
            _check_reference(inner, f"{key}.{check_component(name, key)}", seen, paths)
        return
    if not isinstance(reference, str):
        raise UserError(f"{key}: {reference!r} is not a stage or path")
    if (outside := outside_path(reference)) is not None:
        if paths and not outside.exists():
            raise UserError(f"{key}: {outside}: no such file or directory")
        return
    stage = reference.split("/")[0]
    if stage not in seen:
        raise UserError(f"{key}: {stage!r} is no earlier stage{suggestion(stage, seen)} (a path is given as path:DIR)")
