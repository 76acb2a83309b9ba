"""Runs an experiment: its stages in order, finished ones skipped, killed ones continued.

A stage is finished when its ``manifest.json``, written last, has the fingerprint of its resolved configuration and of
its inputs. The run is finished when ``metrics.json`` is written, after all stages.
"""

from __future__ import annotations

import functools
import gc
import os
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lightning_e5.config import Node, differing_keys, read_yaml
from lightning_e5.errors import TrainingStopped, UserError
from lightning_e5.launch import is_first_process, wait_for
from lightning_e5.progress import clear_line, on_terminal, stage_title
from lightning_e5.redaction import redact
from lightning_e5.stages.check import check_experiment
from lightning_e5.stages.stage import (
    FREE_ARGUMENTS,
    TIMING,
    PreparedStage,
    is_finished,
    output_files,
    run_directory,
    stage_fingerprint,
)
from lightning_e5.stages.stage_cache import StageCache, unshare
from lightning_e5.storage import MANIFEST, read_json, write_json, write_manifest, write_text

METRICS = "metrics.json"
#: Top-level keys that change nothing a run computes.
_FREE_KEYS = ("description", "logger", "threads", "headline", "runs_dir", "stage_cache", "throughput", "engine")


def run_experiment(
    experiment: Node,
    *,
    update: bool = False,
    report: Callable[[Path, Mapping[str, float]], None] = lambda directory, metrics: None,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, float], bool]:
    """Run what is not finished.

    Args:
        experiment: resolved, from `load_experiment`.
        update: accept a directory made by another configuration and redo the stages that it changes.
        report: called with the run directory and the flat metrics when all stages are done.
        say: called with messages for the user.

    Started by torchrun or SLURM as several processes, the first does everything and the others take part in the stages
    that train on several ranks.

    Returns:
        The flat metrics of the run, and whether anything was computed.

    Raises:
        UserError: a wrong configuration, or a directory of another one.
        TrainingStopped: training cannot go on.
    """
    directory = run_directory(experiment)
    if not is_first_process():
        return _take_part(experiment), False
    finished = _finished_run(experiment, directory)
    if finished is not None:
        return finished, False
    check_experiment(experiment)
    _claim(experiment, directory, update)
    _use_threads(experiment["threads"])
    from lightning_e5.tracking import environment

    write_json(directory / "environment.json", environment())
    outputs: dict[str, Path] = {}
    metrics: dict[str, float] = {}
    names = list(experiment["stages"])
    for number, name in enumerate(names, start=1):
        out = directory / "stages" / name
        title = f"[{number}/{len(names)}] {name}:"
        with stage_title(title, str(experiment["stages"][name].get("description") or "")):
            metrics |= _run_stage(experiment, name, out, outputs, functools.partial(_say_of, title, say))
        outputs[name] = out
    final = experiment.get("final_encoder")
    if final is not None:
        _copy_encoder(outputs[final] / "encoder", directory / "encoder")
    report(directory, metrics)
    write_json(directory / METRICS, metrics)
    return metrics, True


def _say_of(title: str, say: Callable[[str], None], text: str) -> None:
    clear_line()
    say(f"{title} {text}")


def _claim(experiment: Node, directory: Path, update: bool) -> None:
    """Make the run directory ours: new, or made by this very configuration, or updated on request."""
    from omegaconf import OmegaConf

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.yaml"
    if path.is_file():
        keys = changed_keys(experiment, directory)
        if keys and not update:
            shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
            raise UserError(
                f"{directory}: was made by another configuration (it differs in {shown}); give another name=..., remove "
                "the directory, or pass --update to redo the stages that change"
            )
    elif any(directory.iterdir()):
        raise UserError(f"{directory}: exists and is no run directory (has no config.yaml)")
    (directory / METRICS).unlink(missing_ok=True)
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(_recorded(experiment))))


def changed_keys(experiment: Node, directory: Path) -> list[str]:
    """Dotted keys in which the configuration of a run directory differs from ``experiment``, but for those without effect."""
    return [k for k in differing_keys(_recorded(read_yaml(directory / "config.yaml")), _recorded(experiment)) if not _is_free(k)]


def _is_free(key: str) -> bool:
    """Whether a dotted key of an experiment changes nothing a run computes."""
    parts = key.split(".")
    return parts[0] in _FREE_KEYS or (parts[0] == "stages" and len(parts) > 2 and parts[2] in FREE_ARGUMENTS)


def _recorded(experiment: Node) -> Node:
    """The experiment as the run directory keeps it: without secrets."""
    return {key: value if key in ("name", "runs_dir") else redact(value, key, experiment) for key, value in experiment.items()}


def _use_threads(threads: int | None) -> None:
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
    # AdamW's moments of rarely used word embeddings fade into denormal numbers, which are many times slower.
    torch.set_flush_denormal(True)


def _finished_run(experiment: Node, directory: Path) -> dict[str, float] | None:
    """The metrics, where the run is finished and nothing it was made from has changed; imports nothing heavy."""
    if not (directory / METRICS).is_file() or not (directory / "config.yaml").is_file():
        return None
    if changed_keys(experiment, directory):
        return None
    outputs: dict[str, Path] = {}
    for name, node in experiment["stages"].items():
        out = directory / "stages" / name
        if not (out / MANIFEST).is_file() or not is_finished(out, stage_fingerprint(experiment, name, node, outputs, None)):
            return None
        outputs[name] = out
    return dict(read_json(directory / METRICS))


def _take_part(experiment: Node) -> dict[str, float]:
    """Another rank's part: train with the first process in stages of several ranks, wait for it in the others."""
    _use_threads(experiment["threads"])
    outputs: dict[str, Path] = {}
    for name, node in experiment["stages"].items():
        out = outputs[name] = run_directory(experiment) / "stages" / name

        def finished(name: str = name, node: Node = node, out: Path = out) -> bool:
            before = {k: v for k, v in outputs.items() if k != name}
            return (out / MANIFEST).is_file() and is_finished(out, stage_fingerprint(experiment, name, node, before, None))

        if _trains_on_several_ranks(node) and not finished():
            prepared = PreparedStage(experiment, name, out, outputs)
            if not wait_for(prepared.started):
                raise TrainingStopped(f"stage {name}: the first process ended")
            if not finished():  # it was, if the first process took it from the shared stages
                prepared.call()
        if not wait_for(finished):
            raise TrainingStopped(f"stage {name}: the first process ended")
    return {}


def _trains_on_several_ranks(node: Node) -> bool:
    trainer = node.get("trainer") or {}
    if "devices" not in trainer and "num_nodes" not in trainer and trainer.get("accelerator", "auto") == "cpu":
        return False
    from lightning_e5.modules.fit import several_ranks

    return "module" in node and several_ranks(trainer.get("accelerator", "auto"), trainer.get("devices", "auto"), trainer.get("num_nodes", 1))


def _run_stage(
    experiment: Node, name: str, out: Path, outputs: Mapping[str, Path], say: Callable[[str], None]
) -> dict[str, float]:
    prepared = PreparedStage(experiment, name, out, outputs)
    cache = StageCache(Path(experiment["stage_cache"]), say) if experiment.get("stage_cache") else None
    key = cache.key(name, prepared.fingerprint, *_computed_on()) if cache is not None else ""
    if is_finished(out, prepared.fingerprint):
        say("finished before, skipped")
    elif cache is None or (_trains_on_several_ranks(prepared.node) and prepared.started()):
        # In the second case the other ranks are in the training already: it goes on.
        _compute(prepared, say)
    else:
        with cache.locked(key):
            if cache.link(key, prepared.fingerprint, out):
                say("taken from the shared stages")
            else:
                _compute(prepared, say)
                cache.publish(key, out)
    if cache is not None:
        cache.publish(key, out)
    return _named(name, read_json(out / METRICS))


def _computed_on() -> tuple[int, str]:
    """What decides a result's bits beside the configuration: the number of threads, and the kind of device."""
    import torch

    return torch.get_num_threads(), "cuda" if torch.cuda.is_available() else "cpu"


def _compute(prepared: PreparedStage, say: Callable[[str], None]) -> None:
    out = prepared.out
    unshare(out)
    description = prepared.node.get("description")
    begun = "continues" if prepared.begin() else "starts"
    if not on_terminal():  # there a line shows it that goes away
        say(f"{begun}: {description}" if description else begun)
    began = time.perf_counter()
    metrics = prepared.call()
    gc.collect()  # a trainer refers to itself: without this its optimizer's state may stay for stages on end
    seconds = time.perf_counter() - began
    write_json(out / METRICS, metrics)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write_json(out / TIMING, {"seconds": seconds, "peak_memory_gb": peak})
    write_manifest(out, kind=prepared.node["_target_"], files=output_files(out), fingerprint=prepared.fingerprint)
    say(f"{f'{description}: ' if on_terminal() and description else ''}done in {seconds:.1f} s (peak memory {peak:.1f} GB)")


def _named(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metric names of the run: ``<stage>/<name>``, but for names that are full already (``<model>/<set>/<metric>``)."""
    return {name if "/" in name else f"{stage}/{name}": value for name, value in metrics.items()}


def _copy_encoder(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UserError(f"final_encoder: {source}: the stage made no encoder")
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
