"""Everything that needs a GPU, in one call of a few minutes: equality, throughput against the peer, projected days.

Without a GPU it says so and ends. Batch 32,768 of texts of 128 tokens, bf16, dropout 0 (torch's variable-length attention
has none; the peer runs without it too).
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.common import make_encoder, real_pairs, report, sentence_transformer, synchronize, told
from benchmarks.train_step import Ours, Peer
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.training.chunks import concatenate
from lightning_e5.training.throughput import encoder_flops, gemm_peak
from lightning_e5.types import TokenBatch

LENGTH = 128
#: Optimizer steps of the paper's pre-training.
PAPER_STEPS = 20_000
CHUNKS = {"MiniLM-L12": 65536, "bert-base": 32768, "bert-large": 16384}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32768)
    parser.add_argument("--peer-batch", type=int, default=8192, help="the peer's batch, for time; seconds are scaled to --batch")
    parser.add_argument("--shapes", nargs="+", default=list(CHUNKS), choices=list(CHUNKS))
    parser.add_argument("--json", metavar="FILE")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 0
    device = torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    equality = check_equality(device)
    peak = gemm_peak(device, torch.bfloat16, seconds=1.0)
    print(f"{torch.cuda.get_device_name()}: measured bf16 peak {peak / 1e12:.0f} TFLOP/s", flush=True)
    rows = [throughput(shape, chosen.batch, chosen.peer_batch, device, peak) for shape in chosen.shapes]
    report(rows, chosen.json, equality=equality, peak_tflops=peak / 1e12)
    return 0


def check_equality(device: torch.device) -> dict[str, float]:
    """Gradient-cached against one graph, and packed against Hugging Face's padded forward, on this GPU."""
    pairs = real_pairs(128)
    found = {}
    queries, passages = (_to(t, device) for t in pairs.batch(64))
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        encoder = make_encoder("2x128", pairs.tokenizer).to(device, dtype).train()
        gradients = []
        for graph_tokens in (10**9, 0):
            step = Ours(copy.deepcopy(encoder), queries, passages, graph_tokens, 1024)
            gradients.append(_gradients(step))
        difference = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) / max(float(a.abs().max()) for a in gradients[0])
        found[f"replayed against kept, {dtype}"] = difference
        assert difference < bound, f"gradients differ by {difference} in {dtype}"
    encoder = make_encoder("2x128", pairs.tokenizer, dropout=0.0).to(device).eval()
    with torch.no_grad():
        ours = functional.normalize(encoder(queries.ids_T, queries.lengths_B.tolist()), dim=1)
        padded = copy.deepcopy(encoder)
        padded.packed = None
        theirs = functional.normalize(padded(queries.ids_T, queries.lengths_B.tolist()), dim=1)
        found["packed against padded, fp32"] = float((ours - theirs).abs().max())
        encoder.precision = "bf16"
        half = functional.normalize(encoder(queries.ids_T, queries.lengths_B.tolist()), dim=1)
        found["lowest cosine of packed bf16 to fp32"] = float((half * ours).sum(1).min())
    assert found["packed against padded, fp32"] < 1e-5 and found["lowest cosine of packed bf16 to fp32"] > 0.999
    print(found, flush=True)
    return found


def _gradients(step: Ours) -> list[torch.Tensor]:
    parameters = [p for p in step.encoder.parameters() if p.requires_grad]
    step.cache.step(
        step.texts,
        lambda ids, lengths: functional.normalize(step.encoder(ids, lengths), dim=1),
        lambda e: step.loss(e[: step.count], e[step.count :], torch.arange(step.count, device=e.device)),
        seed=0,
    )  # fmt: skip
    return [p.grad for p in parameters if p.grad is not None]


def throughput(shape: str, batch: int, peer_batch: int, device: torch.device, peak: float) -> dict[str, Any]:
    """One row: a step of ours and of the peer, tokens/s, MFU, and days for the paper's pre-training."""
    pairs = real_pairs(128)
    encoder = make_encoder(shape, pairs.tokenizer, precision="bf16", dropout=0.0).to(device)
    seconds, replayed = _ours(encoder, batch, CHUNKS[shape], device)
    tokens = 2 * batch * LENGTH
    forward = encoder_flops(encoder.backbone.config, [LENGTH]) * 2 * batch
    with tempfile.TemporaryDirectory() as folder:
        model = sentence_transformer(encoder, Path(folder) / "model")
        encoder.cpu()
        torch.cuda.empty_cache()
        peers = {size: _peer(model, 2048, size, device) for size in (128, 512)}
        best = min(peers, key=lambda size: peers[size])
        peer = _peer(model, peer_batch, best, device) * batch / peer_batch
    return {
        "name": f"{shape} / cached mb{best}", "batch": batch, "precision": "bf16", "ours_s": seconds, "peer_s": peer,
        "ratio": peer / seconds, "gemm_share": forward * (3 + replayed) / seconds / peak, "mfu": 3 * forward / seconds / peak,
        "tokens_per_second": tokens / seconds, "days_for_the_paper": seconds * PAPER_STEPS / 86400,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip


def _ours(encoder: TextEncoder, batch: int, chunk_tokens: int, device: torch.device) -> tuple[float, float]:
    Ours(encoder, _random(1024, device, 1), _random(1024, device, 2), None, chunk_tokens)()
    step = Ours(encoder, _random(batch, device, 3), _random(batch, device, 4), None, chunk_tokens)
    seconds = _timed(step)
    told(f"ours: {seconds:.1f} s, {step.done.recomputed_tokens / step.done.tokens:.0%} encoded twice")
    return seconds, step.done.recomputed_tokens / step.done.tokens


def _peer(model: Any, batch: int, mini_batch: int, device: torch.device) -> float:
    peer = Peer(model, _random(batch, device, 5), _random(batch, device, 6), "bf16", mini_batch)
    if batch <= 2048:
        peer()
    seconds = _timed(peer)
    told(f"peer, batch {batch}, mini-batch {mini_batch}: {seconds:.1f} s")
    return seconds


def _timed(run: Any) -> float:
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def _random(count: int, device: torch.device, seed: int) -> TokenBatch:
    ids = torch.randint(1000, 30000, (count * LENGTH,), generator=torch.Generator().manual_seed(seed))
    return TokenBatch(ids.to(device), torch.full((count,), LENGTH))


def _to(texts: TokenBatch, device: torch.device) -> TokenBatch:
    return concatenate([TokenBatch(texts.ids_T.to(device), texts.lengths_B)])


if __name__ == "__main__":
    sys.exit(main())
