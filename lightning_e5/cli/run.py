"""``run``: an experiment, stage by stage."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from lightning_e5.cli.command_line import add_allow_package, tell
from lightning_e5.config.experiment import STAGE_CACHE, Node
from lightning_e5.distributed.launch import is_first_process
from lightning_e5.errors import UserError

DESCRIPTION = "run an experiment; finished stages are skipped, killed ones continue"

#: Bytes of stages in no run from which on a run says that they are there.
_TOLD_BYTES = 10**9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``run``."""
    parser.add_argument("experiment", help="an experiment YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as stages.pretrain.data.batch_size=256")
    parser.add_argument("--update", action="store_true", help="redo the stages that a changed configuration changes")
    parser.add_argument("--wait", action="store_true", help="wait where another process is at work in the run's directory")
    parser.add_argument("--verify", action="store_true", help="read all files of finished stages again, whatever their size and time")
    parser.add_argument("--fresh", action="store_true", help="take no stage from other runs, and compute those that were taken")
    add_allow_package(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.config.experiment import load_experiment
    from lightning_e5.distributed.ranks import together
    from lightning_e5.pipeline.lock import run_lock
    from lightning_e5.pipeline.runner import run_directory, run_experiment
    from lightning_e5.report.run_page import write_report
    from lightning_e5.report.tables.summary import summary_table
    from lightning_e5.report.wandb_mirror import mirror

    experiment = load_experiment(arguments.experiment, arguments.overrides)
    directory = run_directory(experiment)
    asked = {"update": arguments.update, "wait": arguments.wait, "verify": arguments.verify, "fresh": arguments.fresh}
    with together(directory):
        _, computed = run_experiment(experiment, **asked, report=write_report, say=tell)
    if not is_first_process():
        return 0
    if not computed:
        tell(f"{directory} is finished and nothing it was made from has changed; nothing to do.")
    with run_lock(directory, wait=True):  # another run of it may have begun meanwhile
        mirror(directory, experiment.get("logger") or {})
    tell(summary_table(directory, experiment.get("headline") or []))
    _tell_of_growth(experiment)
    return 0


def _tell_of_growth(experiment: Node) -> None:
    """Say so where stages of runs that were removed fill the disk."""
    from lightning_e5.pipeline.cache_contents import own_bytes

    folder = experiment.get("stage_cache")
    try:
        unused = own_bytes(Path(folder)) if folder else 0
    except UserError:  # a folder that cannot be read
        return
    if unused >= _TOLD_BYTES:
        tell(f"note: {folder} holds {unused / 1e9:.1f} GB of stages that no run has any more; `{_prune_command(experiment)}` frees them")


def _prune_command(experiment: Node) -> str:
    runs_dir, folder = str(experiment["runs_dir"]), Path(experiment["stage_cache"])
    named = [] if folder == Path(runs_dir) / STAGE_CACHE else ["--stage-cache", str(folder)]
    return shlex.join(["lightning-e5", "cache", "prune", *([] if runs_dir == "runs" else ["--runs-dir", runs_dir]), *named])
