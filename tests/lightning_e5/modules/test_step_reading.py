"""A step read behind later ones trains the same, gives the same rows, and moves no weight by a gradient that is not finite."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_e5.errors import UserError
from lightning_e5.modules.fit import fit
from lightning_e5.modules.moco import MoCoModule
from lightning_e5.modules.pre_batch import PreBatchModule
from lightning_e5.tracking.metrics_log import TIMED, JsonlLogger, read_metrics_log
from lightning_e5.training.checkpointing import latest_checkpoint, load_checkpoint
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.training.step_values import NonFiniteError
from tests.lightning_e5.modules.test_watch import Trainings, trainings  # noqa: F401 (a fixture)

#: What a row says of the machine and not of the training.
TIMES = TIMED
STEPS = 5


def run(
    made: Trainings, name: str, behind: int | None, scheme: Any = None, *, fused: bool | None = True, spoil: Callable[[Any], object] = lambda module: None, **options: Any
) -> tuple[Any, list[dict[str, Any]], list[str]]:
    """The module, the rows of its ``metrics.jsonl`` and what was said."""
    module = made.module(**({} if scheme is None else {"scheme": scheme}), steps=STEPS, **{k: options.pop(k) for k in ("queue_size", "momentum") if k in options})
    module.adamw = AdamWConfig(learning_rate=2e-3, warmup_steps=1, fused=fused)
    spoil(module)
    log, said = JsonlLogger(made.folder / name), []
    try:
        fit(
            module, made.data(STEPS), checkpoints=made.folder / name / "checkpoints", title=name, logs=[log], warn=said.append, accelerator="cpu",
            devices=1, graph_tokens=10_000, chunk_tokens=64, read_behind=behind, **options,
        )  # fmt: skip
    finally:
        log.finalize("success")
    return module, read_metrics_log(made.folder / name), said


def weights(module: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize(("scheme", "options"), [(None, {}), (PreBatchModule, {"queue_size": 24}), (MoCoModule, {"queue_size": 24, "momentum": 0.9})])
def test_weights_and_rows_are_those_of_steps_read_at_once(trainings: Trainings, scheme: Any, options: dict[str, Any]) -> None:  # noqa: F811
    expected, rows, _ = run(trainings, "at_once", 0, scheme, **options)
    before = weights(expected)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for behind in (1, 9):
        module, late, _ = run(trainings, f"behind_{behind}", behind, scheme, **options)
        assert all(torch.equal(before[name], value) for name, value in weights(module).items())
        assert without_times(late) == without_times(rows)
        assert all(row["seconds"] > 0 and row["mfu"] > 0 and list(row) == list(rows[0]) for row in late)
        assert (module.trained_pairs, module.trained_tokens) == (expected.trained_pairs, expected.trained_tokens)


class Spoiled:
    """The third step's embeddings of its last chunk are not finite."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.steps_made = 0

    def __call__(self, module: Any) -> None:
        embed = module.embed_chunk

        def failing(ids_T: Tensor, lengths: list[int]) -> Tensor:
            if module.global_step == 2 and not self.before:
                self.before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
            self.steps_made = module.global_step
            return embed(ids_T, lengths) * (float("nan") if module.global_step == 2 else 1.0)

        module.embed_chunk = failing


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_no_step_is_made_from_values_that_are_not_finite(trainings: Trainings, behind: int) -> None:  # noqa: F811
    spoiled, kept = Spoiled(), []

    def spoil(module: Any) -> None:
        spoiled(module)
        kept.append(module)

    with pytest.raises(NonFiniteError, match=r"step 2: loss nan or gradient norm nan is not finite on some rank; no optimizer step was made") as error:
        run(trainings, "bad", behind, spoil=spoil, checkpoint_steps=10)
    (module,) = kept
    assert spoiled.steps_made == 2 + behind, "the error comes where the step is read"
    assert all(torch.equal(spoiled.before[name], p) for name, p in module.model.named_parameters()), "weights are those before the bad step"
    # The rows are those of the bad step, not of the one in which it was found.
    rows = trainings.data(STEPS).batch(2, 0, 1).rows_B
    named = {int(row) for row in str(error.value).split("not finite: ")[1].split(";")[0].split(", ")}
    assert named == set(rows.tolist())
    assert [row["step"] for row in read_metrics_log(trainings.folder / "bad")] == [1, 2]


def test_without_the_flag_the_device_would_make_the_step(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The control of the test above: weights that are not finite are what it would see."""
    from lightning_e5.training.step_values import UnreadSteps

    monkeypatch.setattr(UnreadSteps, "leave_out", lambda self, values: torch.zeros(()))
    kept: list[Any] = []

    def spoil(module: Any) -> None:
        Spoiled()(module)
        kept.append(module)

    with pytest.raises(NonFiniteError):
        run(trainings, "control", 1, spoil=spoil)
    assert not all(bool(torch.isfinite(p).all()) for p in kept[0].model.parameters())


def test_a_checkpoint_holds_no_step_that_is_not_read(trainings: Trainings) -> None:  # noqa: F811
    """A bad step shows itself before a checkpoint after it is written, and rows before a checkpoint are in the log."""
    with pytest.raises(NonFiniteError, match="step 2"):
        run(trainings, "bad", 9, spoil=Spoiled(), checkpoint_steps=1)
    newest = latest_checkpoint(trainings.folder / "bad" / "checkpoints")
    assert newest is not None and newest.step == 2
    assert [row["step"] for row in read_metrics_log(trainings.folder / "bad")] == [1, 2]
    state = load_checkpoint(newest.path)
    watch = next(value for name, value in state["callbacks"].items() if "TrainingWatch" in name)
    assert len(watch["seen"]["norm"]) == 2 and state["seen"]["pairs"] == 16


def test_a_training_that_is_stopped_goes_on_as_if_it_were_not(trainings: Trainings) -> None:  # noqa: F811
    expected, rows, _ = run(trainings, "whole", 1)
    whole = weights(expected)

    def killed(module: Any) -> None:
        step = module.training_step

        def training_step(batch: Any, batch_idx: int) -> None:
            if module.global_step == 3:
                raise RuntimeError("killed")
            step(batch, batch_idx)

        module.training_step = training_step

    with pytest.raises(RuntimeError, match="killed"):
        run(trainings, "parts", 1, spoil=killed, checkpoint_steps=2)
    module, late, _ = run(trainings, "parts", 1)
    assert all(torch.equal(whole[name], value) for name, value in weights(module).items())
    assert without_times(late)[-3:] == without_times(rows)[-3:]


def test_only_a_fused_optimizer_leaves_a_step_out(trainings: Trainings) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"read_behind: 1, where only a fused optimizer .* give optimizer: \{fused: true\}, or 0"):
        run(trainings, "refused", 1, fused=None)
    module, rows, _ = run(trainings, "cpu", None, fused=None)
    assert len(rows) == STEPS and not module.reads_late, "on a CPU each step is read at once"


def test_lengths_stay_with_the_host(trainings: Trainings) -> None:  # noqa: F811
    """Cut by lengths that lie on a GPU, every step would begin by waiting for the one before."""
    module, batch = trainings.module(steps=STEPS), trainings.data(STEPS).batch(0, 0, 1)
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert {moved.queries.ids_T.device.type, moved.passages.ids_T.device.type, moved.rows_B.device.type} == {"meta"}
    assert moved.queries.lengths_B is batch.queries.lengths_B and moved.passages.lengths_B is batch.passages.lengths_B


class Rows(L.Callback):
    """What a callback of a plain trainer sees."""

    def __init__(self) -> None:
        self.found: list[tuple[int, float]] = []

    def on_step_read(self, trainer: L.Trainer, module: Any, step: int, row: dict[str, float], batch: Any) -> None:
        self.found.append((step, row["loss"]))
        assert len(batch.rows_B) == 8 and len(batch.queries.ids_T) == 0
        json.dumps(row)


def test_a_plain_trainers_callbacks_get_each_row(trainings: Trainings) -> None:  # noqa: F811
    from tests.lightning_e5.modules.test_watch import plain_trainer

    module, seen = trainings.module(steps=STEPS), Rows()
    module.adamw, module.read_behind = AdamWConfig(learning_rate=2e-3, fused=True), 2
    plain_trainer(STEPS, seen).fit(module, trainings.data(STEPS))
    assert [step for step, _ in seen.found] == [1, 2, 3, 4, 5] and seen.found[-1][1] == module.last_metrics["loss"]


