"""What an adaptation to own texts leaves beside its run: the encoder's card, the queries that changed, and how to use the encoder."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.export.model_card import write_model_card
from lightning_e5.export.model_card_usage import programs
from lightning_e5.files.storage import write_json, write_text
from lightning_e5.models.folder import stored_settings
from lightning_e5.report.tables.adaptation import (
    adaptation_table,
    changed_lines,
    changed_records,
    changed_tables,
    decision_lines,
)
from lightning_e5.report.tables.escaping import markdown
from lightning_e5.results.adaptation import OWN, START, adaptation
from lightning_e5.results.durations import duration
from lightning_e5.results.run import RunData
from lightning_e5.text import Prefixes

#: The queries that changed, in a run's directory.
CHANGED = "changed_queries"


def write_adaptation(directory: Path) -> str:
    """Write the changed queries and the encoder's card into a finished run's directory; what there is to say at the end.

    Raises:
        UserError: the run is unfinished or damaged, or did not evaluate its start on own texts.
    """
    run = RunData(directory)
    found = adaptation(run)
    if found is None:
        raise UserError(f"{directory}: did not evaluate {START!r} and the adapted encoder on {OWN!r}")
    changed = found.changed_queries()
    write_json(directory / f"{CHANGED}.json", changed_records(changed))
    parts = [f"## {markdown(title)}\n\n{table.markdown()}\n" for title, table in changed_tables(changed).items()]
    write_text(directory / f"{CHANGED}.md", "\n".join([f"# Queries that changed: {changed.model} and {changed.reference}\n", *parts]))
    write_model_card(directory, found.encoder)
    times = list(run.times().values())
    total, peak = sum(t["seconds"] for t in times), max((t["peak_memory_gb"] for t in times), default=0.0)
    return "\n".join([
        "", *changed_lines(changed), f"(in full: {directory / CHANGED}.md)", "", *use_lines(found.encoder), "",
        "# in a terminal", shlex.join(["lightning-e5", "search", str(directory), "--interactive"]), "",
        *adaptation_table(found).lines(), "", *decision_lines(found), "",
        f"report: {directory / 'report.html'}; encoder: {found.encoder}, with its model card",
        f"time: {duration(total)} in all; peak memory {peak:.1f} GB",
    ])  # fmt: skip


def use_lines(encoder: Path) -> list[str]:
    """Programs that use an encoder's folder, ready to be pasted."""
    stored = stored_settings(encoder)
    own = programs(str(encoder), stored.prefixes or Prefixes("", ""), stored.max_length or 512, pooling=stored.pooling, truncate_dim=stored.truncate_dim)
    lines: list[str] = []
    for library, program in own.items():
        lines += ["", f"# {library}", *program.splitlines()]
    return lines[1:]
