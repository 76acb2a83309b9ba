"""Whether a run directory may be worked in: it is new, or of this configuration, or what changes was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_e5.config.experiment import Node, differing_keys, read_yaml
from lightning_e5.errors import UserError
from lightning_e5.files.run_layout import CONFIG, METRICS
from lightning_e5.files.storage import CHECKSUM, MANIFEST, TEMPORARY_SUFFIX, read_json, temporaries_below, write_text
from lightning_e5.pipeline.fingerprint import FACTS, FREE_ARGUMENTS, deciding, facts_here
from lightning_e5.pipeline.lock import LOCK, is_dead
from lightning_e5.pipeline.stage import begun_fingerprint, holds_work
from lightning_e5.redaction import redact

#: Top-level keys that change nothing a run computes.
_FREE_KEYS = ("description", "logger", "threads", "headline", "runs_dir", "stage_cache", "throughput", "engine")
_CHOICES = "give another name=..., remove the directory, or pass --update to redo the stages that change"


def check_directory(directory: Path) -> None:
    """UserError for a directory that holds something, but no run; one with a lock in it is a run that is being begun."""
    if not (directory / LOCK).is_file():
        _check_is_run(directory)


def _check_is_run(directory: Path) -> None:
    if not directory.is_dir():
        return
    others = [p for p in directory.iterdir() if not p.name.startswith(LOCK) and not (p.name.startswith(".") and p.name.endswith(TEMPORARY_SUFFIX))]
    # Asked last: a run that begins meanwhile writes it before all else.
    if others and not (directory / CONFIG).is_file():
        raise UserError(f"{directory}: exists and is no run directory (has no {CONFIG})")


def claim(experiment: Node, directory: Path, update: bool) -> None:
    """Make the run directory ours, under its lock: write ``config.yaml``, and take the mark of a finished run away.

    What killed processes had begun to write is removed.

    Raises:
        UserError: ``update`` is not given, and finished or interrupted work in the directory was made by another
            configuration, another version of a stage or a library, or in another precision that ``auto`` chose.
    """
    from omegaconf import OmegaConf

    _check_is_run(directory)
    if not update:
        _check_configuration(experiment, directory)
        _check_facts(experiment, directory)
    for path, process in temporaries_below(directory):
        if is_dead(process):  # another verb may be writing its page
            path.unlink(missing_ok=True)
    (directory / METRICS).unlink(missing_ok=True)
    write_text(directory / CONFIG, OmegaConf.to_yaml(OmegaConf.create(_recorded(experiment))))


def changed_keys(experiment: Node, directory: Path) -> list[str]:
    """Dotted keys in which the configuration of a run directory differs from ``experiment``, but for those without effect."""
    before = _recorded(read_yaml(directory / CONFIG))  # of an earlier version, its secrets may be in it
    return differing_keys(_compared(before), _compared(_recorded(experiment)))


def _check_configuration(experiment: Node, directory: Path) -> None:
    if not (directory / CONFIG).is_file():
        return
    keys = changed_keys(experiment, directory)
    if not (directory / METRICS).is_file():
        keys = _keys_of_work(experiment, directory, keys)
    if keys:
        shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
        raise UserError(f"{directory}: was made by another configuration (it differs in {shown}); {_CHOICES}")


def _keys_of_work(experiment: Node, directory: Path, keys: Sequence[str]) -> list[str]:
    """Those of the changed keys of an unfinished run that would undo work; a stage that failed, or was not begun, has none."""
    with_work = [p.name for p in sorted((directory / "stages").glob("*")) if holds_work(p)]
    seeded = [name for name in with_work if "seed" not in experiment["stages"].get(name, {})]
    return [
        key
        for key in keys
        if (key == "seed" and seeded) or any(key == f"stages.{name}" or key.startswith(f"stages.{name}.") for name in with_work)
    ]


def _check_facts(experiment: Node, directory: Path) -> None:
    for name, node in experiment["stages"].items():
        out = directory / "stages" / name
        if not holds_work(out):
            continue
        before = begun_fingerprint(out)
        if before is None:
            if _has_no_checksum(out / MANIFEST):
                raise UserError(f"{directory}: stage {name!r} was made by an earlier version of lightning_e5; {_CHOICES}")
            continue  # damaged: it is made again
        now = facts_here(node)
        changes = [change for fact in FACTS for change in _changes(fact, before.get(fact), now.get(fact))]
        if changes:
            raise UserError(f"{directory}: stage {name!r} was made with {', '.join(changes)}; {_CHOICES}")


def _has_no_checksum(manifest: Path) -> bool:
    """Whether a manifest is one as earlier versions wrote it."""
    try:
        value = read_json(manifest)
    except UserError:
        return False
    return isinstance(value, dict) and CHECKSUM not in value


def _changes(fact: str, before: Any, now: Any) -> list[str]:
    """What of a fact is not what it was, in words: "torch 2.11.0, not 2.13.0"."""
    if before == now:
        return []
    if fact == "libraries" and isinstance(before, dict) and isinstance(now, dict):
        names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
        return [f"{n} {before.get(n, 'not installed')}, not {now.get(n, 'without it')}" for n in names]
    if fact == "precision":
        return [f"precision {before or 'of its own'}, not {now or 'of its own'} (which precision: auto, or bf16-gpu, chooses on this hardware)"]
    return [f"version {before or 'unknown'} of its method, not {now}"] if fact == "version" else ["libraries of versions that were not recorded"]


def _compared(experiment: Node) -> Node:
    """An experiment without what changes nothing that a run computes."""
    kept = {key: value for key, value in experiment.items() if key not in _FREE_KEYS}
    if isinstance(kept.get("variables"), dict):
        kept["variables"] = {key: value for key, value in kept["variables"].items() if key not in FREE_ARGUMENTS}
    if isinstance(kept.get("stages"), dict):
        kept["stages"] = {name: deciding(node) if isinstance(node, dict) else node for name, node in kept["stages"].items()}
    return kept


def _recorded(experiment: Node) -> Node:
    """The experiment as the run directory keeps it: without secrets."""
    return {key: value if key in ("name", "runs_dir") else redact(value, key, experiment) for key, value in experiment.items()}


