"""The exceptions that end a command with a sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave (a file, a key, a value). Its message is one clear sentence.

    The command line prints the message alone and exits with code 2; anything else is our defect and keeps its traceback.
    """


class TrainingStopped(RuntimeError):
    """Training cannot go on (a value that is not finite). Its message says why; the command line exits with code 1."""


def suggestion(word: object, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest choice, or the choices in full when none is near and they are few."""
    choices = sorted(choices)
    near = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f" (known: {', '.join(choices)})" if 0 < len(choices) <= 24 else ""
