"""What made a run's figures: commit, machine and versions, as `environment.json` holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def environment_facts(environment: Mapping[str, Any], machine: Sequence[str] | None = None) -> dict[str, str]:
    """Name -> value: the commit, facts of the machine, then the version of each package.

    Args:
        environment: the content of ``environment.json``.
        machine: the facts of the machine that are wanted, of those that there are; all by default.
    """
    changed = " with uncommitted changes" if environment.get("uncommitted_changes") else ""
    facts = {"commit": f"{environment.get('commit') or 'unknown'}{changed}"}
    if machine is None:
        machine = [key for key in environment if key not in ("commit", "uncommitted_changes", "packages")]
    for key in machine:
        if key in environment:
            value = environment[key]
            facts[key] = (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
    return facts | {str(name): str(version or "not installed") for name, version in (environment.get("packages") or {}).items()}
