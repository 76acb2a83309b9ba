"""``cache``: the finished stages that runs share."""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from pathlib import Path

from lightning_e5.cli.command_line import tell
from lightning_e5.config.experiment import STAGE_CACHE
from lightning_e5.errors import UserError

DESCRIPTION = "the finished stages that runs share: list them, or prune those that no run has"
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
#: Where ablations of earlier versions shared stages.
_EARLIER = "shared_stages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``cache``."""
    deeds = parser.add_subparsers(dest="deed", metavar="list|prune", required=True)
    listed = deeds.add_parser("list", help="a table of the stages, and who has them")
    pruned = deeds.add_parser("prune", help="remove the stages that no run has, and what killed processes left")
    for deed in (listed, pruned):
        deed.add_argument("--runs-dir", default="runs", metavar="DIR", help="where the runs lie (default runs)")
        deed.add_argument("--stage-cache", metavar="DIR", help=f"the shared stages, where not in {STAGE_CACHE} there")
    pruned.add_argument("--older-than", default="0d", metavar="AGE", help="only what no run took or left for so long, such as 30d, 12h or 2w")
    pruned.add_argument("--larger-than", default="0", metavar="SIZE", help="only stages of more than that, such as 500MB or 2GB")
    pruned.add_argument("--all", action="store_true", help="also stages that runs have: their files stay there, and are no longer shared")
    pruned.add_argument("--dry-run", action="store_true", help="say what would be removed")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    runs_dir = Path(arguments.runs_dir)
    root = Path(arguments.stage_cache) if arguments.stage_cache else runs_dir / STAGE_CACHE
    if arguments.deed == "list":
        _list(root, runs_dir)
    else:
        _prune(root, runs_dir, arguments)
    if (runs_dir / _EARLIER).is_dir():
        tell(f"{runs_dir / _EARLIER}: stages that ablations of an earlier version shared; no run reads them any more, so the folder can be removed")
    return 0


def size(count: int) -> str:
    """Bytes for a reader: ``3.2 GB``."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def _list(root: Path, runs_dir: Path) -> None:
    from lightning_e5.pipeline.cache_contents import Entry, cache_entries
    from lightning_e5.report.tables.table import Column, Table, number

    entries = cache_entries(root, runs_dir)
    if not entries:
        tell(f"{root}: no shared stages")
        return
    columns = [
        Column("stage", lambda e: e.stage), Column("made by", lambda e: e.origin.run), Column("made", lambda e: (e.origin.made or "")[:10] or None),
        Column("last used", lambda e: datetime.fromtimestamp(e.used).strftime("%Y-%m-%d %H:%M")), number("size", lambda e: e.size, size),
        Column("in the runs", _runs),
    ]  # fmt: skip
    table: Table = Table.of(entries, columns)
    unused: list[Entry] = [entry for entry in entries if not entry.is_used]
    tell("\n".join(table.lines()))
    tell(
        f"{root}: {_stages(len(entries))}, {size(sum(e.size for e in entries))}, of which {size(sum(e.own for e in entries))} are in no run"
        + (f"; `lightning-e5 cache prune` removes {_stages(len(unused))}" if unused else "")
    )


def _runs(entry: object) -> str:
    runs, elsewhere = entry.runs, entry.elsewhere  # type: ignore[attr-defined]
    named = list(runs[:3]) + ([f"{len(runs) - 3} more"] if len(runs) > 3 else []) + ([f"{elsewhere} elsewhere"] if elsewhere else [])
    return ", ".join(named) or "none"


def _prune(root: Path, runs_dir: Path, arguments: argparse.Namespace) -> None:
    from lightning_e5.pipeline.cache_contents import prune

    older_than, larger_than = _seconds(arguments.older_than), _bytes(arguments.larger_than)
    done = prune(root, runs_dir, older_than=older_than, larger_than=larger_than, used=arguments.all, dry_run=arguments.dry_run)
    for entry in done.entries:
        tell(f"{entry.stage}: {size(entry.size)}, made by {entry.origin}, in {_runs(entry)}" + (" of the runs" if not entry.is_used else ""))
    for name, holder in done.held.items():
        tell(f"{name}: kept, as another process works with it ({holder})")
    left = f" and {len(done.leftovers)} that killed processes left unfinished" if done.leftovers else ""
    tell(f"{root}: {'would remove' if arguments.dry_run else 'removed'} {_stages(len(done.entries))}{left}; {size(done.freed)} freed")


def _stages(count: int) -> str:
    return f"{count} stage{'s' if count != 1 else ''}"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if match is None:
        raise UserError(f"--older-than: {text!r} is no age; use a whole number with m, h, d or w, such as 30d")
    return int(match[1]) * _SECONDS[match[2]]


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*([KMGT]?)B?", text.strip().upper())
    if match is None:
        raise UserError(f"--larger-than: {text!r} is no size; use a number with MB or GB, such as 500MB")
    return int(float(match[1]) * _BYTES[match[2]])
