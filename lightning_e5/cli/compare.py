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
    parser.add_argument("--csv", metavar="FILE", help="write the table as CSV; of runs also FILE_differs.csv: what differs")
    parser.add_argument("--html", metavar="FILE", help="write the table as a page of its own; an ablation's with pictures")
    parser.add_argument("--latex", metavar="FILE", help="write an ablation's table for LaTeX (booktabs)")
    parser.add_argument("--export", metavar="DIR", help="write an ablation's small result files: table.csv, results.json, bars.png")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.report.compare import compare

    a = arguments
    tell(compare(a.what, metrics=a.metric, csv=a.csv, html=a.html, latex=a.latex, export=a.export))
    return 0
