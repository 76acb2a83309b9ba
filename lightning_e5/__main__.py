"""The table of verbs: ``lightning-e5 VERB``, or ``python -m lightning_e5 VERB``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_e5.cli import ablate, adapt, cache, check, compare, dashboard, evaluate, export, run, search
from lightning_e5.cli.command_line import Verb, command_line
from lightning_e5.cli.ending import show_defect

VERBS: dict[str, Verb] = {
    "adapt": adapt,
    "run": run,
    "ablate": ablate,
    "check": check,
    "compare": compare,
    "evaluate": evaluate,
    "dashboard": dashboard,
    "search": search,
    "export": export,
    "cache": cache,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 1 our defect, 2 the user's mistake, 130 interrupted, 143 stopped."""
    if argv is None:  # the process is ours
        sys.excepthook = show_defect
    return command_line(VERBS, argv)


if __name__ == "__main__":
    sys.exit(main())
