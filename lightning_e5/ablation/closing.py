"""What ``ablate`` ends with: the ablation's table as far as its runs are finished, and how those that are not stand."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.results.ablation import AblationData


def closing_text(directory: Path) -> str:
    """The table of ``compare DIRECTORY`` with the command that shows it again; where there is none yet, why, and how every run stands."""
    from lightning_e5.report.compare import compare  # imports scipy

    try:
        table = compare([directory])
    except UserError as error:
        data = AblationData(directory)
        states = [f"  {data.run_name(v, s)}: {data.state(v, s)}" for v in data.variants for s in data.planned(v)]
        return "\n".join([f"no table yet: {error}", *states])
    return f"{table}\n\ncompare: python -m lightning_e5 compare {shlex.quote(str(directory))}"
