"""The ``check`` verb: what an experiment would do, without building anything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.config.experiment import Node, load_experiment, outside_path
from lightning_e5.config.known_encoders import KNOWN_ENCODERS, EncoderSizes
from lightning_e5.errors import UserError
from lightning_e5.pipeline.check import check_experiment
from lightning_e5.pipeline.stage import run_directory
from lightning_e5.progress import printable
from lightning_e5.redaction import hidden_message
from lightning_e5.training.cost import bytes_of_value, cost_lines, parameters, step_flops, step_memory

#: Titles and experiments of a YAML, and what gives the lines of its plan, once they are known to be right.
Expanded = tuple[list[tuple[str, Node]], Callable[[], list[str]]]

def check_files(
    paths: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    paths_too: bool = False,
    expand: Callable[[Path, Sequence[str]], Expanded | None] = lambda path, overrides: None,
) -> int:
    """Check experiments and print their plans; returns 0, or 2 where one is wrong (all are checked).

    Args:
        paths: YAMLs.
        overrides: ``key=value`` for every one of them.
        paths_too: also that the files and folders that the experiments name are here.
        expand: the experiments of a YAML that stands for several, and its plan's lines; None for an experiment's own YAML.
    """
    wrong = 0
    for path in paths:
        try:
            experiments, lines = expand(path, overrides) or _single(path, overrides)
            for title, experiment in experiments:
                try:
                    check_experiment(experiment, paths=paths_too)
                except UserError as error:
                    raise UserError(f"{title}: {error}") from None
        except UserError as error:
            wrong += 1
            print(printable(hidden_message(f"error: {error}")), file=sys.stderr)
            continue
        print(printable(f"{path}: ok\n" + "\n".join(f"  {line}" for line in lines())))
    print(f"{len(paths) - wrong} of {len(paths)} pass")
    return 2 if wrong else 0


def _single(path: Path, overrides: Sequence[str]) -> Expanded:
    experiment = load_experiment(path, overrides)
    return [(str(path), experiment)], lambda: plan(experiment)


def plan(experiment: Node) -> list[str]:
    """One line for the run, then one per stage."""
    lines = [f"{experiment['name']} -> {run_directory(experiment)}, seed {experiment['seed']}, {len(experiment['stages'])} stages"]
    sizes = _encoder_sizes(experiment.get("encoder"))
    if sizes is not None:
        lines.append(f"encoder: {parameters(sizes) / 1e6:.1f} M parameters ({sizes[0]} layers x {sizes[1]}), max length {_max_length(experiment)}")
    padded, said = _padding(experiment.get("encoder"))
    lines += said
    for number, (name, node) in enumerate(experiment["stages"].items(), start=1):
        inputs = ", ".join(_flat(node.get("inputs") or {}))
        lines.append(f"{number:2}. {name}: {node['_target_'].rsplit('.', 1)[-1]}" + (f" <- {inputs}" if inputs else ""))
        lines += [f"      not here yet: {path}" for path in _absent(node.get("inputs") or {})]
        lines += [f"      {line}" for line in training_lines(node, sizes, _max_length(experiment))]
        lines += [f"      {line}" for line in _padding_of_stage(node, padded, _max_length(experiment))]
        cost = cost_lines(experiment, name, sizes, _max_length(experiment))
        cost = cost or _days(node, sizes, _max_length(experiment), experiment.get("throughput") or [])
        lines += [f"      {line}" for line in cost]
    return lines


def _padding(spec: Any) -> tuple[bool, list[str]]:
    """Whether the experiment's encoder is padded, and what is said of it; a BERT of one's own never is."""
    if not isinstance(spec, dict) or not spec.get("pretrained"):
        return False, []
    from lightning_e5.models.padding_cost import padding_line

    padded, line = padding_line(spec["pretrained"])
    return bool(padded), [f"encoder: {line}"]


def _padding_of_stage(node: Node, padded: bool, max_length: int) -> list[str]:
    """What a training stage pays for padding: by the experiment's encoder, or by the one whose folder it names itself."""
    data, inputs = node.get("data"), node.get("inputs")
    lines: list[str] = []
    own = inputs.get("encoder") if isinstance(inputs, dict) else None
    if isinstance(own, str) and outside_path(own) is not None:
        from lightning_e5.models.padding_cost import padding_line

        found, line = padding_line(own)
        padded = bool(found)
        lines += [f"encoder: {line}"] if found is not None else []  # one that is not here yet is told above
    if padded and isinstance(data, dict) and isinstance(node.get("module"), dict) and "batch_size" in data:
        from lightning_e5.models.padding_cost import padding_share

        length = node.get("max_length") or max_length
        share = padding_share(step_texts(data), length, (node.get("trainer") or {}).get("chunk_tokens", 8192))
        lines.append(
            f"padded path: about {share:.2f}x the tokens, reckoned for lengths spread evenly up to {length}, after sorting by length; "
            "the training logs its padding_share"
        )
    return lines


def step_texts(data: Node) -> int:
    """Queries and passages of a step."""
    group = 1 + data.get("negatives", 7) if "RankedDataModule" in data["_target_"] else 1
    return int(data["batch_size"] * (1 + group))


def _max_length(experiment: Node) -> int:
    return int((experiment.get("encoder") or {}).get("max_length", 128) or 512)


def _encoder_sizes(spec: Any) -> EncoderSizes | None:
    """The sizes of the experiment's encoder; None where they are not known here."""
    from lightning_e5.models.factory import EncoderSpec

    if not isinstance(spec, dict):
        return None
    if spec.get("pretrained"):
        return KNOWN_ENCODERS.get(spec["pretrained"])
    values = EncoderSpec(**{k: v for k, v in spec.items() if k != "_target_"})
    return EncoderSizes(values.layers, values.hidden_size, values.intermediate_size, values.vocab_size, values.max_positions)


def training_lines(node: Node, sizes: EncoderSizes | None, max_length: int) -> list[str]:
    """What a training stage's batches are; with the encoder's sizes also the memory of a step. Empty for other stages."""
    data, module = node.get("data"), node.get("module")
    if not isinstance(data, dict) or not isinstance(module, dict) or "batch_size" not in data:
        return []
    batch = data["batch_size"]
    texts = step_texts(data)
    group = texts // batch - 1
    length = node.get("max_length") or max_length
    steps = f"{data['max_steps']:,} steps" if data.get("max_steps") else f"{data.get('epochs')} epochs"
    pairs = f", {data['max_steps'] * batch:,} pairs" if data.get("max_steps") else ""
    lines = [f"batch {batch:,} x {group} passages, {steps}{pairs}, at most {texts * length:,} tokens per step"]
    if sizes is not None:
        trainer = node.get("trainer") or {}
        graph, chunk = trainer.get("graph_tokens"), trainer.get("chunk_tokens", 8192)
        least = step_memory(sizes, texts, min(max(graph or 0, chunk), texts * length), bytes_of_value(node)) / 2**30
        more = "" if graph is not None else ", and as many graphs as then fit in half of the free memory"
        lines.append(f"estimated memory of a step on one device: {least:.1f} GiB{more}")
    return lines


def _absent(inputs: Any) -> list[str]:
    """Paths among a stage's inputs that are not there (running would end at once)."""
    paths = [path for text in _flat(inputs) if (path := outside_path(text)) is not None]
    return [str(path) for path in paths if not path.exists()]


def _days(node: Node, sizes: EncoderSizes | None, length: int, devices: Sequence[Node]) -> list[str]:
    """Days on 1, 8 and 32 devices, texts at their full length, every chunk encoded twice: an upper bound."""
    data = node.get("data") or {}
    if sizes is None or not isinstance(data, dict) or not data.get("max_steps"):
        return []
    flops_per_token = step_flops(sizes, length)
    tokens = 2.0 * data["batch_size"] * length * data["max_steps"]
    lines = []
    for device in devices:
        speed, origin = device.get("tokens_per_second"), "measured"
        if speed is None:
            speed = device["assumed_share"] * device["peak_tflops"] * 1e12 / flops_per_token
            origin = f"{device['assumed_share']:.0%} of {device['peak_tflops']} TFLOP/s assumed, not measured"
        days = ", ".join(f"{count}: {tokens / speed / count / 86400:.2g}" for count in (1, 8, 32))
        lines.append(f"at most {tokens / 1e9:,.0f} G tokens; days on {days} x {device['device']} ({speed / 1e6:.2f} M tokens/s each, {origin})")
    return lines


def _flat(inputs: Any) -> list[str]:
    if isinstance(inputs, dict):
        return [text for value in inputs.values() for text in _flat(value)]
    return [str(inputs)]
