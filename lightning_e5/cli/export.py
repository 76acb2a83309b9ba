"""``export``: the encoder of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_e5.cli.command_line import tell

DESCRIPTION = "a run's encoder as a Hugging Face + sentence-transformers folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``export``."""
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("directory", metavar="DIR", nargs="?", help="where the model folder is written (default: export in the run)")
    parser.add_argument("--truncate-dim", type=int, metavar="N", help="store that embeddings are their first N values (default: as the run's encoder stores it)")
    parser.add_argument("--onnx", action="store_true", help="also onnx/model.onnx, compared with the weights")
    parser.add_argument("--no-card", action="store_true", help="no README.md about the model")
    parser.add_argument("--license", metavar="NAME", help="of the model, for the card, such as mit (default: none named)")
    parser.add_argument("--language", metavar="CODE", default="en", help="of the texts, for the card (default en)")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.export.folder import export, own_place

    run = Path(arguments.run)
    directory = Path(arguments.directory) if arguments.directory is not None else own_place(run)
    if arguments.no_card:
        tell(export(run, directory, onnx=arguments.onnx, truncate_dim=arguments.truncate_dim))
    else:
        from lightning_e5.export.model_card import check_metadata, write_model_card

        check_metadata(arguments.language, arguments.license)  # before a folder is there
        tell(export(run, directory, onnx=arguments.onnx, truncate_dim=arguments.truncate_dim))
        write_model_card(run, directory, language=arguments.language, license=arguments.license)
        tell(f"{directory / 'README.md'}: the model card")
    return 0
