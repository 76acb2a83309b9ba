"""New encoders: from a pre-trained checkpoint, or a small BERT of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.folder import default_prefixes, stored_settings
from lightning_e5.models.head import EmbeddingHead, HeadSettings
from lightning_e5.models.initialisation import weighted_average_start
from lightning_e5.models.pooling import POOLING_NAMES, Pooling
from lightning_e5.ranges import Length, Range, Size
from lightning_e5.text import E5_PREFIXES, Prefixes, TextTokenizer


@configurable("encoder", constructs=True)
@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What encoder to start from.

    Args:
        pretrained: an encoder with its tokenizer: a folder, ``package:NAME/FOLDER`` or a hub name, each with or without
            ``#sha256=HEX`` of its weights (see `lightning_e5.models.reference.model_folder`); None makes a small BERT with a
            vocabulary of its own, to which the values from ``vocab_size`` on belong.
        max_length: tokens per text; None, of a pretrained encoder, for what it stores.
        vocab_size: WordPiece vocabulary trained on the pool.
        layers, hidden_size, heads, intermediate_size, max_positions: of the small BERT.
        dropout: share of values that training sets to 0, stored in the encoder's ``config.json`` for every stage that trains it or a
            cross-encoder from it; None for what a pretrained encoder's ``config.json`` says (BERT, MiniLM: 0.1), and 0 in the small BERT.
        attention_dropout: that of the attention's probabilities alone, where it is another than ``dropout``; 0 lets a GPU attend within texts
            of unequal length in one kernel where only torch's is there, which has no dropout (see `lightning_e5.models.packed.varlen`).
        initialisation: ``weighted_average`` starts the small BERT as an average of word vectors weighted by IDF (see
            `lightning_e5.models.initialisation`), ``bert`` as BERT itself.
        prefixes: ``query`` and ``passage``, put before all texts and stored with the encoder; None for E5's; ``own``, of a pretrained
            encoder, for those that it stores, or else that belong to it (see `default_prefixes`).
        pooling: how a text's token states become its embedding: their ``mean`` (E5), the first one (``cls``) or the ``last``; None, of a
            pretrained encoder, for what its folder says, and the mean where that says nothing and in the small BERT.
    """

    pretrained: str | None = None
    max_length: Length | None = 128
    vocab_size: Size = 16000
    layers: Annotated[int, Range(1, 1000)] = 2
    hidden_size: Size = 256
    heads: Size = 4
    intermediate_size: Size = 512
    dropout: Annotated[float, Range(0, 0.99)] | None = None
    attention_dropout: Annotated[float, Range(0, 0.99)] | None = None
    max_positions: Length = 512
    initialisation: Literal["weighted_average", "bert"] = "weighted_average"
    prefixes: Mapping[str, str] | Literal["own"] | None = None
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        if self.initialisation not in ("weighted_average", "bert"):
            raise UserError(f"encoder.initialisation: {self.initialisation!r} is not 'weighted_average' or 'bert'")
        if self.hidden_size % self.heads:
            raise UserError(f"encoder.heads: {self.heads} does not divide hidden_size: {self.hidden_size}")
        if self.pooling is not None and self.pooling not in POOLING_NAMES:
            raise UserError(f"encoder.pooling: {self.pooling!r} is not one of {', '.join(map(repr, POOLING_NAMES))}, or null")
        if self.pretrained is None and self.pooling in ("cls", "last") and self.initialisation == "weighted_average":
            raise UserError(f"encoder.pooling: {self.pooling!r} with initialisation: weighted_average, which starts as the mean of all tokens; give initialisation: bert")
        if isinstance(self.prefixes, str) and self.prefixes != "own":
            raise UserError(f"encoder.prefixes: {self.prefixes!r} is not 'own', and no query and passage")
        if isinstance(self.prefixes, Mapping) and set(self.prefixes) != {"query", "passage"}:
            raise UserError(f"encoder.prefixes: needs the keys query and passage, not {', '.join(self.prefixes) or 'none'}")
        if self.pretrained is None and (self.max_length is None or self.prefixes == "own"):
            key = "max_length" if self.max_length is None else "prefixes"
            raise UserError(f"encoder.{key}: is a pretrained encoder's own only where there is one; give encoder.pretrained, or a value")

    @property
    def text_prefixes(self) -> Prefixes:
        """What is put before the texts, where the spec says it."""
        return Prefixes(self.prefixes["query"], self.prefixes["passage"]) if isinstance(self.prefixes, Mapping) else E5_PREFIXES

    def load_pretrained(self, folder: Path) -> TextEncoder:
        """The encoder of ``pretrained``, whose folder is here, with these prefixes, this length limit and this dropout."""
        prefixes = self.text_prefixes
        if self.prefixes == "own":
            prefixes = stored_settings(folder).prefixes or default_prefixes(str(self.pretrained), folder)
        pooling = None if self.pooling is None else POOLING_NAMES[self.pooling]
        return TextEncoder.from_pretrained(
            folder, prefixes=prefixes, max_length=self.max_length, training_start=True, dropout=self.dropout,
            attention_dropout=self.attention_dropout, pooling=pooling,
        )  # fmt: skip

    def build(self, tokenizer: TextTokenizer, document_frequency: Any, documents: int) -> TextEncoder:
        """A small BERT from torch's current random state.

        Args:
            tokenizer: with its own vocabulary.
            document_frequency: int64 ``[V]``, texts of the pool that hold each token.
            documents: texts of the pool.
        """
        from transformers import BertConfig, BertModel

        dropout = self.dropout or 0.0
        config = BertConfig(
            vocab_size=tokenizer.backend.get_vocab_size(),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate_size,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout if self.attention_dropout is None else self.attention_dropout,
            max_position_embeddings=self.max_positions,
        )
        bert = BertModel(config, add_pooling_layer=False)
        if self.initialisation == "weighted_average":
            weighted_average_start(bert, document_frequency, documents)
        head = EmbeddingHead(self.hidden_size, HeadSettings((POOLING_NAMES[self.pooling or "mean"],)))
        return TextEncoder(bert, tokenizer, head=head)
