"""``check``: experiments and ablations, before anything runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lightning_e5.cli.command_line import add_allow_package
from lightning_e5.errors import UserError

DESCRIPTION = "check experiments and print their plans; builds nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``check``."""
    parser.add_argument("experiments", nargs="+", metavar="YAML", help="of experiments and ablations; with overrides (key=value) as run and ablate take them")
    parser.add_argument("--paths", action="store_true", help="also that the files and folders they name are here")
    add_allow_package(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.ablation.check import expanded
    from lightning_e5.pipeline.plan import check_files

    overrides = [word for word in arguments.experiments if "=" in word and not os.path.lexists(word)]
    paths = [Path(word) for word in arguments.experiments if word not in overrides]
    if not paths:
        raise UserError(f"check: {overrides[0]!r} is an override (key=value), and there is no YAML to apply it to")
    return check_files(paths, overrides, paths_too=arguments.paths, expand=expanded)
