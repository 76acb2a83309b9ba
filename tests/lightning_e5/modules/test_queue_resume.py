"""Queue, momentum encoder and counters are part of the checkpoint: a resumed training ends where an uninterrupted one does."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.callbacks import StopOnSignal
from lightning_e5.modules.fit import fit
from lightning_e5.training.checkpointing import checkpoint_path, latest_checkpoint, load_checkpoint, save_checkpoint
from lightning_e5.training.negative_queue import NegativeQueue
from lightning_e5.training.optimizer import AdamWConfig
from tests.lightning_e5.modules.scheme_run import CASES, STEPS, RandomPairs, Recorder, encoder


def train(directory: Path, case: str, told_in_chunk: int | None = None, number: int = signal.SIGTERM) -> tuple[TrainingModule, list[dict[str, float]], list[int]]:
    scheme, negatives, options = CASES[case]
    module = scheme(encoder(), temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-2), max_steps=STEPS, **options).double()
    recorder, resumed = Recorder(module), []
    calls, embed = [0], module.embed_chunk  # type: ignore[operator]

    def embed_and_signal(ids_T: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == told_in_chunk:
            signal.raise_signal(number)  # to this thread: one to the process may arrive later than a short sleep ends
        assert told_in_chunk is None or calls[0] <= told_in_chunk, "no chunk is begun after the signal"
        return embed(ids_T, lengths)

    module.embed_chunk = embed_and_signal  # type: ignore[assignment,method-assign]
    module.embedded = calls  # type: ignore[assignment]
    fit(
        module, RandomPairs(negatives), checkpoints=directory, title=case, accelerator="cpu", devices=1, checkpoint_steps=2,
        resumed=resumed.append, chunk_tokens=64, graph_tokens=200,
    )  # fmt: skip
    return module, recorder.rows, resumed


def unequal(one: TrainingModule, other: TrainingModule) -> list[str]:
    theirs: dict[str, Any] = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, theirs[name])]


@pytest.mark.parametrize("case", ["in_batch-1", "pre_batch-1", "moco-1", "everything-0"])
def test_a_resume_restores_queue_momentum_encoder_and_counters(tmp_path: Path, case: str) -> None:
    whole, rows, first = train(tmp_path, case)
    again, rest, second = train(tmp_path, case)
    assert (first, second, len(rest)) == ([0], [2], 2)
    assert unequal(whole, again) == []
    timed = ("seconds", "data_seconds", "mfu", "memory_gb", "pairs_per_second", "tokens_per_second")
    assert [{k: v for k, v in r.items() if k not in timed} for r in rest] == [
        {k: v for k, v in r.items() if k not in timed} for r in rows[2:]
    ]


def test_the_queue_after_a_resume_matters(tmp_path: Path) -> None:
    """The control: with an empty queue in the checkpoint the same training ends elsewhere."""
    whole, _, _ = train(tmp_path, "pre_batch-1")
    path = checkpoint_path(tmp_path, 2)
    checkpoint = load_checkpoint(path)
    assert int(checkpoint["state_dict"]["queue.pushed"]) > 0
    checkpoint["state_dict"]["queue.pushed"].zero_()
    save_checkpoint(path, checkpoint)
    again, _, _ = train(tmp_path, "pre_batch-1")
    assert any(name.startswith("encoder") for name in unequal(whole, again))


def test_a_resume_from_the_last_step_trains_nothing_more(tmp_path: Path) -> None:
    """A signal in the last step leaves a checkpoint of a finished training."""
    whole, _, _ = train(tmp_path, "in_batch-1")
    checkpoint = load_checkpoint(checkpoint_path(tmp_path, 2))
    module, _, _ = train(tmp_path, "in_batch-1")
    module.trainer.save_checkpoint(checkpoint_path(tmp_path, STEPS))
    again, rows, resumed = train(tmp_path, "in_batch-1")
    assert checkpoint["global_step"] == 2 and resumed == [STEPS] and rows == []
    assert unequal(whole, again) == []


def first_chunk_of_the_last_step(whole: TrainingModule) -> int:
    return int(whole.embedded[0]) * (STEPS - 1) // STEPS + 1  # type: ignore[operator,index]


@pytest.mark.parametrize(("case", "number"), [("in_batch-1", signal.SIGTERM), ("pre_batch-1", signal.SIGUSR1), ("moco-1", signal.SIGINT)])
def test_a_step_that_a_signal_finds_half_done_leaves_no_trace(tmp_path: Path, case: str, number: int) -> None:
    whole, rows, _ = train(tmp_path / "whole", case)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        train(tmp_path / "stopped", case, told_in_chunk=first_chunk_of_the_last_step(whole), number=number)
    reached = latest_checkpoint(tmp_path / "stopped")
    assert reached is not None and reached.step == STEPS - 1
    again, rest, resumed = train(tmp_path / "stopped", case)
    assert resumed == [reached.step] and len(rest) == STEPS - reached.step
    assert unequal(whole, again) == [] and [r["loss"] for r in rest] == [r["loss"] for r in rows[reached.step :]]


def test_no_chunk_is_begun_where_the_thread_hears_of_the_signal_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine the thread that listens may wait for a core; the handler, in the main thread, does not."""
    heard = StopOnSignal._heard

    def heard_late(self: StopOnSignal, number: int) -> None:
        time.sleep(1)
        heard(self, number)

    monkeypatch.setattr(StopOnSignal, "_heard", heard_late)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "moco-1", told_in_chunk=3, number=signal.SIGINT)  # which asserts it


def test_keys_of_a_step_that_is_given_up_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: were they left in the queue, the resumed training would end elsewhere."""

    @contextmanager
    def pushing(self: NegativeQueue, embeddings_PD: torch.Tensor, text_P: torch.Tensor) -> Iterator[torch.Tensor]:
        yield self.push(embeddings_PD, text_P)

    whole, _, _ = train(tmp_path / "whole", "moco-1")
    monkeypatch.setattr(NegativeQueue, "pushing", pushing)
    with pytest.raises(SystemExit):
        train(tmp_path / "stopped", "moco-1", told_in_chunk=first_chunk_of_the_last_step(whole))
    assert unequal(whole, train(tmp_path / "stopped", "moco-1")[0]) != []
