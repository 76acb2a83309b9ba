"""What is gathered from the cache is what the tokenizer gives, and a cache that is not whole is refused."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_modules.token_cache import TokenCache, stream_token_cache, write_token_cache
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_checked, verify_manifest, write_checked
from lightning_e5.text import TextTokenizer, text_id, texts_digest


def cached(directory: Path, texts: Sequence[str], tokenizer: TextTokenizer, shard_rows: int = 1000) -> TokenCache:
    columns = {"query": (list(texts), "query"), "passage": (list(reversed(texts)), "passage")}
    write_token_cache(directory, columns, tokenizer, shard_rows=shard_rows)  # type: ignore[arg-type]
    return TokenCache(directory)


@pytest.mark.parametrize("shard_rows", [7, 64, 10_000])
def test_gathered_is_tokenised(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer, shard_rows: int) -> None:
    texts = [*texts[:100], "", "  ", "x" * 3000, "\ud800 lone", "Ünïcode"]
    cache = cached(tmp_path, texts, small_tokenizer, shard_rows)
    assert cache.rows == len(texts) and len(list(tmp_path.glob("*.arrow"))) == -(-len(texts) // shard_rows)
    draw = np.random.default_rng(0)
    choices = [np.arange(len(texts)), draw.integers(len(texts), size=40), np.array([3, 3, 0]), np.array([len(texts) - 1]), np.array([], int)]
    for rows in choices:
        for column, kind, source in (("query", "query", texts), ("passage", "passage", texts[::-1])):
            expected = small_tokenizer.encode([source[r] for r in rows], kind)  # type: ignore[arg-type]
            found = cache.gather(column, rows)
            assert [f.dtype for f in found] == [np.int64, np.int64]
            assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
            assert cache.text_ids(column, rows).tolist() == [text_id(source[r]) for r in rows]
    assert np.array_equal(cache.lengths("query"), small_tokenizer.encode(texts, "query")[1])
    manifest = verify_manifest(tmp_path)
    assert manifest["tokens"] == int(cache.lengths("query").sum() + cache.lengths("passage").sum())
    assert manifest["texts_at_length_limit"] == int((np.concatenate([cache.lengths(c) for c in ("query", "passage")]) == 48).sum())


def test_equal_texts_have_equal_ids(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    copies = ["Read a file", "read  a FILE", " read\ta\nfile ", "ｒｅａｄ a file", "read a ﬁle"]
    others = ["read a file.", "reada file", ""]
    cache = cached(tmp_path, [*copies, *others], small_tokenizer, shard_rows=3)
    ids = cache.text_ids("query", np.arange(len(copies) + len(others)))
    assert len(set(ids[: len(copies)].tolist())) == 1
    assert len(set(ids.tolist())) == 1 + len(others) and ids.min() >= 0
    assert ids.tolist()[::-1] == cache.text_ids("passage", np.arange(len(ids))).tolist()


def test_progress_counts_every_text(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    done: list[int] = []
    columns = {"text": (["a"] * 20, "query")}
    write_token_cache(tmp_path, columns, small_tokenizer, progress=done.append, shard_rows=6)  # type: ignore[arg-type]
    assert sum(done) == 20


@pytest.mark.parametrize("columns", [{}, {"a": []}, {"a": ["x"], "b": ["x", "y"]}])
def test_nothing_to_tokenise(tmp_path: Path, small_tokenizer: TextTokenizer, columns: dict[str, list[str]]) -> None:
    with pytest.raises(UserError, match=r"nothing to tokenise|unequal length"):
        write_token_cache(tmp_path, {n: (t, "query") for n, t in columns.items()}, small_tokenizer)
    assert not (tmp_path / "manifest.json").exists()


def test_unfinished_and_other_directories(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    cached(tmp_path / "cache", ["a", "b"], small_tokenizer)
    manifest = tmp_path / "cache" / "manifest.json"
    content = read_checked(manifest)
    manifest.unlink()
    with pytest.raises(UserError, match=r"cache: has no manifest\.json, so it is unfinished"):
        TokenCache(tmp_path / "cache")
    write_checked(manifest, {**content, "kind": "pairs"})
    with pytest.raises(UserError, match="holds 'pairs', not 'tokens'"):
        TokenCache(tmp_path / "cache")
    manifest.write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: not a JSON file"):
        TokenCache(tmp_path / "cache")
    with pytest.raises(UserError, match="absent: no such directory"):
        TokenCache(tmp_path / "absent")


def test_a_damaged_file_is_named(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    cached(tmp_path, texts[:30], small_tokenizer, shard_rows=10)
    path = tmp_path / "tokens-00001.arrow"
    data = path.read_bytes()
    draw = random.Random(0)
    cuts = [0, 1, 8, len(data) // 2, len(data) - 1, *(draw.randrange(len(data)) for _ in range(20))]
    for damaged in [*(data[:cut] for cut in cuts), b"\0" * len(data), draw.randbytes(len(data)), data[::-1]]:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokens-00001\.arrow: not a token cache"):
            TokenCache(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"tokens-00001\.arrow: not a token cache"):
        TokenCache(tmp_path)
    path.write_bytes(data)
    assert TokenCache(tmp_path).rows == 30


def test_equal_texts_give_equal_files(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    cached(tmp_path / "a", texts[:20], small_tokenizer)
    cached(tmp_path / "b", texts[:20], small_tokenizer)
    assert (tmp_path / "a/tokens-00000.arrow").read_bytes() == (tmp_path / "b/tokens-00000.arrow").read_bytes()
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_sent_to_another_process_it_is_its_place_not_its_content(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer) -> None:
    cache = cached(tmp_path, texts * 10, small_tokenizer)
    rows = np.array([5, 2])
    found = cache.gather("query", rows)
    sent = pickle.dumps(cache)
    assert len(sent) < 2000, "a cache of hundreds of gigabytes cannot be copied into every data-loading process"
    assert np.array_equal(pickle.loads(sent).gather("query", rows)[0], found[0])


def shard_of(columns: dict[str, tuple[list[str], str]], rows: slice, tokenizer: TextTokenizer, path: Path) -> bytes:
    """A shard as one batch of arrays in memory, written at once."""
    arrays: dict[str, Any] = {}
    for name, (texts, kind) in columns.items():
        ids, lengths = tokenizer.encode(texts[rows], kind)  # type: ignore[arg-type]
        arrays[name] = pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), ids)
        arrays[f"{name}_text"] = pa.array(np.array([text_id(t) for t in texts[rows]]))
    batch = pa.record_batch(arrays)
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    return path.read_bytes()


@pytest.mark.parametrize("block", [1, 13, 64])
def test_texts_that_come_in_blocks_give_the_files_of_texts_in_memory(tmp_path: Path, texts: list[str], small_tokenizer: TextTokenizer, block: int) -> None:
    texts = [*texts[:90], "", "\ud800 lone"]
    columns = {"query": (texts, "query"), "passage": (texts[::-1], "passage")}
    write_token_cache(tmp_path / "whole", columns, small_tokenizer, shard_rows=40)  # type: ignore[arg-type]
    blocks = ({name: of[first : first + block] for name, (of, _) in columns.items()} for first in range(0, len(texts), block))
    kinds: Any = {"query": "query", "passage": "passage"}
    stream_token_cache(tmp_path / "blocks", blocks, kinds, len(texts), small_tokenizer, shard_rows=40)
    names = [*(f"tokens-{number:05d}.arrow" for number in range(3)), "manifest.json"]
    for folder in ("whole", "blocks"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == sorted(names)
    for number, name in enumerate(names):
        found = (tmp_path / "blocks" / name).read_bytes()
        assert found == (tmp_path / "whole" / name).read_bytes()
        if name != "manifest.json":
            own = slice(40 * number, 40 * number + 40)
            assert found == shard_of(columns, own, small_tokenizer, tmp_path / name)
            assert found != shard_of({"query": (texts[::-1], "query"), "passage": (texts, "passage")}, own, small_tokenizer, tmp_path / name)
    assert read_checked(tmp_path / "blocks" / "manifest.json")["texts"]["query"] == texts_digest(texts)


def test_a_tokenizer_that_fails_leaves_no_cache(tmp_path: Path, small_tokenizer: TextTokenizer) -> None:
    with pytest.raises(UserError, match="number 1 is a int, not a text"):
        stream_token_cache(tmp_path, [{"query": ["a", 3]}], {"query": "query"}, 2, small_tokenizer)  # type: ignore[dict-item,list-item]
    assert list(tmp_path.iterdir()) == []
