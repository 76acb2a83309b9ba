"""``run``: an experiment, stage by stage."""

from __future__ import annotations

import argparse

from lightning_e5.cli.command_line import add_allow_package, tell
from lightning_e5.distributed.launch import is_first_process

DESCRIPTION = "run an experiment; finished stages are skipped, killed ones continue"


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
    return 0
