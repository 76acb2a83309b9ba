"""Embeddings of a corpus on disk, in shards that are kept as they are done, and exact search over them in bounded memory.

A folder holds ``shard-00000.npy`` and so on, each with its own record (``shard-00000.json``: sha256, model, digest of the
texts), and at last ``manifest.json``. A killed writer goes on after the last shard whose record proves its file; a shard
of another model, of other texts or with other bytes is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_e5.distributed.devices import recorded_precision
from lightning_e5.errors import UserError
from lightning_e5.files.storage import (
    MANIFEST,
    atomic_path,
    read_checked,
    read_manifest,
    remove_temporaries,
    sha256_file,
    verify_manifest,
    write_checked,
    write_manifest,
)
from lightning_e5.progress import progress as show_progress
from lightning_e5.retrieval.exact import checked_vectors
from lightning_e5.retrieval.mapped_vectors import MappedVectors, StoredType
from lightning_e5.types import Embedder, Kind, compares_by_cosine

KIND = "embeddings"


class StoredEmbeddings(MappedVectors):
    """A finished folder of embeddings; rows are numbered as the texts were.

    Args:
        folder: as `store_embeddings` wrote it.
        verify: compare every file with its sha256 first.

    Raises:
        UserError: the folder is missing, unfinished, of another kind or damaged.
    """

    def __init__(self, folder: Path | str, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        manifest = verify_manifest(self.folder, KIND) if verify else read_manifest(self.folder, KIND)
        self.model, self.texts = str(manifest["model"]), str(manifest["texts"])
        super().__init__([(self.folder / name, int(rows)) for name, rows in manifest["shards"]], int(manifest["width"]))


def store_embeddings(
    folder: Path | str,
    embedder: Embedder,
    texts: Sequence[str],
    kind: Kind = "passage",
    *,
    model: str | None = None,
    shard_rows: int = 65_536,
    dtype: StoredType = "float32",
    progress: Callable[[int], object] = lambda rows: None,
) -> StoredEmbeddings:
    """Write the unit embeddings of ``texts`` (of a model that is compared by dot product: as they are) to ``folder``, or take those that it holds already.

    Args:
        folder: of this corpus and model; what does not belong to them is made again.
        embedder: called once per shard that is not there yet.
        texts: in the order of the rows.
        kind: decides the prefix.
        model: fingerprint of the model; by default `model_fingerprint`.
        shard_rows: texts of a shard: what is lost at most when the process is killed.
        dtype: of the files; float16 halves them and rounds every value to 11 bits.
        progress: called with the number of texts done.

    Raises:
        UserError: no text, a number below 1, an embedder without a fingerprint, or embeddings that are not finite.
    """
    folder = Path(folder)
    if not texts or shard_rows < 1:
        raise UserError(f"{folder}: needs texts and shard_rows >= 1, not {len(texts)} texts and {shard_rows}")
    if dtype not in ("float32", "float16"):
        raise UserError(f"{folder}: embeddings are stored as float32 or float16, not {dtype}")
    model = model or model_fingerprint(embedder)
    if model is None:
        raise UserError(f"{type(embedder).__name__} has no fingerprint, so its embeddings cannot be told from another model's")
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    parts = [slice(first, min(len(texts), first + shard_rows)) for first in range(0, len(texts), shard_rows)]
    facts: dict[str, Any] = {"model": f"{model} {kind}", "texts": texts_digest(texts), "dtype": dtype, "shard_rows": shard_rows}
    if (folder / MANIFEST).is_file():
        try:
            manifest = verify_manifest(folder, KIND)
        except UserError:
            manifest = {}
        if {key: manifest.get(key) for key in facts} == facts:
            progress(len(texts))
            return StoredEmbeddings(folder, verify=False)
        (folder / MANIFEST).unlink()
    shards, widths = [], set()

    def record_of(part: slice) -> dict[str, Any]:
        return {"model": facts["model"], "texts": texts_digest(texts[part]), "dtype": dtype, "rows": part.stop - part.start}

    if hasattr(embedder, "embed_ahead"):  # many machines at once, instead of a shard after the other
        missing = [texts[part] for number, part in enumerate(parts) if _proven(folder, f"shard-{number:05d}", record_of(part)) is None]
        embedder.embed_ahead(missing, kind, normalize=compares_by_cosine(embedder))
    for number, part in enumerate(parts):
        name, record = f"shard-{number:05d}", record_of(part)
        width = _proven(folder, name, record)
        if width is None:
            width = _write_shard(folder, name, record, embedder, texts[part], kind)
        progress(part.stop - part.start)
        shards.append([f"{name}.npy", part.stop - part.start])
        widths.add(width)
    if len(widths) > 1:
        raise UserError(f"{folder}: the model gave embeddings of different widths ({sorted(widths)})")
    names = {f"shard-{number:05d}{suffix}" for number in range(len(parts)) for suffix in (".npy", ".json")}
    for stale in set(folder.glob("shard-*")) - {folder / name for name in names}:
        stale.unlink()
    write_manifest(folder, kind=KIND, files=sorted(names), rows=len(texts), width=widths.pop(), shards=shards, **facts)
    return StoredEmbeddings(folder, verify=False)


def kept_embeddings(
    cache_dir: Path | str, embedder: Embedder, texts: Sequence[str], kind: Kind = "passage"
) -> StoredEmbeddings | None:
    """`store_embeddings` in a folder of their own for each model and texts; None for an embedder without a fingerprint."""
    model = model_fingerprint(embedder)
    if model is None:
        return None
    folder = Path(cache_dir) / f"{model[:16]}-{texts_digest(texts)[:16]}-{kind}"
    with show_progress(len(texts), "embed the corpus", "text") as bar:
        return store_embeddings(folder, embedder, texts, kind, model=model, progress=bar)


def texts_digest(texts: Sequence[str]) -> str:
    """Sha256 of texts and where each ends."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def _precision(embedder: Any) -> str:
    """In which its backbone runs where it is now; empty for an embedder without one."""
    precision = getattr(embedder, "precision", None)
    return "" if precision is None else recorded_precision(precision, next(embedder.parameters()).device)


def model_fingerprint(embedder: Any) -> str | None:
    """Sha256 of what decides an encoder's embeddings: weights, tokenizer, prefixes, length limit, pooling and precision.

    An embedder may have its own ``fingerprint()``; None for one that has neither.
    """
    if hasattr(embedder, "fingerprint"):
        return str(embedder.fingerprint())
    if not (hasattr(embedder, "state_dict") and hasattr(getattr(embedder, "tokenizer", None), "fingerprint")):
        return None
    import torch

    config: Any = getattr(getattr(embedder, "backbone", None), "config", None)
    settings = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"} if config is not None else {}
    head: Any = getattr(embedder, "head", None)
    facts = [embedder.tokenizer.fingerprint(), _precision(embedder), head.describe() if hasattr(head, "describe") else "", json.dumps(settings, sort_keys=True, default=str)]
    digest = hashlib.sha256("\0".join(facts).encode())
    for name, tensor in sorted(embedder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _proven(folder: Path, name: str, record: dict[str, Any]) -> int | None:
    """The width of a shard that its record proves to be the one that is wanted; else None."""
    path, own = folder / f"{name}.npy", folder / f"{name}.json"
    if not (path.is_file() and own.is_file()):
        return None
    try:
        found = read_checked(own)
    except UserError:
        return None
    if {key: found.get(key) for key in record} != record:
        return None
    return int(found["width"]) if found.get("sha256") == sha256_file(path) else None


def _write_shard(folder: Path, name: str, record: dict[str, Any], embedder: Embedder, texts: Sequence[str], kind: Kind) -> int:
    vectors = checked_vectors(embedder.embed(list(texts), kind, normalize=compares_by_cosine(embedder)), "embeddings", None)
    if len(vectors) != len(texts):
        raise UserError(f"{type(embedder).__name__} gave {len(vectors)} embeddings for {len(texts)} texts")
    (folder / f"{name}.json").unlink(missing_ok=True)  # a record never stands beside another shard's file
    path = folder / f"{name}.npy"
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, vectors.astype(record["dtype"]), allow_pickle=False)
    write_checked(folder / f"{name}.json", {**record, "width": vectors.shape[1], "sha256": sha256_file(path)})
    return int(vectors.shape[1])
