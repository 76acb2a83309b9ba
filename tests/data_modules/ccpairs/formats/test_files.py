"""Names and patterns of files, and what changes when a file does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_modules.ccpairs.formats.files import expand, file_fingerprint
from lightning_e5.errors import UserError


def test_patterns_and_fingerprints(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", "[x].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    a, b, c, x = (tmp_path / name for name in ("a.txt", "b.txt", "deep/c.txt", "[x].txt"))
    assert expand([str(b), f"{tmp_path}/*.txt"]) == [b, x, a]
    assert expand(str(x)) == [x]
    assert expand([f"{tmp_path}/**/*.txt"]) == sorted([a, b, c, x])
    for bad, message in (([], "empty"), ("nothing.txt", "no such file"), (f"{tmp_path}/*.z", "matches no file")):
        with pytest.raises(UserError, match=message):
            expand(bad)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"):
        expand([tmp_path / "pipe"])
    with pytest.raises(UserError, match="is a directory"):
        expand([tmp_path])
    before = file_fingerprint([a])
    assert before == file_fingerprint([a])
    a.write_text("longer than it was")
    assert before != file_fingerprint([a])
