"""Experiment YAML: loading, ``extends``, ``key=value`` overrides, and the schema of the top level.

A YAML is read into plain dicts and lists; no config object enters library code. What the nodes may name and hold is
checked in ``lightning_e5.config.instantiate``.
"""

from __future__ import annotations

import copy
import importlib.util
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.config.annotations import check_value
from lightning_e5.config.overrides import apply_override
from lightning_e5.config.yaml_files import Node, read_yaml, resolve_references
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.storage import sha256_text, to_json
from lightning_e5.ranges import Positive, PositiveShare, Seed, Workers
from lightning_e5.redaction import remember

#: The folder of shared stages in a folder of runs.
STAGE_CACHE = ".stages"
#: Top-level keys of an experiment and what they mean (shown by ``check`` when one is unknown).
TOP_LEVEL = {
    "name": "the run's name; its directory is <runs_dir>/<name>",
    "description": "one sentence on what the experiment shows",
    "seed": "the one seed from which every stage's randomness is derived",
    "threads": "CPU threads (null: all); the figures are bit-exact for a given number",
    "deterministic": "true: kernels alone that give the same bits each time, on a GPU too (default false)",
    "runs_dir": "where run directories lie",
    "stage_cache": "a folder by which runs share finished stages of equal configuration and inputs (default <runs_dir>/.stages; null: none)",
    "data_dir": "a folder of local data that stages may refer to as ${data_dir}",
    "logger": "W&B: mode (auto | online | offline | disabled), project, group, tags",
    "engine": "where data stages' tasks run, which they refer to as ${engine}: local, ray, or an engine with its settings",
    "encoder": "a definition that stages refer to as ${encoder}",
    "final_encoder": "the stage whose encoder becomes <run>/encoder",
    "headline": "metrics shown in the closing table",
    "variables": "free values that stages refer to as ${variables.<name>}",
    "throughput": "what `check` projects days from: device, peak_tflops, assumed_share, tokens_per_second",
    "stages": "stage name -> {_target_, inputs, arguments}, run in order",
}
_TYPES: dict[str, Any] = {
    "seed": Seed, "threads": Workers | None, "deterministic": bool, "runs_dir": str, "stage_cache": str | None, "data_dir": str | None, "stages": dict,
    "logger": dict | None, "headline": list[str] | None, "description": str | None, "variables": dict | None,
    "final_encoder": str | None, "throughput": list[dict] | None,
}  # fmt: skip
_THROUGHPUT: dict[str, Any] = {
    "device": str, "peak_tflops": Positive, "assumed_share": PositiveShare, "tokens_per_second": Positive | None, "note": str | None
}  # fmt: skip
MAX_EXTENDS = 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: Any, key: str = "name") -> str:
    """A run's or stage's name, safe as one path component; UserError states the rule."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"{key}: {name!r} is not a valid name; use 1 to 100 letters, digits, '.', '_' or '-', starting with a "
            "letter or digit, without '..' or '/'"
        )
    return name


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> Node:
    """Read an experiment YAML with its ``extends``, apply ``key=value`` overrides, resolve ``${...}``.

    Raises:
        UserError: unreadable file, malformed YAML, unknown top-level key, an override of a key that is not there.
    """
    return resolve_experiment(load_tree(path), overrides, str(path))


def load_tree(path: Path | str) -> Node:
    """An experiment YAML merged onto what it ``extends``, with its ``${...}`` still in it."""
    return _load_extended(Path(path), depth=0)


def resolve_experiment(tree: Node, overrides: Sequence[str], title: str, last: Node | None = None) -> Node:
    """A tree with ``key=value`` overrides, then ``last``, merged onto it, its ``${...}`` resolved, its top level checked.

    Args:
        tree: from `load_tree`; left as it is.
        overrides: such as ``stages.pretrain.data.batch_size=256``.
        title: what messages name, usually the file.
        last: merged last.

    Raises:
        UserError: as `load_experiment`.
    """
    tree = copy.deepcopy(tree)
    remember(tree)  # also what an override replaces
    for override in overrides:
        apply_override(tree, override)
    experiment = resolve_references(merge(tree, last or {}), title)
    remember(experiment)
    check_top_level(title, experiment)
    return experiment


def outside_path(reference: str) -> Path | None:
    """The path of a stage's input that is no earlier stage's: ``path:DIR``, or ``package:NAME/DIR`` for a file or folder
    that an installed package carries (the package is not imported); None for a reference to a stage.

    A package that is not installed gives a path that is not there.
    """
    kind, _, rest = reference.partition(":")
    if kind == "path":
        return Path(rest)
    if kind != "package":
        return None
    name, _, inside = rest.partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0], inside) if places else Path(reference)


def config_hash(value: Any) -> str:
    """Sha256 of a configuration's canonical JSON."""
    return sha256_text(to_json(value))


def differing_keys(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Dotted keys at which two configurations differ, in order."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [k for k in dict.fromkeys([*old, *new])]
        return [
            d for k in keys for d in differing_keys(old.get(k, _ABSENT), new.get(k, _ABSENT), f"{prefix}.{k}".strip("."))
        ]
    return [] if old == new and type(old) is type(new) else [prefix]


_ABSENT = object()


def _load_extended(path: Path, depth: int) -> Node:
    tree = read_yaml(path)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if depth >= MAX_EXTENDS:
        raise UserError(f"{path}: extends more than {MAX_EXTENDS} deep; write the values out")
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: {parent!r} is not a path")
    return merge(_load_extended(path.parent / parent, depth + 1), tree)


def merge(base: Node, over: Node) -> Node:
    """``over`` on top of ``base``; a node whose ``_target_`` changes is replaced, so no argument of the old class stays."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        if both and value.get("_target_", old.get("_target_")) == old.get("_target_"):  # type: ignore[union-attr]
            merged[key] = merge(old, value)  # type: ignore[arg-type]
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def check_path(text: str, key: str) -> str:
    """A path that a YAML or command line gives for a folder to be made: UserError where no file system could hold it."""
    if not text or "\0" in text or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in text.split("/")):
        raise UserError(f"{key}: {text[:80]!r} is no path that a folder can have (names of 1 to 255 bytes, without NUL)")
    return text


def check_top_level(path: str, experiment: Node) -> None:
    """UserError where a resolved experiment's top-level keys are wrong; keys that are not there get their defaults."""
    if "ablation" in experiment:
        raise UserError(f"{path}: is an ablation's YAML and not one experiment's; use: python -m lightning_e5 ablate {shlex.quote(path)}")
    for key in experiment:
        if key not in TOP_LEVEL:
            raise UserError(f"{path}: unknown key {key!r}{suggestion(key, TOP_LEVEL)}")
    experiment.setdefault("seed", 1)
    experiment.setdefault("runs_dir", "runs")
    experiment.setdefault("threads", None)
    experiment.setdefault("deterministic", False)
    check_name(experiment.get("name"), f"{path}: name")
    for key, hint in _TYPES.items():
        if key in experiment:
            check_value(experiment[key], hint, f"{path}: {key}")
    for number, device in enumerate(experiment.get("throughput") or []):
        where = f"{path}: throughput[{number}]"
        if wrong := next((k for k in device if k not in _THROUGHPUT), None):
            raise UserError(f"{where}: unknown key {wrong!r}{suggestion(wrong, _THROUGHPUT)}")
        for key, hint in _THROUGHPUT.items():
            if key in device:
                check_value(device[key], hint, f"{where}.{key}")
        if "device" not in device or ("tokens_per_second" not in device and not {"peak_tflops", "assumed_share"} <= {*device}):
            raise UserError(f"{where}: needs device, and either tokens_per_second or both peak_tflops and assumed_share")
    if not experiment.get("stages"):
        raise UserError(f"{path}: stages: there is none to run")
    experiment.setdefault("stage_cache", str(Path(experiment["runs_dir"]) / STAGE_CACHE))
    for key in ("runs_dir", "stage_cache"):
        if experiment.get(key) is not None:
            check_path(experiment[key], f"{path}: {key}")
    for name, stage in experiment["stages"].items():
        check_name(name, f"{path}: stages")
        if not isinstance(stage, dict) or "_target_" not in stage:
            raise UserError(f"{path}: stages.{name}: needs a _target_")
