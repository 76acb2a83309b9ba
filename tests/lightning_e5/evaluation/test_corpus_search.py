"""The search verb: its answer, and the embeddings that a run directory keeps."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lightning_e5.errors import UserError
from lightning_e5.evaluation.corpus_search import search, search_interactively
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.text_files import PASSAGE_LETTERS, load_text_files


@pytest.fixture
def run_directory(tmp_path: Path, small_bert, small_tokenizer, texts: list[str]) -> Path:  # type: ignore[no-untyped-def]
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "run" / "encoder")
    folder = tmp_path / "run" / "stages" / "data" / "test"
    folder.mkdir(parents=True)
    rows = [json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(texts[:30])]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "run"


def test_a_run_keeps_the_embeddings_and_answers_the_same(run_directory: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = search(run_directory, texts[7], k=3)
    assert first.splitlines()[2].startswith("1. ") and len([line for line in first.splitlines() if line[:1].isdigit()]) == 4
    assert "30 passages" in first
    kept = list((run_directory / "search_cache").glob("*/shard-00000.npy"))
    assert len(kept) == 1
    embedded: list[int] = []
    embed = TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda self, t, *a, **k: embedded.append(len(t)) or embed(self, t, *a, **k))
    assert search(run_directory, texts[7], k=3) == first
    assert embedded == [1]  # the query alone
    monkeypatch.setenv("XDG_CACHE_HOME", str(run_directory / "cache"))
    alone = search(run_directory / "encoder", texts[7], k=3, corpus=str(run_directory / "stages" / "data" / "test"))
    assert alone.splitlines()[2:] == first.splitlines()[2:]
    assert not (run_directory / "encoder" / "search_cache").exists()


def test_k_beyond_the_corpus_and_below_one(run_directory: Path) -> None:
    assert "30. " in search(run_directory, "a text", k=100)
    with pytest.raises(UserError, match="-k: 0"):
        search(run_directory, "a text", k=0)


def test_question_after_question_from_the_same_index(run_directory: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[int] = []
    embed = TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda self, t, *a, **k: embedded.append(len(t)) or embed(self, t, *a, **k))
    said: list[str] = []
    search_interactively(run_directory, k=2, lines=[texts[3], f"  {texts[9]} ", "", "never read"], say=said.append)
    assert embedded == [30, 1, 1]  # the corpus once, then each question
    assert "30 passages" in said[0] and "an empty line ends" in said[0] and len(said) == 3
    for answer, text in zip(said[1:], (texts[3], texts[9]), strict=True):
        whole = search(run_directory, text, k=2)
        assert whole.endswith(answer[: answer.rindex("\n(")])
        assert answer.rstrip().endswith(" ms)")


def test_interactive_from_a_pipe(run_directory: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lightning_e5.__main__ import main

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{texts[3]}\n{texts[4]}\n"))
    assert main(["search", str(run_directory), "--interactive", "-k", "1"]) == 0
    assert capsys.readouterr().out.count("\n1. ") == 2
    assert main(["search", str(run_directory), "a text", "--interactive"]) == 2
    assert "--interactive: asks for the texts itself" in capsys.readouterr().err
    assert main(["search", str(run_directory), "  "]) == 2
    assert "the text to search for is empty" in capsys.readouterr().err


def test_a_folder_of_documents(run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "documents"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden" / "x.md").write_text("never found")
    (folder / "code.py").write_text("no document")
    (folder / "a.md").write_text("\ufeff# Title\r\n\r\n" + "first " * 120 + "\r\n\r\n" + "second " * 60, encoding="utf-8")
    (folder / "b.html").write_text("<html><head><title>no</title><style>p{}</style></head><body><p>one &amp; two</p><script>x()</script><p>three</p></body></html>")
    (folder / "empty.txt").write_text("\n\n")
    passages = load_text_files(folder)
    assert list(passages) == ["a.md:1", "a.md:5", "b.html:1"]
    assert passages["a.md:1"].startswith("# Title\n\nfirst") and passages["a.md:5"].startswith("second")
    assert passages["b.html:1"].split() == ["one", "&", "two", "three"]
    assert all(len(p) <= PASSAGE_LETTERS for p in passages.values())
    (folder / "pictures.html").write_text("<html><head><title>no</title></head><body><img src=x><script>y()</script></body></html>")
    answer = search(run_directory / "encoder", "one and two", corpus=str(folder), k=3)
    assert "3 passages" in answer and "a.md:5" in answer
    assert f"; 2 documents give no text, the first is {folder / 'empty.txt'}" in answer
    assert len(list((tmp_path / "cache/lightning_e5/search").glob("*/manifest.json"))) == 1


def test_what_is_no_corpus_is_said(run_directory: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for corpus, message in ((empty, "neither a folder in BEIR layout .has no corpus.jsonl. nor one with documents"), (tmp_path / "absent", "no such directory")):
        with pytest.raises(UserError, match=message):
            search(run_directory, "a text", corpus=str(corpus))
    (empty / "page.html").write_text("<html><body><script>x()</script></body></html>")
    with pytest.raises(UserError, match=r"none of its 1 documents gives a text, the first is .*page\.html"):
        search(run_directory, "a text", corpus=str(empty))
    (empty / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin.txt: not valid UTF-8 \(byte 3"):
        search(run_directory, "a text", corpus=str(empty))
    with pytest.raises(UserError, match="has no test collection of its own"):
        search(run_directory / "encoder", "a text")
