"""What one stage gives the next is checked before anything runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.config.experiment import load_experiment
from lightning_e5.errors import UserError
from lightning_e5.pipeline.check import check_experiment

ROOT = Path(__file__).resolve().parents[3]
SMOKE = load_experiment(ROOT / "experiments" / "smoke.yaml")
NLI = {"_target_": "lightning_e5.stages.ranked_data.ranked_data", "source": {"_target_": "data_modules.finetune.nli.Nli", "paths": ["a"]}}


def changed(**values: Any) -> dict[str, Any]:
    """The smoke experiment with some keys set, written with two underscores for a dot."""
    experiment = copy.deepcopy(SMOKE)
    for key, value in values.items():
        *parents, last = key.split("__")
        node: Any = experiment["stages"]
        for parent in parents:
            node = node[parent] if node.get(parent) else node.setdefault(parent, {})
        node[last] = value
    return experiment


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"negatives__count": 1}, "stages.teacher.data.negatives: 3 negatives of each query are wanted, and the stage of inputs.ranked gives 1"),
        ({"finetune__data__negatives": 9}, "stages.finetune.data.negatives: 9 negatives of each query"),
        ({"teacher__data__negatives": 0}, "stages.teacher.data.negatives: 0 leaves nothing to rank the positive above; the rule is >= 1"),
        ({"finetune__data__negatives": 0}, "stages.finetune.data.negatives: 0 leaves nothing"),
        ({"finetune__inputs__ranked": "negatives/ranked.parquet"}, "stages.finetune.module: DistilledModule distils a teacher's scores"),
        ({"negatives": NLI}, "stages.scores.retriever_scale: the stage of inputs.ranked keeps no scores by which its passages were retrieved"),
        ({"teacher__max_length": 300}, "stages.teacher.max_length: two texts of 300 tokens do not fit the 512 positions of the encoder; the most is 256"),
        ({"finetune__max_length": 600}, "stages.finetune.max_length: 600 tokens are more than the 512 positions"),
        ({"finetune__max_length": 64, "finetune__train_length": 65}, "stages.finetune.train_length: 65 tokens are more than the 64"),
        ({"start__train_length": 500}, "stages.start.train_length: 500 tokens are more than the 64 that the encoder reads"),
        ({"start__encoder__max_length": 513}, "max_length: 513 tokens are more than the 512 positions"),
        ({"filter__max_length": 513}, "stages.filter.max_length: 513 tokens"),
        ({"negatives__max_length": 513}, "stages.negatives.max_length: 513 tokens"),
        ({"evaluate__max_length": 513}, "stages.evaluate.max_length: 513 tokens"),
        ({"filter__k": 50, "filter__pool_size": 49}, "stages.filter.k: 50 is more than the 49 passages of the pool"),
        ({"pretrain__data__batch_size": 64, "pretrain__optimizer__warmup_steps": 9}, "stages.pretrain.optimizer.warmup_steps: 9 steps of warm-up are more than the 8"),
        ({"pairs__max_pairs": 50}, "stages.noisy.data.batch_size: 64 pairs are more than the 50 that there can be"),
        ({"negatives__max_queries": 40, "teacher__data__hold_out": 30}, "stages.teacher.data.batch_size: 16 queries are more than the 10 that there can be (30 are held out)"),
        ({"negatives__max_queries": 40, "teacher__data__hold_out": 41}, "more than the 0 that there can be"),
        ({"negatives__max_queries": 40, "teacher__optimizer__warmup_steps": 10, "teacher__data__hold_out": 0}, "10 steps of warm-up are more than the 3 of the training"),
        ({"pretrain__data__max_steps": 8, "pretrain__data__epochs": 1}, "stages.pretrain.data: give either max_steps or epochs"),
        ({"pretrain__data__max_steps": None, "pretrain__data__epochs": None}, "stages.pretrain.data: give either max_steps or epochs"),
        ({"pretrain__inputs__tokens": "start/tokenz"}, "stages.pretrain.inputs.tokens: 'start/tokenz' is nothing that this stage makes"),
        ({"pretrain__inputs__tokens": "start/encoder"}, "'start/encoder' is an encoder, where tokens has to be of the kind 'tokens'; it is 'start/tokens'"),
        ({"pretrain__inputs__encoder": "start"}, "'start' is nothing that this stage makes, where encoder has to be of the kind 'encoder'; it is 'start/encoder'"),
        ({"pretrain__inputs__keep": "pairs/pairs.parquet"}, "stages.pretrain.inputs.keep: 'pairs/pairs.parquet' is a pairs, where keep"),
        ({"scores__inputs__ranked": "filter/ranks.parquet"}, "stages.scores.inputs.ranked: 'filter/ranks.parquet' is a keep, where ranked"),
        ({"scores__inputs__teacher": "pretrain/encoder"}, "stages.scores.inputs.teacher: 'pretrain/encoder' is an encoder"),
        ({"finetune__inputs__encoder": {"a": "pretrain/encoder"}}, "stages.finetune.inputs.encoder: {'a': 'pretrain/encoder'} is not a path"),
        ({"teacher__validation": {"pairs": {"hold_out": 3}}, "teacher__data__hold_out": 3}, "stages.teacher.validation.pairs.hold_out: data.hold_out holds rows out, too; give one of them"),
        ({"pretrain__validation": {"pairs": {"hold_out": 100000}}}, "can be (100000 are held out)"),
        ({"pretrain__validation": {"pairs": {"holdout": 3}}}, "stages.pretrain.validation.pairs: has no argument 'holdout'; did you mean 'hold_out'"),
        ({"pretrain__validation": {"every": 3}}, "stages.pretrain.validation: has no argument 'every'"),
        ({"pretrain__validation": {"tasks": [{"_target_": "lightning_e5.retrieval.bm25.BM25"}]}}, "stages.pretrain.validation.tasks[0]: BM25 is not"),
        ({"noisy__inputs__validation_collections": {"own": "pairs/test"}}, "stages.noisy.inputs.validation_collections: needs validation, too"),
        ({"pretrain__inputs__validation_collections": {"own": "pairs"}, "pretrain__validation": {"every_n_steps": 2}}, "'pairs' is a pairs, where validation_collections has to be of the kind 'collection'; it is 'pairs/test'"),
        ({"negatives__first_rank": 9, "negatives__last_rank": 3}, "stages.negatives"),
        ({"pretrain__module___target_": "lightning_e5.modules.cross_encoder.CrossEncoderModule"}, "stages.pretrain.module: CrossEncoderModule is not a node"),
        ({"pretrain__data": SMOKE["stages"]["finetune"]["data"]}, "stages.pretrain.data: RankedDataModule has no argument 'tokens', which the stage gives"),
        ({"pretrain__data___partial_": False}, "stages.pretrain.data: needs _partial_: true"),
        ({"start__encoder___partial_": True}, "stages.start.encoder: _partial_ has no place here"),
        ({"evaluate__reference": "no_such"}, "stages.evaluate.reference: 'no_such' is not one of the models"),
        ({"evaluate__previous": {"no_such": "bm25"}}, "stages.evaluate.previous: 'no_such' is not one of the models"),
        ({"evaluate__k": 3}, "stages.evaluate.k: 3 passages per query cannot be evaluated by"),
        ({"evaluate__metrics": ["ndgc@10"]}, "stages.evaluate.metrics: "),
        ({"pretrain__trainer": {"devices": [0, 1]}}, "stages.pretrain.trainer.devices: [0, 1] is not an integer from 1 to 4096 or one of 'auto', -1 (a count; which ones is said by CUDA_VISIBLE_DEVICES)"),
        ({"pretrain__trainer": {"devces": 1}}, "stages.pretrain.trainer: has no argument 'devces'; did you mean 'devices'"),
        ({"pretrain__trainer": {"title": "x"}}, "stages.pretrain.trainer: has no argument 'title'"),
        ({"pretrain__seed": -1}, "stages.pretrain.seed: -1 is not an integer >= 0"),
    ],
)  # fmt: skip
def test_stages_that_do_not_agree(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_experiment(changed(**values))
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        {}, {"teacher__max_length": 256}, {"finetune__max_length": 512}, {"finetune__train_length": 32}, {"negatives__max_queries": 40},
        {"finetune__inputs__ranked": "path:experiments"}, {"negatives__max_queries": 46, "teacher__data__hold_out": 30, "teacher__optimizer__warmup_steps": 1, "finetune__optimizer__warmup_steps": 1},
        {"finetune__inputs__ranked": "negatives/ranked.parquet", "finetune__module__without_teacher": True},
        {"pretrain__trainer": {"devices": "auto", "checkpoint_steps": 3}}, {"pretrain__inputs__keep": "path:experiments"},
    ],
)  # fmt: skip
def test_stages_that_agree(values: dict[str, Any]) -> None:
    check_experiment(changed(**values))
