"""What the ``adapt`` verb is given, as an experiment: ``experiments/own_texts.yaml`` with the user's texts in it."""

from __future__ import annotations

import argparse
import copy
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_modules.own.examples import format_examples
from data_modules.own.inspect import inspect
from lightning_e5.config.experiment import Node, check_name, load_tree, resolve_experiment
from lightning_e5.config.overrides import apply_override
from lightning_e5.errors import UserError
from lightning_e5.files.beir_layout import is_beir
from lightning_e5.files.run_layout import DROPPED, EXAMPLES, METRICS
from lightning_e5.files.storage import read_json
from lightning_e5.models.reference import model_folder
from lightning_e5.results.adaptation import GENERAL

#: The experiment that is filled in; ``experiments/own_texts.yaml``, which is installed beside this file.
TEMPLATE = Path(__file__).with_name("own_texts.yaml")
#: Columns that the user may name.
COLUMNS = ("query", "passage", "negative", "score")
#: Pairs of which a tenth is a validation with which something can be told.
FEWEST_PAIRS = 50
#: Pairs from which on the adapted weights stand alone. Five trainings on 150 pairs (of a dictionary, of SymPy's documentation, each drawn
#: twice, and of SQuAD), the step chosen by 40 other queries, gave +0.013, +0.039, +0.032, +0.012 and 0.000 nDCG@10 on a test when mixed half
#: and half with the start, +0.005, +0.037, +0.027, +0.026 and -0.006 alone: equal on average, but never below the start. Of 2,070 pairs of
#: documentation the mixture loses a third of what was gained.
FEW_ROWS = 1000
#: Keys that may be given without the path to them.
_SHORT = ("precision", "keep_general")


def experiment_of(given: argparse.Namespace) -> tuple[Node, Node, list[str]]:
    """The experiment's YAML as a tree, the same resolved, and what the texts are taken for, in sentences.

    Raises:
        UserError: a path that is not there, texts that cannot be told, an encoder that is not there, or as `resolve_experiment`.
    """
    places, overrides = _words([*given.texts, *given.overrides])
    columns = {name: value for name in COLUMNS if (value := getattr(given, name)) is not None}
    texts = inspect(places, **columns)
    tree = load_tree(TEMPLATE)
    tree["name"] = check_name(given.name, "--name") if given.name is not None else _name_of(places[0])
    tree["description"] = f"A general encoder adapted to {', '.join(place.name or str(place) for place in places)}."
    del tree["data_dir"]
    pairs = tree["stages"]["pairs"]
    pairs = tree["stages"]["pairs"] = {**{k: v for k, v in pairs.items() if k != "documents"}, **texts.stage_arguments(), **columns}
    if given.test is not None:
        pairs["test"] = [f"path:{_beir(given.test, '--test')}"]
    if given.encoder is not None:
        tree["encoder"]["pretrained"] = _encoder(given.encoder)
    if texts.has_negatives:
        _add_finetune(tree)
    if given.general is not None:
        _add_general(tree, given.general)
    said = list(texts.lines)
    if texts.kinds == ("pairs",) and texts.rows < FEW_ROWS:
        tree["variables"]["keep_general"] = 0.5
        said.append(f"fewer than {FEW_ROWS:,} pairs: mixed half and half with the start's weights, so that little can be lost (keep_general=0 does not)")
    for override in overrides:
        key = override.partition("=")[0]
        apply_override(tree, f"variables.{override}" if key in _SHORT else override)
    return tree, resolve_experiment(tree, [], "adapt"), said


def experiment_text(tree: Node) -> str:
    """The experiment as a YAML that ``lightning-e5 run`` takes."""
    from omegaconf import OmegaConf

    return f"# Written by `lightning-e5 adapt`; `lightning-e5 run` and `check` take it, too.\n{OmegaConf.to_yaml(OmegaConf.create(tree))}"


def shown_pairs(out: Path) -> str:
    """Of a finished stage of own pairs: what was left out and why, and ten of the training pairs.

    Raises:
        UserError: the pairs are too few for a validation.
    """
    if not (out / "validation").is_dir():
        pairs = int(read_json(out / METRICS)["pairs"])
        raise UserError(f"adapt: {pairs:,} pairs to train on are too few to hold a validation out; at least {FEWEST_PAIRS} are needed")
    dropped = read_json(out / DROPPED)
    lines = [f"left out: {entry['count']:,} x {reason}" + (f" (first: {entry['first']})" if entry["first"] else "") for reason, entry in dropped.items()]
    return "\n".join([*lines, "some of the training pairs:", format_examples(read_json(out / EXAMPLES))])


def _words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths and overrides; UserError for a path that is not there, and for none."""
    places, overrides = [], []
    for word in words:
        if os.path.lexists(word) or "=" not in word:
            places.append(Path(word))
        else:
            overrides.append(word)
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such file or directory")
    if not places:
        raise UserError(f"adapt: {overrides[0]!r} is a key of the experiment; name a folder or file of your texts, too")
    return places, overrides


def _name_of(place: Path) -> str:
    """A run's name after a file or folder."""
    stem = place.resolve().name.removesuffix(".gz").partition(".")[0]
    return "own-" + (re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:80] or "texts")


def _encoder(name: str) -> str:
    """The encoder as a YAML names it; UserError where it is not there and cannot be fetched."""
    model_folder(name)
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _beir(place: str, option: str) -> Path:
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"{option}: {folder}: no such folder")
    if not is_beir(folder):
        raise UserError(f"{option}: {folder}: is no BEIR folder (corpus.jsonl, queries.jsonl and qrels/test.tsv)")
    return folder.resolve()


def _add_finetune(tree: Node) -> None:
    """Train on the negatives that the texts bring, behind the training on all pairs."""
    stages: dict[str, Node] = tree["stages"]
    before = stages["pretrain"]
    data = {
        "_target_": "data_modules.finetune.datamodule.RankedDataModule", "_partial_": True, "negatives": 1, "epochs": 1,
        "batch_size": before["data"]["batch_size"] // 2, "least_steps": before["data"]["least_steps"],
    }  # fmt: skip
    finetune = {
        **{key: copy.deepcopy(value) for key, value in before.items() if key not in ("inputs", "data")},
        "description": "train on the given negatives, keep the step that is best on the validation",
        "_target_": "lightning_e5.stages.finetune.finetune",
        "inputs": {"encoder": "pretrain/encoder", "ranked": "pairs/ranked.parquet", "validation_collections": {"own-texts": "pairs/validation"}, "general": "start/encoder"},
        "train_length": stages["start"]["train_length"],
        "data": data,
        "optimizer": {**before["optimizer"], "learning_rate": before["optimizer"]["learning_rate"] / 2},
    }
    evaluate = stages.pop("evaluate")
    evaluate["inputs"]["encoders"]["adapted"] = "finetune"
    stages |= {"finetune": finetune, "evaluate": evaluate}
    before["keep_general"] = 0.0  # mixed once, at the end
    tree["final_encoder"] = "finetune"


def _add_general(tree: Node, place: str) -> None:
    """Evaluate start and adapted encoder on something else, too."""
    path = Path(place)
    if not path.exists():
        raise UserError(f"--general: {path}: no such file or directory")
    inputs: dict[str, Any] = tree["stages"]["evaluate"]["inputs"]
    if path.is_dir():
        inputs["collections"][GENERAL] = f"path:{_beir(place, '--general')}"
    else:
        from lightning_e5.evaluation.tasks.sts import load_sts

        load_sts(path)  # refuses another kind of file before anything is trained
        inputs["sts"] = {GENERAL: f"path:{path.resolve()}"}
