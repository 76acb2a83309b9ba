"""Our encoder as one of mteb's, with E5's rules: which prefix a text gets, and which embeddings have unit length."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_e5.errors import UserError
from lightning_e5.files.storage import sha256_file
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import progress
from lightning_e5.types import Embedder, Kind, compares_by_cosine

#: mteb's task types whose two sides are texts of two kinds; all others compare texts of one kind.
ASYMMETRIC_TYPES = frozenset({"Retrieval", "InstructionRetrieval"})
#: Task types that fit a linear classifier on the embeddings.
PROBE_TYPES = frozenset({"Classification", "MultilabelClassification"})
#: Texts whose embedding shows a bar of its own.
_MANY = 2000


def text_kind(task: Any, prompt_type: Any) -> Kind:
    """Whose prefix a text gets.

    Args:
        task: mteb's ``TaskMetadata`` (``name`` and ``type`` are read).
        prompt_type: mteb's ``PromptType`` or its value; None where a task does not tell its sides apart.

    Source: the authors' evaluation scripts: retrieval's documents are passages, all else is a query; Quora's questions
    are queries on both sides.
    """
    side = getattr(prompt_type, "value", prompt_type)
    return "passage" if task.type in ASYMMETRIC_TYPES and side == "document" and not is_quora(task) else "query"


def is_quora(task: Any) -> bool:
    """Whether a task's documents are questions like its queries (Quora in all its editions)."""
    return "QuoraRetrieval" in task.name


class MtebEncoder:
    """An embedder as mteb calls it (its ``EncoderProtocol``).

    Args:
        embedder: embeds the texts; adds the prefixes itself.
        name: the model's name, ``organisation/name``; the folder of its results has it.
        revision: what tells two states of the model apart (see `encoder_revision`); the next folder below.
        normalize_probes: give classification unit vectors, too. E5's own evaluation does not; a model whose
            sentence-transformers folder ends with a normalisation was published with it.

    Source: paper section 4.2 and the authors' evaluation scripts.
    """

    def __init__(self, embedder: Embedder, name: str, revision: str | None, *, normalize_probes: bool = False) -> None:
        if "/" not in name:
            raise UserError(f"{name!r} is not a model's name as mteb has it: organisation/name")
        self.embedder, self.name, self.revision, self.normalize_probes = embedder, name, revision, normalize_probes

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the model, which it stores beside the results."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        facts: dict[str, Any] = {
            "name": self.name, "revision": self.revision, "framework": ["PyTorch"], "languages": ["eng-Latn"],
            "similarity_fn_name": ScoringFunction.COSINE if compares_by_cosine(self.embedder) else ScoringFunction.DOT_PRODUCT,
        }  # fmt: skip
        if isinstance(self.embedder, TextEncoder):
            tokenizer = self.embedder.tokenizer
            facts |= {
                "n_parameters": sum(p.numel() for p in self.embedder.parameters()), "embed_dim": self.embedder.width,
                "max_tokens": tokenizer.max_length, "use_instructions": bool(tokenizer.prefixes.query or tokenizer.prefixes.passage),
            }  # fmt: skip
        return ModelMeta(**{**ModelMeta.create_empty().model_dump(), **facts})

    def encode(
        self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, prompt_type: Any = None, **options: Any
    ) -> NDArray[np.float32]:
        """Embeddings float32 ``[N, D]`` of mteb's batches of texts; ``options`` (its batch size and bar) are not needed."""
        kind = text_kind(task_metadata, prompt_type)
        # a document's "text" is its title and its text; Quora's has no title, and where one is given it is left out
        key = "body" if is_quora(task_metadata) and getattr(prompt_type, "value", prompt_type) == "document" else "text"
        texts: list[str] = []
        for batch in inputs:
            if key not in batch and "text" not in batch:
                raise UserError(f"{task_metadata.name}: has {', '.join(batch)}, no texts; only texts can be embedded")
            texts += batch.get(key, batch.get("text"))
        normalize = (self.normalize_probes or task_metadata.type not in PROBE_TYPES) and compares_by_cosine(self.embedder)
        if isinstance(self.embedder, TextEncoder) and len(texts) >= _MANY:
            with progress(len(texts), f"embed {task_metadata.name} {hf_subset} {hf_split}", "text") as bar:
                return self._finite(self.embedder.embed(texts, kind, normalize=normalize, progress=bar).numpy(), task_metadata.name)
        return self._finite(self.embedder.embed(texts, kind, normalize=normalize).numpy(), task_metadata.name)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines ``[N, M]``, or dot products of a model that is compared by them."""
        from mteb.similarity_functions import cos_sim, dot_score

        return (cos_sim if compares_by_cosine(self.embedder) else dot_score)(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The same ``[N]`` of rows with rows."""
        from mteb.similarity_functions import pairwise_cos_sim, pairwise_dot_score

        return (pairwise_cos_sim if compares_by_cosine(self.embedder) else pairwise_dot_score)(embeddings1, embeddings2)

    @staticmethod
    def _finite(embedded_ND: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        good = np.isfinite(embedded_ND).all(1)
        if not good.all():
            raise UserError(f"{name}: the embedding of text {int(np.argmin(good))} is not finite")
        return embedded_ND


def encoder_revision(directory: Path, settings: Mapping[str, Any]) -> str:
    """40 hex digits of a model folder's files and of how it is used, so that results of two states never mix.

    Args:
        directory: the model folder.
        settings: what decides embeddings beside the files (prefixes, length limit, precision, normalisation).
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{sha256_file(path)}\n".encode())
    digest.update(repr(sorted(settings.items())).encode())
    return digest.hexdigest()[:40]
