"""Validation while training: it changes no weight, keeps the best step (the start among them), and survives a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.token_cache import write_token_cache
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.validation import ValidationCollection
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.validation import Validation, ValidationCallback, weights_of
from lightning_e5.training.interpolation import interpolated
from lightning_e5.training.optimizer import AdamWConfig

STEPS = 5


class Training:
    """A small encoder with dropout, and a training of it on this project's sentences."""

    def __init__(self, tmp_path: Path, bert: Any, tokenizer: Any, texts: list[str]) -> None:
        self.folder, self.bert, self.tokenizer = tmp_path, bert, tokenizer
        self.start = {name: p.detach().clone() for name, p in bert.named_parameters()}
        columns = {"query": ([t[:30] for t in texts[:24]], "query"), "passage": (texts[:24], "passage")}
        write_token_cache(tmp_path / "tokens", columns, tokenizer.cut_at(24))
        self.collection = write_collection(tmp_path / "validation", texts[24:40])

    def run(self, name: str, validate: Any = None, *, stop_at: int | None = None) -> tuple[TextEncoder, Any]:
        """Train, or go on with, the training of a name; ``validate`` makes the callback of the encoder."""
        with torch.no_grad():
            for key, parameter in self.bert.named_parameters():
                parameter.copy_(self.start[key])
        encoder = TextEncoder(self.bert, self.tokenizer).train()
        module = InBatchModule(encoder, temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-3, warmup_steps=1), max_steps=STEPS, seed=3)
        data = CCPairsDataModule(tokens=self.folder / "tokens", batch_size=6, seed=1, max_steps=STEPS)
        callback = None if validate is None else validate(encoder)
        if stop_at is not None:
            step = module.training_step

            def killed(batch: Any, batch_idx: int) -> None:
                if module.global_step == stop_at:
                    raise KeyboardInterrupt
                step(batch, batch_idx)

            module.training_step = killed  # type: ignore[method-assign]
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                self._fit(name, module, data, callback)
        else:
            self._fit(name, module, data, callback)
        return encoder, callback

    def _fit(self, name: str, module: Any, data: Any, callback: Any) -> None:
        fit(module, data, checkpoints=self.folder / name, title=name, validation=callback, accelerator="cpu", devices=1, checkpoint_steps=1, graph_tokens=10_000)


def write_collection(folder: Path, texts: list[str]) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "title": "", "text": t}) + "\n" for i, t in enumerate(texts)))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": t[:20]}) + "\n" for i, t in enumerate(texts)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(len(texts))))
    return folder


@pytest.fixture
def training(tmp_path: Path, small_bert: Any, small_tokenizer: Any, texts: list[str]) -> Training:
    return Training(tmp_path, small_bert, small_tokenizer, texts)


def values_of(*values: float, **settings: Any) -> Any:
    """A callback whose validations find these values, one after the other, for two queries that differ by 0.2."""

    def make(encoder: TextEncoder) -> ValidationCallback:
        left = list(values)

        def evaluate() -> dict[str, float]:
            value = left.pop(0)
            return {"q1": value - 0.1, "q2": value + 0.1}

        return ValidationCallback(Validation(every_n_steps=2, **settings), encoder, evaluate)

    return make


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_weights_are_those_of_a_training_without_validation(training: Training) -> None:
    plain = weights_of(training.run("plain")[0])

    def real(encoder: TextEncoder, **options: Any) -> ValidationCallback:
        return ValidationCallback(Validation(every_n_steps=1), encoder, ValidationCollection(training.collection, encoder), **options)

    encoder, callback = training.run("validated", real)
    assert same(plain, weights_of(encoder)) and encoder.training
    assert [row["step"] for row in callback.rows] == [0, 1, 2, 3, 4, 5] and all(0 < row["ndcg@10"] <= 1 for row in callback.rows)
    encoder, _ = training.run("mixed", lambda encoder: real(encoder, keep_general=0.5))
    assert same(plain, weights_of(encoder))  # the mixture is taken away again

    def drawing(encoder: TextEncoder) -> ValidationCallback:
        return ValidationCallback(Validation(every_n_steps=1), encoder, lambda: {"q": float(encoder.backbone.embeddings.word_embeddings.weight.data.add_(1e-3).sum())})

    assert not same(plain, weights_of(training.run("control", drawing)[0]))  # the control: a validation that moves weights is noticed


def test_the_best_step_is_kept_the_earlier_of_equal_ones(training: Training) -> None:
    every: dict[int, dict[str, torch.Tensor]] = {}

    def kept(*values: float, **settings: Any) -> tuple[int, dict[str, torch.Tensor]]:
        name = "-".join(map(str, (*values, *settings.values())))
        encoder, callback = training.run(name, values_of(*values, **settings))
        every[STEPS] = weights_of(encoder)
        assert [row["step"] for row in callback.rows] == [0, 2, 4, 5]
        return callback.best_step, callback.best

    assert kept(0.5, 0.4, 0.5, 0.45)[0] == 0
    step, best = kept(0.5, 0.6, 0.6, 0.55)
    assert step == 2 and not same(best, every[STEPS])
    step, best = kept(0.5, 0.6, 0.4, 0.7)
    assert step == 5 and same(best, every[STEPS])
    assert kept(0.5, 0.6, 0.4, 0.3, keep="last")[0] == 5
    start = {f"backbone.{name}": value for name, value in training.start.items()}
    assert same(kept(0.9, 0.1, 0.1, 0.1)[1], start)


def test_what_is_validated_is_the_mixture_that_is_kept(training: Training) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def make(encoder: TextEncoder) -> ValidationCallback:
        def evaluate() -> dict[str, float]:
            seen.append(weights_of(encoder))
            return {"q": float(len(seen))}

        return ValidationCallback(Validation(every_n_steps=5), encoder, evaluate, keep_general=0.25)

    encoder, callback = training.run("mixed", make)
    start = {f"backbone.{name}": value for name, value in training.start.items()}
    expected = interpolated(start, weights_of(encoder), 0.25)
    assert callback.best_step == 5 and same(callback.best, expected) and same(seen[1], expected) and same(seen[0], start)


def test_a_killed_training_ends_with_the_same_weights_and_choice(training: Training) -> None:
    whole, chosen = training.run("whole", values_of(0.1, 0.9, 0.3, 0.2))
    training.run("killed", values_of(0.1, 0.9), stop_at=3)
    encoder, resumed = training.run("killed", values_of(0.3, 0.2))  # it is asked for steps 4 and 5 alone
    assert same(weights_of(whole), weights_of(encoder))
    assert resumed.rows == chosen.rows and resumed.best_step == 2 and same(resumed.best, chosen.best)


def test_several_devices_are_refused(training: Training) -> None:
    encoder = TextEncoder(training.bert, training.tokenizer)
    module = InBatchModule(encoder, optimizer=AdamWConfig(learning_rate=1e-3, warmup_steps=1), max_steps=STEPS)
    data = CCPairsDataModule(tokens=training.folder / "tokens", batch_size=6, seed=1, max_steps=STEPS)
    with pytest.raises(UserError, match=r"validate: a training is validated on one device; give trainer: \{devices: 1\}"):
        fit(module, data, checkpoints=training.folder / "x", title="x", validation=values_of(0.1)(encoder), accelerator="cpu", devices=2)
