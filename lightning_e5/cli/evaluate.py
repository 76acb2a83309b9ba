"""``evaluate``: any models on any data."""

from __future__ import annotations

import argparse
from typing import get_args

from lightning_e5.cli.command_line import tell
from lightning_e5.distributed.devices import Precision

DESCRIPTION = "evaluate any models on any data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``evaluate``."""
    def several(flag: str, metavar: str, what: str, required: bool = False) -> None:
        parser.add_argument(flag, nargs="+", action="extend", default=[], metavar=metavar, help=what, required=required)

    several("--model", "MODEL", "a model folder, a run directory or bm25; NAME=FOLDER names it", required=True)
    several("--beir", "FOLDER", "retrieval: folders in BEIR layout; NAME=FOLDER names a set, here and below")
    parser.add_argument("--nano-beir", nargs="?", const="", metavar="PLACE",
                        help="retrieval: NanoBEIR's 13 sets, from a folder of its Parquet files or a Hub name (default sentence-transformers/NanoBEIR-en)")
    several("--nano-sets", "SET", "some of NanoBEIR's sets, such as nano-msmarco (default all 13, which give their mean, too)")
    several("--rules", "SET=BEIR-SET", "evaluate a retrieval set by that public set's rules instead of by its name; SET=none: by none")
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
    parser.add_argument("--selected-on-this", action="store_true", help="allow a set that chose a model's weights; its rows say so")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens per text instead of what the folders store")
    parser.add_argument("--truncate-dim", type=int, nargs="+", metavar="N", help="the first N values of the models' embeddings alone; of several each is a row, NAME@N")
    parser.add_argument("--precision", choices=get_args(Precision), default="bf16-gpu", help="of the models (default bf16-gpu: bfloat16 on a GPU that multiplies it, else float32)")
    parser.add_argument("--split", default="test", help="of judgements, classification sets and files with a column split (default test)")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals' bootstraps (default 0)")
    parser.add_argument("--reference", metavar="NAME", help="the model that the others are compared with, paired by query or item (default: the first)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--csv", metavar="FILE", help="write every figure: a line per model, set and metric, with the differences")
    parser.add_argument("--html", metavar="FILE", help="write a page of its own")
    parser.add_argument("--per-query", metavar="FILE", help="write a row per query or item, model, set and metric (.csv or .parquet)")
    parser.add_argument("--out", metavar="FILE", help="write all metrics as flat JSON")
    parser.add_argument("--details", metavar="FOLDER", help="keep runs, per-item values and tables")


def run(arguments: argparse.Namespace) -> int:
    """Run the verb; its exit code."""
    from lightning_e5.cli.evaluate_inputs import evaluate_given
    from lightning_e5.cli.evaluate_outputs import write_and_show

    tell(write_and_show(evaluate_given(arguments), arguments))
    return 0
