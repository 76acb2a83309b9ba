"""Stage: the tokens of other pairs by a tokenizer that is there already, and another encoder that uses it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from data_modules.pair_store import PairStore
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.progress import progress
from lightning_e5.ranges import Given
from lightning_e5.rng import seed_torch
from lightning_e5.stages.vocabulary import document_frequency


@configurable("stage")
def tokens(
    out: Path, *, pairs: Path, encoder: Path, write_tokens: Annotated[Callable[..., dict[str, Any]], Given(("progress", "sources"), 3)], spec: EncoderSpec | None = None, seed: int
) -> dict[str, float]:
    """Write ``tokens/`` (every pair's tokens) and, with ``spec``, ``encoder/`` (an untrained one).

    Args:
        out: the stage's folder.
        pairs: folder of pairs (see `PairStore`).
        encoder: folder of the encoder whose tokenizer is used.
        write_tokens: `data_modules.token_cache.write_token_cache`, given by the YAML.
        spec: an encoder of another size, length limit or prefixes, with that tokenizer's vocabulary.
        seed: of the weights of ``encoder/``.

    Returns:
        Tokens, share of texts cut at the length limit and, with ``spec``, parameters.

    Raises:
        UserError: ``spec`` names a pre-trained encoder, which brings a tokenizer of its own.
    """
    store = PairStore(pairs)
    table = store.read(["query", "passage"])
    queries, passages = table["query"].to_pylist(), table["passage"].to_pylist()
    tokenizer = TextEncoder.from_pretrained(encoder, training_start=True).tokenizer
    if spec is not None:
        if spec.pretrained is not None:
            raise UserError(f"tokens.spec.pretrained: {spec.pretrained!r} has a tokenizer of its own; name it in a vocabulary stage")
        spec = dataclasses.replace(spec, vocab_size=tokenizer.backend.get_vocab_size())
        tokenizer = tokenizer.replaced(prefixes=spec.text_prefixes, max_length=spec.max_length)
    with progress(2 * len(queries), "tokenise", "text") as bar:
        columns = {"query": (queries, "query"), "passage": (passages, "passage")}
        manifest = write_tokens(out / "tokens", columns, tokenizer, progress=bar, sources=store.sources)
    metrics = {"tokens": manifest["tokens"], "texts_at_length_limit": manifest["texts_at_length_limit"] / (2 * len(queries))}
    if spec is not None:
        counts = document_frequency(tokenizer, [*queries, *passages])
        seed_torch(seed)
        model = spec.build(tokenizer, counts, 2 * len(queries))
        model.save_pretrained(out / "encoder")
        metrics["parameters"] = sum(p.numel() for p in model.parameters())
    return metrics
