"""The ``search`` verb: texts against a run's own test collection, a folder in BEIR layout or a folder of documents."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_e5.distributed.devices import inference_device
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import load_corpus
from lightning_e5.files.beir_layout import is_beir
from lightning_e5.files.stored_corpus import ids_of, texts_of
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.reference import model_folder
from lightning_e5.retrieval.index import Index
from lightning_e5.retrieval.text_files import load_text_files

#: Where a run keeps the embeddings of the corpora that were searched with it.
CACHE = "search_cache"
PROMPT = "search: "
#: Letters of a line of the answer, and lines of a passage.
_WIDTH, _LINES = 100, 4


class Searcher:
    """A model with the embeddings of a corpus, which are kept on disk for the next time.

    Args:
        model: a run directory (its final encoder is used) or a model (see `model_folder`).
        corpus: a folder in BEIR layout, or of documents (Markdown, reStructuredText, plain text, HTML), each passage of which is
            found; a run's own test collection by default.
        truncate_dim: the first values of the embeddings that are compared; what the model stores by default.

    Raises:
        UserError: no such model, no corpus, or nothing readable in it.
    """

    def __init__(self, model: str, corpus: str | None = None, truncate_dim: int | None = None) -> None:
        run = Path(model)
        is_run = (run / "encoder").is_dir()
        place = run / "encoder" if is_run else model_folder(model)
        self.folder = Path(corpus) if corpus else _own_collection(model)
        empty: list[Path] = []
        documents: Mapping[str, str] = load_corpus(self.folder) if is_beir(self.folder) else load_text_files(self.folder, empty)
        self.names = ids_of(documents)
        self._documents = documents  # a large corpus lies in files that go with it
        self.encoder = TextEncoder.from_pretrained(place, truncate_dim=truncate_dim).to(inference_device())
        self._index = Index(self.encoder, texts_of(documents), cache_dir=run / CACHE if is_run else _user_cache())
        tokenizer, length = self.encoder.tokenizer, self.encoder.tokenizer.max_length
        self.description = (
            f"{len(self.names):,} passages of {self.folder}, searched with {place} "
            f"by {self.encoder.similarity} (prefixes {tokenizer.prefixes.query!r} and {tokenizer.prefixes.passage!r}, {length} tokens)"
        )
        if self.encoder.head.settings.truncate_dim is not None:
            self.description += f", by the first {self.encoder.width} of {self.encoder.head.full_width} values of an embedding"
        if empty:
            self.description += f"; {len(empty):,} document{'s give' if len(empty) > 1 else ' gives'} no text, the first is {empty[0]}"

    def answer(self, text: str, k: int) -> str:
        """The ``k`` passages nearest to ``text`` with their cosines (or dot products), as text for a terminal."""
        lines: list[str] = []
        for place, hit in enumerate(self._index.search([text], k)[0], start=1):
            lines.append(f"{place}. {hit.score:.3f}  {self.names[hit.row]}")
            lines += _passage(hit.text)
        return "\n".join(lines)


def search(model: str | Path, text: str, *, corpus: str | None = None, k: int = 5, truncate_dim: int | None = None) -> str:
    """The passages nearest to one text, as text for a terminal (arguments: see `Searcher`).

    Raises:
        UserError: as `Searcher`, an empty text, or ``k`` below 1.
    """
    _check(k)
    if not text.strip():
        raise UserError("the text to search for is empty")
    searcher = Searcher(str(model), corpus, truncate_dim)
    return f"{searcher.description}\n\n{searcher.answer(text, k)}"


def search_interactively(
    model: str | Path,
    *,
    corpus: str | None = None,
    k: int = 5,
    truncate_dim: int | None = None,
    lines: Iterable[str] | None = None,
    say: Callable[[str], Any] = print,
) -> None:
    """Answer text after text until an empty line or the end of the input.

    Args:
        model, corpus, truncate_dim: see `Searcher`.
        k: passages shown for each.
        lines: the texts; from the terminal by default.
        say: shows an answer.
    """
    _check(k)
    searcher = Searcher(str(model), corpus, truncate_dim)
    say(f"{searcher.description}\nType a question; an empty line ends.")
    for line in _typed() if lines is None else lines:
        if not line.strip():
            break
        began = time.perf_counter()
        say(f"{searcher.answer(line.strip(), k)}\n({1000 * (time.perf_counter() - began):.0f} ms)\n")


def _user_cache() -> Path:
    """Where the embeddings of a model outside of any run are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_e5" / "search"


def _typed() -> Iterable[str]:
    while True:
        try:
            # Typed at a terminal, a line can be edited and called back; read from a pipe, no prompt stands between the answers.
            line = input(PROMPT) if sys.stdin.isatty() else input()
        except EOFError:
            return
        yield line


def _check(k: int) -> None:
    if k < 1:
        raise UserError(f"-k: {k} is not >= 1")


def _own_collection(model: str) -> Path:
    run = Path(model)
    found = sorted((run / "stages").glob("*/test/corpus.jsonl")) if (run / "stages").is_dir() else []
    if not found:
        raise UserError(f"{model}: has no test collection of its own; give --corpus FOLDER")
    return found[0].parent


def _passage(text: str) -> list[str]:
    words = " ".join(text.split())
    return textwrap.wrap(words, _WIDTH, initial_indent="   ", subsequent_indent="   ", max_lines=_LINES)
