"""The ``export`` verb: a run's encoder as a folder for transformers and sentence-transformers, and for onnxruntime."""

from __future__ import annotations

from pathlib import Path

from lightning_e5.errors import UserError
from lightning_e5.files.run_layout import CONFIG
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.folder import stored_settings
from lightning_e5.models.training_record import read_record


def own_place(run: Path) -> Path:
    """Where a run's encoder is exported to unless a folder is named; UserError for what is no run."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run}: is no run directory (has no {CONFIG}); name the DIR that the model folder is written to")
    return run / "export"


def export(run: Path, directory: Path, *, onnx: bool = False, truncate_dim: int | None = None) -> str:
    """Write the run's final encoder to ``directory``; returns how to use it.

    Args:
        run: a run directory, or a model folder.
        directory: new or empty.
        truncate_dim: the first values of an embedding, which every user of the folder then takes alone; as stored where not given.
        onnx: also write ``onnx/model.onnx``, compared with the weights before it is there.

    Raises:
        UserError: no encoder, a directory that is not empty, or as `export_onnx`.
    """
    source = run / "encoder" if (run / "encoder").is_dir() else run
    if not source.is_dir() or not (stored_settings(source).transformer / "config.json").is_file():
        raise UserError(f"{run}: no run with an encoder, and no encoder folder")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists already and is not an empty directory")
    if onnx:
        from lightning_e5.export.onnx import MODEL, export_onnx, require_onnx

        require_onnx()
    encoder = TextEncoder.from_pretrained(source, truncate_dim=truncate_dim)
    encoder.save_pretrained(directory)
    if (record := read_record(source)) is not None:
        record.save(directory)
    prefixes = encoder.tokenizer.prefixes
    of_all = "" if encoder.head.settings.truncate_dim is None else f" (the first of {encoder.head.full_width})"
    said = [
        f"{directory}: {encoder.width} values per embedding{of_all}, prefixes {prefixes.query!r} and {prefixes.passage!r}, compared by {encoder.similarity}",
        "  from sentence_transformers import SentenceTransformer",
        f"  model = SentenceTransformer({str(directory)!r})",
        '  model.encode(["how do I read a file?"], prompt_name="query")',
    ]
    if onnx:
        found = export_onnx(directory)
        said += [f"{directory / MODEL}: {found.text()}", f"  model = SentenceTransformer({str(directory)!r}, backend='onnx')"]
    return "\n".join(said)
