"""Several ranked files in one training: shares, prefixes by kind, missing teachers, and negatives that change by epoch."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_modules.finetune import groups
from data_modules.finetune.datamodule import RankedDataModule
from lightning_e5.errors import UserError
from lightning_e5.files.parquet import write_parquet
from lightning_e5.text import TextTokenizer

ROWS, NEGATIVES = 24, 5
MARCO = {"query": [f"search {i}" for i in range(ROWS)], "positive": [f"answer {i}" for i in range(ROWS)]}
MARCO["negatives"] = [[f"wrong {n} of {i}" for n in range(NEGATIVES)] for i in range(ROWS)]  # type: ignore[misc]
SCORES = [[float(i), *(i - n - 1.0 for n in range(NEGATIVES))] for i in range(ROWS)]


def files(folder: Path) -> dict[str, Path]:
    write_parquet(folder / "marco.parquet", {**MARCO, "teacher_scores": pa.array(SCORES, pa.list_(pa.float32()))})
    nli = {
        "query": [f"premise {i}" for i in range(12)], "positive": [f"answer {i}" for i in range(12)],
        "negatives": [[f"contra {i} {n}" for n in range(3)] for i in range(12)], "passage_kind": ["query"] * 12,
    }  # fmt: skip
    write_parquet(folder / "nli.parquet", nli)
    return {"marco": folder / "marco.parquet", "nli": folder / "nli.parquet"}


def module(folder: Path, tokenizer: TextTokenizer, **settings: Any) -> RankedDataModule:
    given = {"ranked": files(folder), "batch_size": 6, "seed": 3, "negatives": 3, "epochs": 1, **settings}
    return RankedDataModule(tokenizer=tokenizer, cache_dir=folder / "cache", **given)


def encoded(tokenizer: TextTokenizer, text: str, kind: Any) -> list[int]:
    return tokenizer.encode([text], kind)[0].tolist()


def test_an_epoch_is_every_row_once_each_with_its_prefix_and_teacher(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    data = module(tmp_path, small_tokenizer)
    assert data.pairs == 36 and data.max_steps == 6
    seen: list[int] = []
    for step in range(6):
        batch = data.batch(step, 0, 1)
        passages = [p.tolist() for p in torch.split(batch.passages.ids_T, batch.passages.lengths_B.tolist())]
        assert batch.teacher_BG is not None
        for place, row in enumerate(batch.rows_B.tolist()):
            seen.append(row)
            group, teacher = passages[4 * place : 4 * place + 4], batch.teacher_BG[place].tolist()
            if row < ROWS:
                wanted = [encoded(small_tokenizer, t, "passage") for t in (f"answer {row}", *MARCO["negatives"][row][:3])]
                assert teacher == SCORES[row][:4]
            else:
                i = row - ROWS
                wanted = [encoded(small_tokenizer, t, "query") for t in (f"answer {i}", *(f"contra {i} {n}" for n in range(3)))]
                assert all(map(math.isnan, teacher))
            assert group == wanted
    assert sorted(seen) == list(range(36))
    marco, nli = data.groups(np.array([0])), data.groups(np.array([ROWS]))
    assert marco.passage_text_P[0] == nli.passage_text_P[0], "one text with two prefixes is one text to the masks"
    assert marco.passages.ids_T.tolist() != nli.passages.ids_T.tolist()


def test_weights_are_shares(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    data = module(tmp_path, small_tokenizer, weights={"nli": 2, "marco": 1}, epochs=None, max_steps=512)
    drawn = Counter("marco" if row < ROWS else "nli" for step in range(512) for row in data.order.rows(step).tolist())
    assert abs(drawn["nli"] - 2048) <= 2 and drawn["marco"] + drawn["nli"] == 3072


def test_the_window_moves_by_epoch_around_and_around(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    ranked = files(tmp_path)["marco"]
    data = module(tmp_path, small_tokenizer, ranked=ranked, choose="window", negatives=2, epochs=5, batch_size=8)
    order, used = data.order, {}
    for step in range(data.max_steps):
        rows, epochs = order.draws(step)
        batch = data.batch(step, 0, 1)
        assert batch.rows_B.tolist() == rows.tolist() and batch.teacher_BG is not None
        for row, epoch, scores in zip(rows.tolist(), epochs.tolist(), batch.teacher_BG.tolist(), strict=True):
            assert scores[0] == row
            used[row, epoch] = [round(row - s - 1) for s in scores[1:]]  # which negatives, by their scores
    first = used[0, 0][0]
    for row in range(ROWS):
        for epoch in range(5):
            assert used[row, epoch] == [(first + 2 * epoch + n) % NEGATIVES for n in range(2)]
    ranks = [data.batch(3, rank, 2).teacher_BG for rank in range(2)]
    whole = data.batch(3, 0, 1).teacher_BG
    assert whole is not None and torch.equal(torch.cat([r for r in ranks if r is not None]), whole)


def test_every_file_of_a_mixture_holds_its_share_out(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    data = module(tmp_path, small_tokenizer, hold_out=9, epochs=None, max_steps=40)
    assert data.held_out.tolist() == [*range(18, 24), *range(33, 36)]  # 24 and 12 rows
    drawn = {int(row) for step in range(40) for row in data.batch(step, 0, 1).rows_B}
    assert data.pairs == 27 and drawn == set(range(36)) - set(data.held_out.tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"nlu": 1, "marco": 1}}, "weights: 'nlu' is none of the ranked files; did you mean 'nli'"),
        ({"weights": {"marco": 1}}, "weights: lacks the ranked file 'nli'"),
        ({"hold_out": 36}, "hold_out: 36 is not below the 36 queries that there are"),
        ({"negatives": 4}, r"nli\.parquet: row 0 has 3 negatives, fewer than 4"),
        ({"ranked": {}}, "names no file"),
        ({"batch_size": 40}, r"marco\.parquet, .*nli\.parquet: 36 queries to train on are fewer than batch_size = 40"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, small_tokenizer: TextTokenizer, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(tmp_path, small_tokenizer, **settings)


def test_more_mistakes_are_named(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    write_parquet(tmp_path / "kind.parquet", {**MARCO, "passage_kind": ["passage"] * 23 + ["pasage"]})
    with pytest.raises(UserError, match=r"kind\.parquet: row 23: passage_kind 'pasage' is not 'passage' or 'query'"):
        module(tmp_path, small_tokenizer, ranked=tmp_path / "kind.parquet")
    scores = pa.array([[1.0] * 4, *SCORES[1:]], pa.list_(pa.float32()))
    write_parquet(tmp_path / "scores.parquet", {**MARCO, "teacher_scores": scores})
    module(tmp_path, small_tokenizer, ranked=tmp_path / "scores.parquet")  # enough for the first 3
    with pytest.raises(UserError, match=r"scores\.parquet: row 0 has 4 teacher scores, fewer than 1 \+ 5"):
        module(tmp_path, small_tokenizer, ranked=tmp_path / "scores.parquet", choose="window")


def test_a_null_teacher_between_others_shifts_nothing(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    some = [None if i % 3 == 1 else s for i, s in enumerate(SCORES)]
    write_parquet(tmp_path / "some.parquet", {**MARCO, "teacher_scores": pa.array(some, pa.list_(pa.float32()))})
    for choose in ("first", "window"):
        data = module(tmp_path, small_tokenizer, ranked=tmp_path / "some.parquet", choose=choose)
        teacher = data.groups(np.arange(ROWS)).teacher_BG
        assert teacher is not None
        for row, scores in enumerate(teacher.tolist()):
            assert all(map(math.isnan, scores)) if row % 3 == 1 else scores[0] == row and set(scores) <= set(SCORES[row])


def test_the_block_of_rows_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = list(files(tmp_path).values())
    whole = groups.read_ranked(paths, 3, "window")
    monkeypatch.setattr(groups, "_ROWS_AT_ONCE", 5)
    parts = groups.read_ranked(paths, 3, "window")
    texts = [*whole.passages["passage"], *whole.passages["query"]]
    again = [*parts.passages["passage"], *parts.passages["query"]]
    assert len(texts) == len(again) == 24 * 6 + 12 * 4
    assert [texts[m] for m in whole.members] == [again[m] for m in parts.members]
    assert np.array_equal(whole.starts, parts.starts)


def test_after_a_resume_the_rest_of_a_mixture_comes(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    settings: dict[str, Any] = {"weights": {"marco": 1, "nli": 1}, "choose": "window", "negatives": 2, "epochs": 3}
    whole = list(module(tmp_path, small_tokenizer, **settings).train_dataloader())
    again = module(tmp_path, small_tokenizer, **settings)
    again.load_state_dict({"trained_steps": 11})
    rest = list(again.train_dataloader())
    assert len(whole) == 18 and len(rest) == 7
    for ours, theirs in zip(rest, whole[11:], strict=True):
        assert torch.equal(ours.rows_B, theirs.rows_B) and torch.equal(ours.passages.ids_T, theirs.passages.ids_T)
