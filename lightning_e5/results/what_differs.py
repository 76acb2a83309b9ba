"""What differs between runs: configuration, versions and machine, data, and what their trainings saw; of equal things nothing is said.

Names, descriptions, places of results and what a stage's fingerprint leaves out (workers, devices, log intervals) are no difference;
nor is another path whose content is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightning_e5.config.experiment import Node, config_hash, outside_path
from lightning_e5.files.run_layout import LOG, TABLE, TASKS
from lightning_e5.files.storage import MANIFEST
from lightning_e5.results import result_files as shapes
from lightning_e5.results.run import RunData

What = Literal["configuration", "versions", "machine", "data", "training"]
#: Of an experiment, beside its stages; variables and encoders stand in the stages that use them.
_OF_EXPERIMENT = ("seed", "deterministic", "final_encoder")
_DATA_FILES = (".parquet", ".jsonl", ".tsv", ".csv", ".arrow", ".gz")
#: Counts of rows among a stage's metrics.
_COUNTS = ("pairs", "train_pairs", "kept", "queries", "groups", "candidates", "planted", "test_queries", "test_passages", "test_judgements", "tokens")
_SEEN = ("pairs_seen", "tokens_seen", "steps")
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Differing:
    """One thing that is not the same in all runs; ``values``: of each run in their order, None where it has no such thing."""

    what: What
    key: str
    values: tuple[Any, ...]


def what_differs(runs: Mapping[str, RunData]) -> list[Differing]:
    """Everything that differs between runs, configuration first; empty for a single run, and where nothing differs.

    Raises:
        UserError: a damaged file of a run.
    """
    every = list(runs.values())
    prints = [_fingerprints(run) for run in every]
    groups: list[tuple[What, list[dict[str, Any]]]] = [
        ("configuration", _configurations(every, prints)),
        ("versions", [_versions(run, found) for run, found in zip(every, prints, strict=True)]),
        ("machine", [_machine(run, found) for run, found in zip(every, prints, strict=True)]),
        ("data", [_data(run, found) for run, found in zip(every, prints, strict=True)]),
        ("training", [_training(run) for run in every]),
    ]
    return [
        Differing(what, key, tuple(None if (value := facts.get(key, _ABSENT)) is _ABSENT else value for facts in by_run))
        for what, by_run in groups
        for key in dict.fromkeys(key for facts in by_run for key in facts)
        if any(facts.get(key, _ABSENT) != by_run[0].get(key, _ABSENT) for facts in by_run)
    ]


def _fingerprints(run: RunData) -> dict[str, Node]:
    """Stage -> the fingerprint of its results; without stages that are not done or recorded none."""
    found = {}
    for name in run.stages_with(MANIFEST):
        stored = shapes.read_result(run.stage(name) / MANIFEST, shapes.MANIFEST).get("fingerprint")
        if isinstance(stored, Mapping):
            found[name] = dict(stored)
    return found


def _configurations(runs: list[RunData], prints: list[dict[str, Node]]) -> list[dict[str, Any]]:
    """Key -> value of each run's configuration; of a stage that a run lacks, and of another path to the same content, nothing."""
    found: list[dict[str, Any]] = [{key: run.config[key] for key in _OF_EXPERIMENT if run.config.get(key) is not None} for run in runs]
    for stage in dict.fromkeys(stage for run in runs for stage in run.config["stages"]):
        having = [number for number, run in enumerate(runs) if stage in run.config["stages"]]
        if len(having) < len(runs):
            for number in having:
                found[number][f"stages.{stage}"] = "a stage"
            continue
        recorded = all("config" in of_run.get(stage, {}) for of_run in prints)
        nodes = [of_run[stage]["config"] if recorded else run.config["stages"][stage] for run, of_run in zip(runs, prints, strict=True)]
        contents = [_content_of_paths(f"stages.{stage}", of_run.get(stage, {})) for of_run in prints]
        for number, (run, node) in enumerate(zip(runs, nodes, strict=True)):
            for key, value in _flat(f"stages.{stage}", node):
                same = key in contents[number] and all(content.get(key) == contents[number][key] for content in contents)
                if not same and not key.endswith(".description"):
                    found[number][key] = _without_own_place(value, run)
    return found


def _content_of_paths(prefix: str, stored: Node) -> dict[str, str]:
    """Key of a stage's configuration whose value is a path -> the digest of what lies there."""
    places, inputs = stored.get("places") or {}, dict(_flat(f"{prefix}.inputs", stored.get("inputs") or {}))
    found = {}
    for key, value in _flat(prefix, stored.get("config") or {}):
        if isinstance(value, str) and value in places:
            found[key] = str(places[value])
        elif isinstance(value, str) and key in inputs and outside_path(value) is not None:
            found[key] = str(inputs[key])
    return found


def _without_own_place(value: Any, run: RunData) -> Any:
    """A text without the run's own directory, which is another for every run."""
    if not isinstance(value, str):
        return value
    for place in (str(run.path), f"{run.config['runs_dir']}/{run.config['name']}"):
        value = value.replace(place, "RUN")
    return value


def _versions(run: RunData, prints: Mapping[str, Node]) -> dict[str, Any]:
    environment = run.environment
    changed = " with uncommitted changes" if environment.get("uncommitted_changes") else ""
    found: dict[str, Any] = {"commit": f"{str(environment['commit'])[:12]}{changed}"} if environment.get("commit") else {}
    found |= {"python": environment["python"]} if "python" in environment else {}
    found |= environment.get("packages") or {}
    of_stages: dict[str, list[str]] = {}
    for stored in prints.values():
        for name, version in (stored.get("libraries") or {}).items():
            if name not in found and version not in of_stages.setdefault(name, []):
                of_stages[name].append(version)
    found |= {name: "; ".join(versions) for name, versions in of_stages.items()}
    return found | {f"stages.{name}: version of the method": stored["version"] for name, stored in prints.items() if "version" in stored}


def _machine(run: RunData, prints: Mapping[str, Node]) -> dict[str, Any]:
    left_out = ("commit", "uncommitted_changes", "packages", "python")
    found = dict(pair for key, value in run.environment.items() if key not in left_out for pair in _flat(key, value))
    return found | {f"stages.{name}: precision": stored["precision"] for name, stored in prints.items() if "precision" in stored}


def _data(run: RunData, prints: Mapping[str, Node]) -> dict[str, Any]:
    """What a run's data were: of every stage that makes some, counts and a digest of the files; of files from elsewhere a digest."""
    found = {}
    others = {*run.stages_with(LOG), *run.stages_with(TABLE), *run.stages_with(TASKS)}
    for name in run.stages_with(MANIFEST):
        files = shapes.read_result(run.stage(name) / MANIFEST, shapes.MANIFEST)["files"]
        data = {file: digest for file, digest in files.items() if file.endswith(_DATA_FILES)}
        if data and name not in others:
            metrics = shapes.read_metrics(run.stage(name))
            counts = [f"{metrics[key]:,.0f} {key.replace('_', ' ')}" for key in _COUNTS if key in metrics]
            found[name] = f"{', '.join([*counts, _short(data)])}"
        found |= {key: _short(content) for key, content in _content_of_paths(f"stages.{name}", prints.get(name, {})).items()}
    return found


def _training(run: RunData) -> dict[str, Any]:
    rows = {name: shapes.read_metrics(run.stage(name)) for name in run.config["stages"]}
    return {f"{name}: {key.replace('_', ' ')}": int(metrics[key]) for name, metrics in rows.items() if "pairs_seen" in metrics for key in _SEEN if key in metrics}


def _short(content: Any) -> str:
    """Eight digits that are others for other content."""
    return f"content {config_hash(content)[:8]}"


def _flat(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Dotted key -> value of a tree; a list of plain values is one value."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), value)
    elif isinstance(node, list) and any(isinstance(item, Mapping | list) for item in node):
        for number, item in enumerate(node):
            yield from _flat(f"{prefix}[{number}]", item)
    else:
        yield prefix, node
