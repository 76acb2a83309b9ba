"""What a training asks for, before anything is built: parameters, bytes and FLOPs of a step, and, on data whose publisher says its
size, steps, passes over it, tokens, memory of each GPU and GPU-days."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lightning_e5.config.experiment import Node, outside_path
from lightning_e5.config.known_encoders import EncoderSizes
from lightning_e5.configurable import resolve_target

#: GPUs of the node whose memory is told beside that of one.
_NODE = 8


def parameters(sizes: EncoderSizes) -> int:
    """Parameters of an encoder without pooler: a BERT, or, where its feed-forward is gated, a ModernBERT."""
    layers, width, inner, vocabulary, positions, gated = sizes
    if gated:
        return vocabulary * width + 2 * width + layers * (4 * width * width + 3 * width * inner + 2 * width) - width
    tables = (vocabulary + positions + 2) * width + 2 * width
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    return tables + layers * layer


def step_memory(sizes: EncoderSizes, texts: int, graph_tokens: int, value_bytes: float = 4.0, shards: int = 1) -> float:
    """Bytes of a training step: weights, gradients and AdamW (16 per parameter, over ``shards``), embeddings of the batch with their
    gradients, and the graphs kept (about 34 + 4 I/D values per token, width and layer, measured in float32 with BERT)."""
    graph = graph_tokens * sizes.layers * (34 * sizes.width + 4 * sizes.inner) * value_bytes
    return 16 * parameters(sizes) / shards + texts * sizes.width * 4 * 4 + graph


def bytes_of_value(node: Node) -> float:
    """Bytes of a value in the graphs of a training stage; under autocast some stay float32."""
    return 2.5 if node.get("precision") == "bf16" else 4.0


def step_flops(sizes: EncoderSizes, length: int) -> float:
    """FLOPs of a token in a step, texts of ``length`` tokens: a forward pass, a backward pass of twice as much, and, as chunks are
    encoded twice (gradient cache), one more forward pass."""
    from lightning_e5.training.throughput import encoder_flops

    inner = 3 * sizes.inner // 2 if sizes.gated else sizes.inner  # three matrices as one and a half pairs
    shape = SimpleNamespace(num_hidden_layers=sizes.layers, hidden_size=sizes.width, intermediate_size=inner)
    return 4.0 * encoder_flops(shape, [length]) / length


def cost_lines(experiment: Node, stage: str, sizes: EncoderSizes | None, max_length: int) -> list[str]:
    """Steps, passes, tokens, memory per GPU and GPU-days of a training stage.

    Empty for other stages, for an encoder whose sizes are not known here, and where the rows that it trains on are not known before
    they are read (a source without a published size, a filter between).
    """
    node = experiment["stages"][stage]
    data = node.get("data")
    if not isinstance(data, dict) or not isinstance(node.get("module"), dict) or sizes is None or "batch_size" not in data:
        return []
    rows = training_rows(experiment, node)
    if not rows or not (data.get("max_steps") or data.get("epochs")):
        return []
    batch, length = data["batch_size"], node.get("max_length") or max_length
    steps = data.get("max_steps") or math.ceil(data["epochs"] * rows / batch)
    group = 1 + data.get("negatives", 7) if "RankedDataModule" in data["_target_"] else 1
    seen, texts = steps * batch, batch * (1 + group)
    tokens = float(steps) * texts * length
    return [
        f"{steps:,} steps x {batch:,} rows = {seen:,} = {seen / rows:.2f} passes over the {rows:,} that their publisher states",
        f"at most {tokens / 1e9:,.1f} G tokens = {seen:,} rows x {1 + group} texts x {length} tokens; shorter texts have fewer",
        _memory(node, sizes, texts, length),
        *_gpu_days(experiment, sizes, tokens, length),
    ]


def _memory(node: Node, sizes: EncoderSizes, texts: int, length: int) -> str:
    trainer = node.get("trainer") or {}
    sharded = trainer.get("strategy") in ("fsdp", "fsdp2")

    def gib(gpus: int) -> float:
        own = math.ceil(texts / gpus)
        graph = min(max(trainer.get("graph_tokens") or 0, trainer.get("chunk_tokens", 8192)), own * length)
        return step_memory(sizes, own, graph, bytes_of_value(node), gpus if sharded else 1) / 2**30

    held = "16 bytes a parameter" + (", sharded" if sharded else "") + ", a chunk's graph, embeddings"
    return f"memory per GPU: at least {gib(1):.1f} GiB on 1 GPU, {gib(_NODE):.1f} GiB on each of {_NODE} ({held}); more is used where it is free"


def _gpu_days(experiment: Node, sizes: EncoderSizes, tokens: float, length: int) -> list[str]:
    lines = []
    for device in experiment.get("throughput") or []:
        flops, speed = step_flops(sizes, length), device.get("tokens_per_second")
        if speed is not None:
            lines.append(f"at most {tokens / speed / 86400:,.1f} GPU-days on {device['device']}: {speed:,.0f} tokens/s, measured")
            continue
        share, peak = device["assumed_share"], device["peak_tflops"]
        days = tokens * flops / (share * peak * 1e12) / 86400
        lines.append(
            f"at most {days:,.1f} GPU-days on {device['device']} = {tokens:.3g} tokens x {flops:.3g} FLOPs (forward, backward, and the forward once "
            f"more) / ({share:g} x {peak:g} TFLOP/s); the utilisation of {share:g} is an assumption, not measured"
        )
    return lines


def training_rows(experiment: Node, node: Node) -> int | None:
    """The rows that a stage's data has by its publishers, followed through the stages that it comes from; None where one says nothing."""
    inputs: Mapping[str, Any] = node.get("inputs") or {}
    if inputs.get("keep") is not None:
        return None
    for argument in ("ranked", "tokens", "pairs"):
        if argument in inputs:
            references = inputs[argument].values() if isinstance(inputs[argument], dict) else [inputs[argument]]
            counts = [_stage_rows(experiment, str(reference)) for reference in references]
            return None if None in counts else sum(count for count in counts if count is not None)
    return None


def _stage_rows(experiment: Node, reference: str) -> int | None:
    stage = experiment["stages"].get(reference.partition("/")[0])
    if outside_path(reference) is not None or not isinstance(stage, dict):
        return None
    sources = stage.get("sources") or ([stage["source"]] if isinstance(stage.get("source"), dict) else [])
    if not sources:
        return training_rows(experiment, stage)
    if stage.get("max_pairs_per_source") is not None:
        return None
    counts = [_source_rows(source) for source in sources]
    return None if None in counts else sum(count for count in counts if count is not None)


def _source_rows(source: Any) -> int | None:
    if not isinstance(source, dict) or "_target_" not in source:
        return None
    published = getattr(resolve_target(source["_target_"], "source"), "published_rows", None)
    return None if published is None else published(source)
