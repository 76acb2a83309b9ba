"""A user's mistake ends with exit code 2 and one sentence that names the key or file, and the rule."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.files import parquet

ROOT = Path(__file__).resolve().parents[1]
SMOKE = str(ROOT / "experiments" / "smoke.yaml")


def yaml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return str(path)


def stage(tmp_path: Path, target: str, rest: str = "") -> str:
    return yaml(tmp_path, f"name: x\nstages:\n  one:\n    _target_: {target}\n{rest}")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_unknown_keys_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'stages'" in fails(capsys, "run", yaml(tmp_path, "name: x\nstagess: {}\n"))
    assert "did you mean 'pretrain'" in fails(capsys, "run", SMOKE, "stages.pretrian.precision=fp32")
    assert "did you mean 'k'" in fails(capsys, "run", SMOKE, "stages.filter.kk=3", f"runs_dir={tmp_path}")
    assert "is not an integer" in fails(capsys, "run", SMOKE, "stages.filter.k=two", f"runs_dir={tmp_path}")


def test_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean" in fails(capsys, "run", stage(tmp_path, "lightning_e5.stages.pretrain.pretrian"))
    assert "allowed package" in fails(capsys, "run", stage(tmp_path, "os.system"))
    assert "is not configurable" in fails(capsys, "run", stage(tmp_path, "lightning_e5.files.storage.os.system"))


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "a..b", "''", "x" * 300])
def test_run_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "valid name" in fails(capsys, "run", SMOKE, f"name={name}")


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in fails(capsys, "run", str(tmp_path / "absent.yaml"))
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"name: \xff\xfe\n")
    assert "not UTF-8" in fails(capsys, "run", str(bad))
    assert "line" in fails(capsys, "run", yaml(tmp_path, "name: [x\nstages: {"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert str(blocked) in fails(capsys, "run", SMOKE, f"runs_dir={blocked}/runs")


def test_a_directory_of_another_configuration(smoke_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "run", SMOKE, f"runs_dir={smoke_run.parent}", "stages.filter.k=3")
    assert "another configuration" in message and "stages.filter.k" in message


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"query": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match="has no rows"):
        parquet.read_parquet(path, {"query": "string"})
    with pytest.raises(UserError, match="lacks the column 'passage'"):
        parquet.read_parquet(path, {"passage": "string"})
    with pytest.raises(UserError, match="holds string, not int64"):
        pq.write_table(pa.table({"query": ["a"]}), path)
        parquet.read_parquet(path, {"query": "int64"})
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"query": broken}), path)
    with pytest.raises(UserError, match="row 0, column 'query' is not valid UTF-8"):
        parquet.read_parquet(path, {"query": "string"})


def test_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr("os.replace", full)
    assert "No space left" in fails(capsys, "run", SMOKE, f"runs_dir={tmp_path}")
    assert not list(tmp_path.rglob("metrics.json")) and not list(tmp_path.rglob("*.tmp"))
