"""A file is whole or absent, whatever happens while it is written; what cannot be read is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_e5.errors import UserError
from lightning_e5.files import parquet, storage

ROOT = Path(__file__).resolve().parents[3]


def test_the_temporary_file_lies_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    path = tmp_path / "deep" / "er" / "file.txt"
    with storage.atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.startswith(".") and temporary.name.endswith(".tmp")
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    storage.write_text(path, "old")
    with pytest.raises(error), storage.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_wrote_nothing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    storage.write_text(path, "old")
    with pytest.raises(FileNotFoundError), storage.atomic_path(path):
        pass
    assert path.read_text() == "old"


def test_json_is_canonical(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", {"b": 0.1 + 0.2, "a": "ü"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "a": "ü",\n "b": 0.30000000000000004\n}\n'
    before = (tmp_path / "a.json").read_bytes()
    with pytest.raises(ValueError):
        storage.write_json(tmp_path / "a.json", float("nan"))
    assert (tmp_path / "a.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}"])
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: not a JSON file"):
        storage.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        storage.read_json(tmp_path / "absent.json")


def test_orphans_are_removed_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from lightning_e5.files.storage import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n    temporary.write_text('half'); os._exit(9)"
    )
    storage.write_text(tmp_path / "file.txt", "old")
    for name in ("a.tmp", ".hidden", "tmp"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".folder.tmp").mkdir()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file.txt")], cwd=ROOT)
    assert done.returncode == 9 and len([p for p in tmp_path.glob(".file.txt.*.tmp")]) == 1
    assert storage.remove_temporaries(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".folder.tmp", ".hidden", "a.tmp", "file.txt", "tmp"]
    assert (tmp_path / "file.txt").read_text() == "old" and storage.remove_temporaries(tmp_path / "absent") == 0


def whole(directory: Path) -> Path:
    storage.write_text(directory / "a.txt", "one")
    storage.write_text(directory / "sub" / "b.txt", "two")
    storage.write_manifest(directory, kind="k", files=["a.txt", "sub/b.txt"], rows=2)
    return directory


def test_the_manifest_is_last(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.write_manifest(tmp_path, kind="k", files=["not yet there"])
    assert not (tmp_path / "manifest.json").exists()
    manifest = storage.verify_manifest(whole(tmp_path), "k")
    assert manifest["rows"] == 2 and manifest["files"]["a.txt"] == storage.sha256_text("one")
    assert (tmp_path / "manifest.json").stat().st_mtime_ns >= (tmp_path / "sub/b.txt").stat().st_mtime_ns


def test_directories_that_are_not_whole_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such directory"):
        storage.read_manifest(tmp_path / "absent")
    with pytest.raises(UserError, match="unfinished"):
        storage.read_manifest(tmp_path)
    whole(tmp_path)
    with pytest.raises(UserError, match="holds 'k', not 'other'"):
        storage.read_manifest(tmp_path, "other")
    (tmp_path / "a.txt").write_text("two")
    with pytest.raises(UserError, match=r"a\.txt: its sha256"):
        storage.verify_manifest(tmp_path)
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt: named by manifest\.json but missing"):
        storage.verify_manifest(tmp_path)
    for text in ("[]", "{}", '{"files": []}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="has no checksum"):
            storage.read_manifest(tmp_path)
    storage.write_checked(tmp_path / "manifest.json", {"files": []})
    with pytest.raises(UserError, match="not a manifest"):
        storage.read_manifest(tmp_path)


def test_a_record_is_what_was_written_or_refused(tmp_path: Path) -> None:
    path, value = tmp_path / "a.json", {"rows": 7, "share": 0.1, "texts": ["ü", "x"]}
    storage.write_checked(path, value)
    data = path.read_bytes()
    assert storage.read_checked(path) == value and b"checksum" in data
    refused = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert storage.read_checked(path) == value  # an e for an E in a number
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 0.99 * 8 * len(data)
    path.write_text('{"checksum": "0", "rows": NaN}')
    with pytest.raises(UserError, match="is damaged"):
        storage.read_checked(path)
    for text in ("[" * 100_000, "9" * 10_000):
        path.write_text(text)
        with pytest.raises(UserError, match="not a JSON file"):
            storage.read_json(path)


def test_empty_directory(tmp_path: Path) -> None:
    assert list(storage.empty_directory(whole(tmp_path / "a")).iterdir()) == []
    assert list(storage.empty_directory(tmp_path / "b" / "c").iterdir()) == []


WRITERS = {
    "text": "storage.write_text(path, 'x' * 100_000)",
    "json": "storage.write_json(path, ['x' * 1000] * 100)",
    "parquet": "parquet.write_parquet(path, {'a': [os.urandom(9).hex() for _ in range(20_000)]})",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "file"
    storage.write_text(path, "old")
    code = (
        "import errno, os, resource, sys; from pathlib import Path; from lightning_e5.files import parquet, storage\n"
        "import pyarrow.parquet\npath = Path(sys.argv[1])\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"try: {WRITERS[writer]}\nexcept OSError as error: print(error.errno == errno.EFBIG, error.filename)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True", str(path)], done.stdout + done.stderr
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


FULL_DISK = """
import resource, sys
from lightning_e5.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(["run", *sys.argv[2:]]))
"""


STAGES = {
    "word_vectors": (2_000, """
    _target_: lightning_e5.stages.word_vectors.word_vectors
    config: {_target_: lightning_e5.evaluation.baselines.word_vectors.WordVectorsConfig, epochs: 1, width: 8, buckets: 8, batch_size: 8}"""),
    "vocabulary": (200_000, """
    _target_: lightning_e5.stages.vocabulary.vocabulary
    encoder: {_target_: lightning_e5.models.factory.EncoderSpec, vocab_size: 600, layers: 1, hidden_size: 64, heads: 2}"""),
}  # fmt: skip


@pytest.mark.parametrize("stage", [pytest.param("word_vectors", marks=pytest.mark.slow), "vocabulary"])
def test_a_full_disk_is_one_sentence(texts: list[str], tmp_path: Path, stage: str) -> None:
    """The disk is full when the weights are written, which a library does that has its own exceptions."""
    limit, node = STAGES[stage]
    parquet.write_parquet(tmp_path / "pairs" / "pairs.parquet", {"query": texts[:80], "passage": texts[80:160]})
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(f"name: full\nthreads: 1\nstages:\n  {stage}:{node}\n    inputs: {{pairs: 'path:{tmp_path}/pairs'}}\n")
    command = [sys.executable, "-c", FULL_DISK, str(limit), str(experiment), f"runs_dir={tmp_path / 'runs'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "File too large" in last and str(tmp_path / "runs") in last, done.stderr
    out = tmp_path / "runs" / "full"
    assert not (out / "metrics.json").exists() and not (out / "stages" / stage / "manifest.json").exists() and not list(out.rglob("*.tmp"))
