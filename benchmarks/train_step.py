"""Forward and backward of one contrastive step: ours against sentence-transformers' cached and plain losses.

Both get the same tokens of real text, the same weights, dropout 0.1, temperature 0.01; tokenising and the optimizer are
not timed. The peer runs at the fastest of its mini-batch sizes, found beforehand; ``gemm_share`` is our arithmetic (the
recomputation's included) per second over the measured peak of a matrix product.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.common import (
    FAMILIES,
    SHAPES,
    TEXT_PACKAGES,
    Pairs,
    alternate,
    arguments,
    make_encoder,
    real_pairs,
    report,
    sentence_transformer,
    told,
)
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.packed.encoder import held_weights
from lightning_e5.training.chunks import concatenate
from lightning_e5.training.grad_cache import GradCache
from lightning_e5.training.throughput import encoder_flops, gemm_peak
from lightning_e5.types import TokenBatch

MINI_BATCHES = (16, 32, 64, 128)


class Ours:
    """Gradient-cached steps of our engine; ``graph_tokens`` 0 recomputes every chunk, None keeps what fits."""

    def __init__(self, encoder: TextEncoder, queries: TokenBatch, passages: TokenBatch, graph_tokens: int | None, chunk_tokens: int) -> None:
        self.encoder, self.count = encoder.train(), len(queries.lengths_B)
        if encoder.packed is not None:
            encoder.packed.scatter_word_gradient = True
        self.texts = concatenate([queries, passages])
        self.cache = GradCache(chunk_tokens=chunk_tokens, graph_tokens=graph_tokens)
        self.loss = InfoNCE(0.01)
        self.done: Any = None

    def __call__(self, keep_gradients: bool = False) -> None:
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        target = torch.arange(self.count, device=self.texts.ids_T.device)
        with held_weights(self.encoder) as shared:
            self.done = self.cache.step(
                self.texts,
                lambda ids, lengths: functional.normalize(self.encoder(ids, lengths), dim=1),
                lambda e: self.loss(e[: self.count], e[self.count :], target),
                seed=0, parameters=parameters, shared=shared,
            )  # fmt: skip
        for parameter in () if keep_gradients else parameters:
            parameter.grad = None


class Peer:
    """sentence-transformers' loss over the same tokens, padded as its collator pads.

    In bfloat16 the model's own forward runs under autocast, as its trainer has it run: the cached loss calls it again in the backward
    pass, where an autocast around the loss has ended.
    """

    def __init__(self, model: Any, queries: TokenBatch, passages: TokenBatch, precision: str, mini_batch: int | None) -> None:
        from sentence_transformers.sentence_transformer import losses

        self.model = model.train()
        model.forward = type(model).forward.__get__(model) if precision == "fp32" else in_bfloat16(type(model).forward.__get__(model))
        self.features = [_padded(queries), _padded(passages)]
        if mini_batch is None:
            self.loss: Any = losses.MultipleNegativesRankingLoss(model, scale=100.0)
        else:
            self.loss = losses.CachedMultipleNegativesRankingLoss(model, scale=100.0, mini_batch_size=mini_batch)

    def __call__(self) -> None:
        self.loss([dict(f) for f in self.features], torch.empty(0)).backward()
        self.model.zero_grad(set_to_none=True)


def in_bfloat16(forward: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A forward of a sentence-transformers model under autocast to bfloat16; what it gives is float32."""

    def autocast(features: dict[str, Any], **options: Any) -> dict[str, Any]:
        with torch.autocast(features["input_ids"].device.type, dtype=torch.bfloat16):
            given = forward(features, **options)
        return {k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in given.items()}

    return autocast


def _padded(texts: TokenBatch) -> dict[str, torch.Tensor]:
    pieces = torch.split(texts.ids_T, texts.lengths_B.tolist())
    ids = torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
    mask = (torch.arange(ids.shape[1], device=ids.device)[None] < texts.lengths_B[:, None].to(ids.device)).long()
    return {"input_ids": ids, "attention_mask": mask}


def best_mini_batch(model: Any, precision: str, pairs: Pairs, batch: int = 128) -> int:
    """The peer's fastest mini-batch size, at a small batch."""
    queries, passages = pairs.batch(batch)
    seconds = {size: float("inf") for size in MINI_BATCHES}
    Peer(model, *pairs.batch(32), precision, 32)()  # the first step of all is slower
    for again in (False, True):  # a disturbed probe would choose a slow peer: the near ones once more, the faster counts
        for size in [s for s in MINI_BATCHES if not again or seconds[s] < 1.5 * min(seconds.values())]:
            peer = Peer(model, queries, passages, precision, size)
            started = time.perf_counter()
            peer()
            seconds[size] = min(seconds[size], time.perf_counter() - started)
    told(f"peer, seconds by mini-batch: { {k: round(v, 2) for k, v in seconds.items()} }")
    return min(seconds, key=lambda size: seconds[size])


def measure(pairs: Pairs, family: str, shape: str, precision: str, batches: list[int], rounds: int, chunk_tokens: int, plain_up_to: int, minutes: float, mini_batch: int | None) -> list[dict[str, Any]]:
    """Rows of one family, shape and precision."""
    encoder = make_encoder(shape, pairs.tokenizer, precision=precision, family=family)
    peak = gemm_peak(torch.device("cpu"), torch.bfloat16 if precision == "bf16" else torch.float32, seconds=1.0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = sentence_transformer(encoder, Path(folder) / "model")
        mini_batch = mini_batch or best_mini_batch(model, precision, pairs)
        Peer(model, *pairs.batch(64), precision, mini_batch)()  # warm up
        for graph in (0, None):
            Ours(encoder, *pairs.batch(64), graph, chunk_tokens)()
        for batch in batches:
            told(f"{family} {shape} {precision} batch {batch}")
            queries, passages = pairs.batch(batch)
            replayed, kept = (Ours(encoder, queries, passages, graph, chunk_tokens) for graph in (0, None))
            peers = {"cached": Peer(model, queries, passages, precision, mini_batch)}
            layers, width, *_ = SHAPES[shape]
            if batch * layers * width <= plain_up_to * 4 * 256:
                peers["plain"] = Peer(model, queries, passages, precision, None)
            times = alternate({"replayed": replayed, "kept": kept, **peers}, rounds, warm_up=0, minutes=minutes)
            forward = encoder_flops(encoder.backbone.config, replayed.texts.lengths_B.tolist())
            for name, ours in (("replayed", replayed), ("kept", kept)):
                done = forward * (3 + ours.done.recomputed_tokens / ours.done.tokens)
                for against in peers:
                    peer = f"{against} mb{mini_batch}" if against == "cached" else against
                    rows.append({
                        "name": f"{family} {shape} {name} / {peer}", "batch": batch, "precision": precision, "rounds": times[name].rounds,
                        "ours_s": times[name].wall, "peer_s": times[against].wall,
                        "ratio": times[against].wall / times[name].wall, "gemm_share": done / times[name].wall / peak,
                        "ours_cpu_s": times[name].cpu, "peer_cpu_s": times[against].cpu,
                        "ratio_cpu": times[against].cpu / times[name].cpu,
                    })  # fmt: skip
    return rows


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "",
        batch={"type": int, "nargs": "+", "default": [256, 2048]},
        packages={"nargs": "+", "default": list(TEXT_PACKAGES), "help": "whose documentation is the text; of fewer it is read sooner"},
        family={"nargs": "+", "default": ["bert"], "choices": list(FAMILIES)},
        shape={"nargs": "+", "default": ["4x256", "MiniLM-L6"], "choices": list(SHAPES)},
        precision={"nargs": "+", "default": ["fp32", "bf16"], "choices": ["fp32", "bf16"]},
        chunk_tokens={"type": int, "default": 4096},
        minutes={"type": float, "default": 6.0, "help": "time for the rounds of one batch size; one round is always made (default 6)"},
        mini_batch={"type": int, "help": "of the peer; by default the fastest of 16 to 128 is found first"},
        plain_up_to={"type": int, "default": 256, "help": "largest batch at which the plain loss, all in one graph, runs too, for 4 layers x 256; of larger models less, by layers x width (MiniLM-L6 at 256 takes over 24 GB)"},
    )
    rows: list[dict[str, Any]] = []
    pairs = real_pairs(packages=tuple(chosen.packages))
    for family, shape, precision in itertools.product(chosen.family, chosen.shape, chosen.precision):
        rows += measure(pairs, family, shape, precision, chosen.batch, chosen.rounds, chosen.chunk_tokens, chosen.plain_up_to, chosen.minutes, chosen.mini_batch)
        report(rows, chosen.json)  # after each: what was measured stays where a later one is stopped


if __name__ == "__main__":
    main()
