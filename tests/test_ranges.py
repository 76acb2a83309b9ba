"""Every number of every experiment, replaced by wrong ones: ``check`` refuses what is out of range, and nothing trains."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.ablation.check import expanded
from lightning_e5.config.annotations import arguments_of, fits
from lightning_e5.config.experiment import check_top_level, load_experiment
from lightning_e5.configurable import resolve_target
from lightning_e5.errors import UserError
from lightning_e5.modules.fit import fit
from lightning_e5.modules.validation import HeldOutPairs, Validation
from lightning_e5.pipeline.check import check_experiment
from tests.lightning_e5.test_configurable import listed

ROOT = Path(__file__).resolve().parents[1]
#: Tried in place of every number; a sum of them all would be none.
WRONG = (-1, -0.5, 0, 0.0, 10**30, 1e308, -1e308, math.nan, math.inf, -math.inf, "text", "1", True, [1], {"a": 1}, None)
#: What `check` accepts of these, by argument; all else is refused. A figure of a paper may be anything from -100 to 100.
NEGATIVE = {"MinScore.score", "StackExchangePosts.min_score", "hard_negatives.relative_margin"}
ZERO = NEGATIVE | {
    "InBatchModule.token_dropout", "PreBatchModule.token_dropout", "MoCoModule.token_dropout", "DistilledModule.token_dropout", "MoCoModule.momentum",
    "AdamWConfig.warmup_steps", "AdamWConfig.word_embeddings", "AdamWConfig.weight_decay", "pretrain.graph_tokens", "finetune.graph_tokens", "teacher.graph_tokens",
    "DistilledModule.alpha", "CCPairsDataModule.alpha", "RankedDataModule.hold_out", "CCPairsDataModule.hold_out", "RankedDataModule.num_workers", "CCPairsDataModule.num_workers",
    "RankedDataModule.prefetch", "CCPairsDataModule.prefetch",
    "Length.min_query_chars", "Length.min_passage_chars", "Nli.random_negatives", "RandomCrops.probability", "InverseCloze.keep",
    "build_pairs.passages_per_judged", "build_pairs.planted_mismatches", "build_ccpairs.planted_mismatches", "teacher_scores.retriever_scale",
    "EncoderSpec.dropout", "EncoderSpec.attention_dropout", "WordVectorsConfig.token_dropout", "own_pairs.validation_queries", "NomicTriples.fill_up_to", "pretrain.keep_general", "finetune.keep_general",
}  # fmt: skip


def experiments(ablations: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((ROOT / "experiments").rglob("*.yaml")):
        if path.parent.name == "ablations":
            if not ablations:
                continue
            found = expanded(path)
            assert found is not None
            yield from found[0]
        else:
            yield str(path), load_experiment(path)


def numbers(node: Any, key: tuple[Any, ...] = (), target: str = "") -> Iterator[tuple[tuple[Any, ...], str]]:
    """Keys of the numbers in a tree, and the argument that each is: ``target.argument``."""
    if isinstance(node, dict):
        here = node.get("_target_", target)
        for name, value in node.items():
            yield from numbers(value, (*key, name), here)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from numbers(value, (*key, index), target)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield key, f"{target.rsplit('.', 1)[-1]}.{key[-1] if isinstance(key[-1], str) else key[-2]}"


def check(experiment: dict[str, Any]) -> None:
    check_top_level("experiment", experiment)
    check_experiment(experiment, paths=False)


def allowed(argument: str, wrong: Any) -> bool:
    """Whether a value that `check` accepted is one that the argument may have."""
    if isinstance(wrong, bool | str | list | dict) or not math.isfinite(wrong) or abs(wrong) >= 1e30:
        return False
    name = argument.rsplit(".", 1)[1]
    if (wrong == 0 and name in ("seed", "checkpoint_seconds")) or (wrong == -1 and name == "devices"):
        return True
    published = argument.startswith("evaluate.") and "/" in argument
    return published or (wrong == 0 and argument in ZERO) or (wrong < 0 and argument in NEGATIVE)


def sweep(every: bool) -> None:
    """Try `WRONG` in place of every number, or only of the first of every argument."""
    seen: set[Any] = set()
    places = tried = refused = 0
    passed: list[str] = []
    for title, experiment in experiments(ablations=every):
        for key, argument in numbers(experiment):
            value: Any = experiment
            for part in key:
                value = value[part]
            mark = (argument, repr(value), key) if every else argument
            if key[0] in ("variables", "encoder", "engine") or mark in seen:
                continue  # those are seen where they are referred to
            seen.add(mark)
            places += 1
            for wrong in WRONG:
                tried += 1
                try:
                    check(with_value(experiment, key, wrong))
                except UserError as error:
                    refused += 1
                    assert "\n" not in str(error)
                else:
                    if not (nullable(experiment, key) if wrong is None else allowed(argument, wrong)):
                        passed.append(f"{title}: {'.'.join(map(str, key))} ({argument}) = {wrong!r}")
    print(f"{places} numbers, {tried} values tried, {refused} refused by check, {tried - refused} accepted as right, 0 trained")
    assert not passed, "\n".join(passed)
    assert places > 60 and refused > 10 * places


def with_value(experiment: dict[str, Any], key: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of the experiment, with one value changed."""
    changed = copy.copy(experiment)
    node: Any = changed
    for part in key[:-1]:
        node[part] = copy.copy(node[part])
        node = node[part]
    node[key[-1]] = value
    return changed


def nullable(experiment: dict[str, Any], key: tuple[Any, ...]) -> bool:
    """Whether an argument's annotation takes null (by its target's default, where that is null)."""
    node: Any = experiment
    for part in key[:-1]:
        node = node[part]
    plain = {"trainer": fit, "validation": Validation, "pairs": HeldOutPairs}
    if not isinstance(node, dict) or ("_target_" not in node and key[-2] not in plain):
        return key[0] == "throughput"
    function = resolve_target(node["_target_"], "key") if "_target_" in node else plain[key[-2]]
    parameter = arguments_of(function)[0].get(key[-1])
    return parameter is not None and fits(None, parameter.annotation)


def test_the_sweep_over_every_argument() -> None:
    sweep(every=False)


@pytest.mark.slow
def test_the_sweep_over_every_number() -> None:
    sweep(every=True)


def test_every_declared_default_is_in_its_range() -> None:
    """Of every argument of everything that a YAML may name."""
    for target in listed():
        for name, p in arguments_of(resolve_target(target, "key"))[0].items():
            if isinstance(p.default, bool | int | float | str | None) and p.default is not p.empty:
                assert fits(p.default, p.annotation), f"{target}: {name}={p.default!r}"


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("stages.pretrain.optimizer.learning_rate", 0, ">= 1e-12"), ("stages.pretrain.optimizer.learning_rate", -1e-3, ">= 1e-12"),
        ("stages.pretrain.optimizer.learning_rate", 1e308, "<= 1"), ("stages.pretrain.optimizer.learning_rate", math.nan, "a finite number"),
        ("stages.pretrain.module.temperature", 0, ">= 0.0001"), ("stages.pretrain.data.batch_size", 0, ">= 2"),
        ("stages.pairs.planted_mismatches", 2, "<= 1"), ("stages.filter.k", 0, ">= 1"), ("stages.finetune.module.alpha", -0.1, ">= 0"),
        ("stages.start.encoder.max_length", 0, ">= 4"), ("stages.pretrain.optimizer.betas", [0.9, 1.0], "from 0 to 0.999999"), ("threads", 0, ">= 1"),
        ("seed", 2**31, "<= 2,147,483,647"), ("stages.filter.pool_size", 2**40 + 1, "<= 2^40"), ("stages.pretrain.seed", -1, ">= 0"),
    ],
)  # fmt: skip
def test_the_rule_is_named(key: str, value: Any, rule: str) -> None:
    experiment = load_experiment(ROOT / "experiments" / "smoke.yaml")
    with pytest.raises(UserError) as raised:
        check(with_value(experiment, tuple(key.split(".")), value))
    assert f"{key}: " in str(raised.value) and rule in str(raised.value) and repr(value) in str(raised.value)
