"""From a YAML node to an object: only our own classes, only their own arguments, only their types."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import pytest

from lightning_e5.config.annotations import describe, fits
from lightning_e5.config.instantiate import check_node, instantiate
from lightning_e5.configurable import resolve_target
from lightning_e5.curation.mining.hard_negatives import NegativeRules
from lightning_e5.errors import UserError
from lightning_e5.evaluation.baselines.tfidf import TfIdf

RULES = "lightning_e5.curation.mining.hard_negatives.NegativeRules"
SPEC = "lightning_e5.models.factory.EncoderSpec"


@pytest.mark.parametrize(
    "target",
    [
        RULES, SPEC,
        "torch.optim.AdamW", "lightning.pytorch.callbacks.LearningRateMonitor",
    ],
)  # fmt: skip
def test_allowed_targets(target: str) -> None:
    assert resolve_target(target, "key").__name__ == target.rsplit(".", 1)[1]


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "builtins.exec", "subprocess.run", "eval.x", "shutil.rmtree", "torch.load", "torch.hub.load",
        "logging.os.system", "importlib.import_module", "lightning_e5x.storage.write_text", "data_modules_evil.run",
        "lightning_e5.files.storage.os.system", "lightning_e5.files.storage.shutil.rmtree", "lightning_e5.files.storage.json.loads",
        "lightning_e5.files.storage.os", "lightning_e5.files.storage", "lightning_e5.files.storage.MANIFEST", "lightning_e5.files.storage.Path",
        "lightning_e5.files.storage.__builtins__.eval", "lightning_e5.files.storage.read_json.__globals__", "lightning_e5.files.storage.Path.unlink",
        "lightning_e5.files.storage.UserError.__base__.__base__.__subclasses__", "torch.optim.adamw.torch.load",
        "data_modules.token_cache.pa.memory_map", "lightning_e5.pipeline.runner.Callable",
    ],
)  # fmt: skip
def test_targets_that_are_not_ours(target: str) -> None:
    with pytest.raises(UserError, match=r"allowed package|has no|not a dotted name|is not configurable") as raised:
        instantiate({"_target_": target}, "stages.one")
    assert "stages.one._target_" in str(raised.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("NegativeRules", "not a dotted name"), (3, "not a dotted name"), (None, "not a dotted name"), ([RULES], "not a dotted name"),
        (RULES + "x", "did you mean 'NegativeRules'"), ("lightning_e5.curation.mining.hard_negative.NegativeRules", "did you mean 'hard_negatives'"),
        ("lightning_e5.curaton.mining.hard_negatives", "did you mean 'curation'"), (RULES + ".no_such", "is not configurable"),
        ("lightning_e5.", "has no ''|not"), ("lightning_e5..storage", "has no ''|not"),
    ],
)  # fmt: skip
def test_targets_that_are_not_there(target: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_node({"_target_": target}, "key")


def test_an_object_is_built_with_its_arguments() -> None:
    assert instantiate({"_target_": RULES, "count": 3, "absolute_margin": 0.1}) == NegativeRules(3, absolute_margin=0.1)


def test_partial_leaves_arguments_open() -> None:
    node = {"_target_": RULES, "_partial_": True, "count": 3}
    check_node(node, "key")
    made = instantiate(node)
    assert isinstance(made, functools.partial) and made(first_rank=2) == NegativeRules(3, 2)
    assert instantiate({**node, "_partial_": False}) == NegativeRules(3)
    for wrong in ("yes", 1, None):
        with pytest.raises(UserError, match=r"key\._partial_: .* is not true or false"):
            check_node({**node, "_partial_": wrong}, "key")
    with pytest.raises(UserError, match="has _partial_ but no _target_"):
        check_node({"_partial_": True}, "key")


def test_missing_arguments() -> None:
    target = "lightning_e5.evaluation.baselines.fusion.StoredEncoder"
    with pytest.raises(UserError, match="key: StoredEncoder needs the argument 'path'"):
        check_node({"_target_": target}, "key")
    check_node({"_target_": target, "_partial_": True}, "key")
    check_node({"_target_": target}, "key", given=["path"])


def test_unknown_arguments() -> None:
    with pytest.raises(UserError, match="key: NegativeRules has no argument 'cuont'; did you mean 'count'"):
        check_node({"_target_": RULES, "cuont": 3}, "key")
    with pytest.raises(UserError, match=r"key\.count: is given by the runner"):
        check_node({"_target_": RULES, "count": 3}, "key", given=["count"])
    scheme = {"_target_": "lightning_e5.modules.distilled.DistilledModule", "_partial_": True}
    check_node({**scheme, "alpha": 0.2, "temperature": 0.1}, "key")
    with pytest.raises(UserError, match="DistilledModule has no argument 'temprature'; did you mean 'temperature'"):
        check_node({**scheme, "temprature": 0.1}, "key")
    optimizer = {"_target_": "lightning_e5.training.optimizer.AdamWConfig"}
    check_node({**optimizer, "learning_rate": 1e-3}, "key")
    with pytest.raises(UserError, match="AdamWConfig has no argument 'learning_rat'; did you mean 'learning_rate'"):
        check_node({**optimizer, "learning_rat": 1e-3}, "key")
    with pytest.raises(UserError, match=r"key\.learning_rate: 'high' is not a number"):
        check_node({**optimizer, "learning_rate": "high"}, "key")
    with pytest.raises(UserError, match="has no argument 3"):
        check_node({"_target_": RULES, 3: 3}, "key")


@pytest.mark.parametrize(("argument", "place"), [("learning_rate", "optimizer"), ("warmup_steps", "optimizer"), ("chunk_tokens", "trainer")])
def test_an_argument_of_earlier_versions_is_told_its_place(argument: str, place: str) -> None:
    node = {"_target_": "lightning_e5.modules.in_batch.InBatchModule", "_partial_": True, argument: 1}
    with pytest.raises(UserError, match=rf"stages\.a\.module\.{argument}: stands beside this node now; write it as stages\.a\.{place}\.{argument}"):
        check_node(node, "stages.a.module")


def test_nested_nodes() -> None:
    node: dict[str, Any] = {
        "_target_": "lightning_e5.evaluation.baselines.lsa.Lsa", "_partial_": True, "width": 8,
        "terms": {"_target_": "lightning_e5.evaluation.baselines.tfidf.TfIdf", "ngrams": 2},
    }  # fmt: skip
    check_node(node, "key")
    made = instantiate(node)
    assert isinstance(made, functools.partial) and made.keywords["width"] == 8 and isinstance(made.keywords["terms"], TfIdf)
    node["terms"]["ngram"] = 3
    with pytest.raises(UserError, match=r"key\.terms: TfIdf has no argument 'ngram'; did you mean 'ngrams'"):
        check_node(node, "key")
    with pytest.raises(UserError, match=r"key\[1\]\.a\[0\]\._target_: 'os\.system'"):
        check_node([1, {"a": [{"_target_": "os.system"}]}], "key")
    assert instantiate({"a": [{"_target_": RULES}, {"b": 1}]}) == {"a": [NegativeRules(), {"b": 1}]}


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("count", "3", "an integer >= 1"), ("count", 3.0, "an integer >= 1"), ("count", True, "an integer >= 1"),
        ("count", None, "an integer >= 1"), ("count", {"a": 1}, "an integer >= 1"),
        ("absolute_margin", "0.1", "a number from -1,000,000 to 1,000,000 or null"), ("absolute_margin", [0.1], "a number from -1,000,000 to 1,000,000 or null"),
    ],
)  # fmt: skip
def test_wrong_types(argument: str, value: Any, rule: str) -> None:
    with pytest.raises(UserError) as raised:
        check_node({"_target_": RULES, argument: value}, "key")
    assert str(raised.value) == f"key.{argument}: {value!r} is not {rule}"


@pytest.mark.parametrize("choice", ["fp16", "FP32", 1, None])
def test_choices_are_named(choice: Any) -> None:
    node = {"_target_": "lightning_e5.stages.mteb.mteb", "_partial_": True, "precision": choice}
    with pytest.raises(UserError, match=rf"key\.precision: {choice!r} is not one of 'fp32', 'bf16', 'auto'"):
        check_node(node, "key")
    check_node({**node, "precision": "bf16"}, "key")


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [
        (1, int, True), (True, int, False), (1, float, True), (True, float, False), (1.0, int, False), ("a", Path, True), (1, Path, False),
        (None, int | None, True), ("x", int | None, False), ([1, 2], list[int], True), ([1, "2"], list[int], False), ("ab", list[str], False),
        ([0.9, 0.999], tuple[float, float], True), ([0.9], tuple[float, float], False), ([1, 2, 3], tuple[int, ...], True),
        ({"a": 1}, dict[str, float], True), ({"a": "b"}, dict[str, float], False), ([], dict[str, int], False), (1, Literal[1, "a"], True),
        (True, Literal[1], False), ("b", Literal[1, "a"], False), ("anything", Any, True), (1, bool, False), (False, bool, True),
    ],
)  # fmt: skip
def test_fits(value: Any, hint: Any, right: bool) -> None:
    assert fits(value, hint) is right


def test_types_in_words() -> None:
    assert describe(list[int]) == "a list of integers"
    assert describe(int | None) == "an integer or null"
    assert describe(Literal["a", 1]) == "one of 'a', 1"
    assert describe(dict[str, int]) == "a mapping of names to integers"
    assert describe(dict[str, Any]) == "a mapping"


def test_errors_of_a_constructor_stay_the_users() -> None:
    with pytest.raises(UserError, match=r"ranks 3 \.\. 2"):
        instantiate({"_target_": RULES, "first_rank": 3, "last_rank": 2})
    with pytest.raises(UserError, match="does not divide"):
        instantiate({"_target_": SPEC, "hidden_size": 10, "heads": 4})


def test_an_argument_of_earlier_versions_is_refused_with_what_takes_its_place() -> None:
    node = {"_target_": "lightning_e5.stages.vocabulary.tokens", "write_tokens": {"_target_": "data_modules.token_cache.write_token_cache", "_partial_": True}}
    with pytest.raises(UserError, match=r"stages\.one\.write_tokens: is not needed any more, the stage writes the tokens itself; leave the line out"):
        check_node(node, "stages.one", given=["out", "pairs", "encoder", "seed"])
