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
from datetime import datetime
from pathlib import Path

from lightning_e5.config.experiment import Node
from lightning_e5.distributed.devices import use_threads
from lightning_e5.distributed.launch import is_first_process, wait_for
from lightning_e5.distributed.ranks import loss
from lightning_e5.errors import TrainingStopped, UserError
from lightning_e5.files.digests import MEMORY, FileDigests
from lightning_e5.files.run_layout import VALIDATED
from lightning_e5.files.storage import MANIFEST, empty_directory, read_json, write_json, write_manifest
from lightning_e5.pipeline.check import check_experiment
from lightning_e5.pipeline.claim import METRICS, changed_keys, check_directory, claim
from lightning_e5.pipeline.fingerprint import stage_fingerprint
from lightning_e5.pipeline.lock import run_lock
from lightning_e5.pipeline.sharing import SharedStages
from lightning_e5.pipeline.stage import (
    TIMING,
    PreparedStage,
    cache_key_of,
    is_finished,
    output_files,
    reused_from,
    run_directory,
)
from lightning_e5.pipeline.stage_cache import unshare
from lightning_e5.progress import clear_line, on_terminal, stage_title

#: How long another rank waits for the first one's hash of a file before it hashes the file itself.
_HASHING_SECONDS = 600.0


def run_experiment(
    experiment: Node,
    *,
    update: bool = False,
    wait: bool = False,
    verify: bool = False,
    fresh: bool = False,
    report: Callable[[Path, Mapping[str, float]], None] = lambda directory, metrics: None,
    say: Callable[[str], None] = print,
    done: Callable[[str, Path], None] = lambda stage, out: None,
) -> tuple[dict[str, float], bool]:
    """Run what is not finished.

    Args:
        experiment: resolved, from `load_experiment`.
        update: accept a directory made by another configuration and redo the stages that it changes.
        wait: wait where another process runs in the directory, instead of refusing.
        verify: read every file of finished stages again, instead of those whose size or time changed.
        fresh: compute every stage in this run: none is taken from another run, and those that were are computed. What this run
            computed itself is kept, so that it continues after a kill. A result that differs from the shared one replaces it.
        report: called with the run directory and the flat metrics when all stages are done.
        say: called with messages for the user.
        done: called with each stage and its folder once its results are there.

    Started by torchrun or SLURM as several processes, the first does everything and the others take part in the stages
    that train on several ranks.

    Results are equal byte for byte, killed and continued or not, for the same builds of the libraries, number of threads,
    instruction set and kind of device; with one of these changed they are not (``environment.json`` holds them, and a run
    that is continued under others says so).

    Returns:
        The flat metrics of the run, and whether anything was computed.

    Raises:
        UserError: a wrong configuration, a directory of another one, or one that another process runs in.
        TrainingStopped: training cannot go on.
    """
    directory = run_directory(experiment)
    if not is_first_process():
        return _run_other_rank(experiment, fresh), False
    digests = FileDigests(Path(experiment["runs_dir"]) / MEMORY, verify=verify)
    finished = _finished_run(experiment, directory, digests, fresh)
    if finished is not None:
        return finished, False
    check_experiment(experiment)
    check_directory(directory)
    with run_lock(directory, wait=wait, say=say):
        finished = _finished_run(experiment, directory, digests, fresh)  # by the process that held the lock before
        if finished is not None:
            return finished, False
        claim(experiment, directory, update)
        return _run_stages(experiment, directory, digests, fresh, report, say, done), True


def _run_stages(
    experiment: Node, directory: Path, digests: FileDigests, fresh: bool, report: Callable[[Path, Mapping[str, float]], None],
    say: Callable[[str], None], done: Callable[[str, Path], None],
) -> dict[str, float]:
    from lightning_e5.tracking.run_directory import record_environment

    _prepare_torch(experiment)
    record_environment(directory, say)
    outputs: dict[str, Path] = {}
    metrics: dict[str, float] = {}
    names = list(experiment["stages"])
    shared = SharedStages(experiment, directory, digests, fresh)
    for number, name in enumerate(names, start=1):
        out = directory / "stages" / name
        title = f"[{number}/{len(names)}] {name}:"
        with stage_title(title, str(experiment["stages"][name].get("description") or "")):
            metrics |= _run_stage(experiment, name, out, outputs, digests, shared, functools.partial(_log, title, say))
        outputs[name] = out
        done(name, out)
    final = experiment.get("final_encoder")
    if final is not None:
        _copy_encoder(outputs[final] / "encoder", directory / "encoder")
    report(directory, metrics)
    write_json(directory / METRICS, metrics)
    return metrics


def _log(title: str, say: Callable[[str], None], text: str) -> None:
    clear_line()
    say(f"{title} {text}")


def _prepare_torch(experiment: Node) -> None:
    from lightning_e5.rng import use_deterministic_kernels

    use_threads(experiment["threads"])
    use_deterministic_kernels(experiment.get("deterministic", False))


def _finished_run(experiment: Node, directory: Path, digests: FileDigests, fresh: bool) -> dict[str, float] | None:
    """The metrics, where the run is finished and nothing it was made from has changed; imports nothing heavy."""
    if not (directory / METRICS).is_file() or not (directory / "config.yaml").is_file():
        return None
    if changed_keys(experiment, directory):
        return None
    outputs: dict[str, Path] = {}
    metrics: dict[str, float] = {}
    for name, node in experiment["stages"].items():
        out = directory / "stages" / name
        if fresh and reused_from(out) is not None:
            return None
        if not (out / MANIFEST).is_file() or not is_finished(out, stage_fingerprint(experiment, name, node, outputs, None, digests), digests):
            return None
        outputs[name] = out
        metrics |= _named(name, read_json(out / METRICS))
    digests.save()
    try:
        same = read_json(directory / METRICS) == metrics
    except UserError:
        same = False
    return metrics if same else None  # else a bit of it changed: it is written again


def _run_other_rank(experiment: Node, fresh: bool) -> dict[str, float]:
    """Another rank's part: train with the first process in stages of several ranks, wait for it in the others.

    Files are hashed by the first process; the others read from its memory of digests what it found.
    """
    _prepare_torch(experiment)
    digests = FileDigests(Path(experiment["runs_dir"]) / MEMORY, patience=_HASHING_SECONDS)
    outputs: dict[str, Path] = {}
    for name, node in experiment["stages"].items():
        out = outputs[name] = run_directory(experiment) / "stages" / name

        def finished(name: str = name, node: Node = node, out: Path = out) -> bool:
            before = {k: v for k, v in outputs.items() if k != name}
            return not (fresh and reused_from(out) is not None) and (out / MANIFEST).is_file() and is_finished(out, stage_fingerprint(experiment, name, node, before, None, digests), digests)

        if _trains_on_several_ranks(node) and not finished():
            prepared = PreparedStage(experiment, name, out, outputs, digests)
            if not wait_for(functools.partial(_begun, prepared, fresh)):
                raise TrainingStopped(f"stage {name}: {loss() or 'the first process ended'}")
            if not finished():  # it was, if the first process took it from the shared stages
                prepared.call()
        if not wait_for(finished):
            raise TrainingStopped(f"stage {name}: {loss() or 'the first process ended'}")
    return {}


def _begun(prepared: PreparedStage, fresh: bool) -> bool:
    """Whether the first process has begun a stage, or put another run's result in its place."""
    return prepared.started() and not (fresh and reused_from(prepared.out) is not None)


def _trains_on_several_ranks(node: Node) -> bool:
    trainer = node.get("trainer") or {}
    if "devices" not in trainer and "num_nodes" not in trainer and trainer.get("accelerator", "auto") == "cpu":
        return False
    from lightning_e5.modules.fit import several_ranks

    return "module" in node and several_ranks(trainer.get("accelerator", "auto"), trainer.get("devices", "auto"), trainer.get("num_nodes", 1))


def _run_stage(
    experiment: Node, name: str, out: Path, outputs: Mapping[str, Path], digests: FileDigests, shared: SharedStages, say: Callable[[str], None]
) -> dict[str, float]:
    prepared = PreparedStage(experiment, name, out, outputs, digests)
    cache, key = shared.cache, shared.key(prepared, say)
    if shared.fresh and reused_from(out) is not None:
        empty_directory(out)
    done = is_finished(out, prepared.fingerprint, digests)
    digests.save()  # for the other ranks, which wait for it
    if done:
        say("finished before, skipped")
        if cache is not None and key is not None and cache_key_of(out) == key:
            cache.publish(key, out)
    elif cache is None or key is None or (_trains_on_several_ranks(prepared.node) and prepared.started()):
        # In the last case the other ranks are in the training already: it goes on.
        _compute(prepared, shared, key, say)
        shared.publish(prepared)
    else:
        with cache.locked(key) as held:
            origin = cache.link(key, prepared.fingerprint, out) if held and not shared.fresh else None
            if origin is not None:
                say(f"reused from {origin}")
            else:
                _compute(prepared, shared, key, say)
                if held:
                    shared.publish(prepared)
    return _named(name, read_json(out / METRICS))


def _compute(prepared: PreparedStage, shared: SharedStages, key: str | None, say: Callable[[str], None]) -> None:
    out, digests = prepared.out, shared.digests
    unshare(out)
    description = prepared.node.get("description")
    begun = "continues" if prepared.begin(key) else "starts"
    if not on_terminal():  # there a line shows it that goes away
        say(f"{begun}: {description}" if description else begun)
    began = time.perf_counter()
    try:
        metrics = prepared.call()
    except Exception as error:
        prepared.failed(error)
        raise
    if "module" in prepared.node:
        gc.collect()  # a trainer refers to itself: without this its optimizer's state may stay for stages on end
    seconds = time.perf_counter() - began
    write_json(out / METRICS, metrics)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(out / TIMING, {"seconds": seconds, "peak_memory_gb": peak, "computed_by": shared.run, "computed_at": now})
    files = output_files(out)
    write_manifest(out, kind=prepared.node["_target_"], files=files, digest=digests.of, fingerprint=prepared.fingerprint)
    digests.save()
    say(f"{f'{description}: ' if on_terminal() and description else ''}done in {seconds:.1f} s (peak memory {peak:.1f} GB)")


def _named(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metric names of the run: ``<stage>/<name>``, but for names that are full already (``<model>/<set>/<metric>``)."""
    full = {name for name in metrics if "/" in name and not name.startswith(VALIDATED)}
    return {name if name in full else f"{stage}/{name}": value for name, value in metrics.items()}


def _copy_encoder(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UserError(f"final_encoder: {source}: the stage made no encoder")
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
