"""``ablate``: every variant and seed of an ablation."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_e5.cli.command_line import add_allow_package, tell

DESCRIPTION = "run an ablation: every variant and seed; finished runs are skipped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``ablate``."""
    parser.add_argument("file", help="an ablation YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="scale=laptop, and keys of every run's experiment")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="VARIANT", help="these variants")
    parser.add_argument("--seeds", type=int, metavar="N", help="the first N seeds")
    parser.add_argument("--dry-run", action="store_true", help="print the runs, what differs and what they share; run nothing")
    parser.add_argument("--update", action="store_true", help="redo the stages that a changed configuration changes")
    parser.add_argument("--wait", action="store_true", help="wait where another ablate is at work in the directory")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at the same time (default 1, or one per set of GPUs)")
    parser.add_argument("--gpus-per-job", type=int, metavar="K", help="GPUs of each run (default 1)")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where runs are executed")
    parser.add_argument("--slurm", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="slurm_partition=gpu, timeout_min=600 ...")
    add_allow_package(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.ablation.runner import AblateRequest, ablate

    given = {key: value for key, value in vars(arguments).items() if key not in ("verb", "function", "file", "only", "overrides", "allow_package")}
    overrides = [*arguments.overrides, *(word for word in arguments.only if "=" in word)]
    only = [word for word in arguments.only if "=" not in word]
    return ablate(AblateRequest(Path(arguments.file), overrides, only, **given), say=tell)
