"""The ``search`` verb: a text against a run's own test collection, or any folder in BEIR layout."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir_data import load_corpus
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import progress
from lightning_e5.retrieval.exact import ExactIndex
from lightning_e5.retrieval.stored_embeddings import kept_embeddings


def search(model: Path, text: str, *, corpus: str | None = None, k: int = 5) -> str:
    """The ``k`` passages nearest to ``text``, with their cosines, as text for a terminal.

    Args:
        model: a run directory (its final encoder is used) or an encoder folder.
        text: the query.
        corpus: folder in BEIR layout; a run's own test collection by default.
    """
    if k < 1:
        raise UserError(f"-k: {k} is not >= 1")
    encoder_dir = model / "encoder" if (model / "encoder").is_dir() else model
    if not encoder_dir.is_dir():
        raise UserError(f"{model}: no such run or model folder")
    folder = Path(corpus) if corpus else _own_collection(model)
    documents = load_corpus(folder)
    encoder = TextEncoder.from_pretrained(encoder_dir)
    names = list(documents)
    scores, rows = _search(encoder, list(documents.values()), text, k, model)
    lines = [f"{len(names):,} passages of {folder}, searched with {encoder_dir}", ""]
    for place, (score, row) in enumerate(zip(scores[0].tolist(), rows[0].tolist(), strict=True), start=1):
        passage = " ".join(documents[names[row]].split())
        lines.append(f"{place}. {score:.3f}  {names[row]}")
        lines.extend(textwrap.wrap(passage, 100, initial_indent="   ", subsequent_indent="   ", max_lines=4))
    return "\n".join(lines)


def _own_collection(run: Path) -> Path:
    found = sorted((run / "stages").glob("*/test/corpus.jsonl")) if (run / "stages").is_dir() else []
    if not found:
        raise UserError(f"{run}: has no test collection of its own; give --corpus FOLDER")
    return found[0].parent


def _search(encoder: TextEncoder, texts: list[str], text: str, k: int, model: Path) -> tuple[Any, Any]:
    """Scores and rows; a run directory keeps the embeddings of every corpus that was searched with it."""
    query = encoder.embed([text], "query")
    if (model / "stages").is_dir():
        stored = kept_embeddings(model / "search_cache", encoder, texts)
        if stored is not None:
            return stored.search(query, k)
    index = ExactIndex()
    with progress(len(texts), "embed the corpus", "text") as bar:
        index.add(encoder.embed(texts, "passage", progress=bar))
    return index.search(query, k)
