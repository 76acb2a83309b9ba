"""Stages: the tokenizer, the pool's tokens, and the encoder that training starts from; or tokens by a tokenizer that is there."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_modules.pair_store import PairStore
from data_modules.token_shards import TOKENISED_ROWS
from lightning_e5.configurable import configurable
from lightning_e5.curation.engines.engine import Engine
from lightning_e5.curation.engines.tokens import tokenise_pairs
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.models.reference import model_folder
from lightning_e5.models.training_record import UNTRAINED, start_of
from lightning_e5.pipeline.fingerprint import result_version
from lightning_e5.ranges import Count, Length
from lightning_e5.rng import seed_torch
from lightning_e5.text import E5_PREFIXES, TextTokenizer

#: Texts of which document frequencies are counted: at least so many, where there are, and less than twice as many.
COUNTED_TEXTS = 100_000
_COLUMNS = ("query", "passage")


@configurable("stage")
@result_version(2)  # a vocabulary of a sample of many pairs; document frequencies over the texts that are counted
def vocabulary(
    out: Path, *, pairs: Path, encoder: EncoderSpec, train_length: Length | None = None, vocabulary_pairs: Count = 1_000_000,
    engine: Engine | Literal["local", "ray"] | None = None, seed: int,
) -> dict[str, float]:  # fmt: skip
    """Write ``encoder/`` (untrained, or as pre-trained) and ``tokens/`` (every pair's tokens).

    Args:
        out: the stage's folder.
        pairs: folder of pairs (see `PairStore`).
        encoder: what to start from.
        train_length: tokens per text of ``tokens/``, for a training on shorter texts than the encoder reads; by default the encoder's.
        vocabulary_pairs: of more pairs than these, every n-th is what a vocabulary is trained on, and n the smallest number for which they
            are not more.
        engine: ``local``, ``ray`` or an engine with settings writes the shards of ``tokens/`` as tasks; None in this process.
        seed: of the untrained weights.

    Returns:
        Vocabulary size, parameters, tokens, share of texts cut at the length limit; pairs that a vocabulary was trained on.
    """
    pool = _Pool(pairs)
    counts: dict[str, float] = {}
    if encoder.pretrained is not None:
        start = model_folder(encoder.pretrained)
        model = encoder.load_pretrained(start)
        tokenizer = model.tokenizer
    else:
        every = -(-pool.rows // vocabulary_pairs)
        counts["vocabulary_pairs"] = -(-pool.rows // every)
        backend = train_wordpiece_from(lambda: pool.texts(every), int(counts["vocabulary_pairs"]), encoder.vocab_size)
        assert encoder.max_length is not None  # as the spec of an untrained encoder has it
        tokenizer = TextTokenizer(backend, encoder.text_prefixes, encoder.max_length)
        tokenizer.check_room()
    counts |= pool.write_tokens(out / "tokens", tokenizer.cut_at(train_length), engine)
    if encoder.pretrained is None:
        model = pool.untrained_encoder(encoder, tokenizer, seed)
    model.save_pretrained(out / "encoder")
    (UNTRAINED if encoder.pretrained is None else start_of(start)).save(out / "encoder")
    return {"vocabulary": tokenizer.backend.get_vocab_size(), "parameters": sum(p.numel() for p in model.parameters()), **counts}


@configurable("stage")
@result_version(2)  # document frequencies over the texts that are counted
def tokens(
    out: Path, *, pairs: Path, encoder: Path, spec: EncoderSpec | None = None, engine: Engine | Literal["local", "ray"] | None = None, seed: int
) -> dict[str, float]:
    """Write ``tokens/``, the tokens of other pairs by an encoder's tokenizer, and, with ``spec``, ``encoder/`` (an untrained one).

    Args:
        out: the stage's folder.
        pairs: folder of pairs (see `PairStore`).
        encoder: folder of the encoder whose tokenizer is used.
        spec: an encoder of another size, length limit or prefixes, with that tokenizer's vocabulary.
        engine: ``local``, ``ray`` or an engine with settings writes the shards as tasks; None in this process.
        seed: of the weights of ``encoder/``.

    Returns:
        Tokens, share of texts cut at the length limit and, with ``spec``, parameters.

    Raises:
        UserError: ``spec`` names a pre-trained encoder, which brings a tokenizer of its own.
    """
    pool = _Pool(pairs)
    tokenizer = TextEncoder.from_pretrained(encoder, training_start=True).tokenizer
    if spec is not None:
        if spec.pretrained is not None:
            raise UserError(f"tokens.spec.pretrained: {spec.pretrained!r} has a tokenizer of its own; name it in a vocabulary stage")
        spec = dataclasses.replace(spec, vocab_size=tokenizer.backend.get_vocab_size())
        tokenizer = tokenizer.replaced(prefixes=spec.text_prefixes, max_length=spec.max_length or tokenizer.max_length)
    metrics = pool.write_tokens(out / "tokens", tokenizer, engine)
    if spec is not None:
        model = pool.untrained_encoder(spec, tokenizer, seed)
        model.save_pretrained(out / "encoder")
        metrics["parameters"] = sum(p.numel() for p in model.parameters())
    return metrics


class _Pool:
    """The texts of a folder of pairs, read block by block as often as they are wanted."""

    def __init__(self, pairs: Path) -> None:
        self.store = PairStore(pairs)
        self.rows = self.store.rows

    def texts(self, every: int, first: int = 0, columns: Sequence[str] = _COLUMNS) -> Iterator[list[str]]:
        """Some columns' texts of the pair ``first`` and every n-th after it, in lists."""
        for table in self.store.iter_batches(columns, TOKENISED_ROWS):
            rows = len(table)
            for name in columns:
                yield table[name].take(np.arange(first, rows, every)).to_pylist()
            first = (first - rows) % every if first < rows else first - rows

    def write_tokens(self, folder: Path, tokenizer: TextTokenizer, engine: Engine | str | None) -> dict[str, float]:
        manifest = tokenise_pairs(folder, self.store, tokenizer, engine=engine)
        return {"tokens": manifest["tokens"], "texts_at_length_limit": manifest["texts_at_length_limit"] / (2 * self.store.rows)}

    def untrained_encoder(self, spec: EncoderSpec, tokenizer: TextTokenizer, seed: int) -> TextEncoder:
        # Every n-th text of all queries and then all passages.
        every = max(1, 2 * self.rows // COUNTED_TEXTS)
        counts = document_frequency(tokenizer, itertools.chain(self.texts(every, 0, ["query"]), self.texts(every, -self.rows % every, ["passage"])))
        seed_torch(seed)
        return spec.build(tokenizer, counts, -(-2 * self.rows // every))


def train_wordpiece(queries: list[str], passages: list[str], size: int) -> Any:
    """`train_wordpiece_from` of lists."""
    return train_wordpiece_from(lambda: (queries, passages), len(queries), size)


def train_wordpiece_from(texts: Callable[[], Iterable[list[str]]], pairs: int, size: int) -> Any:
    """A lower-casing WordPiece tokenizer trained on the pool, with BERT's special tokens.

    The prefixes' words are part of the training text, so that they are whole tokens.

    Args:
        texts: gives the texts, lists of them; they are gone through twice. What is held is a count for each distinct word.
        pairs: that the texts are of.
        size: of the vocabulary.
    """
    from collections import Counter

    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

    def empty(model: Any) -> Any:
        made = Tokenizer(model)
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        return made

    learner = empty(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    # The trainer breaks ties by numbers that it gives to continuing characters in the order of a hash table, another one
    # in every process; numbered beforehand, they are the same, and so are the vocabulary and its order.
    counts: Counter[str] = Counter()
    for text in itertools.chain.from_iterable(texts()):
        counts.update(learner.normalizer.normalize_str(text))
    common = sorted(c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000] if not c.isspace())
    continuing = ["##" + c for c in common]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*special, *continuing], initial_alphabet=common, show_progress=False
    )
    prefixes = itertools.repeat([E5_PREFIXES.query, E5_PREFIXES.passage], max(2, pairs // 4))
    learner.train_from_iterator(itertools.chain(texts(), prefixes), trainer)
    tokens = [*special, *sorted(set(learner.get_vocab()) - set(special))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = empty(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(special)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return tokenizer


def document_frequency(tokenizer: TextTokenizer, texts: Iterable[list[str]]) -> np.ndarray:
    """int64 ``[V]``: texts that hold each token; the texts come in lists."""
    counts = np.zeros(tokenizer.backend.get_vocab_size(), dtype=np.int64)
    for block in texts:
        ids, lengths = tokenizer.encode(block, "passage")
        text_T = np.repeat(np.arange(len(lengths)), lengths)
        seen = np.unique(text_T.astype(np.int64) * len(counts) + ids)
        np.add.at(counts, seen % len(counts), 1)
    return counts
