"""Embedding of real texts: ours against sentence-transformers' ``encode`` at its best batch size; tokenising included."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import SHAPES, alternate, arguments, make_encoder, real_pairs, report, sentence_transformer, told
from lightning_e5.training.throughput import encoder_flops, gemm_peak

BATCH_SIZES = (16, 32, 64, 128)


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "",
        texts={"type": int, "default": 2000},
        shape={"nargs": "+", "default": ["MiniLM-L6"], "choices": list(SHAPES)},
        precision={"nargs": "+", "default": ["fp32", "bf16"], "choices": ["fp32", "bf16"]},
        chunk_tokens={"type": int, "help": "default: the encoder's own"},
    )
    pairs = real_pairs()
    order = torch.randperm(len(pairs.passage_texts), generator=torch.Generator().manual_seed(0))[: chosen.texts].tolist()
    texts = [pairs.passage_texts[i] for i in order]
    lengths = pairs.tokenizer.encode(texts, "passage")[1].tolist()
    rows = []
    for shape in chosen.shape:
        for precision in chosen.precision:
            rows.append(measure(shape, precision, texts, lengths, chosen))
    report(rows, chosen.json)


def measure(shape: str, precision: str, texts: list[str], lengths: list[int], chosen: Any) -> dict[str, Any]:
    """One row."""
    encoder = make_encoder(shape, real_pairs().tokenizer, precision=precision).eval()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peak = gemm_peak(torch.device("cpu"), dtype, seconds=1.0)
    with tempfile.TemporaryDirectory() as folder:
        model = sentence_transformer(encoder, Path(folder) / "model").eval()

        def peer(batch_size: int, some: list[str] = texts) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                return model.encode(some, prompt_name="passage", batch_size=batch_size, normalize_embeddings=True)

        seconds = {size: float("inf") for size in BATCH_SIZES}
        for size in (*BATCH_SIZES, *BATCH_SIZES):  # twice, the faster counts: a disturbed probe would choose a slow peer
            started = time.perf_counter()
            peer(size, texts[: max(200, len(texts) // 8)])
            seconds[size] = min(seconds[size], time.perf_counter() - started)
        best = min(seconds, key=lambda size: seconds[size])
        told(f"{shape} {precision}: peer, seconds by batch size: { {k: round(v, 2) for k, v in seconds.items()} }")
        times = alternate(
            {"ours": lambda: encoder.embed(texts, "passage", chunk_tokens=chosen.chunk_tokens), "peer": lambda: peer(best)},
            chosen.rounds,
        )
        nearest = (encoder.embed(texts[:64], "passage") * torch.as_tensor(peer(best, texts[:64])).float()).sum(1).min()
    return {
        "name": f"{shape} / encode b{best}", "batch": len(texts), "precision": precision,
        "ours_s": times["ours"].wall, "peer_s": times["peer"].wall, "ratio": times["peer"].wall / times["ours"].wall,
        "gemm_share": encoder_flops(encoder.backbone.config, lengths) / times["ours"].wall / peak,
        "ours_cpu_s": times["ours"].cpu, "peer_cpu_s": times["peer"].cpu, "ratio_cpu": times["peer"].cpu / times["ours"].cpu,
        "lowest_cosine": float(nearest),
    }  # fmt: skip


if __name__ == "__main__":
    main()
