"""Documents in the encodings that they are found in."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_e5.errors import UserError
from lightning_e5.retrieval.text_files import load_text_files


def test_documents_in_any_encoding(tmp_path: Path) -> None:
    page = "<html><head><meta charset='{}'><title>t</title></head><body><p>Der Fluß naht.</p></body></html>"
    (tmp_path / "a.html").write_bytes(page.format("iso-8859-1").encode("latin-1"))
    (tmp_path / "b.html").write_bytes(page.format("iso-8859-1").encode("utf-8-sig"))
    (tmp_path / "c.html").write_bytes(page.format("none").encode())
    (tmp_path / "d.txt").write_bytes("Der Fluß naht.\r\n".encode("utf-16"))
    (tmp_path / "e.md").write_bytes("Der Fluß naht.".encode("utf-8-sig"))
    assert [text.strip() for text in load_text_files(tmp_path).values()] == ["Der Fluß naht."] * 5


@pytest.mark.parametrize(("content", "message"), [(b"na\xefve", "not valid UTF-8"), (b"\xff\xfea\0b", "text breaks off within a character")])
def test_text_that_is_none_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.txt.*{message}"):
        load_text_files(tmp_path)
