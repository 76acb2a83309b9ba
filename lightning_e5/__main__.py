"""The command line: ``python -m lightning_e5 VERB``. Heavy libraries are imported by the verb that needs them."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_e5.ending import ending, show_defect
from lightning_e5.errors import UserError
from lightning_e5.interrupts import ending_on_signals
from lightning_e5.launch import is_first_process
from lightning_e5.memory import keep_freed_memory
from lightning_e5.progress import printable
from lightning_e5.storage import is_unwritable


def _tell(text: str) -> None:
    """Print what a verb has to say, whatever names and texts are in it."""
    print(printable(text))


def _run(arguments: argparse.Namespace) -> int:
    from lightning_e5.ablation.closing import closing_table
    from lightning_e5.ablation.report import write_report
    from lightning_e5.ablation.wandb_mirror import mirror
    from lightning_e5.config import load_experiment
    from lightning_e5.ranks import together
    from lightning_e5.stages.lock import run_lock
    from lightning_e5.stages.runner import run_directory, run_experiment

    experiment = load_experiment(arguments.experiment, arguments.overrides)
    directory = run_directory(experiment)
    asked = {"update": arguments.update, "wait": arguments.wait, "verify": arguments.verify}
    with together(directory):
        _, computed = run_experiment(experiment, **asked, report=write_report, say=_tell)
    if not is_first_process():
        return 0
    if not computed:
        _tell(f"{directory} is finished and nothing it was made from has changed; nothing to do.")
    with run_lock(directory, wait=True):  # another run of it may have begun meanwhile
        mirror(directory, experiment.get("logger") or {})
    _tell(closing_table(directory, experiment.get("headline") or []))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from lightning_e5.ablation.check import expanded
    from lightning_e5.stages.plan import check_files

    overrides = [word for word in arguments.experiments if "=" in word and not os.path.lexists(word)]
    paths = [Path(word) for word in arguments.experiments if word not in overrides]
    if not paths:
        raise UserError(f"check: {overrides[0]!r} is an override (key=value), and there is no YAML to apply it to")
    return check_files(paths, overrides, paths_too=arguments.paths, expand=expanded)


def _ablate(arguments: argparse.Namespace) -> int:
    from lightning_e5.ablation.runner import AblateRequest, ablate

    given = {key: value for key, value in vars(arguments).items() if key not in ("verb", "function", "file", "only", "overrides", "allow_package")}
    overrides = [*arguments.overrides, *(word for word in arguments.only if "=" in word)]
    only = [word for word in arguments.only if "=" not in word]
    return ablate(AblateRequest(Path(arguments.file), overrides, only, **given), say=_tell)


def _compare(arguments: argparse.Namespace) -> int:
    from lightning_e5.ablation.compare_command import CompareRequest, run_compare

    _tell(run_compare(CompareRequest(**{key: value for key, value in vars(arguments).items() if key not in ("verb", "function")})))
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from lightning_e5.stages.search import search, search_interactively

    if arguments.interactive or arguments.text is None:
        if arguments.text is not None:
            raise UserError(f"--interactive: asks for the texts itself; leave out {arguments.text!r}")
        search_interactively(arguments.model, corpus=arguments.corpus, k=arguments.k, say=_tell)
    else:
        _tell(search(arguments.model, arguments.text, corpus=arguments.corpus, k=arguments.k))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from lightning_e5.stages.export import export

    run, directory = Path(arguments.run), Path(arguments.directory)
    if arguments.no_card:
        _tell(export(run, directory, onnx=arguments.onnx))
    else:
        from lightning_e5.ablation.model_card import check_metadata, write_model_card

        check_metadata(arguments.language, arguments.license)  # before a folder is there
        _tell(export(run, directory, onnx=arguments.onnx))
        write_model_card(run, directory, language=arguments.language, license=arguments.license)
        _tell(f"{directory / 'README.md'}: the model card")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from lightning_e5.ablation.evaluation_tables import evaluation_text
    from lightning_e5.stages.evaluate_command import SHOWN_METRICS, EvaluationRequest, run_evaluation

    request = {key: value for key, value in vars(arguments).items() if key not in ("verb", "function", "model")}
    found = run_evaluation(EvaluationRequest(arguments.model, **request))
    _tell(evaluation_text(found.retrieval, found.tasks, found.metrics, SHOWN_METRICS))
    return 0


def _dashboard(arguments: argparse.Namespace) -> int:
    from lightning_e5.ablation.dashboard import dashboard

    chosen = {key: getattr(arguments, key) for key in ("scale", "project", "entity", "online")}
    _tell(dashboard(Path(arguments.ablation), out=Path(arguments.out) if arguments.out else None, **chosen))
    return 0


def _arguments_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="an experiment YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as stages.pretrain.data.batch_size=256")
    parser.add_argument("--update", action="store_true", help="redo the stages that a changed configuration changes")
    parser.add_argument("--wait", action="store_true", help="wait where another process is at work in the run's directory")
    parser.add_argument("--verify", action="store_true", help="read all files of finished stages again, whatever their size and time")
    _allow_package(parser)


def _allow_package(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-package", nargs="+", action="extend", default=[], metavar="PACKAGE", help="of your own, whose configurable classes a YAML may name"
    )


def _arguments_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiments", nargs="+", metavar="YAML", help="of experiments and ablations; with overrides (key=value) as run and ablate take them")
    parser.add_argument("--paths", action="store_true", help="also that the files and folders they name are here")
    _allow_package(parser)


def _arguments_ablate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="an ablation YAML")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="scale=laptop, and keys of every run's experiment")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="VARIANT", help="these variants")
    parser.add_argument("--seeds", type=int, metavar="N", help="the first N seeds")
    parser.add_argument("--dry-run", action="store_true", help="print the runs, what differs and what they share; run nothing")
    parser.add_argument("--update", action="store_true", help="redo the stages that a changed configuration changes")
    parser.add_argument("--wait", action="store_true", help="wait where another ablate is at work in the directory")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at the same time (default 1, or one per set of GPUs)")
    parser.add_argument("--gpus-per-job", type=int, metavar="K", help="GPUs of each run (default 1)")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where runs are executed")
    parser.add_argument("--slurm", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="slurm_partition=gpu, timeout_min=600 ...")
    _allow_package(parser)


def _arguments_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="+", metavar="RUN", help="run directories, or one ablation: its directory, or its YAML with scale=... if not its own"
    )
    parser.add_argument("--metric", action="append", help="a metric's name or its end, such as ndcg@10 (repeatable)")
    parser.add_argument("--csv", metavar="FILE", help="write the table as CSV")
    parser.add_argument("--html", metavar="FILE", help="write the table as a page of its own; an ablation's with pictures")
    parser.add_argument("--latex", metavar="FILE", help="write an ablation's table for LaTeX (booktabs)")
    parser.add_argument("--export", metavar="DIR", help="write an ablation's small result files: table.csv, results.json, bars.png")


def _arguments_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="a run directory, or a model (with --corpus): a folder, package:NAME/FOLDER or a hub name")
    parser.add_argument("text", nargs="?", help="the query; without it questions are asked for")
    parser.add_argument("--interactive", action="store_true", help="ask for questions until an empty line")
    parser.add_argument("--corpus", metavar="FOLDER", help="a folder of documents (Markdown, reST, text, HTML) or in BEIR layout; a run's own test collection by default")
    parser.add_argument("-k", type=int, default=5, help="passages shown (default 5)")


def _arguments_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("directory", metavar="DIR", help="where the model folder is written")
    parser.add_argument("--onnx", action="store_true", help="also onnx/model.onnx, compared with the weights")
    parser.add_argument("--no-card", action="store_true", help="no README.md about the model")
    parser.add_argument("--license", metavar="NAME", help="of the model, for the card, such as mit (default: none named)")
    parser.add_argument("--language", metavar="CODE", default="en", help="of the texts, for the card (default en)")


def _arguments_evaluate(parser: argparse.ArgumentParser) -> None:
    def several(flag: str, metavar: str, what: str, required: bool = False) -> None:
        parser.add_argument(flag, nargs="+", action="extend", default=[], metavar=metavar, help=what, required=required)

    several("--model", "MODEL", "a model folder, a run directory or bm25; NAME=FOLDER names it", required=True)
    several("--beir", "FOLDER", "retrieval: folders in BEIR layout; NAME=FOLDER names a set, here and below")
    several("--rules", "SET=BEIR-SET", "judge a retrieval set by that public set's rules instead of by its name; SET=none: by none")
    several("--sts", "FILE", "similarity: score, sentence1, sentence2 (TSV, CSV, JSONL, Parquet)")
    several("--classification", "FOLDER", "few-shot probes: train.jsonl and test.jsonl of text and label")
    several("--clustering", "FILE", "text and label (JSONL, CSV, TSV, Parquet)")
    several("--pair-classification", "FILE", "label (0 or 1), sentence1, sentence2 (TSV, CSV, JSONL, Parquet)")
    several("--reranking", "FILE", "JSONL of query, positive and negative")
    several("--samples-per-label", "SET=N", "few-shot samples of a classification set (default 8)")
    several("--training-texts", "FOLDER", "what the models were trained on (pairs, ranked.parquet): test items in it are counted")
    parser.add_argument("--normalize-features", action="store_true", help="probe unit vectors")
    parser.add_argument("--query-prefix", metavar="TEXT", help="instead of what the model folders store")
    parser.add_argument("--passage-prefix", metavar="TEXT", help="instead of what the model folders store")
    parser.add_argument("--prefix-ablation", action="store_true", help="allow prefixes other than a model's own")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens per text instead of what the folders store")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="of the models (default fp32)")
    parser.add_argument("--split", default="test", help="of judgements, classification sets and files with a column split (default test)")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals' bootstraps (default 0)")
    parser.add_argument("--out", metavar="FILE", help="write all metrics as flat JSON")
    parser.add_argument("--details", metavar="FOLDER", help="keep runs, per-item values and tables")


def _arguments_dashboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ablation", metavar="ABLATION", help="an ablation's directory, or its YAML (no run is needed)")
    parser.add_argument("scale", nargs="?", type=lambda text: text.removeprefix("scale="), metavar="scale=S", help="of a YAML, instead of its default")
    parser.add_argument("--project", metavar="P", help="the W&B project; by default the one that the ablation's runs go to")
    parser.add_argument("--entity", metavar="E", help="the W&B user or team; by default your own")
    parser.add_argument("--out", metavar="FILE", help="where the specification is written (default dashboard.json of the ablation)")
    parser.add_argument("--online", action="store_true", help="save it at W&B, where you are logged in, and print its address")


#: verb -> (what it does, its arguments, its function)
VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
    "run": ("run an experiment; finished stages are skipped, killed ones continue", _arguments_run, _run),
    "ablate": ("run an ablation: every variant and seed; finished runs are skipped", _arguments_ablate, _ablate),
    "check": ("check experiments and print their plans; builds nothing", _arguments_check, _check),
    "compare": ("a table of several runs' metrics, or of an ablation's variants", _arguments_compare, _compare),
    "evaluate": ("judge any models on any data", _arguments_evaluate, _evaluate),
    "dashboard": ("a W&B workspace that compares an ablation's runs", _arguments_dashboard, _dashboard),
    "search": ("the passages of a run's corpus nearest to a text", _arguments_search, _search),
    "export": ("a run's encoder as a Hugging Face + sentence-transformers folder", _arguments_export, _export),
}


def _check_words(words: Sequence[str]) -> None:
    """UserError for a word of the command line that no path or name can hold."""
    for word in words:
        if is_unwritable(word):
            raise UserError(f"{ascii(word)[:120]}: holds NUL, or bytes that are not UTF-8, which no path or name here may have")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 1 our defect, 2 the user's mistake, 130 interrupted, 143 stopped."""
    parser = argparse.ArgumentParser(prog="python -m lightning_e5", description="E5 text embeddings: train, ablate, judge.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (description, add_arguments, function) in VERBS.items():
        verb = verbs.add_parser(name, help=description, description=description)
        add_arguments(verb)
        verb.set_defaults(function=function)
    arguments, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(arguments, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # key=value after an option
        arguments.overrides = [*arguments.overrides, *rest]
    _quieten_libraries()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Threads that wait give their core away: beside other work on the machine a step is else over ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    with ending_on_signals():
        return ending(lambda: _do(arguments, sys.argv[1:] if argv is None else argv))


def _do(arguments: argparse.Namespace, words: Sequence[str]) -> int:
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


if __name__ == "__main__":
    sys.excepthook = show_defect
    sys.exit(main())
