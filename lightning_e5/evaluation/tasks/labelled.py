"""Labelled texts: rows ``{"text", "label"}``, and folders of them with a train and a test part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.beir_layout import either
from lightning_e5.files.rows import SplitRows


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts with one label each (all strings or all integers); ``places``: of each in the file, ``path``: the file;
    ``facts``: what a result's row says of the file (`SplitRows.facts`)."""

    name: str
    texts: list[str]
    labels: list[str] | list[int]
    places: list[str]
    path: Path
    facts: Mapping[str, Any] = field(default_factory=dict)

    def array(self) -> NDArray[Any]:
        """The labels ``[N]``."""
        return np.array(self.labels)


def load_labelled(path: Path | str, name: str | None = None, split: str = "test") -> LabelledTexts:
    """Read ``text`` (not empty) and ``label`` (a string or an integer, which may be written 1.0) from a JSONL, CSV, TSV or Parquet file.

    Args:
        path: the file; other columns are left alone, but for ``split``.
        name: of the set; the file's by default.
        split: of a file with a column ``split``, the rows that are read.

    Raises:
        UserError: with file and line for anything missing or malformed; with the file for fewer than two labels.
    """
    path = Path(path)
    texts: list[str] = []
    labels: list[Any] = []
    places: list[str] = []
    rows = SplitRows(path, split, columns=("text", "label"))
    for where, row in rows:
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: the key 'text' is not a text (a string that is not empty)")
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise UserError(f"{where}: the key 'label' is {label!r}, not a string or an integer")
        if labels and type(label) is not type(labels[0]):
            raise UserError(f"{where}: the label {label!r} is of another type than {labels[0]!r} above it")
        texts.append(text)
        labels.append(label)
        places.append(where)
    if len(set(labels)) < 2:
        raise UserError(f"{path}: has {len(set(labels))} labels; at least 2 are needed")
    return LabelledTexts(name or path.name.split(".")[0], texts, labels, places, path, rows.facts())


def load_split(folder: Path | str, split: str, name: str | None = None) -> LabelledTexts:
    """``<split>.jsonl`` or ``.jsonl.gz`` of a folder; UserError as `load_labelled`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file, not a folder with train.jsonl and ' + split + '.jsonl' if folder.exists() else 'no such directory'}")
    texts = load_labelled(either(folder, f"{split}.jsonl"), name or folder.resolve().name, split)
    return replace(texts, facts={**texts.facts, "split": split})


def check_labels_known(texts: LabelledTexts, known: set[Any], where: str) -> None:
    """UserError with file and line for the first text whose label is not among ``known``, those of ``where``."""
    for label, place in zip(texts.labels, texts.places, strict=True):
        if label not in known:
            raise UserError(f"{place}: the label {label!r} is not in {where}{suggestion(label, map(str, known))}")
