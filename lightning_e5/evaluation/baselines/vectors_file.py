"""Averaged word vectors of a released file (word2vec, GloVe, fastText): the oldest text embedding there is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.fitted import retrieve_known
from lightning_e5.files.lines import text_lines
from lightning_e5.files.rows import number_of
from lightning_e5.retrieval.search import check_search
from lightning_e5.text import check_texts
from lightning_e5.types import Kind, Run

_WORD = re.compile(r"\w+")


@configurable("baseline")
class VectorsFile:
    """The mean of a text's word vectors, which come from a file of one word and its numbers per line.

    Both the format of word2vec and fastText (a first line of ``words width``) and that of GloVe (none) are read, plain
    or gzipped. Only the vectors of words that occur in the texts at hand are kept.

    Args:
        path: the file.
        idf: weigh a word by ``ln((1 + N) / (1 + df))`` over the corpus searched; a text embedded without a corpus (STS)
            is not weighed.
        lowercase: look words up in lower case, as GloVe's and most files have them.

    Raises:
        UserError: on use, with file and line: a line of another width, no number, a header that another number of
            lines follows; or none of the words is in the file.

    Source: Mikolov et al. 2013, Pennington et al. 2014 (vectors); Arora et al. 2017 (weighted averages as a baseline).
    """

    def __init__(self, path: Path | str, *, idf: bool = True, lowercase: bool = True) -> None:
        self.path, self.idf, self.lowercase = Path(path), idf, lowercase
        self._known: dict[str, np.ndarray | None] = {}

    def fingerprint(self) -> list[Any] | None:
        """The file's name, size and time; None where it is missing."""
        if not self.path.is_file():
            return None
        return [str(self.path), self.path.stat().st_size, self.path.stat().st_mtime_ns]

    def tokenize(self, text: str) -> list[str]:
        """The words that are looked up."""
        return _WORD.findall(text.lower() if self.lowercase else text)

    def retrieve(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int = 100) -> Run:
        """Rank the corpus by cosine; nothing for a query without a known word."""
        check_search(corpus, k)
        self._look_up([*corpus.values(), *queries.values()])
        weights = self.weights(corpus.values()) if self.idf else None
        return retrieve_known(_Weighted(self, weights), corpus, queries, k)

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """float32 ``[N, D]``, unweighted means, both kinds alike; zero for a text without a known word."""
        check_texts(texts)
        self._look_up(texts)
        return self.average(texts, None, normalize=normalize)

    def weights(self, texts: Iterable[str]) -> dict[str, float]:
        """Word -> its inverse document frequency among the texts; ``""`` stands for all words that are in none."""
        frequencies: Counter[str] = Counter()
        count = 0
        for text in texts:
            frequencies.update(set(self.tokenize(text)))
            count += 1
        return {"": math.log(1 + count), **{w: math.log((1 + count) / (1 + df)) for w, df in frequencies.items()}}

    def average(self, texts: Sequence[str], weights: Mapping[str, float] | None, *, normalize: bool) -> Tensor:
        """float32 ``[N, D]``: (weighted) means of the vectors that have been looked up."""
        width = next((len(vector) for vector in self._known.values() if vector is not None), 1)
        means_ND = np.zeros((len(texts), width))
        for row, text in enumerate(texts):
            found = [(word, vector) for word in self.tokenize(text) if (vector := self._known.get(word)) is not None]
            scales = [1.0 if weights is None else weights.get(word, weights[""]) for word, _ in found]
            if sum(scales) > 0:
                means_ND[row] = np.average([vector for _, vector in found], axis=0, weights=scales)
        vectors_ND = torch.from_numpy(means_ND)
        return (F.normalize(vectors_ND) if normalize else vectors_ND).float()

    def _look_up(self, texts: Iterable[str]) -> None:
        wanted = {word for text in texts for word in self.tokenize(text)} - self._known.keys()
        if wanted:
            found = read_vectors(self.path, wanted)
            self._known |= {word: found.get(word) for word in wanted}
        if wanted and not any(vector is not None for vector in self._known.values()):
            self._known.clear()
            raise UserError(f"{self.path}: has none of the {len(wanted)} words of the texts")


class _Weighted:
    """An `Embedder`: a file's vectors with the weights of one corpus."""

    def __init__(self, vectors: VectorsFile, weights: Mapping[str, float] | None) -> None:
        self._vectors, self._weights = vectors, weights

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        return self._vectors.average(texts, self._weights, normalize=normalize)


def read_vectors(path: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """Word -> float32 ``[D]`` of the wanted words; of a word that has several lines the first counts.

    Raises:
        UserError: see `VectorsFile`.
    """
    found: dict[str, np.ndarray] = {}
    width: int | None = None
    promised: int | None = None
    lines = 0
    for number, line in text_lines(path):
        fields = line.rstrip(" ").split(" ")
        if number == 1 and len(fields) == 2 and all(field.isdecimal() and len(field) < 19 for field in fields):
            promised, width = int(fields[0]), int(fields[1])
            continue
        lines += 1
        width = len(fields) - 1 if width is None else width
        if width < 1 or len(fields) < width + 1:
            raise UserError(f"{path}:{number}: has {len(fields) - 1} numbers after its word, not {max(width, 1)}")
        if len(fields) > width + 1 and all(map(_is_number, fields[1:])):
            raise UserError(f"{path}:{number}: has {len(fields) - 1} numbers after its word, not {width}")
        word = " ".join(fields[:-width])  # a few of GloVe's words hold spaces
        if word in wanted and word not in found:
            found[word] = _numbers(fields[-width:], f"{path}:{number}")
    if not lines:
        raise UserError(f"{path}: has no word vectors")
    if promised is not None and promised != lines:
        raise UserError(f"{path}:1: promises {promised} words, but {lines} lines follow")
    return found


def _numbers(fields: Sequence[str], place: str) -> np.ndarray:
    for field in fields:
        if not _is_number(field):
            raise UserError(f"{place}: {field[:40]!r} is not a finite number")
    return np.array(fields, dtype=np.float32)


def _is_number(field: str) -> bool:
    return number_of(field) is not None
