"""That the device computes what the CPU computes, goes on from a checkpoint to the bit, and runs every stage."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import make_encoder, real_pairs
from benchmarks.gpu.size import Size
from benchmarks.train_step import Ours
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.types import TokenBatch

ROOT = Path(__file__).resolve().parents[2]
#: Precision -> the greatest difference of a gradient from the CPU's in float64, by the largest of all. bfloat16 rounds every value to
#: 8 bits: its gradients are also to point the same way, by `_LEAST_COSINE`.
_BOUNDS = {"fp32": 5e-5, "bf16": 0.05}
_LEAST_COSINE = {"fp32": 0.99999, "bf16": 0.99}


def correctness(size: Size) -> Iterator[dict[str, Any]]:
    """Gradients of a step against the CPU's in float64, embeddings packed against padded, gradients replayed against kept."""
    pairs, device = real_pairs(128, size.packages), size.device
    batch = pairs.batch(64)
    reference = make_encoder("2x128", pairs.tokenizer, precision="fp32", dropout=0.0).train()
    expected = gradients(copy.deepcopy(reference).double(), batch, "cpu", None)
    for precision, bound in _BOUNDS.items():
        encoder = copy.deepcopy(reference)
        encoder.precision = precision  # type: ignore[assignment]
        found = gradients(encoder, batch, device, None)
        worst = _worst(expected, found)
        ours, theirs = (torch.cat([g.flatten() for g in gs]) for gs in (found, expected))
        cosine = float(functional.cosine_similarity(ours, theirs, dim=0))
        yield {
            "name": f"gradients in {precision} against the CPU's in float64", "worst_difference": worst, "cosine": cosine,
            "equal": worst < bound and cosine > _LEAST_COSINE[precision],
        }  # fmt: skip
    with_dropout = make_encoder("2x128", pairs.tokenizer, precision="fp32").double().train()
    kept, replayed = (gradients(copy.deepcopy(with_dropout), batch, device, graph_tokens) for graph_tokens in (10**9, 0))
    worst = _worst(kept, replayed)
    yield {"name": "replayed gradients against kept ones, float64, with dropout", "worst_difference": worst, "equal": worst < 1e-12}
    half = make_encoder("2x128", pairs.tokenizer, precision="bf16").train()
    for where in ("attention, too", "all but attention"):
        kept, replayed = (gradients(copy.deepcopy(half), batch, device, graph_tokens) for graph_tokens in (10**9, 0))
        worst = _worst(kept, replayed)
        yield {"name": f"replayed gradients against kept ones, bf16, with dropout, {where}", "worst_difference": worst, "equal": worst < 0.02}
        for layer in half.backbone.encoder.layer:
            layer.attention.self.dropout.p = 0.0
    texts = batch[1]
    encoder, lengths = copy.deepcopy(reference).to(device).eval(), texts.lengths_B.tolist()
    padded = copy.deepcopy(encoder)
    padded.packed = None
    with torch.no_grad():
        ours, theirs = (functional.normalize(e(texts.ids_T.to(device), lengths).float(), dim=1) for e in (encoder, padded))
    worst = float((ours - theirs).abs().max())
    yield {"name": "embeddings, packed against padded, float32", "worst_difference": worst, "equal": worst < 1e-5}


def gradients(encoder: TextEncoder, batch: tuple[TokenBatch, TokenBatch], device: torch.device | str, graph_tokens: int | None) -> list[Tensor]:
    """Of one step on a device, on the CPU in float64."""
    encoder = encoder.to(device)
    queries, passages = (TokenBatch(texts.ids_T.to(device), texts.lengths_B) for texts in batch)
    step = Ours(encoder, queries, passages, graph_tokens, 1024)
    step(keep_gradients=True)
    return [p.grad.double().cpu() for p in encoder.parameters() if p.grad is not None]


def _worst(expected: list[Tensor], found: list[Tensor]) -> float:
    """The greatest difference of any gradient, by the largest of all; that of a key's bias, which is 0, is left by rounding alone."""
    largest = max(float(a.abs().max()) for a in expected)
    return max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)) / largest


def resume(size: Size) -> Iterator[dict[str, Any]]:
    """A training that is killed and goes on ends in the bits of one that is not, with deterministic kernels."""
    accelerator = "cuda" if size.device.type == "cuda" else "cpu"
    for scheme, writer in (("in_batch", "background"),):
        command = ["-m", "benchmarks.kill_loop", "--kills", "1", "--schemes", scheme, "--workers", "0", "--writer", writer, "--accelerator", accelerator]
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        yield {
            "name": f"{scheme}, killed and resumed, {writer} checkpoints", "equal": done.returncode == 0,
            "said": (done.stdout.strip() or done.stderr.strip()).splitlines()[-1][-300:],
        }  # fmt: skip


def stages(size: Size) -> Iterator[dict[str, Any]]:
    """Every stage of the smoke experiment, on the device that it takes by itself."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"runs_dir={folder}"]
        command = ["-m", "lightning_e5", "run", str(ROOT / "experiments" / "smoke.yaml"), *settings, "--fresh"]
        done: set[Path] = set()
        with (Path(folder) / "said").open("w+", encoding="utf-8") as output:
            running = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            ended = False
            while not ended:
                ended = running.poll() is not None
                for file in sorted(set(Path(folder).glob("smoke/stages/*/timing.json")) - done):
                    written = json.loads(file.read_text(encoding="utf-8"))
                    yield {"name": file.parent.name, "seconds": written.get("seconds"), "equal": True}
                    done.add(file)
                time.sleep(0.0 if ended else 0.2)
            output.seek(0)
            said = (output.read().strip().splitlines() or [""])[-1][-300:]
        yield {"name": "smoke experiment, all stages", "equal": running.returncode == 0, "said": said}
