"""One stage of a run: its arguments, the fingerprint of all that decides its result, and its folder's state."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.config import Node, config_hash, outside_path
from lightning_e5.configurable import resolve_target
from lightning_e5.errors import UserError
from lightning_e5.instantiate import instantiate
from lightning_e5.redaction import redact
from lightning_e5.storage import MANIFEST, empty_directory, read_json, sha256_file, write_json

TIMING = "timing.json"
STARTED = "started.json"
#: Keys of a stage's node that are not arguments; ``description`` says in words what the stage does.
SPECIAL = ("inputs", "description")
#: Keys of a stage that change nothing in its result.
FREE_ARGUMENTS = ("engine", "description")


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage may know of its run: names, the logger's settings, its own configuration."""

    run: str
    stage: str
    run_dir: Path
    logger: Node
    config: Node


def run_directory(experiment: Node) -> Path:
    """``<runs_dir>/<name>``."""
    return Path(experiment["runs_dir"]) / experiment["name"]


class PreparedStage:
    """A stage's function with its arguments, and the fingerprint that marks its results."""

    def __init__(self, experiment: Node, name: str, out: Path, outputs: Mapping[str, Path]) -> None:
        from lightning_e5.rng import derive_seed  # imports torch, which reading a stage's state does not need

        node = experiment["stages"][name]
        self.out, self.node = out, node
        self.function = resolve_target(node["_target_"], f"stages.{name}", "stage")
        parameters = inspect.signature(self.function).parameters
        own = {k: v for k, v in node.items() if k not in ("_target_", *special_keys(parameters))}
        self.arguments = {k: instantiate(v, f"stages.{name}.{k}") for k, v in own.items()}
        self.fingerprint = stage_fingerprint(experiment, name, node, outputs, self.arguments)
        context = StageContext(experiment["name"], name, run_directory(experiment), experiment.get("logger") or {}, node)
        offered = {"out": out, "seed": derive_seed(experiment["seed"], name) % 2**31, "context": context}
        self.given = {k: v for k, v in offered.items() if k in parameters and k not in self.arguments}
        self.outputs = outputs

    def started(self) -> bool:
        """Whether the stage was begun with this fingerprint (then its folder holds nothing of another one)."""
        path = self.out / STARTED
        return path.is_file() and read_json(path).get("sha256") == config_hash(self.fingerprint)

    def begin(self) -> bool:
        """Make the folder ready; True where an earlier try is continued."""
        if self.started():
            (self.out / MANIFEST).unlink(missing_ok=True)
            return True
        empty_directory(self.out)
        write_json(self.out / STARTED, {"sha256": config_hash(self.fingerprint), "fingerprint": self.fingerprint})
        return False

    def call(self) -> dict[str, float]:
        """The stage's metrics."""
        inputs = {a: _resolve_reference(r, self.outputs) for a, r in (self.node.get("inputs") or {}).items()}
        return {k: float(v) for k, v in self.function(**self.arguments, **inputs, **self.given).items()}


def special_keys(parameters: Container[str]) -> tuple[str, ...]:
    """Keys of a stage's node that are no arguments of its function; ``seed`` is one where the function draws nothing."""
    return SPECIAL if "seed" in parameters else (*SPECIAL, "seed")


def stage_fingerprint(
    experiment: Node, name: str, node: Node, outputs: Mapping[str, Path], arguments: Mapping[str, Any] | None
) -> Node:
    """Everything that decides a stage's result; ``arguments`` None re-makes only what the stored manifest names.

    A ``seed`` of the stage's own stands for the experiment's, so that runs of different seeds can share the stage.
    """
    stored = read_json(directory_manifest) if (directory_manifest := run_directory(experiment) / "stages" / name / MANIFEST).is_file() else {}
    if arguments is None:
        keys = stored.get("fingerprint", {}).get("sources", {})
        arguments = {k: instantiate(node[k], f"stages.{name}.{k}") for k in keys if k in node}
    sources = {k: found for k, v in arguments.items() if (found := _own_fingerprint(v)) is not None}
    inputs = {a: _reference_identity(r, outputs) for a, r in (node.get("inputs") or {}).items()}
    node = {key: value for key, value in node.items() if key not in FREE_ARGUMENTS}
    decides = {"config": node, "seed": node.get("seed", experiment["seed"]), "inputs": inputs, "sources": sources}
    return dict(redact(decides, within=experiment))


def _own_fingerprint(value: Any) -> Any:
    """What an argument says of itself that its YAML does not (such as its files' times); of a list or mapping, what its
    items say."""
    if isinstance(value, Mapping):
        by_name = {key: found for key, item in value.items() if (found := _own_fingerprint(item)) is not None}
        return by_name or None
    if isinstance(value, list):
        found = [_own_fingerprint(item) for item in value]
        return found if any(item is not None for item in found) else None
    return value.fingerprint() if callable(getattr(value, "fingerprint", None)) else None


def _reference_identity(reference: Any, outputs: Mapping[str, Path]) -> Any:
    if isinstance(reference, dict):
        return {k: _reference_identity(r, outputs) for k, r in reference.items()}
    if (path := outside_path(reference)) is not None:
        if not path.exists():
            return None
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    manifest = read_json(outputs[reference.split("/")[0]] / MANIFEST)
    return config_hash(manifest["files"])


def _resolve_reference(reference: Any, outputs: Mapping[str, Path]) -> Any:
    if isinstance(reference, dict):
        return {k: _resolve_reference(r, outputs) for k, r in reference.items()}
    if (outside := outside_path(reference)) is not None:
        return outside
    stage, _, rest = reference.partition("/")
    path = outputs[stage] / rest if rest else outputs[stage]
    if not path.exists():
        raise UserError(f"inputs: {reference!r}: stage {stage!r} has no {rest!r}")
    return path


def is_finished(out: Path, fingerprint: Node) -> bool:
    """Whether the folder holds this fingerprint's results, all of them."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = read_json(out / MANIFEST)
    same = config_hash(manifest.get("fingerprint")) == config_hash(fingerprint)
    return same and all((out / n).is_file() and sha256_file(out / n) == digest for n, digest in manifest["files"].items())


def output_files(out: Path) -> list[str]:
    """The files that are a stage's result: all but its records of time, logs and checkpoints."""
    left_out = {STARTED, TIMING, MANIFEST, "metrics.jsonl", "timing_table.json"}
    files = [p.relative_to(out) for p in sorted(out.rglob("*")) if p.is_file()]
    return [f.as_posix() for f in files if f.name not in left_out and f.parts[0] not in ("checkpoints", "wandb")]
