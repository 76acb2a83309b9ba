"""Stage: the tokenizer, the pool's tokens, and the encoder that training starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data_modules.pair_store import PairStore
from lightning_e5.configurable import configurable
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.models.reference import model_folder
from lightning_e5.models.training_record import UNTRAINED, start_of
from lightning_e5.progress import progress
from lightning_e5.ranges import Given, Length
from lightning_e5.rng import seed_torch
from lightning_e5.text import E5_PREFIXES, TextTokenizer


@configurable("stage")
def vocabulary(
    out: Path, *, pairs: Path, encoder: EncoderSpec, write_tokens: Annotated[Callable[..., dict[str, Any]], Given(("progress", "sources"), 3)], train_length: Length | None = None, seed: int
) -> dict[str, float]:
    """Write ``encoder/`` (untrained, or as pre-trained) and ``tokens/`` (every pair's tokens).

    Args:
        pairs: folder of pairs (see `PairStore`).
        encoder: what to start from.
        write_tokens: `data_modules.token_cache.write_token_cache`, given by the YAML.
        train_length: tokens per text of ``tokens/``, for a training on shorter texts than the encoder reads; by default the encoder's.

    Returns:
        Vocabulary size, parameters, tokens, share of texts cut at the length limit.
    """
    store = PairStore(pairs)
    table = store.read(["query", "passage"])
    queries, passages = table["query"].to_pylist(), table["passage"].to_pylist()
    if encoder.pretrained is not None:
        start = model_folder(encoder.pretrained)
        model = encoder.load_pretrained(start)
        tokenizer = model.tokenizer
    else:
        backend = train_wordpiece(queries, passages, encoder.vocab_size)
        tokenizer = TextTokenizer(backend, encoder.text_prefixes, encoder.max_length)
    with progress(2 * len(queries), "tokenise", "text") as bar:
        columns = {"query": (queries, "query"), "passage": (passages, "passage")}
        manifest = write_tokens(out / "tokens", columns, tokenizer.cut_at(train_length), progress=bar, sources=store.sources)
    if encoder.pretrained is None:
        counts = document_frequency(tokenizer, [*queries, *passages])
        seed_torch(seed)
        model = encoder.build(tokenizer, counts, 2 * len(queries))
    model.save_pretrained(out / "encoder")
    (UNTRAINED if encoder.pretrained is None else start_of(start)).save(out / "encoder")
    return {
        "vocabulary": tokenizer.backend.get_vocab_size(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": manifest["tokens"],
        "texts_at_length_limit": manifest["texts_at_length_limit"] / (2 * len(queries)),
    }


def train_wordpiece(queries: list[str], passages: list[str], size: int) -> Any:
    """A lower-casing WordPiece tokenizer trained on the pool, with BERT's special tokens.

    The prefixes' words are part of the training text, so that they are whole tokens.
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
    for text in (*queries, *passages):
        counts.update(learner.normalizer.normalize_str(text))
    common = sorted(c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000] if not c.isspace())
    continuing = ["##" + c for c in common]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*special, *continuing], initial_alphabet=common, show_progress=False
    )
    prefixes = [E5_PREFIXES.query, E5_PREFIXES.passage] * max(2, len(queries) // 4)
    learner.train_from_iterator([*queries, *passages, *prefixes], trainer)
    tokens = [*special, *sorted(set(learner.get_vocab()) - set(special))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = empty(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(special)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    return tokenizer


def document_frequency(tokenizer: TextTokenizer, texts: list[str]) -> np.ndarray:
    """int64 ``[V]``: texts that hold each token (of at most 100,000 texts)."""
    counts = np.zeros(tokenizer.backend.get_vocab_size(), dtype=np.int64)
    ids, lengths = tokenizer.encode(texts[:: max(1, len(texts) // 100_000)], "passage")
    text_T = np.repeat(np.arange(len(lengths)), lengths)
    seen = np.unique(text_T.astype(np.int64) * len(counts) + ids)
    np.add.at(counts, seen % len(counts), 1)
    return counts
