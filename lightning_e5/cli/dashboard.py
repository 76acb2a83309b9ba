"""``dashboard``: a W&B workspace for an ablation."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_e5.cli.command_line import tell

DESCRIPTION = "a W&B workspace that compares an ablation's runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``dashboard``."""
    parser.add_argument("ablation", metavar="ABLATION", help="an ablation's directory, or its YAML (no run is needed)")
    parser.add_argument("scale", nargs="?", type=lambda text: text.removeprefix("scale="), metavar="scale=S", help="of a YAML, instead of its default")
    parser.add_argument("--project", metavar="P", help="the W&B project; by default the one that the ablation's runs go to")
    parser.add_argument("--entity", metavar="E", help="the W&B user or team; by default your own")
    parser.add_argument("--out", metavar="FILE", help="where the specification is written (default dashboard.json in the ablation's directory)")
    parser.add_argument("--online", action="store_true", help="save it at W&B, where you are logged in, and print its address")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.ablation.dashboard import dashboard

    chosen = {key: getattr(arguments, key) for key in ("scale", "project", "entity", "online")}
    tell(dashboard(Path(arguments.ablation), out=Path(arguments.out) if arguments.out else None, **chosen))
    return 0
