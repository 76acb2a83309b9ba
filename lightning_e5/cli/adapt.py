"""``adapt``: an encoder for texts of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_e5.cli.command_line import tell

DESCRIPTION = "adapt an encoder to your own texts, and tell whether it helped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``adapt``."""
    parser.add_argument(
        "texts", nargs="+", metavar="FOLDER_OR_FILE", help="pairs (CSV, TSV, JSONL, Parquet), documents (Markdown, reST, HTML, text, notebooks), or a BEIR folder; "
        "and keys of the experiment (key=value), such as keep_general=0.5",
    )  # fmt: skip
    parser.add_argument("--test", metavar="BEIR_FOLDER", help="your own test queries and judgements, instead of a held-out test")
    for name, what in (("query", "queries"), ("passage", "passages"), ("negative", "negatives"), ("score", "scores")):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"the column of the {what}, where its name does not tell")
    parser.add_argument("--encoder", metavar="NAME", help="to start from: a folder or a name on the model hub (default: the packaged all-MiniLM-L6-v2)")
    parser.add_argument("--general", metavar="FILE_OR_FOLDER", help="an STS file or a BEIR folder that is evaluated before and after: what was forgotten")
    parser.add_argument("--name", help="of the run (default: after the texts)")
    parser.add_argument("--dry-run", action="store_true", help="say what the texts are taken for and print the experiment; run nothing")
    parser.add_argument("--update", action="store_true", help="redo what a changed configuration changes")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.cli.adapt_inputs import experiment_of, experiment_text, shown_pairs
    from lightning_e5.export.adaptation import write_adaptation
    from lightning_e5.files.storage import write_text
    from lightning_e5.pipeline.check import check_experiment
    from lightning_e5.pipeline.lock import run_lock
    from lightning_e5.pipeline.runner import run_directory, run_experiment
    from lightning_e5.report.run_page import write_report
    from lightning_e5.report.wandb_mirror import mirror

    tree, experiment, said = experiment_of(arguments)
    for line in said:
        tell(line)
    check_experiment(experiment)
    if arguments.dry_run:
        tell(experiment_text(tree))
        return 0
    directory = run_directory(experiment)

    def done(stage: str, out: Path) -> None:
        if stage == "pairs":  # by now the directory is the run's
            write_text(directory / "experiment.yaml", experiment_text(tree))
            tell(shown_pairs(out))

    _, computed = run_experiment(experiment, update=arguments.update, report=write_report, say=tell, done=done)
    if not computed:
        tell(f"{directory} is finished and nothing it was made from has changed; nothing to do.")
    with run_lock(directory, wait=True):  # another run of it may have begun meanwhile
        mirror(directory, experiment.get("logger") or {})
        tell(write_adaptation(directory))
    return 0
