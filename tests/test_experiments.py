"""Every experiment file is right as it lies there, and one wrong word in it is refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.config.experiment import load_experiment
from lightning_e5.errors import UserError
from lightning_e5.pipeline.runner import check_experiment

ROOT = Path(__file__).resolve().parents[1]
FILES = [p for p in sorted((ROOT / "experiments").rglob("*.yaml")) if p.parent.name != "ablations"]
SMOKE = ROOT / "experiments" / "smoke.yaml"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_it_passes(path: Path) -> None:
    experiment = load_experiment(path)
    check_experiment(experiment, paths=False)
    assert experiment["name"] == path.stem
    assert experiment.get("description"), "an experiment says in one sentence what it shows"


def test_names_and_list_agree() -> None:
    listed = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert len(FILES) >= 3
    assert [p.name for p in FILES if f"`{p.name}`" not in listed] == []


def changed(key: str, value: Any, *, remove: bool = False) -> dict[str, Any]:
    """The smoke experiment with one key set or removed."""
    experiment = copy.deepcopy(load_experiment(SMOKE))
    *parents, last = key.split(".")
    node: Any = experiment
    for parent in parents:
        node = node[parent]
    if remove:
        del node[last]
    else:
        node[last] = value
    return experiment


@pytest.mark.parametrize(
    ("key", "value", "messages"),
    [
        ("stages.filter.pool_sise", 10, ["stages.filter", "'pool_sise'", "did you mean 'pool_size'"]),
        ("stages.noisy.module.temprature", 0.1, ["stages.noisy.module", "did you mean 'temperature'"]),
        ("stages.noisy.module.learning_rate", 0.1, ["stages.noisy.module.learning_rate: ", "write it as stages.noisy.optimizer.learning_rate"]),
        ("stages.noisy.optimizer.warmup_step", 2, ["stages.noisy.optimizer", "did you mean 'warmup_steps'"]),
        ("stages.noisy.trainer.graph_token", 2, ["stages.noisy.trainer", "did you mean 'graph_tokens'"]),
        ("stages.noisy.data.batch_sise", 8, ["stages.noisy.data", "did you mean 'batch_size'"]),
        ("stages.pairs.source.package", [], ["stages.pairs.source", "did you mean 'packages'"]),
        ("stages.filter._target_", "lightning_e5.stages.consistency_filter.consistency_filtre", ["did you mean 'consistency_filter'"]),
        ("stages.noisy.module._target_", "lightning_e5.modules.in_batch.InBatchModul", ["did you mean 'InBatchModule'"]),
        ("stages.noisy._target_", "lightning_e5.stages.pretrian.pretrain", ["did you mean 'pretrain'"]),
        ("stages.filter.k", "two", ["stages.filter.k", "'two'", "not an integer"]),
        ("stages.filter.k", True, ["stages.filter.k", "True", "not an integer"]),
        ("stages.filter.k", 2.0, ["stages.filter.k", "2.0", "not an integer"]),
        ("stages.filter.precision", "bf17", ["stages.filter.precision", "'bf17'", "'fp32'", "'bf16'"]),
        ("stages.pairs.held_out", "stdlib", ["stages.pairs.held_out", "'stdlib'", "a list of strings"]),
        ("stages.pairs.held_out", [1], ["stages.pairs.held_out", "a list of strings"]),
        ("encoder.layers", 2, []),
        ("stages.start.encoder.layer", 2, ["stages.start.encoder", "did you mean 'layers'"]),
        ("stages.filter.out", "x", ["stages.filter.out", "given by the runner"]),
        ("stages.filter.inputs.encodr", "noisy", ["stages.filter.inputs", "did you mean 'encoder'"]),
        ("stages.filter.inputs.encoder", "nosy/encoder", ["stages.filter.inputs.encoder", "'nosy'", "did you mean 'noisy'"]),
        ("stages.filter.inputs.encoder", "pretrain/encoder", ["'pretrain' is no earlier stage"]),
        ("stages.filter.inputs.encoder", 3, ["stages.filter.inputs.encoder", "3 is not a stage or path"]),
        ("stages.filter.inputs.encoder", "path:absent/folder", ["absent/folder", "no such file"]),
        ("stages.filter.inputs", ["pairs"], ["stages.filter.inputs", "not a mapping"]),
        ("final_encoder", "finetuned", ["final_encoder", "did you mean 'finetune'"]),
        ("logger", {"mod": "offline"}, ["logger", "did you mean 'mode'"]),
        ("logger", {"mode": "of"}, ["logger.mode", "'of'", "offline"]),
        ("logger", {3: "offline"}, ["logger", "unknown key 3"]),
        ("stages.filter.3", 4, ["stages.filter", "'3'"]),
    ],
)  # fmt: skip
def test_one_wrong_word_is_refused(key: str, value: Any, messages: list[str]) -> None:
    experiment = changed(key, value)
    if not messages:
        check_experiment(experiment)
        return
    with pytest.raises(UserError) as raised:
        check_experiment(experiment)
    assert "\n" not in str(raised.value)
    for message in messages:
        assert message in str(raised.value)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(UserError, match=r"stages\.pairs: build_pairs needs the argument 'held_out'"):
        check_experiment(changed("stages.pairs.held_out", None, remove=True))


def test_a_key_that_is_a_number_is_refused_by_name() -> None:
    experiment = changed("stages.filter.k", 2)
    experiment["stages"]["filter"][3] = 4
    with pytest.raises(UserError, match="has no argument 3"):
        check_experiment(experiment)
