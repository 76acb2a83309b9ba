"""The bi-encoder of E5: one Transformer for queries and passages, average pooling, unit vectors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_e5.distributed.devices import Precision, backbone_autocast, own_attention, without_autocast
from lightning_e5.errors import UserError
from lightning_e5.files.storage import reading
from lightning_e5.models.folder import default_prefixes
from lightning_e5.models.head import EmbeddingHead, Similarity
from lightning_e5.models.packed.encoder import inference
from lightning_e5.models.packed.families import packed_encoder
from lightning_e5.models.packed.layout import Layout
from lightning_e5.models.padded import padded_states, usable_positions
from lightning_e5.models.pooling import PoolingMode
from lightning_e5.progress import say
from lightning_e5.text import E5_PREFIXES, Prefixes, TextTokenizer, check_texts
from lightning_e5.training.chunks import Chunk, chunk_outputs, inference_tokens
from lightning_e5.types import Kind, TokenBatch


class TextEncoder(nn.Module):
    """Texts or tokens to embeddings.

    Args:
        backbone: a Hugging Face encoder; it runs without padding where `lightning_e5.models.packed.families` has its family,
            else padded and sorted by length.
        tokenizer: with the prefixes and the length limit that belong to the weights.
        head: pooling, dense layers and similarity; E5's by default.
        precision: ``bf16`` runs the backbone under autocast, ``auto`` where the hardware multiplies bfloat16 itself, ``bf16-gpu``
            where that is a GPU, ``fp32`` only where the caller does (``Trainer(precision="bf16-mixed")``); pooling, normalisation
            and all scores stay float32.

    Raises:
        UserError: the length limit is above the model's positions.

    Source: paper section 3.2.
    """

    def __init__(
        self, backbone: Any, tokenizer: TextTokenizer, *, head: EmbeddingHead | None = None, precision: Precision = "bf16-gpu"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.head = head or EmbeddingHead(int(backbone.config.hidden_size))
        self.precision = precision
        self.packed = packed_encoder(backbone)
        limit = usable_positions(backbone)
        if limit is not None and tokenizer.max_length > limit:
            raise UserError(f"max_length: {tokenizer.max_length} is above the {limit} positions that the model has for tokens")

    @property
    def width(self) -> int:
        """D, the number of values in an embedding."""
        return self.head.width

    @property
    def similarity(self) -> Similarity:
        """How its embeddings are compared: by their cosine, or by the dot product of embeddings that are not normalised."""
        return self.head.similarity

    @classmethod
    def from_pretrained(
        cls,
        directory: Path | str,
        *,
        prefixes: Prefixes | None = None,
        max_length: int | None = None,
        precision: Precision = "bf16-gpu",
        training_start: bool = False,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        pooling: PoolingMode | None = None,
        truncate_dim: int | None = None,
    ) -> TextEncoder:
        """Load a Hugging Face or sentence-transformers folder (or hub name) with all that it says of its use, in evaluation mode.

        Args:
            directory: the folder or name.
            prefixes: where not given, those stored in the folder; for a folder that stores none see `default_prefixes`, and a
                message says which ones are used.
            max_length: tokens per text; where not given, as stored, at most the model's positions.
            precision: of the backbone.
            training_start: load it to train it as an E5: E5's prefixes where the folder stores none, and cosines of whole
                embeddings, whatever it was compared by before.
            dropout: while it is trained, in the place of what its ``config.json`` says.
            attention_dropout: likewise, of the attention alone.
            pooling: in the place of the folder's own (the mean where it says nothing).
            truncate_dim: the first values of an embedding that are used, in the place of what the folder says.

        Raises:
            UserError: not there, not fetchable, damaged, no encoder, or something that is not supported.
        """
        from lightning_e5.models.pretrained import load_pretrained, stored_length

        loaded = load_pretrained(str(directory), dropout=dropout, attention_dropout=attention_dropout)
        stored = loaded.stored
        if prefixes is None and stored.prefixes is None:
            prefixes = E5_PREFIXES if training_start else default_prefixes(str(directory), loaded.directory)
            used = "E5's prefixes" if prefixes == E5_PREFIXES else "none"
            say(f"{directory}: stores no prompts for queries and passages; {used} are put before texts")
        length = max_length or stored_length(loaded)
        tokenizer = TextTokenizer(
            loaded.backend, prefixes or stored.prefixes or E5_PREFIXES, length, settings=loaded.tokenizer, lower_case=stored.lower_case
        )  # fmt: skip
        if pooling is not None:
            stored = replace(stored, head=replace(stored.head, modes=(pooling,)))
        head = stored.build_head(loaded.backbone.config.hidden_size)
        try:
            head.truncate(stored.truncate_dim if truncate_dim is None else truncate_dim)
            encoder = cls(loaded.backbone, tokenizer, head=head, precision=precision).eval()
        except UserError as error:
            raise UserError(f"{directory}: {error}") from None
        encoder._check_use(directory)
        if training_start:
            encoder._start_training(directory)
        return encoder

    def _check_use(self, directory: Path | str) -> None:
        """UserError for an architecture that does not encode texts, and for a prefix that leaves no room for them."""
        try:
            self.tokenizer.check_room()
        except UserError as error:
            raise UserError(f"{directory}: {error}") from None
        if self.packed is None:
            with reading(directory, "its architecture is not one that encodes texts"), torch.inference_mode():
                ids, lengths = self.tokenizer.encode([""], "query")
                self(torch.from_numpy(ids).long(), lengths.tolist())

    def _start_training(self, directory: Path | str) -> None:
        settings = self.head.settings
        if not settings.include_prompt:
            raise UserError(f"{directory}: include_prompt: false is not supported in training, which pools all tokens")
        if settings.truncate_dim is not None:
            say(f"{directory}: embeddings are truncated to {settings.truncate_dim} values; it is trained, and kept, with all {self.head.full_width}")
            self.head.truncate(None)
            settings = self.head.settings
        if settings.similarity != "cosine":
            say(f"{directory}: is compared by {settings.similarity} product; it is trained by cosine, and by cosine it is compared after it")
            self.head.settings = replace(settings, normalize=True, similarity="cosine")

    def save_pretrained(self, directory: Path | str) -> None:
        """Write the Hugging Face + sentence-transformers layout: head, prompts and length limit included."""
        from lightning_e5.models.pretrained import save_pretrained

        save_pretrained(Path(directory), self.backbone, self.tokenizer, self.head)

    def forward(self, ids_T: Tensor, lengths: Sequence[int], prompt: int = 0) -> Tensor:
        """Pooled, not normalised embeddings ``[B, D]`` (float32; float64 for a float64 model) of packed tokens.

        ``prompt``: tokens of the prefix at the beginning of each text; they matter where the model does not pool them.
        """
        layout = Layout.of(lengths, ids_T.device, training=self.training)
        with backbone_autocast(self.precision, ids_T.device), own_attention(ids_T.device):
            states_TD = self.packed(ids_T, layout) if self.packed is not None else padded_states(self.backbone, ids_T, lengths)
        precise = states_TD if states_TD.dtype == torch.float64 else states_TD.float()
        with without_autocast(ids_T.device):
            pooled_BD: Tensor = self.head(precise, layout.runs, prompt, layout.lengths() if ids_T.is_cuda else None)
        return pooled_BD

    @torch.inference_mode()
    def embed(
        self,
        texts: Sequence[str],
        kind: Kind,
        *,
        normalize: bool = True,
        chunk_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Embeddings of texts, in evaluation mode.

        Args:
            texts: any number of texts.
            kind: ``query`` or ``passage``; decides the prefix.
            normalize: unit rows (cosine similarity is then the dot product). A model whose `similarity` is ``dot`` is searched
                with rows that are not normalised (see `lightning_e5.types.compares_by_cosine`).
            chunk_tokens: tokens of a chunk, of which a CPU encodes one on each core; see `inference_tokens` for the default.
            progress: called with the number of texts done, chunk by chunk.

        Returns:
            float32 ``[N, D]`` on the CPU.

        Raises:
            UserError: ``texts`` is a single text.
        """
        check_texts(texts)
        prompt = self.prompt_of(kind)
        result_ND = torch.empty(len(texts), self.width, device="cpu")
        device = next(self.parameters()).device
        with closing(self._tokenised(texts, kind, ahead=device.type != "cpu")) as parts:
            for part, batch in parts:
                result_ND[part] = self.embed_tokens(batch, prompt, normalize=normalize, chunk_tokens=chunk_tokens, progress=progress)
        return result_ND

    def _tokenised(self, texts: Sequence[str], kind: Kind, *, ahead: bool) -> Generator[tuple[slice, TokenBatch], None, None]:
        """The tokens of `TEXTS_AT_ONCE` texts after the other; ``ahead``: of fewer at a time, the next ones by a thread meanwhile."""

        def tokens(part: slice) -> TokenBatch:
            ids, lengths = self.tokenizer.encode(texts[part], kind)
            return TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))

        at_once = TEXTS_AHEAD if ahead else TEXTS_AT_ONCE
        parts = [slice(first, min(len(texts), first + at_once)) for first in range(0, len(texts), at_once)]
        if not ahead or len(parts) < 2:
            yield from ((part, tokens(part)) for part in parts)
            return
        with ThreadPoolExecutor(1, "tokens") as thread:
            coming = thread.submit(tokens, parts[0])
            for part, following in zip_longest(parts, parts[1:]):
                batch = coming.result()
                if following is not None:
                    coming = thread.submit(tokens, following)
                yield part, batch

    @torch.no_grad()
    def embed_tokens(
        self,
        batch: TokenBatch,
        prompt: int = 0,
        *,
        normalize: bool = True,
        chunk_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Embeddings of texts that are tokens already, on the device where these are; as `embed`, with ``prompt`` as `forward` has it."""
        if not len(batch.lengths_B):
            return torch.empty(0, self.width, dtype=torch.float32, device=batch.ids_T.device)
        device = next(self.parameters()).device

        def compute(chunk: Chunk) -> Tensor:
            embedded_BD = self(chunk.ids_T, chunk.lengths, prompt).float()
            return functional.normalize(embedded_BD, dim=1) if normalize else embedded_BD

        with inference(self):
            tokens = chunk_tokens or inference_tokens(self.precision, device)
            return chunk_outputs(batch, compute, device, chunk_tokens=tokens, progress=progress).to(batch.ids_T.device)

    def prompt_of(self, kind: Kind) -> int:
        """Tokens of a kind's prefix, where the model does not pool them; else 0."""
        return 0 if self.head.settings.include_prompt else self.tokenizer.prompt_length(kind)


#: Texts tokenised and sorted together by ``embed``.
TEXTS_AT_ONCE = 32768
#: As many on a GPU, which encodes some while the next are tokenised.
TEXTS_AHEAD = 8192
