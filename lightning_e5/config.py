"""Experiment YAML: loading, ``extends``, ``key=value`` overrides, and the schema of the top level.

A YAML is read into plain dicts and lists; no config object enters library code. What the nodes may name and hold is
checked in ``lightning_e5.instantiate``.
"""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError, suggestion
from lightning_e5.redaction import remember
from lightning_e5.storage import sha256_text, to_json

Node = dict[str, Any]

#: Top-level keys of an experiment and what they mean (shown by ``check`` when one is unknown).
TOP_LEVEL = {
    "name": "the run's name; its directory is <runs_dir>/<name>",
    "description": "one sentence on what the experiment shows",
    "seed": "the one seed from which every stage's randomness is derived",
    "threads": "CPU threads (null: all); the figures are bit-exact for a given number",
    "runs_dir": "where run directories lie",
    "stage_cache": "a folder by which runs share finished stages of equal configuration and inputs (null: none)",
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
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = copy.deepcopy(tree)
    for override in overrides:
        _apply_override(tree, override)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merge(tree, last or {})), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{title}: {str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)
    experiment: Node = {str(key): value for key, value in resolved.items()}
    remember(experiment)
    _check_top_level(title, experiment)
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


def read_yaml(path: Path) -> Node:
    """One YAML file as a plain tree; UserError names the file and what is wrong in it."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a directory, not an experiment YAML") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        config = OmegaConf.create(text)
        tree = OmegaConf.to_container(config, resolve=False)
    except AssertionError:  # OmegaConf's answer to a bare number
        tree = None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path}:{where} {getattr(error, 'problem', None) or str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict) or not tree or (len(tree) == 1 and next(iter(tree.values())) is None):
        raise UserError(f"{path}: not an experiment (needs keys such as 'name' and 'stages')")
    return tree  # type: ignore[return-value]


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


def _apply_override(tree: Node, override: str) -> None:
    import yaml
    from omegaconf import OmegaConf

    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{override!r}: an override is key=value, such as stages.pretrain.max_steps=10")
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"] if text else None  # type: ignore
    except yaml.YAMLError:
        raise UserError(f"{override!r}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        here = ".".join(parents[:depth])
        if not isinstance(node, dict) or part not in node:
            known = node if isinstance(node, dict) else ()
            raise UserError(f"override {override!r}: no key {part!r} in {here or 'the experiment'}{suggestion(part, known)}")
        node = node[part]
    if not isinstance(node, dict):
        raise UserError(f"override {override!r}: {'.'.join(parents)} holds no keys")
    if not parents and last not in TOP_LEVEL:
        raise UserError(f"override {override!r}: unknown key {last!r}{suggestion(last, [*TOP_LEVEL])}")
    if isinstance(node.get(last), dict) and isinstance(value, dict):
        value = merge(node[last], value)
    node[last] = value


def _check_top_level(path: str, experiment: Node) -> None:
    for key in experiment:
        if key not in TOP_LEVEL:
            raise UserError(f"{path}: unknown key {key!r}{suggestion(key, TOP_LEVEL)}")
    experiment.setdefault("seed", 1)
    experiment.setdefault("runs_dir", "runs")
    experiment.setdefault("threads", None)
    check_name(experiment.get("name"), f"{path}: name")
    types = {"seed": (int,), "threads": (int, type(None)), "runs_dir": (str,), "stage_cache": (str, type(None)), "stages": (dict,), "logger": (dict,)}
    for key, allowed in types.items():
        if key in experiment and (not isinstance(experiment[key], allowed) or isinstance(experiment[key], bool)):
            names = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
            raise UserError(f"{path}: {key}: {experiment[key]!r} is not {names}")
    if not 0 <= experiment["seed"] < 2**31:
        raise UserError(f"{path}: seed: {experiment['seed']} is not in 0 .. 2^31 - 1")
    if not experiment.get("stages"):
        raise UserError(f"{path}: stages: there is none to run")
    for name, stage in experiment["stages"].items():
        check_name(name, f"{path}: stages")
        if not isinstance(stage, dict) or "_target_" not in stage:
            raise UserError(f"{path}: stages.{name}: needs a _target_")
