"""Pre-training batches: the same for every number of ranks and workers, and after a resume."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from data_modules.ccpairs.datamodule import CCPairsDataModule
from data_modules.token_cache import write_token_cache
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.modules.callbacks import PeriodicCheckpoint
from lightning_e5.text import TextTokenizer, text_id
from lightning_e5.training.checkpointing import checkpoint_path
from lightning_e5.types import PairBatch, TokenBatch

ROWS = 90


@pytest.fixture(scope="module")
def pairs(texts: list[str]) -> tuple[list[str], list[str]]:
    queries = texts[:ROWS]
    return queries, [f"about {q}" for q in queries]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, pairs: tuple[list[str], list[str]], small_tokenizer: TextTokenizer) -> Path:
    directory = tmp_path_factory.mktemp("tokens")
    write_token_cache(directory, {"query": (pairs[0], "query"), "passage": (pairs[1], "passage")}, small_tokenizer, shard_rows=40)
    return directory


def module(cache: Path, **settings: Any) -> CCPairsDataModule:
    return CCPairsDataModule(**{"tokens": cache, "batch_size": 8, "seed": 3, "max_steps": 10, **settings})


def texts_of(batch: TokenBatch) -> list[list[int]]:
    return [part.tolist() for part in torch.split(batch.ids_T, batch.lengths_B.tolist())]


def same(one: PairBatch, other: PairBatch) -> bool:
    def flat(batch: PairBatch) -> list[torch.Tensor]:
        tensors = [*batch.queries, *batch.passages, batch.query_text_B, batch.passage_text_P, batch.rows_B]
        return tensors + ([] if batch.teacher_BG is None else [batch.teacher_BG])

    return all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


def test_a_batch_is_its_rows(tokens: Path, pairs: tuple[list[str], list[str]], small_tokenizer: TextTokenizer) -> None:
    data = module(tokens, epochs=1, max_steps=None)
    assert data.max_steps == 12 and data.pairs == ROWS  # 90 / 8, rounded up
    batches = [data.batch(step, 0, 1) for step in range(data.max_steps)]
    for batch in batches:
        rows = batch.rows_B.tolist()
        for kind, found, ids, source in zip(("query", "passage"), batch[:2], batch[2:4], pairs, strict=True):
            expected = small_tokenizer.encode([source[r] for r in rows], kind)  # type: ignore[arg-type]
            assert found.ids_T.tolist() == expected[0].tolist() and found.lengths_B.tolist() == expected[1].tolist()
            assert ids.tolist() == [text_id(source[r]) for r in rows]
            assert {t.dtype for t in (*found, ids)} == {torch.int64}
        assert batch.teacher_BG is None
    seen = torch.cat([b.rows_B for b in batches]).tolist()
    assert len(set(seen[:ROWS])) == ROWS


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_parts_make_the_global_batch(tokens: Path, world_size: int) -> None:
    data = module(tokens)
    for step in (0, 1, 9):
        whole = data.batch(step, 0, 1)
        parts = [module(tokens).batch(step, rank, world_size) for rank in range(world_size)]
        assert torch.cat([p.rows_B for p in parts]).tolist() == whole.rows_B.tolist()
        assert {len(p.rows_B) for p in parts} == {8 // world_size}
        for name in ("queries", "passages"):
            assert [t for p in parts for t in texts_of(getattr(p, name))] == texts_of(getattr(whole, name))


def test_ranks_that_do_not_divide_the_batch(tokens: Path) -> None:
    with pytest.raises(UserError, match="batch_size: 8 is not a multiple of the 3 ranks"):
        module(tokens).batch(0, 0, 3)


def test_workers_give_the_same_batches(tokens: Path) -> None:
    alone, with_workers = module(tokens, max_steps=5), module(tokens, max_steps=5, num_workers=2)
    batches = list(with_workers.train_dataloader())
    assert len(batches) == 5
    assert all(same(a, b) for a, b in zip(alone.train_dataloader(), batches, strict=True))


def test_kept_rows_alone_are_drawn(tokens: Path, tmp_path: Path) -> None:
    keep = np.arange(ROWS) % 3 == 0
    write_parquet(tmp_path / "ranks.parquet", {"keep": keep, "rank": np.arange(ROWS)})
    data = module(tokens, keep=tmp_path / "ranks.parquet", batch_size=10, epochs=1, max_steps=None)
    assert data.pairs == 30 and data.max_steps == 3
    assert sorted(torch.cat([data.batch(s, 0, 1).rows_B for s in range(3)]).tolist()) == list(range(0, ROWS, 3))


class Recorder(L.LightningModule):
    """Records the rows of every step and does nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.rows: list[list[int]] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        self.rows.append(batch.rows_B.tolist())
        self.optimizers().step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: CCPairsDataModule, directory: Path, checkpoint: Path | None = None) -> list[list[int]]:
    recorder = Recorder()
    trainer = L.Trainer(
        max_steps=6, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=directory, use_distributed_sampler=False,
        callbacks=[PeriodicCheckpoint(directory, every_steps=4)],
    )  # fmt: skip
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return recorder.rows


@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_resume_the_rest_comes(tokens: Path, tmp_path: Path, workers: int) -> None:
    expected = [module(tokens).batch(step, 0, 1).rows_B.tolist() for step in range(6)]
    assert fit(module(tokens, max_steps=6), tmp_path) == expected
    rest = fit(module(tokens, max_steps=6, num_workers=workers), tmp_path, checkpoint_path(tmp_path, 4))
    assert rest == expected[4:], "workers read ahead; what they read and nobody trained on comes again"


def test_the_state_is_the_number_of_steps(tokens: Path) -> None:
    data = module(tokens)
    assert data.state_dict() == {"trained_steps": 0}
    data.load_state_dict({"trained_steps": 7})
    rest = list(itertools.islice(data.train_dataloader(), 100))
    assert len(rest) == 3 and all(same(module(tokens).batch(7 + i, 0, 1), b) for i, b in enumerate(rest))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "batch_size: 1 leaves no in-batch negatives"),
        ({"batch_size": 91}, "batch_size: 91 is not in 1 .. 90"),
        ({"max_steps": 0}, "max_steps: 0"),
        ({"epochs": 1}, "either max_steps or epochs"),
        ({"max_steps": None}, "either max_steps or epochs"),
        ({"max_steps": None, "epochs": 0}, "epochs: 0 is not above 0"),
        ({"max_steps": None, "epochs": float("nan")}, "epochs: nan"),
        ({"tokens": Path("absent")}, "absent: no such directory"),
    ],
)
def test_mistakes_are_named(tokens: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(tokens, **settings)


@pytest.mark.parametrize(
    ("keep", "message"),
    [([True] * 89, "has 89 rows where .* has 90 pairs"), ([False] * ROWS, "keeps no pair"), ([1] * ROWS, "column 'keep' holds int64, not bool")],
)
def test_a_filter_of_something_else_is_refused(tokens: Path, tmp_path: Path, keep: list[Any], message: str) -> None:
    write_parquet(tmp_path / "ranks.parquet", {"keep": keep})
    with pytest.raises(UserError, match=message):
        module(tokens, keep=tmp_path / "ranks.parquet")


def test_few_pairs_get_more_epochs_and_batches_of_all_of_them(tokens: Path) -> None:
    rows = ROWS
    few = CCPairsDataModule(tokens=tokens, batch_size=10 * rows, seed=1, epochs=1, least_steps=7)
    assert (few.max_steps, few.batch_size) == (7, rows)
    assert sorted(few.batch(3, 0, 1).rows_B.tolist()) == list(range(rows))  # an epoch is a step
    many = CCPairsDataModule(tokens=tokens, batch_size=2, seed=1, epochs=1, least_steps=3)
    assert (many.max_steps, many.batch_size) == ((rows + 1) // 2, 2)


def test_held_out_pairs_and_their_texts_are_never_drawn(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    queries = [*texts[:40], texts[0], "another query"]
    passages = [f"about {q}" for q in texts[:40]] + ["another passage", f"about {texts[1]}"]
    write_token_cache(tmp_path, {"query": (queries, "query"), "passage": (passages, "passage")}, small_tokenizer)
    for hold_out in (1, 20):
        data = module(tmp_path, hold_out=hold_out, epochs=3, max_steps=None)
        held_out = set(data.held_out.tolist())
        assert len(held_out) == hold_out and held_out == set(module(tmp_path, hold_out=hold_out, seed=9).held_out.tolist())
        of_held_out = {queries[row] for row in held_out} | {passages[row] for row in held_out}
        left = {row for row in range(42) if queries[row] not in of_held_out and passages[row] not in of_held_out}
        assert {int(row) for batch in data.train_dataloader() for row in batch.rows_B} == left and len(left) == data.pairs
        assert hold_out == 1 or len(left) < 42 - hold_out  # a duplicate was dropped with its pair
        batches = [batch for batch in data.val_dataloader() if batch is not None]
        assert [len(batch.rows_B) for batch in batches] == [min(8, hold_out)] * max(1, hold_out // 8)
        assert {int(row) for batch in batches for row in batch.rows_B} <= held_out
        assert all(same(a, b) for a, b in zip(batches, data.test_dataloader(), strict=True) if b is not None)


def test_held_out_pairs_of_sources(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    passages = [f"about {q}" for q in texts[:30]]
    write_token_cache(tmp_path, {"query": (texts[:30], "query"), "passage": (passages, "passage")}, small_tokenizer, sources={"a": 20, "b": 10})
    data = module(tmp_path, hold_out=6, alpha=0.5)
    held_out = data.held_out
    assert data.sources == {"a": 20 - int((held_out < 20).sum()), "b": 10 - int((held_out >= 20).sum())}
    assert not set(held_out.tolist()) & {int(row) for batch in data.train_dataloader() for row in batch.rows_B}
    with pytest.raises(UserError, match="hold_out: 30 is not below the 30 pairs that there are"):
        module(tmp_path, hold_out=30)
    with pytest.raises(UserError, match="hold_out: 29 pairs leave none to train on of the source"):
        module(tmp_path, hold_out=29, alpha=0.5)
    assert next(iter(module(tmp_path).val_dataloader())) is None
    with pytest.raises(UserError, match="hold_out: 7 rows are not a multiple of the 2 ranks"):
        ranked = module(tmp_path, hold_out=7)
        ranked.trainer = SimpleNamespace(global_rank=0, world_size=2)  # type: ignore[assignment]
        ranked.val_dataloader()
