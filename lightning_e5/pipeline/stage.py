"""One stage of a run: its function with its arguments, and its folder's state."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.config.experiment import Node, config_hash, outside_path
from lightning_e5.config.instantiate import instantiate
from lightning_e5.configurable import resolve_target
from lightning_e5.errors import UserError
from lightning_e5.files.digests import FileDigests, files_below
from lightning_e5.files.run_layout import LOG, TIMING
from lightning_e5.files.storage import (
    MANIFEST,
    empty_directory,
    read_checked,
    read_json,
    read_manifest,
    write_checked,
    write_json,
)
from lightning_e5.pipeline.fingerprint import stage_fingerprint, stored_fingerprint

STARTED = "started.json"
#: Keys of a stage's node that are not arguments; ``description`` says in words what the stage does.
SPECIAL = ("inputs", "description")


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

    def __init__(self, experiment: Node, name: str, out: Path, outputs: Mapping[str, Path], digests: FileDigests) -> None:
        from lightning_e5.rng import stage_seed  # imports torch, which reading a stage's state does not need

        node = experiment["stages"][name]
        self.name, self.out, self.node = name, out, node
        self.function = resolve_target(node["_target_"], f"stages.{name}", "stage")
        parameters = inspect.signature(self.function).parameters
        own = {k: v for k, v in node.items() if k not in ("_target_", *special_keys(parameters))}
        self.arguments = {k: instantiate(v, f"stages.{name}.{k}") for k, v in own.items()}
        self.fingerprint = stage_fingerprint(experiment, name, node, outputs, self.arguments, digests)
        context = StageContext(experiment["name"], name, run_directory(experiment), experiment.get("logger") or {}, node)
        offered = {"out": out, "seed": stage_seed(experiment["seed"], name), "context": context}
        self.given = {k: v for k, v in offered.items() if k in parameters and k not in self.arguments}
        self.outputs = outputs
        #: The shared stage that this becomes when it is finished, None where it may be no shared one.
        self.cache_key: str | None = None

    def started(self) -> bool:
        """Whether the stage was begun with this fingerprint (then its folder holds nothing of another one)."""
        return (_started(self.out) or {}).get("sha256") == config_hash(self.fingerprint)

    def begin(self, cache_key: str | None = None) -> bool:
        """Make the folder ready; True where an earlier try is continued, whose ``cache_key`` then stays: what it did is in it."""
        continued = self.started()
        if continued:
            (self.out / MANIFEST).unlink(missing_ok=True)
            self.cache_key = (_started(self.out) or {}).get("cache_key")
        else:
            empty_directory(self.out)
            self.cache_key = cache_key
        self._record()
        return continued

    def settle(self, cache_key: str | None) -> None:
        """Note as which shared stage the finished result counts."""
        self.cache_key = cache_key
        self._record()

    def failed(self, error: Exception) -> None:
        """Note that the stage ended with an error, so that another configuration may take its place unasked."""
        with contextlib.suppress(OSError):  # the error may be a full disk
            self._record(failed=type(error).__name__)

    def _record(self, **facts: str) -> None:
        own = {"sha256": config_hash(self.fingerprint), "fingerprint": self.fingerprint, "cache_key": self.cache_key}
        write_checked(self.out / STARTED, {**own, **facts})

    def call(self) -> dict[str, float]:
        """The stage's metrics."""
        inputs = {a: _resolve_reference(r, self.outputs) for a, r in (self.node.get("inputs") or {}).items()}
        return {k: float(v) for k, v in self.function(**self.arguments, **inputs, **self.given).items()}


def special_keys(parameters: Container[str]) -> tuple[str, ...]:
    """Keys of a stage's node that are no arguments of its function; ``seed`` is one where the function draws nothing."""
    return SPECIAL if "seed" in parameters else (*SPECIAL, "seed")


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


def is_finished(out: Path, fingerprint: Node, digests: FileDigests) -> bool:
    """Whether the folder holds this fingerprint's results, all of them; one whose manifest is damaged does not."""
    try:
        manifest = read_manifest(out)
    except UserError:
        return False
    same = config_hash(manifest.get("fingerprint")) == config_hash(fingerprint)
    return same and all((out / n).is_file() and digests.of(out / n) == digest for n, digest in manifest["files"].items())


def holds_work(out: Path) -> bool:
    """Whether a stage's folder holds what would be lost: a result, or the unfinished work of a stage that did not fail."""
    if (out / MANIFEST).is_file():
        return True
    started = _started(out)
    return started is not None and "failed" not in started


def begun_fingerprint(out: Path) -> Node | None:
    """The fingerprint of the stage that was begun in a folder, finished or not; None where none can be told."""
    return stored_fingerprint(out) or (_started(out) or {}).get("fingerprint")


def cache_key_of(out: Path) -> str | None:
    """The name of the shared stage that a stage's folder holds; None where it is none."""
    return (_started(out) or {}).get("cache_key")


def reused_from(out: Path) -> str | None:
    """The run that a stage's result was taken from; None where this run computed it."""
    return (_started(out) or {}).get("reused_from")


def mark_reused(out: Path, run: str) -> None:
    """Note in a folder that was made for a run from a shared stage which run computed it, for the pipeline and for reports."""
    write_checked(out / STARTED, {**(_started(out) or {}), "reused_from": run})
    if (out / TIMING).is_file():
        write_json(out / TIMING, {**read_json(out / TIMING), "reused_from": run})


def _started(out: Path) -> Node | None:
    try:
        return read_checked(out / STARTED)
    except UserError:
        return None


def output_files(out: Path) -> list[str]:
    """The files that are a stage's result, also in linked folders: all but its records of time, logs and checkpoints."""
    left_out = {STARTED, TIMING, MANIFEST, LOG, "timing_table.json"}
    return [name for name in files_below(out) if name not in left_out and name.split("/")[0] not in ("checkpoints", "wandb")]
