"""Validation while training: it changes no weight, keeps the best step (the start among them), stops early, and survives a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.token_cache import write_token_cache
from lightning_e5.errors import UserError
from lightning_e5.evaluation.validation_tasks import EvaluateOn
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.validation import Validation, ValidationCallback, set_weights, weights_of
from lightning_e5.training.interpolation import interpolated
from lightning_e5.training.optimizer import AdamWConfig

STEPS = 5


class Found:
    """A task whose values are given, one after the other; after the last of them, the kill that it plans."""

    def __init__(self, *values: float, metric: str = "ndcg@10", look: Callable[[TextEncoder], object] = lambda encoder: None) -> None:
        self.left, self.metric, self.look = list(values), metric, look

    def values(self, model: TextEncoder) -> dict[str, float]:
        self.look(model)
        if not self.left:
            raise KeyboardInterrupt
        return {f"set/{self.metric}": self.left.pop(0)}

    def identities(self) -> dict[str, str]:
        return {"set": "items x"}


class Training:
    """A small encoder with dropout, and a training of it on this project's sentences."""

    def __init__(self, tmp_path: Path, bert: Any, tokenizer: Any, texts: list[str]) -> None:
        self.folder, self.bert, self.tokenizer = tmp_path, bert, tokenizer
        self.start = {f"backbone.{name}": p.detach().clone() for name, p in bert.named_parameters()}
        columns = {"query": ([t[:30] for t in texts[:24]], "query"), "passage": (texts[:24], "passage")}
        write_token_cache(tmp_path / "tokens", columns, tokenizer.cut_at(24))
        self.collection = write_collection(tmp_path / "validation", texts[24:40])

    def run(
        self, name: str, *tasks: Any, stop_at: int | None = None, killed: bool = False, hold_out: int = 0, keep_general: float = 0.0, **settings: Any
    ) -> tuple[TextEncoder, ValidationCallback | None]:
        """Train, or go on with, the training of a name; validated where there are tasks or settings."""
        encoder = TextEncoder(self.bert, self.tokenizer)
        set_weights(encoder, self.start)
        module = InBatchModule(encoder.train(), temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-3, warmup_steps=1), max_steps=STEPS, seed=3)
        data = CCPairsDataModule(tokens=self.folder / "tokens", batch_size=6, seed=1, max_steps=STEPS, hold_out=hold_out)
        callback = None
        if tasks or settings:
            module.validation_tasks = tasks
            callback = ValidationCallback(Validation(**{"every_n_steps": 2, **settings}), encoder, keep_general=keep_general)
        if stop_at is not None:
            step = module.training_step

            def kills(batch: Any, batch_idx: int) -> None:
                if module.global_step == stop_at:
                    raise KeyboardInterrupt
                step(batch, batch_idx)

            module.training_step = kills  # type: ignore[method-assign]
        arguments: Any = {"checkpoints": self.folder / name, "title": name, "accelerator": "cpu", "devices": 1, "checkpoint_steps": 1, "graph_tokens": 10_000}
        if killed or stop_at is not None:
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                fit(module, data, validation=callback, **arguments)
        else:
            fit(module, data, validation=callback, **arguments)
        self.module = module
        return encoder, callback


def write_collection(folder: Path, texts: list[str]) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "title": "", "text": t}) + "\n" for i, t in enumerate(texts)))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": t[:20]}) + "\n" for i, t in enumerate(texts)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(len(texts))))
    return folder


@pytest.fixture
def training(tmp_path: Path, small_bert: Any, small_tokenizer: Any, texts: list[str]) -> Training:
    return Training(tmp_path, small_bert, small_tokenizer, texts)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def steps_of(callback: ValidationCallback | None) -> list[float]:
    assert callback is not None
    return [row["step"] for row in callback.rows]


def test_the_weights_are_those_of_a_training_without_validation(training: Training) -> None:
    plain = weights_of(training.run("plain", hold_out=7)[0])
    real = EvaluateOn(collections={"own": training.collection})
    for every, steps in ((1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (100, [0, 5])):
        encoder, callback = training.run(f"every{every}", real, hold_out=7, every_n_steps=every)
        assert same(plain, weights_of(encoder)) and encoder.training and steps_of(callback) == steps
    assert callback is not None and callback.monitor == "val/own/ndcg@10"
    assert set(callback.rows[0]) == {
        "step", "pairs", "val/loss", "val/accuracy", "val/mrr@10", "val/std_query", "val/std_passage", "val/own/ndcg@10"
    }  # fmt: skip
    assert [row["pairs"] for row in callback.rows] == [0, 6 * STEPS]
    encoder, _ = training.run("mixed", real, hold_out=7, keep_general=0.5)
    assert same(plain, weights_of(encoder))  # the mixture is taken away again
    moves = Found(*[0.5] * 9, look=lambda encoder: encoder.backbone.embeddings.word_embeddings.weight.data.add_(1e-3))
    assert not same(plain, weights_of(training.run("control", moves, hold_out=7)[0]))  # the control: a task that moves weights is noticed


def test_a_validation_draws_no_random_number(training: Training) -> None:
    torch.manual_seed(5)
    training.run("plain", hold_out=7)
    after = torch.random.get_rng_state()
    torch.manual_seed(5)
    training.run("validated", EvaluateOn(collections={"own": training.collection}), hold_out=7, every_n_steps=1)
    assert torch.equal(after, torch.random.get_rng_state())


def test_the_best_step_is_kept_the_earlier_of_equal_ones(training: Training) -> None:
    every: dict[int, dict[str, torch.Tensor]] = {}

    def kept(*values: float, metric: str = "ndcg@10", **settings: Any) -> tuple[int, dict[str, torch.Tensor]]:
        name = "-".join(map(str, (*values, *settings.values(), metric)))
        encoder, callback = training.run(name, Found(*values, metric=metric), **settings)
        every[STEPS] = weights_of(encoder)
        assert callback is not None and steps_of(callback) == [0, 2, 4, 5]
        return callback.best_step, callback.best

    assert kept(0.5, 0.4, 0.5, 0.45)[0] == 0
    step, best = kept(0.5, 0.6, 0.6, 0.55)
    assert step == 2 and not same(best, every[STEPS])
    step, best = kept(0.5, 0.6, 0.4, 0.7)
    assert step == 5 and same(best, every[STEPS])
    assert kept(0.5, 0.6, 0.4, 0.3, keep="last")[0] == 5
    assert kept(0.5, 0.6, 0.4, 0.45, metric="loss")[0] == 4  # of a loss the lower is the better
    assert same(kept(0.9, 0.1, 0.1, 0.1)[1], training.start)


def test_what_is_validated_is_the_mixture_that_is_kept(training: Training) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    task = Found(1.0, 2.0, look=lambda encoder: seen.append(weights_of(encoder)))
    encoder, callback = training.run("mixed", task, every_n_steps=5, keep_general=0.25)
    expected = interpolated(training.start, weights_of(encoder), 0.25)
    assert callback is not None and callback.best_step == 5
    assert same(callback.best, expected) and same(seen[1], expected) and same(seen[0], training.start)


@pytest.mark.parametrize("values", [(0.1, 0.9, 0.3, 0.2), (0.1, 0.2, 0.9, 0.3)])
def test_a_training_killed_between_and_within_validations_ends_with_the_same_weights_and_choice(training: Training, values: tuple[float, ...]) -> None:
    whole, chosen = training.run("whole", Found(*values))
    assert chosen is not None
    training.run("between", Found(*values[:2]), stop_at=3)
    training.run("start", Found(), killed=True)  # in the validation of the start
    training.run("within", Found(*values[:2]), killed=True)  # in that of step 4
    training.run("last", Found(*values[:3]), killed=True)  # in that of the last step
    for name, left in (("between", values[2:]), ("start", values), ("within", values[2:]), ("last", values[3:])):
        encoder, resumed = training.run(name, Found(*left))  # it is asked for the steps that are left alone
        assert resumed is not None and same(weights_of(whole), weights_of(encoder)), name
        assert resumed.rows == chosen.rows and resumed.best_step == chosen.best_step and same(resumed.best, chosen.best), name


def test_patience_ends_a_training_and_ends_it_again(training: Training) -> None:
    _, callback = training.run("early", Found(0.5, 0.6, 0.6, 0.6), every_n_steps=1, patience=2)
    assert steps_of(callback) == [0, 1, 2, 3] and callback is not None and callback.best_step == 1 and training.module.global_step == 3
    _, callback = training.run("early", Found(), every_n_steps=1, patience=2)  # no value is asked for
    assert steps_of(callback) == [0, 1, 2, 3] and training.module.global_step == 3


def test_a_monitor_that_is_no_value(training: Training) -> None:
    with pytest.raises(UserError, match=r"validation.monitor: 'val/set/ndcg@1' is none of the values \(val/set/ndcg@10\); did you mean 'val/set/ndcg@10'"):
        training.run("monitor", Found(0.5), monitor="val/set/ndcg@1")
    with pytest.raises(UserError, match=r"validation: nothing to validate on; give pairs: \{hold_out: N\} or tasks"):
        training.run("nothing", every_n_steps=2)
