"""Embedding beside sentence-transformers, and the filter's ranks beside faiss."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import make_encoder, real_pairs, sentence_transformer, synchronize
from benchmarks.gpu.size import Size
from benchmarks.gpu.training import timed, tried
from lightning_e5.curation.consistency_filter.bounded_scores import exact_scores
from lightning_e5.curation.consistency_filter.rank_counting import RankPool
from lightning_e5.models.encoder import TextEncoder

KEPT = 2


def encode(size: Size) -> Iterator[dict[str, Any]]:
    """Real texts, tokenising included; the peer in the same precision at its fastest batch size."""
    pairs = real_pairs(256, size.packages)
    texts = (pairs.passage_texts * (1 + size.texts // len(pairs.passage_texts)))[: size.texts]
    for model, shape in list(size.models.items())[:2]:
        encoder = make_encoder(shape, pairs.tokenizer, precision=size.precision).to(size.device).eval()
        encoder.embed(texts[: size.texts // 4], "passage")
        seconds = timed(partial(encoder.embed, texts, "passage"))
        row = {"name": f"encode with {model}", "model": model, "texts": len(texts), "precision": size.precision, "seconds": seconds, "texts_per_s": len(texts) / seconds}
        yield row
        peer = tried(partial(peer_encodes, encoder, texts, size))
        yield row | ({"peer": peer} if isinstance(peer, str) else {"peer_s": peer[0], "ratio": peer[0] / seconds, "lowest_cosine": peer[1]})


def peer_encodes(encoder: TextEncoder, texts: list[str], size: Size) -> tuple[float, float] | str:
    """Seconds of the peer at its fastest batch size, and the lowest cosine of its embeddings with ours; or why there are none."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed here"
    with tempfile.TemporaryDirectory() as folder:
        peer = sentence_transformer(encoder, Path(folder) / "model").eval()
        if size.precision == "bf16":
            peer = peer.bfloat16()
        best = float("inf")
        for batch in size.encode_batches:
            _peer(peer, texts[: size.texts // 4], batch)
            best = min(best, timed(partial(_peer, peer, texts, batch)))
        few = texts[:64]
        nearest = (encoder.embed(few, "passage").cpu() * _peer(peer, few, size.encode_batches[0]).float().cpu()).sum(1).min()
    return best, float(nearest)


def _peer(model: Any, texts: list[str], batch: int) -> Tensor:
    embedded: Tensor = model.encode(texts, prompt_name="passage", batch_size=batch, normalize_embeddings=True, convert_to_tensor=True)
    return embedded


def filter_ranks(size: Size) -> Iterator[dict[str, Any]]:
    """Which pairs stay, over a whole pool, preparation apart: ours beside faiss's exact search for the best two."""
    device = size.device
    queries, passages, pool = random_pairs(size, device)
    ids = torch.arange(len(queries) + len(pool))
    started = time.perf_counter()
    ranked = RankPool(pool, ids[len(queries) :], exact_up_to=KEPT, device=device)
    synchronize()
    prepared = time.perf_counter() - started
    few = slice(0, max(1, len(queries) // 20))
    ranked.ranks(queries[few], passages[few], ids[few])
    kept: list[Tensor] = []
    seconds = timed(lambda: kept.append(ranked.ranks(queries, passages, ids[: len(queries)]) <= KEPT))
    row = {
        "name": f"filter, pool of {len(pool):,}", "queries": len(queries), "width": size.width, "format": ranked.levels[0].name, "seconds": seconds,
        "queries_per_s": len(queries) / seconds, "prepare_s": prepared, "kept": float(kept[0].float().mean()),
    }  # fmt: skip
    yield row
    peer = tried(lambda: peer_filters(queries, passages, pool, size))
    if isinstance(peer, str):
        yield row | {"peer": peer}
        return
    kept_by_peer, figures = peer
    yield row | figures | {"ratio": figures["peer_s"] / seconds, "agreement": float((kept[0].numpy() == kept_by_peer).mean())}


def peer_filters(queries: Tensor, passages: Tensor, pool: Tensor, size: Size) -> tuple[Any, dict[str, Any]] | str:
    """Which pairs stay by faiss, and its figures; or why there are none."""
    if importlib.util.find_spec("faiss") is None:
        return "faiss is not installed here"
    import faiss

    device, few = size.device, slice(0, max(1, len(queries) // 20))
    index: Any = faiss.IndexFlatIP(size.width)
    on_gpu = device.type == "cuda" and hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if on_gpu:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    started = time.perf_counter()
    index.add(pool.numpy())
    prepared = time.perf_counter() - started
    own = exact_scores(queries, passages).numpy()
    index.search(queries[few].numpy(), KEPT)
    theirs: list[Any] = []
    peer_s = timed(lambda: theirs.append(index.search(queries.numpy(), KEPT)[0][:, KEPT - 1] <= own))
    return theirs[0], {"peer": f"faiss on the {'GPU' if on_gpu else 'CPU'}", "peer_s": peer_s, "peer_prepare_s": prepared}


def random_pairs(size: Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Unit queries, passages and a pool with cosines around 0.78 as E5's, made on the device; a third of the pairs is mismatched."""
    draw = torch.Generator(device).manual_seed(0)

    def normal(rows: int) -> Tensor:
        return functional.normalize(torch.randn(rows, size.width, generator=draw, device=device), dim=1)

    axis = normal(1)

    def unit(own: Tensor) -> Tensor:
        return functional.normalize(0.78**0.5 * axis + 0.22**0.5 * functional.normalize(own, dim=1), dim=1).cpu()

    topics = normal(size.queries)
    nearness = torch.rand(size.queries, 1, generator=draw, device=device)
    nearness[::3] = 0
    queries = unit(nearness * topics + (1 - nearness) * normal(size.queries))
    return queries, unit(topics), unit(normal(size.pool))
