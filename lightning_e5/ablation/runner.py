"""The ``ablate`` verb: every run of an ablation as a process of its own, in any number of sittings.

A run is finished when its ``metrics.json`` is there, and only then; everything else is started or continued by the same
command. ``ablation.json``, ``status.json`` and the runs' directories and logs are all that others read.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_e5.ablation.closing import closing_text
from lightning_e5.ablation.dry_run import only_without_baseline, plan_text
from lightning_e5.ablation.launchers import Launcher, LocalLauncher, visible_gpus
from lightning_e5.ablation.plan import Plan, PlannedRun, plan_ablation
from lightning_e5.ablation.slurm import SlurmLauncher
from lightning_e5.ablation.status import RunStatus, last_error_line
from lightning_e5.config.ablation_spec import load_ablation
from lightning_e5.configurable import allow_options
from lightning_e5.distributed.devices import threads_per_process
from lightning_e5.errors import UserError
from lightning_e5.files.run_layout import ABLATION, METRICS
from lightning_e5.files.storage import write_json, write_text
from lightning_e5.interrupts import listening
from lightning_e5.pipeline.check import check_experiment
from lightning_e5.pipeline.lock import LOCK, locked
from lightning_e5.pipeline.runner import changed_keys
from lightning_e5.redaction import digits, replace_secrets

#: Before the digits of the environment variable of a secret of the YAML.
_SECRET = "LIGHTNING_E5_SECRET_"
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class AblateRequest:
    """What the command line asks for; see ``ablate --help``."""

    file: Path
    overrides: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    seeds: int | None = None
    dry_run: bool = False
    update: bool = False
    wait: bool = False
    jobs: int | None = None
    launcher: str = "local"
    gpus_per_job: int | None = None
    slurm: list[str] = field(default_factory=list)


def ablate(request: AblateRequest, say: Callable[[str], None] = print) -> int:
    """Run what is not finished of an ablation and show its table; returns 0, or 1 where a run failed.

    Raises:
        UserError: a mistake in the YAML or the request; nothing has been run.
        KeyboardInterrupt: by SIGINT, after the runs have saved their state.
        SystemExit: 143, by SIGTERM, likewise.
    """
    scale, overrides = _scale(request.overrides)
    ablation = load_ablation(request.file, scale)
    plan = plan_ablation(ablation, overrides, only=request.only, seeds=request.seeds)
    if request.dry_run:
        say("\n".join(plan_text(plan)))
        return 0
    held = f"{plan.directory}: another ablate is at work there"
    with locked(plan.directory / LOCK, wait=request.wait, held=held, hint="; pass --wait to wait for it", say=say):
        launcher = _launcher(request, plan)
        _share_cores(plan, launcher.slots if request.launcher == "local" else 1)
        _check_finished(plan, request.update)
        status = RunStatus(plan.directory, [run.name for run in plan.every])
        missing = [run for run in plan.wanted if not status.finished(run.name) or request.update]
        say(
            f"{ablation.name} at scale {ablation.scale}: {len(plan.wanted)} runs in {plan.directory}, "
            f"{len(plan.wanted) - len(missing)} finished"
        )
        for line in only_without_baseline(plan):
            say(line)
        _write_experiments(plan, missing)
        write_json(plan.directory / ABLATION, _facts(plan))
        if missing:
            _check_stages(plan, missing)
        failed = _run_all(plan, missing, launcher, status, request.update, say)
    say(f"\n{closing_text(plan.directory)}")
    return 1 if failed else 0


def _scale(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """``scale=...`` of the command line, and the other overrides."""
    scales = [o.removeprefix("scale=") for o in overrides if o.startswith("scale=")]
    return (scales[-1] if scales else None), [o for o in overrides if not o.startswith("scale=")]


def _launcher(request: AblateRequest, plan: Plan) -> Launcher:
    if request.launcher == "slurm":
        import yaml

        parameters = {}
        for option in request.slurm:
            key, separator, value = option.partition("=")
            if not separator:
                raise UserError(f"--slurm {option}: is not KEY=VALUE, such as slurm_partition=gpu or timeout_min=600")
            parameters[key] = yaml.safe_load(value)
        return SlurmLauncher(plan.directory / "slurm", request.gpus_per_job, parameters, request.jobs)
    if request.slurm:
        raise UserError("--slurm: is for --launcher slurm")
    return LocalLauncher(request.jobs, visible_gpus(), request.gpus_per_job or 1)


def _share_cores(plan: Plan, jobs: int) -> None:
    """Jobs at the same time share the cores, where the YAML does not set threads."""
    for run in plan.every:
        if jobs > 1 and run.experiment["threads"] is None:
            run.experiment["threads"] = threads_per_process(jobs)


def _check_finished(plan: Plan, update: bool) -> None:
    """UserError where a finished run is of another configuration than the YAML's."""
    for run in plan.wanted:
        directory = plan.directory / run.name
        if update or not (directory / METRICS).is_file():
            continue
        keys = changed_keys(run.experiment, directory)
        if keys:
            raise UserError(
                f"{directory}: was made by another configuration (it differs in {', '.join(keys[:6])}); give another "
                "runs_dir=..., remove the directory, or pass --update to redo the stages that change"
            )


def _write_experiments(plan: Plan, runs: Sequence[PlannedRun]) -> None:
    """The runs' YAMLs; a secret is in none of them but in this process's environment, which the runs inherit."""
    from omegaconf import OmegaConf

    for run in runs:
        experiment = replace_secrets(run.experiment, _in_environment)
        note = "" if experiment == run.experiment else "# Secrets are in the environment; `ablate` puts those there that the user's own lacks.\n"
        write_text(_experiment_file(plan, run), note + OmegaConf.to_yaml(OmegaConf.create(experiment)))


def _in_environment(secret: str) -> str:
    """What refers to a secret from a YAML: the user's own variable where one holds it, else one that is set here."""
    own = [name for name, value in os.environ.items() if value == secret and len(secret) >= 8 and name.isidentifier()]
    name = own[0] if own else f"{_SECRET}{digits(secret).upper()}"
    os.environ[name] = secret
    return f"${{oc.env:{name}}}"


def _experiment_file(plan: Plan, run: PlannedRun) -> Path:
    return plan.directory / f"{run.name}.yaml"


def _check_stages(plan: Plan, runs: Sequence[PlannedRun]) -> None:
    """Check the stages of every variant, before hours are spent on the first.

    In a process of its own, so that this one keeps the memory of a shell, unless it has imported torch already.
    """
    firsts: dict[str, PlannedRun] = {}
    for run in runs:
        firsts.setdefault(run.variant, run)
    if "torch" in sys.modules:
        for run in firsts.values():
            _check_here(plan, run)
        return
    files = [str(_experiment_file(plan, run)) for run in firsts.values()]
    command = [sys.executable, "-m", "lightning_e5", "check", "--paths", *files, *allow_options()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise UserError("\n".join(line.removeprefix("error: ") for line in errors) or done.stderr.strip())


def _check_here(plan: Plan, run: PlannedRun) -> None:
    try:
        check_experiment(run.experiment)
    except UserError as error:
        raise UserError(f"{_experiment_file(plan, run)}: {error}") from None


def _facts(plan: Plan) -> dict[str, Any]:
    """What ``ablation.json`` holds: the whole ablation at its scale, whatever part of it is wanted now."""
    ablation = plan.ablation
    variants: dict[str, dict[str, Any]] = {name: {"description": text, "runs": {}} for name, text in ablation.descriptions.items()}
    for run in plan.every:
        variants[run.variant]["runs"][str(run.seed)] = run.name
    return {
        "ablation": ablation.name,
        "scale": ablation.scale,
        "file": str(ablation.file),
        "question": ablation.question,
        "held_constant": ablation.held_constant,
        "baseline": ablation.baseline,
        "also_compare": ablation.also_compare,
        "report": ablation.report,
        "seeds": ablation.seeds,
        "paper": ablation.paper,
        "skipped": ablation.skipped,
        "order": list(variants),
        "paper_order": list((ablation.paper or {}).get("figures") or {}),
        "variants": variants,
    }


def _run_all(
    plan: Plan, runs: Sequence[PlannedRun], launcher: Launcher, status: RunStatus, update: bool, say: Callable[[str], None]
) -> list[str]:
    """Run them, at most ``launcher.slots`` at the same time; returns the names of those that failed."""
    waiting, failed = list(runs), []
    status.begin([run.name for run in runs], launcher.slots, f"{plan.ablation.name}-{plan.ablation.scale}")
    began_at: dict[str, int] = {}
    with _stopping(launcher, status) as stop:
        while (waiting and not stop) or status.running:
            while waiting and not stop and len(status.running) < launcher.slots:
                run = waiting.pop(0)
                log = plan.directory / f"{run.name}.log"
                began_at[run.name] = log.stat().st_size if log.is_file() else 0
                # A run of an ablate that was killed may be saving its state yet; the new one waits for it.
                command = [sys.executable, "-u", "-m", "lightning_e5", "run", str(_experiment_file(plan, run)), "--wait", *allow_options()]
                launcher.start(run.name, [*command, "--update"] if update else command, log)
                status.started(run.name)
            for name, code in launcher.ended().items():
                message = last_error_line(plan.directory / f"{name}.log", began_at[name])
                if status.ended(name, code, message, stopped=bool(stop)) == "failed":
                    failed.append(name)
                    say(f"{name}: failed ({message or f'exit code {code}'}); see {plan.directory / name}.log")
            status.queued(launcher.queued())
            status.show()
            time.sleep(_POLL_SECONDS)
    status.close()
    if stop:
        say(f"stopped; {len(plan.wanted)} runs, {sum(status.finished(r.name) for r in plan.wanted)} finished")
        if stop[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + stop[0])
    return failed


@contextmanager
def _stopping(launcher: Launcher, status: RunStatus) -> Iterator[list[int]]:
    """Within the block SIGINT and SIGTERM ask the runs to stop, a second one ends them; the value lists the signals.

    The runs get SIGTERM in both cases, since that is what a training saves a checkpoint at.
    """
    stop: list[int] = []

    def asked(number: int, frame: Any) -> None:
        launcher.stop(kill=bool(stop))
        stop.append(number)

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, asked) for number in numbers}
    try:
        with listening(lambda number: None):  # in place of the command line's, which would end this process and its runs
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
