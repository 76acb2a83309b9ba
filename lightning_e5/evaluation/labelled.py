"""Labelled texts: JSONL rows ``{"text", "label"}``, plain or gzipped, and folders of them with a train and a test part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.beir_data import json_object, text_lines


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts with one label each (all strings or all integers); ``lines``: the file's line of each, ``path``: the file."""

    name: str
    texts: list[str]
    labels: list[str] | list[int]
    lines: list[int]
    path: Path

    def array(self) -> NDArray[Any]:
        """The labels ``[N]``."""
        return np.array(self.labels)


def load_labelled(path: Path | str, name: str | None = None) -> LabelledTexts:
    """Read a JSONL(.gz) file of ``text`` (not empty) and ``label`` (a string or an integer); other keys are left alone.

    Raises:
        UserError: with file and line for anything missing or malformed; with the file for fewer than two labels.
    """
    path = Path(path)
    texts: list[str] = []
    labels: list[Any] = []
    lines: list[int] = []
    for number, line in text_lines(path):
        where = f"{path}:{number}"
        row = json_object(line, where)
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: the key 'text' is not a text (a string that is not empty)")
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise UserError(f"{where}: the key 'label' is {label!r}, not a string or an integer")
        if labels and type(label) is not type(labels[0]):
            raise UserError(f"{where}: the label {label!r} is of another type than {labels[0]!r} above it")
        texts.append(text)
        labels.append(label)
        lines.append(number)
    if len(set(labels)) < 2:
        raise UserError(f"{path}: has {len(set(labels))} labels; at least 2 are needed")
    return LabelledTexts(name or path.name.split(".")[0], texts, labels, lines, path)


def load_split(folder: Path | str, split: str, name: str | None = None) -> LabelledTexts:
    """``<split>.jsonl`` or ``.jsonl.gz`` of a folder; UserError as `load_labelled`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    found = next((p for p in (folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz") if p.is_file()), None)
    if found is None:
        raise UserError(f"{folder / split}.jsonl: no such file (nor {split}.jsonl.gz)")
    return load_labelled(found, name or folder.resolve().name)


def check_labels_known(texts: LabelledTexts, known: set[Any], where: str) -> None:
    """UserError with file and line for the first text whose label is not among ``known``, those of ``where``."""
    for label, line in zip(texts.labels, texts.lines, strict=True):
        if label not in known:
            raise UserError(f"{texts.path}:{line}: the label {label!r} is not in {where}{suggestion(label, map(str, known))}")
