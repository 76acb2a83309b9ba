"""``compare``: runs side by side, or an ablation's variants."""

from __future__ import annotations

import argparse

from lightning_e5.cli.command_line import tell

DESCRIPTION = "a table of several runs' metrics, or of an ablation's variants"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``compare``."""
    parser.add_argument(
        "what", nargs="+", metavar="RUN", help="run directories, or one ablation: its directory, or its YAML with scale=... if not its own"
    )
    parser.add_argument("--metric", action="append", help="a metric's name or its end, such as ndcg@10 (repeatable)")
    def written(flag: str, metavar: str, what: str) -> None:
        parser.add_argument(flag, metavar=metavar, nargs="?", const="", help=f"{what} (without {metavar}: beside the runs)")

    written("--csv", "FILE", "write the table as CSV; of runs also FILE_differs.csv: what differs")
    written("--html", "FILE", "write the table as a page of its own; an ablation's with pictures")
    written("--latex", "FILE", "write an ablation's table for LaTeX (booktabs)")
    written("--export", "DIR", "write an ablation's small result files: table.csv, results.json, bars.png")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.report.compare import compare

    a = arguments
    written: list[str] = []
    tell(compare(a.what, metrics=a.metric, csv=a.csv, html=a.html, latex=a.latex, export=a.export, say=written.append))
    for line in written:
        tell(line)
    return 0
