"""The perplexity of a text under a KenLM model, and the threshold of a share of pages, as cc_net does it.

Source: cc_net (arXiv 1911.00359), section 3.3. The package ``kenlm`` is optional, as is ``sentencepiece``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_e5.errors import UserError
from lightning_e5.files.lines import text_lines

_DIGIT = re.compile(r"\d")
#: Typographic marks and the plain ones that stand for them in the models' training text.
_PLAIN_MARKS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "…": "...", "–": "-", "—": " - ", "。": ".", "，": ","})  # fmt: skip


@dataclass(frozen=True, slots=True)
class KenLM:
    """A KenLM model by its path; the model itself is loaded once per process, so this is cheap and picklable.

    Args:
        model: a binary or ARPA file.
        pieces: a SentencePiece model that splits a line for it; null for words.
    """

    model: str
    pieces: str | None = None

    def check(self) -> None:
        """UserError unless the files are there and the packages that read them are installed."""
        for path, package in ((self.model, "kenlm"), (self.pieces, "sentencepiece")):
            if path is None:
                continue
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{path}: needs the package {package}, which is not installed (pip install {package})")
            if not Path(path).is_file():
                raise UserError(f"{path}: no such file")

    def perplexity(self, text: str) -> float | None:
        """10 ** (-log10 probability / tokens) over the text's lines, end marks counted; None for a text without words."""
        model = _load_kenlm(self.model)
        log_probability, tokens = 0.0, 0
        for line in text.split("\n"):
            words = normalise_for_model(line)
            if not words:
                continue
            if self.pieces is not None:
                words = " ".join(_load_pieces(self.pieces).encode(words, out_type=str))
            log_probability += model.score(words)
            tokens += len(words.split()) + 1
        return 10.0 ** min(-log_probability / tokens, 300.0) if tokens else None


def normalise_for_model(line: str) -> str:
    """Lower case, no accents, every digit 0, plain marks, white space folded: as cc_net prepares text for its models.

    cc_net replaces some further rare marks; their effect on a page's perplexity is not ours to claim.
    """
    decomposed = unicodedata.normalize("NFD", line.lower().translate(_PLAIN_MARKS))
    plain = "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Cc") or c.isspace())
    return " ".join(_DIGIT.sub("0", plain).split())


def file_facts(path: str) -> list[int]:
    """A file's size in bytes and its time of change in nanoseconds."""
    facts = Path(path).stat()
    return [facts.st_size, facts.st_mtime_ns]


def head_threshold(sample: str, share: float) -> float:
    """The perplexity below which ``share`` of a sample's pages are.

    Args:
        sample: a JSONL file, also compressed, with a number ``perplexity`` per line.
        share: 0 to 1.

    Raises:
        UserError: with file and line, for a line without a perplexity; for a file without pages.
    """
    values = [_perplexity_of(line, f"{sample}:{number}") for number, line in text_lines(sample)]
    if not values:
        raise UserError(f"{sample}: holds no page")
    return float(np.quantile(values, share))


def _perplexity_of(line: str, where: str) -> float:
    try:
        value = json.loads(line)["perplexity"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{where}: not a JSON object with the key 'perplexity'") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise UserError(f"{where}: the perplexity {value!r} is not a finite number")
    return float(value)


@functools.cache
def _load_kenlm(path: str) -> Any:
    import kenlm

    return kenlm.Model(path)


@functools.cache
def _load_pieces(path: str) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=path)
