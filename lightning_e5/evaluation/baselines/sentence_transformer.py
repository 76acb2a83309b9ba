"""Any sentence-transformers model as its authors mean it to be used: its own pooling, layers and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.storage import reading
from lightning_e5.ranges import Count
from lightning_e5.text import check_texts
from lightning_e5.types import Kind

#: Names under which models store the prompt of a kind, in the order in which they are asked.
_PROMPTS = {"query": ("query",), "passage": ("document", "passage", "corpus")}


@configurable("baseline")
class SentenceTransformerModel:
    """An `Embedder` around a sentence-transformers model, which is loaded at its first use.

    Args:
        path: a folder, or a name on the model hub.
        query_prompt: put before queries; None for the model's own prompt, ``""`` for none.
        passage_prompt: the same for passages.
        batch_size: texts at once.
        revision: commit on the hub; give one, so that the model stays the same.
        device: ``cpu``, ``cuda`` ...; None for the best there is.

    Raises:
        UserError: on use, the model cannot be had.

    Source: Reimers & Gurevych 2019.
    """

    def __init__(
        self,
        path: str,
        *,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
        batch_size: Count = 32,
        revision: str | None = None,
        device: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        self.path, self.batch_size, self.revision, self.device = path, batch_size, revision, device
        self._given = {"query": query_prompt, "passage": passage_prompt}
        self._model: Any = None

    def fingerprint(self) -> list[Any]:
        """The folder's files with sizes and times, or the name and revision on the hub."""
        folder = Path(self.path)
        if not folder.is_dir():
            return [self.path, self.revision]
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]

    @property
    def similarity(self) -> str:
        """How the model's embeddings are compared; UserError for what is neither cosine nor dot product."""
        name = str(getattr(self._load(), "similarity_fn_name", "cosine"))
        if name not in ("cosine", "dot"):
            raise UserError(f"{self.path}: similarity_fn_name: {name!r} is not supported; the rule is 'cosine' or 'dot'")
        return name

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """float32 ``[N, D]`` on the CPU, the prompt of ``kind`` added; UserError for another ``kind``."""
        if kind not in _PROMPTS:
            raise UserError(f"kind must be 'query' or 'passage', not {kind!r}")
        check_texts(texts)
        if not texts:
            return self.embed([""], kind)[:0]  # of the right width
        model = self._load()
        encode = model.encode_query if kind == "query" else model.encode_document  # asymmetric models have two sides
        vectors_ND: Tensor = encode(
            list(texts), prompt=self.prompt(kind), batch_size=self.batch_size, convert_to_tensor=True,
            normalize_embeddings=normalize, show_progress_bar=None if len(texts) > 1000 else False,
        )  # fmt: skip
        return vectors_ND.float().cpu()

    def prompt(self, kind: Kind) -> str:
        """What is put before texts of a kind: what was given, else the model's own for it, else its default one."""
        given = self._given[kind]
        if given is not None:
            return given
        # The library fills prompts that a model does not name with empty ones.
        stored = self._load().prompts
        names = (*_PROMPTS[kind], self._load().default_prompt_name)
        return next((stored[name] for name in names if stored.get(name)), "")

    def _load(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            with reading(self.path, "no sentence-transformers model can be had"):
                self._model = SentenceTransformer(self.path, revision=self.revision, device=self.device, trust_remote_code=False)
        return self._model
