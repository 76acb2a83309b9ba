"""What all verbs share: parsing, telling, the end of the process. Heavy libraries are imported by the verb that needs them."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Protocol

from lightning_e5.cli.ending import ending
from lightning_e5.errors import UserError
from lightning_e5.files.storage import is_unwritable
from lightning_e5.interrupts import ending_on_signals
from lightning_e5.memory import keep_freed_memory
from lightning_e5.progress import printable
from lightning_e5.threads import wait_briefly


class Verb(Protocol):
    """A module of `lightning_e5.cli`: one verb."""

    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's arguments."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the verb; its exit code."""
        ...


def tell(text: str) -> None:
    """Print what a verb has to say, whatever names and texts are in it."""
    print(printable(text))


def add_allow_package(parser: argparse.ArgumentParser) -> None:
    """The option that lets a YAML name classes of the user's own packages."""
    parser.add_argument(
        "--allow-package", nargs="+", action="extend", default=[], metavar="PACKAGE", help="of your own, whose configurable classes a YAML may name"
    )


def _check_words(words: Sequence[str]) -> None:
    """UserError for a word of the command line that no path or name can hold."""
    for word in words:
        if is_unwritable(word):
            raise UserError(f"{ascii(word)[:120]}: holds NUL, or bytes that are not UTF-8, which no path or name here may have")


def command_line(table: Mapping[str, Verb], argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 1 our defect, 2 the user's mistake, 130 interrupted, 143 stopped."""
    started_as = "lightning-e5" if os.path.basename(sys.argv[0]) == "lightning-e5" else "python -m lightning_e5"
    parser = argparse.ArgumentParser(prog=started_as, description="E5 text embeddings: train, ablate, evaluate.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in table.items():
        added = verbs.add_parser(name, help=verb.DESCRIPTION, description=verb.DESCRIPTION)
        verb.add_arguments(added)
        added.set_defaults(function=verb.run)
    arguments, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(arguments, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # key=value after an option
        arguments.overrides = [*arguments.overrides, *rest]
    _quieten_libraries()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    wait_briefly()
    keep_freed_memory()
    with ending_on_signals():
        return ending(lambda: _run_verb(arguments, sys.argv[1:] if argv is None else argv))


def _run_verb(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    _check_words(words)
    if packages := getattr(arguments, "allow_package", []):
        from lightning_e5.configurable import allow_packages

        allow_packages(packages)
    return int(arguments.function(arguments))


def _quieten_libraries() -> None:
    """Leave out remarks of libraries on their own parts, here and in processes that this one starts; ``python -W default`` shows them."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo's and the store's on host names
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its report of loaded weights; what is missing is our error
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
