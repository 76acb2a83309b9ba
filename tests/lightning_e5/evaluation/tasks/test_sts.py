"""STS: Spearman's correlation against scipy and a hand-made ranking, the formats, and their errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.tasks.sts import STSData, correlation, evaluate_sts, load_sts
from lightning_e5.files.parquet import write_parquet

ROWS = [(5.0, "a cat sat", "a cat was sitting"), (2.5, 'he said "no"', "she said 'yes'"), (0.0, "rain", "a violin"), (1.0, "x", "y")]


class Planned:
    """Unit vectors at given angles: the cosine of pair i is ``cosines[i]``."""

    def __init__(self, cosines: list[float]) -> None:
        self.cosines, self.kinds = cosines, []

    def embed(self, texts, kind, *, normalize=True):  # type: ignore[no-untyped-def]
        self.kinds.append(kind)
        first = torch.tensor([[1.0, 0.0]] * len(self.cosines))
        second = torch.tensor([[c, (1 - c * c) ** 0.5] for c in self.cosines])
        return torch.cat([first, second])


def data(scores: list[float]) -> STSData:
    return STSData("toy", [f"a{i}" for i in range(len(scores))], [f"b{i}" for i in range(len(scores))], np.array(scores))


def ranks(values: list[float]) -> list[float]:
    """Mean ranks by counting, for ties."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


@pytest.mark.parametrize("cosines", [[0.9, 0.7, 0.1, 0.5], [0.1, 0.2, 0.8, 0.4], [0.5, 0.5, 0.1, 0.9]])
def test_spearman_is_pearson_of_the_ranks(cosines: list[float]) -> None:
    scores = [5.0, 3.0, 0.0, 3.0]
    embedder = Planned(cosines)
    result = evaluate_sts(data(scores), embedder, samples=50)
    a, b = np.array(ranks(cosines)), np.array(ranks(scores))
    expected = float(((a - a.mean()) * (b - b.mean())).sum() / np.sqrt(((a - a.mean()) ** 2).sum() * ((b - b.mean()) ** 2).sum()))
    assert result.metrics["spearman"] == pytest.approx(expected, abs=1e-6)
    assert result.metrics["spearman_low"] <= result.metrics["spearman"] + 1e-9
    assert embedder.kinds == ["query"]  # E5's rule: both sides of a symmetric task get the query's prefix


def test_ties_are_counted_and_a_constant_side_correlates_with_nothing() -> None:
    assert evaluate_sts(data([1.0, 2.0, 3.0, 4.0]), Planned([0.5, 0.5, 0.1, 0.9]), samples=20).tied == 0.5
    assert correlation(np.array([0.5, 0.5, 0.5]), np.array([1.0, 2.0, 3.0])) == 0.0


def test_a_cosine_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match="the cosine of pair 1 is nan"):
        evaluate_sts(data([1.0, 2.0, 3.0]), Planned([0.5, float("nan"), 0.1]), samples=5)


def write_tsv(path: Path, rows: list[tuple[object, ...]]) -> Path:
    path.write_text("\n".join(["score\tsentence1\tsentence2", *("\t".join(map(str, r)) for r in rows)]) + "\n", encoding="utf-8")
    return path


def test_every_format_gives_the_same_pairs(tmp_path: Path) -> None:
    tsv = load_sts(write_tsv(tmp_path / "a.tsv", ROWS))
    objects = [dict(zip(("score", "sentence1", "sentence2"), row, strict=True)) for row in ROWS]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    write_parquet(tmp_path / "d.parquet", pa.Table.from_pylist(objects))
    for name in ("b.jsonl", "c.jsonl.gz", "d.parquet"):
        other = load_sts(tmp_path / name)
        assert (other.first, other.second, other.scores.tolist()) == (tsv.first, tsv.second, tsv.scores.tolist())
    assert tsv.first[1] == 'he said "no"'  # quotes are text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "a", "b"), ("high", "c", "d"), (3, "e", "f")], r"x.tsv:3: the score 'high' is not a finite number"),
        ([(1, "a", "b"), (2, "c"), (3, "e", "f")], r"x.tsv:3: another number of cells than the header \(2 separated by tabs, not 3\)"),
        ([(1, "a", "b"), ("nan", "c", "d"), (3, "e", "f")], r"x.tsv:3: the score 'nan' is not a finite number"),
        ([(1, "a", "b"), (2, "c", " "), (3, "e", "f")], r"x.tsv:3: the key 'sentence2' is not a text"),
        ([(1, "a", "b")], r"x.tsv: has 1 pairs; a correlation needs at least 3"),
        ([(1, "a", "b"), (1, "c", "d"), (1, "e", "f")], r"x.tsv: all pairs have the score 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[tuple[object, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_sts(write_tsv(tmp_path / "x.tsv", rows))


@pytest.mark.parametrize("score", ["3,8", "1_0", True, None, [1], "", 10**400])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, score: object) -> None:
    objects = [{"score": value, "sentence1": "a", "sentence2": "b"} for value in ("0.5", 4, score)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    with pytest.raises(UserError, match=r"x.jsonl:3: the score .* is not a finite number"):
        load_sts(tmp_path / "x.jsonl")


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match=r"x.tsv: the header lacks the column 'score' \(has: a, b\)"):
        load_sts(tmp_path / "x.tsv")
    (tmp_path / "x.jsonl").write_text('{"score": 1, "sentence1": "a"}\n')
    with pytest.raises(UserError, match=r"x.jsonl:1: lacks the key 'sentence2'"):
        load_sts(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="no such file"):
        load_sts(tmp_path / "absent.tsv")
