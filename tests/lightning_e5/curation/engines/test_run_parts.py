"""Parts are kept as they are done, read back as they were, and refused where they are torn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_e5.curation.engines.engine import LocalEngine
from lightning_e5.curation.engines.run_parts import Part, parts_of, run_parts
from lightning_e5.errors import UserError
from lightning_e5.files.storage import sha256_text
from tests.lightning_e5.curation.engines.engine_tasks import Tens


def counting(rows: slice, progress: Any) -> dict[str, Any]:
    return {"a": np.arange(rows.start, rows.stop)}


def nothing(rows: slice, progress: Any) -> dict[str, Any]:
    raise AssertionError("a finished part is not computed again")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_damaged_part_is_named(tmp_path: Path, suffix: str) -> None:
    def run(function: Any, rows: int) -> list[list[int]]:
        return [b["a"].tolist() for b in run_parts(function, parts_of(tmp_path / "parts" / "x", rows, 2, suffix=suffix), title="x")]

    assert run(counting, 5) == run(nothing, 5) == [[0, 1], [2, 3], [4]]
    with pytest.raises(UserError, match=rf"x-00002\{suffix}: does not hold 2 rows"):
        run(nothing, 6)
    (tmp_path / f"parts/x-00001{suffix}").write_bytes(b"no archive")
    with pytest.raises(UserError, match=rf"x-00001\{suffix}: cannot be read"):
        run(nothing, 5)


def test_only_what_is_missing_is_computed_and_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    parts, computed = parts_of(tmp_path / "x", 7, 2), []

    def noting(rows: slice, progress: Any) -> dict[str, Any]:
        computed.append(rows.start)
        return counting(rows, progress)

    whole = [b["a"].tolist() for b in run_parts(noting, parts, title="x")]
    for number in (1, 3):
        parts[number].path.unlink()
    (tmp_path / ".x-00001.npz.1.tmp").write_bytes(b"half")
    assert [b["a"].tolist() for b in run_parts(noting, parts, title="x")] == whole
    assert computed == [0, 2, 4, 6, 2, 6] and sorted(p.name for p in tmp_path.iterdir()) == [f"x-0000{i}.npz" for i in range(4)]


def test_an_engine_computes_the_same_and_a_worker_loads_once(tmp_path: Path) -> None:
    here = [b["a"].tolist() for b in run_parts(Tens(tmp_path), parts_of(tmp_path / "here" / "x", 7, 2), title="tens")]
    assert len(list(tmp_path.glob("loaded-*"))) == 1
    there = parts_of(tmp_path / "there" / "x", 7, 2)
    assert [b["a"].tolist() for b in run_parts(Tens(tmp_path), there, title="tens", engine=LocalEngine(2))] == here
    assert len(list(tmp_path.glob("loaded-*"))) <= 3, "this process and two workers"
    assert [b["a"].tolist() for b in run_parts(nothing, there, title="tens", engine=LocalEngine(2))] == here
    with pytest.raises(UserError, match="tens 2 to 4 is refused"):
        list(run_parts(Tens(tmp_path, refused=2), parts_of(tmp_path / "again" / "tens", 7, 2), title="tens", engine=LocalEngine(1)))


def test_a_record_stands_for_its_files_and_its_key(tmp_path: Path) -> None:
    made = []

    def write(text: str, progress: Any) -> dict[str, Any]:
        made.append(text)
        (tmp_path / "file.txt").write_text(text)
        return {"files": {"file.txt": sha256_text(text)}, "letters": len(text)}

    def run(text: str, key: str) -> dict[str, Any]:
        return next(iter(run_parts(write, [Part("text", tmp_path / "record.json", text, key=key, folder=tmp_path)], title="write")))

    first = run("abc", "1")
    assert run("abc", "1") == first and first["letters"] == 3 and made == ["abc"]
    assert run("defg", "2")["letters"] == 4 and made == ["abc", "defg"]
    (tmp_path / "file.txt").write_text("torn")
    run("defg", "2")
    (tmp_path / "record.json").write_text("{")
    run("defg", "2")
    assert made == ["abc", "defg", "defg", "defg"]
