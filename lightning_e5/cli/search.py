"""``search``: a corpus with a model."""

from __future__ import annotations

import argparse

from lightning_e5.cli.command_line import tell
from lightning_e5.errors import UserError

DESCRIPTION = "the passages of a run's corpus nearest to a text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``search``."""
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="a run directory, or a model (with --corpus): a folder, package:NAME/FOLDER or a hub name")
    parser.add_argument("text", nargs="?", help="the query; without it questions are asked for")
    parser.add_argument("--interactive", action="store_true", help="ask for questions until an empty line")
    parser.add_argument("--corpus", metavar="FOLDER", help="a folder of documents (Markdown, reST, text, HTML) or in BEIR layout; a run's own test collection by default")
    parser.add_argument("--truncate-dim", type=int, metavar="N", help="the first N values of the embeddings alone (default: as the model stores it)")
    parser.add_argument("-k", type=int, default=5, help="passages shown (default 5)")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.evaluation.corpus_search import search, search_interactively

    if arguments.interactive or arguments.text is None:
        if arguments.text is not None:
            raise UserError(f"--interactive: asks for the texts itself; leave out {arguments.text!r}")
        search_interactively(arguments.model, corpus=arguments.corpus, k=arguments.k, truncate_dim=arguments.truncate_dim, say=tell)
    else:
        tell(search(arguments.model, arguments.text, corpus=arguments.corpus, k=arguments.k, truncate_dim=arguments.truncate_dim))
    return 0
