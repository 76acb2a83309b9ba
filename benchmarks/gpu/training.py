"""A training step by its parts, beside sentence-transformers' cached loss; a checkpoint; a real run."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.checkpoint import training_state
from benchmarks.common import make_encoder, real_pairs, sentence_transformer, synchronize, told
from benchmarks.gpu.size import PAPER_PAIRS, PAPER_STEPS, Size
from benchmarks.train_step import Ours, Peer
from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.token_cache import write_token_cache
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.training.background_writer import BackgroundWriter, HostCopy
from lightning_e5.training.checkpointing import checkpoint_path, save_checkpoint
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.training.out_of_memory import is_out_of_memory
from lightning_e5.training.throughput import encoder_flops, gemm_peak
from lightning_e5.types import TokenBatch

#: Part of a GPU's name -> its dense bfloat16 FLOP/s by NVIDIA's data sheet.
_DATA_SHEET = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
#: Part of an operation's or kernel's name -> what it belongs to; the first that is found counts.
_KINDS = {
    "attention": ("flash", "attention", "fmha", "softmax", "bmm"), "optimizer": ("adam",), "matrix products": ("gemm", "cutlass", "cublas", "addmm", "aten::mm", "nvjet", "wgmma"),
    "embeddings": ("index", "embedding", "gather", "scatter"), "normalisation": ("norm",),
}  # fmt: skip


class Step:
    """A whole step: forward, backward, clipping and AdamW."""

    def __init__(self, encoder: TextEncoder, batch: int, size: Size, chunk_tokens: int) -> None:
        device = size.device
        self.gradients = Ours(encoder, random_texts(batch, size.length, device, 1), random_texts(batch, size.length, device, 2), None, chunk_tokens)
        self.parameters = [p for p in encoder.parameters() if p.requires_grad]
        self.optimizer = AdamWConfig(learning_rate=1e-6).build([{"params": self.parameters, "lr": 1e-6, "weight_decay": 0.01}])
        self.optimizer_seconds = 0.0

    def __call__(self) -> None:
        self.gradients(keep_gradients=True)
        synchronize()
        started = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        synchronize()
        self.optimizer_seconds = time.perf_counter() - started


def train_step(size: Size) -> Iterator[dict[str, Any]]:
    """A row per model and batch: seconds, pairs/s, MFU, memory, where the time goes; and again with the peer on as many pairs of as many tokens.

    Dropout is 0.1, but 0 within attention, as the pre-training YAMLs have it; the peer runs without dropout. Each timing is of one
    step after a warm-up.
    """
    device, tokenizer = size.device, real_pairs(128, size.packages).tokenizer
    measured = gemm_peak(device, torch.bfloat16 if size.precision == "bf16" else torch.float32, seconds=1.0)
    sheet = data_sheet()
    for model, shape in size.models.items():
        encoder = make_encoder(shape, tokenizer, precision=size.precision)
        encoder.backbone.config.attention_probs_dropout_prob = 0.0
        for layer in encoder.backbone.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        encoder, rows = encoder.to(device), list[dict[str, Any]]()
        for batch in size.batches:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step = Step(encoder, batch, size, size.chunk_tokens[shape])
            if batch == size.batches[0]:
                step()
                shares = profiled(step)
            seconds = timed(step)
            forward = encoder_flops(encoder.backbone.config, [size.length]) * 2 * batch
            done = step.gradients.done
            row = {
                "name": f"{model}, {batch:,} pairs", "model": model, "batch": batch, "precision": size.precision, "seconds": seconds,
                "pairs_per_s": batch / seconds, "tokens_per_s": 2 * batch * size.length / seconds,
                "mfu": 3 * forward / seconds / sheet if sheet else None, "mfu_of_measured_peak": 3 * forward / seconds / measured,
                "measured_peak_tflops": measured / 1e12, "encoded_twice": done.recomputed_tokens / done.tokens,
                "optimizer_share": step.optimizer_seconds / seconds,
                "peak_gb": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
                "hours_of_20000_steps": seconds * PAPER_STEPS / 3600, "hours_per_270M_pairs": seconds * PAPER_PAIRS / batch / 3600,
                **{f"share_{kind.replace(' ', '_')}": share for kind, share in shares.items()},
            }  # fmt: skip
            told(f"{row['name']}: {seconds:.2f} s, {row['pairs_per_s']:,.0f} pairs/s")
            yield row
            rows.append(row)
            del step
        peer_batch = size.peer_batches[model]
        peer = tried(lambda batch=peer_batch, encoder=encoder: peer_seconds(encoder, size, batch))  # type: ignore[misc]
        for row in rows:
            if isinstance(peer, str):
                yield row | {"peer": peer}
                continue
            batch = row["batch"]
            peer_s = peer[1] if batch == size.batches[0] else peer[0] * batch / peer_batch
            yield row | {"peer_s": peer_s, "ratio": peer_s / row["seconds"], "peer_batch": min(batch, peer_batch), "peer_mini_batch": peer[2]}
        encoder.cpu()


def tried(peer: Callable[[], Any]) -> Any:
    """What a peer gives, or in words why it gives nothing: its failure takes nothing from our own figures."""
    try:
        return peer()
    except Exception as error:
        return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def peer_seconds(encoder: TextEncoder, size: Size, largest: int) -> tuple[float, float, int] | str:
    """Of the peer's step at its largest batch and at the smallest, and its fastest mini-batch; or why there is none."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed here"
    device, small = size.device, size.batches[0]
    with tempfile.TemporaryDirectory() as folder:
        model = sentence_transformer(encoder, Path(folder) / "model")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

        def peer(batch: int, mini_batch: int) -> Callable[[], None]:
            queries, passages = (random_texts(batch, size.length, device, seed) for seed in (1, 2))
            return Peer(model, queries, passages, size.precision, mini_batch)

        seconds = {}
        for mini_batch in size.peer_mini_batches:
            try:
                peer(min(small, 256), mini_batch)()
                seconds[mini_batch] = timed(peer(small, mini_batch))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        if not seconds:
            return f"no mini-batch of {size.peer_mini_batches} fits in memory"
        best = min(seconds, key=lambda mini_batch: seconds[mini_batch])
        return timed(peer(largest, best)) if largest > small else seconds[best], seconds[best], best


def profiled(step: Step) -> dict[str, float]:
    """Shares of the time of a step by kinds of operations, on the device (on a CPU: of the operations alone)."""
    on_gpu = torch.cuda.is_available() and step.parameters[0].is_cuda
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        step()
    spent: dict[str, float] = dict.fromkeys((*_KINDS, "other"), 0.0)
    for event in seen.key_averages():
        time_of = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if on_gpu and event.key.startswith("aten::"):
            continue  # its kernels are counted by their own names
        name = event.key.lower()
        spent[next((kind for kind, parts in _KINDS.items() if any(part in name for part in parts)), "other")] += float(time_of)
    whole = sum(spent.values()) or 1.0
    return {kind: value / whole for kind, value in spent.items()}


def checkpoint(size: Size) -> Iterator[dict[str, Any]]:
    """How long a step waits for a checkpoint that a thread writes: until the device has made the copy, beside what the host takes to ask for it."""
    shape = dict(size.models).get("E5-base") or next(iter(size.models.values()))
    state, copied = training_state(shape, size.device), HostCopy()
    asked, waited = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        writer = BackgroundWriter(partial(save_checkpoint, keep=1))
        for number in range(1, 5):
            synchronize()
            started = time.perf_counter()
            copied.take(state)
            asked.append(1000 * (time.perf_counter() - started))
            synchronize()
            waited.append(1000 * (time.perf_counter() - started))
            writer.submit(checkpoint_path(Path(folder), number), state)
            writer.finish()
    yield {"name": f"checkpoint of {shape}", "first_ms": waited[0], "background_ms": statistics.median(waited[1:]), "host_ms": statistics.median(asked[1:])}


def real_run(size: Size) -> Iterator[dict[str, Any]]:
    """A training through its data module, logs and callbacks: medians of its own rows, the first third left out."""
    pairs = real_pairs(size.length, size.packages)
    count = max(2 * size.real_batch, min(len(pairs.query_texts), 20_000))
    texts = {kind: ((given * (1 + count // len(given)))[:count], kind) for kind, given in (("query", pairs.query_texts), ("passage", pairs.passage_texts))}
    shape = next(iter(size.models.values()))
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_token_cache(Path(folder) / "tokens", texts, pairs.tokenizer)  # type: ignore[arg-type]
        data = CCPairsDataModule(tokens=Path(folder) / "tokens", batch_size=size.real_batch, seed=0, max_steps=size.real_steps)
        module = InBatchModule(
            make_encoder(shape, pairs.tokenizer, precision=size.precision), optimizer=AdamWConfig(learning_rate=1e-5), max_steps=size.real_steps,
        )  # fmt: skip
        fit(
            module, data, checkpoints=Path(folder) / "checkpoints", title="run", logs=[_Rows(rows)], devices=1,
            accelerator="cuda" if size.device.type == "cuda" else "cpu", chunk_tokens=size.chunk_tokens[shape],
        )  # fmt: skip
    counted = rows[len(rows) // 3 :]
    median = {key: statistics.median(float(row[key]) for row in counted) for key in ("seconds", "pairs_per_second", "tokens_per_second", "mfu")}
    waited = [float(row.get("data_seconds", 0.0)) for row in counted]
    yield {
        "name": f"run of {shape}, real lengths", "batch": size.real_batch, "steps": len(counted), **median,
        "input_share": sum(waited) / (sum(waited) + sum(float(row["seconds"]) for row in counted)),
    }  # fmt: skip


class _Rows:
    """Keeps the rows of a training's log."""

    def __init__(self, rows: list[dict[str, float]]) -> None:
        self.rows = rows

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """A step's row."""
        self.rows.append(dict(metrics))


def data_sheet() -> float | None:
    """Dense bfloat16 FLOP/s of the first GPU by its maker; None where it is not known here."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((flops for part, flops in _DATA_SHEET.items() if all(word in name for word in part.split())), None)


def random_texts(count: int, length: int, device: torch.device, seed: int) -> TokenBatch:
    """``count`` texts of ``length`` random tokens."""
    ids = torch.randint(1000, 15000, (count * length,), generator=torch.Generator().manual_seed(seed))
    return TokenBatch(ids.to(device), torch.full((count,), length))


def timed(run: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started
