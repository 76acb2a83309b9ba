"""A file is hashed once, and again where its size, time or inode is another."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from lightning_e5.files import digests as module
from lightning_e5.files.digests import FileDigests, files_below
from lightning_e5.files.storage import sha256_text


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    names: list[str] = []
    real = module.sha256_file
    monkeypatch.setattr(module, "sha256_file", lambda path: names.append(Path(path).name) or real(path))
    return names


def remembered_file(folder: Path) -> tuple[Path, Path]:
    """A memory of digests, and a file of which it knows that it holds "one"."""
    memory, file = folder / ".digests.json", folder / "a"
    file.write_text("one")
    digests = FileDigests(memory)
    digests.of(file)
    digests.save()
    return memory, file



def test_a_file_is_read_once_by_all_runs(tmp_path: Path, hashed: list[str]) -> None:
    memory, file = tmp_path / ".digests.json", tmp_path / "a"
    file.write_text("one")
    for _ in range(3):
        digests = FileDigests(memory)
        assert digests.of(file) == digests.of(file) == sha256_text("one")
        digests.save()
    os.link(file, tmp_path / "b")
    (tmp_path / "c").symlink_to(file)
    assert {FileDigests(memory).of(tmp_path / name) for name in "abc"} == {sha256_text("one")}
    assert hashed == ["a"]
    assert FileDigests(memory, verify=True).of(file) == sha256_text("one") and hashed == ["a", "a"]


def test_a_changed_file_is_read_again(tmp_path: Path, hashed: list[str]) -> None:
    memory, file = remembered_file(tmp_path)
    before = file.stat()
    for content in ("two", "three"):  # of the same size, and of another
        file.write_text(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 2 * 10**9 * (len(content) == 3)))  # coarse clocks of file systems see it, too
        assert FileDigests(memory).of(file) == sha256_text(content)
    other = tmp_path / "other"
    other.write_text("uno")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)  # size and time are the same, the inode is not
    assert FileDigests(memory).of(file) == sha256_text("uno") and len(hashed) == 4


def test_bits_that_change_on_the_disk_are_seen_by_verify_alone(tmp_path: Path) -> None:
    memory, file = remembered_file(tmp_path)
    before = file.stat()
    with file.open("r+") as handle:
        handle.write("0")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert FileDigests(memory).of(file) == sha256_text("one")
    assert FileDigests(memory, verify=True).of(file) == sha256_text("0ne")


def test_a_damaged_memory_is_no_memory(tmp_path: Path, hashed: list[str]) -> None:
    memory, file = remembered_file(tmp_path)
    data = memory.read_bytes()
    for bit in range(0, 8 * len(data), 7):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        memory.write_bytes(damaged)
        assert FileDigests(memory).of(file) == sha256_text("one")
    assert len(hashed) > 100
    memory.write_bytes(b"")
    again = FileDigests(memory)
    again.of(file)
    again.save()
    assert memory.read_bytes() == data


def test_runs_keep_each_others_digests(tmp_path: Path) -> None:
    memory = tmp_path / ".digests.json"
    both = [FileDigests(memory), FileDigests(memory)]
    for name, digests in zip("ab", both, strict=True):
        (tmp_path / name).write_text(name)
        digests.of(tmp_path / name)
    for digests in both:
        digests.save()
    known = FileDigests(memory)._known
    assert sorted(known.values()) == sorted(map(sha256_text, "ab"))
    FileDigests(tmp_path / "absent" / ".digests.json").save()
    assert not (tmp_path / "absent").exists()


def test_another_rank_waits_for_the_first_ones_hash(tmp_path: Path, hashed: list[str]) -> None:
    memory, file = tmp_path / ".digests.json", tmp_path / "a"
    file.write_text("one")

    def first() -> None:
        time.sleep(0.3)
        digests = FileDigests(memory)
        digests.of(file)
        digests.save()

    thread = threading.Thread(target=first)
    thread.start()
    assert FileDigests(memory, patience=30.0).of(file) == sha256_text("one")
    thread.join()
    assert hashed == ["a"]
    (tmp_path / "b").write_text("two")
    assert FileDigests(memory, patience=0.1).of(tmp_path / "b") == sha256_text("two") and hashed == ["a", "b"]


def test_a_folder_is_its_files_by_name_and_content(tmp_path: Path) -> None:
    digests, folder = FileDigests(), tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for name in ("config.json", "sub/weights"):
        (folder / name).write_text(name)
    before = digests.of_place(folder)
    (folder / ".weights.1.tmp").write_text("half")
    os.utime(folder / "config.json")
    assert digests.of_place(folder) == before and files_below(folder) == ["config.json", "sub/weights"]
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "config.json").symlink_to(folder / "config.json")
    (linked / "sub").symlink_to(folder / "sub")
    assert digests.of_place(linked) == before
    (folder / "sub" / "loop").symlink_to(folder)
    assert digests.of_place(folder) == before
    (folder / "sub" / "weights").write_text("other")
    assert digests.of_place(linked) not in (before, None) and digests.of_place(tmp_path / "absent") is None
    run = tmp_path / "run"
    (run / "encoder").mkdir(parents=True)
    (run / "encoder" / "w").write_text("w")
    (run / "config.yaml").write_text("name: run")
    of_run = digests.of_place(run)
    (run / "report.html").write_text("page")
    assert digests.of_place(run) == of_run == digests.of_place(run / "encoder")
