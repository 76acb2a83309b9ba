"""The ``export`` verb: a run's encoder as a folder for transformers and sentence-transformers."""

from __future__ import annotations

from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.training_record import read_record


def export(run: Path, directory: Path) -> str:
    """Write the run's final encoder to ``directory`` (new or empty); returns how to use it."""
    source = run / "encoder" if (run / "encoder").is_dir() else run
    if not (source / "config.json").is_file():
        raise UserError(f"{run}: no run with an encoder, and no encoder folder")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists already and is not an empty directory")
    encoder = TextEncoder.from_pretrained(source)
    encoder.save_pretrained(directory)
    if (record := read_record(source)) is not None:
        record.save(directory)
    prefixes = encoder.tokenizer.prefixes
    return (
        f"{directory}: {encoder.width} values per embedding, prefixes {prefixes.query!r} and {prefixes.passage!r}\n"
        f"  from sentence_transformers import SentenceTransformer\n"
        f"  model = SentenceTransformer({str(directory)!r})\n"
        f'  model.encode(["how do I read a file?"], prompt_name="query")'
    )
