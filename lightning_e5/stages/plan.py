"""The ``check`` verb: what an experiment would do, without building anything."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_e5.config import Node, load_experiment
from lightning_e5.errors import UserError
from lightning_e5.stages.runner import check_experiment, run_directory

#: Sizes of the checkpoints that E5 starts from: layers, width, feed-forward width, vocabulary, positions.
KNOWN = {
    "microsoft/MiniLM-L12-H384-uncased": (12, 384, 1536, 30522, 512),
    "google-bert/bert-base-uncased": (12, 768, 3072, 30522, 512),
    "google-bert/bert-large-uncased-whole-word-masking": (24, 1024, 4096, 30522, 512),
}


def check_files(paths: Sequence[Path]) -> int:
    """Check experiments and print their plans; returns 0, or 2 where one is wrong (all are checked)."""
    wrong = 0
    for path in paths:
        try:
            experiment = load_experiment(path)
            check_experiment(experiment)
        except UserError as error:
            wrong += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        print(f"{path}: ok\n" + "\n".join(f"  {line}" for line in plan(experiment)))
    print(f"{len(paths) - wrong} of {len(paths)} pass")
    return 2 if wrong else 0


def plan(experiment: Node) -> list[str]:
    """One line for the run, then one per stage."""
    lines = [f"{experiment['name']} -> {run_directory(experiment)}, seed {experiment['seed']}, {len(experiment['stages'])} stages"]
    sizes = _encoder_sizes(experiment.get("encoder"))
    if sizes is not None:
        lines.append(f"encoder: {parameters(*sizes) / 1e6:.1f} M parameters ({sizes[0]} layers x {sizes[1]}), max length {_max_length(experiment)}")
    for number, (name, node) in enumerate(experiment["stages"].items(), start=1):
        inputs = ", ".join(_flat(node.get("inputs") or {}))
        lines.append(f"{number:2}. {name}: {node['_target_'].rsplit('.', 1)[-1]}" + (f" <- {inputs}" if inputs else ""))
        lines += [f"      {line}" for line in _training_lines(node, sizes, _max_length(experiment))]
    return lines


def _max_length(experiment: Node) -> int:
    return int((experiment.get("encoder") or {}).get("max_length", 128))


def _encoder_sizes(spec: Any) -> tuple[int, int, int, int, int] | None:
    """Layers, width, feed-forward width, vocabulary, positions of the experiment's encoder; None where not known here."""
    from lightning_e5.models.factory import EncoderSpec

    if not isinstance(spec, dict):
        return None
    if spec.get("pretrained"):
        return KNOWN.get(spec["pretrained"])
    values = EncoderSpec(**{k: v for k, v in spec.items() if k != "_target_"})
    return values.layers, values.hidden_size, values.intermediate_size, values.vocab_size, values.max_positions


def parameters(layers: int, width: int, inner: int, vocabulary: int, positions: int) -> int:
    """Parameters of a BERT without pooler."""
    tables = (vocabulary + positions + 2) * width + 2 * width
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    return tables + layers * layer


def step_memory(sizes: tuple[int, int, int, int, int], texts: int, graph_tokens: int) -> float:
    """Bytes of a training step: weights, gradients and AdamW (16 per parameter), embeddings of the batch with their
    gradients, and the graphs kept (about 34 + 4 I/D values of 4 bytes per token, width and layer, measured)."""
    layers, width, inner = sizes[:3]
    graph = graph_tokens * layers * (34 * width + 4 * inner) * 4
    return 16 * parameters(*sizes) + texts * width * 4 * 4 + graph


def _training_lines(node: Node, sizes: tuple[int, int, int, int, int] | None, max_length: int) -> list[str]:
    data, module = node.get("data"), node.get("module")
    if not isinstance(data, dict) or not isinstance(module, dict) or "batch_size" not in data:
        return []
    batch = data["batch_size"]
    group = 1 + data.get("negatives", 7) if "RankedDataModule" in data["_target_"] else 1
    texts = batch * (1 + group)
    length = node.get("max_length") or max_length
    steps = f"{data['max_steps']:,} steps" if data.get("max_steps") else f"{data.get('epochs')} epochs"
    pairs = f", {data['max_steps'] * batch:,} pairs" if data.get("max_steps") else ""
    lines = [f"batch {batch:,} x {group} passages, {steps}{pairs}, at most {texts * length:,} tokens per step"]
    if sizes is not None:
        graph = module.get("graph_tokens", 65536)
        lines.append(f"estimated memory of a step: {step_memory(sizes, texts, min(graph, texts * length)) / 2**30:.1f} GiB")
    return lines


def _flat(inputs: Any) -> list[str]:
    if isinstance(inputs, dict):
        return [text for value in inputs.values() for text in _flat(value)]
    return [str(inputs)]
