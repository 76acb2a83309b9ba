"""Files as streams of lines: every compression, what is bad is counted with its place, memory is bounded."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from lightning_e5.errors import UserError
from lightning_e5.files import lines as lines_module
from lightning_e5.files import streams
from lightning_e5.files.lines import json_rows, json_values, lines, refuse_constant, text_lines, without_surrogates
from lightning_e5.files.streams import open_stream
from lightning_e5.types import ReadReport

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
ROWS = [{"id": n, "text": f"row {n} {os.urandom(40).hex()}"} for n in range(4000)]
DATA = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def read(path: Path, max_bytes: int = 2**20) -> tuple[list[dict], ReadReport]:
    report = ReadReport()
    return [row for _, row in json_rows(path, report, max_bytes)], report


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_every_compression_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(COMPRESS.get(suffix, bytes)(DATA))
    with open_stream(path) as stream:
        assert stream.read(9) == DATA[:9]
    rows, report = read(path)
    assert rows == ROWS
    assert report.counts == {"records": len(ROWS)}
    assert report.bad == []


@pytest.mark.parametrize("suffix", COMPRESS)
def test_members_one_after_the_other_are_one_stream(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(b"".join(COMPRESS[suffix](DATA[at : at + 99_999]) for at in range(0, len(DATA), 99_999)))
    assert read(path)[0] == ROWS


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_broken_off_archive_is_used_up_to_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    # Two members: bzip2 and xz give nothing of an unfinished block.
    whole, cut = COMPRESS[suffix](DATA), COMPRESS[suffix](DATA)
    path.write_bytes(whole + cut[: len(cut) * 2 // 3])
    rows, report = read(path)
    assert rows[: len(ROWS)] == ROWS
    assert rows[len(ROWS) :] == ROWS[: len(rows) - len(ROWS)]
    assert len(rows) < 2 * len(ROWS)
    [(place, reason)] = report.bad
    assert reason == "archive breaks off"
    assert place.startswith(f"{path}: after byte ") and int(place.split()[3]) >= len(DATA)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_wrong_bytes_within_an_archive_are_counted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    damaged = bytearray(COMPRESS[suffix](DATA))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 64] = b"\xff" * 64
    path.write_bytes(COMPRESS[suffix](DATA) + bytes(damaged))
    rows, report = read(path)
    assert rows[: len(ROWS)] == ROWS
    assert (
        report.counts["bad: archive is damaged"] + report.counts["bad: not JSON"] + report.counts["bad: not UTF-8"] >= 1
    )


def test_a_window_of_two_gibibytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "RC_2020-01.zst"
    # A frame of one raw block, "{}\n", whose header asks for a window of 2**31 bytes as Pushshift's do.
    path.write_bytes(bytes.fromhex("28b52ffd00a8190000") + b"{}\n")
    with pytest.raises(zstandard.ZstdError, match="memory"):
        zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    assert read(path)[0] == [{}]


def test_a_file_that_is_not_what_its_suffix_says_is_refused(tmp_path: Path) -> None:
    for suffix in COMPRESS:
        path = tmp_path / f"plain{suffix}"
        path.write_bytes(DATA)
        with pytest.raises(UserError, match="does not begin as a"):
            read(path)


def test_bad_lines_are_counted_with_their_place_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"n": 1}\r\n'  # a byte order mark, a Windows line end
        b'{"n": "\xff"}\n' + b"[" * 100_000 + b"\n"
        b'{"n": NaN}\n[1]\n{"n": \n\n' + b'{"n": "' + b"x" * 300_000 + b'"}\n'
        b'{"n": "\xe2\x80\xa8\\u2028"}\n'  # Unicode's line separators are no line ends
        b'{"n": "a\\ud83dz", "\\udc00": ["\\ud83d\\ude00"]}\n' + b"1" * 6000 + b'\n{"n": 2}'
    )
    rows, report = read(path, max_bytes=200_000)
    assert rows == [{"n": 1}, {"n": "\u2028\u2028"}, {"n": "a\ufffdz", "\ufffd": ["\U0001f600"]}, {"n": 2}]
    assert report.bad == [
        (f"{path}:2", "not UTF-8"),
        (f"{path}:3", "nested too deep"),
        (f"{path}:4", "not JSON"),
        (f"{path}:5", "not a JSON object"),
        (f"{path}:6", "not JSON"),
        (f"{path}:8", "line too long"),
        (f"{path}:11", "not JSON"),
    ]
    assert report.counts["cleaned: lone surrogates"] == 1


def test_lines_across_blocks_and_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    given = [b"a" * 2**18, b"", b"b" * 1000, b"c" * 700_000, b"d" * 700_001, b"e"]
    path.write_bytes(b"\n".join(given))
    report = ReadReport()
    assert list(lines(path, report, 700_000)) == [(n, line) for n, line in enumerate(given, 1) if n != 5]
    assert report.bad == [(f"{path}:5", "line too long")]


@pytest.mark.parametrize("suffix", ["", ".zst", ".gz"])
def test_a_line_that_never_ends_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"long{suffix}"
    path.write_bytes(COMPRESS.get(suffix, bytes)(b'{"a": 1}\n' + b"x" * 40_000_000 + b'\n{"a": 2}\n'))
    tracemalloc.start()
    try:
        rows, report = read(path, max_bytes=2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == [{"a": 1}, {"a": 2}]
    assert report.bad == [(f"{path}:2", "line too long")]
    # a kibibyte of zstd's input may stand for 32 MiB, held twice while its pieces are joined
    assert peak < (70_000_000 if suffix == ".zst" else 8_000_000)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(tmp_path: Path, encoding: str, suffix: str) -> None:
    text = "".join(json.dumps({"n": n, "text": "naïve 🙂 \u2028"}, ensure_ascii=False) + "\r\n" for n in range(9000))
    mark = "\ufeff" if encoding.endswith("-be") else ""
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(COMPRESS.get(suffix, bytes)((mark + text).encode(encoding)))
    rows, report = read(path)
    assert rows == [{"n": n, "text": "naïve 🙂 \u2028"} for n in range(9000)]
    assert report.bad == []
    assert [line for _, line in text_lines(path)] == text.removesuffix("\r\n").split("\r\n")


def test_damage_within_utf_16_costs_its_line_or_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": 1}\n{"a": "'.encode("utf-16-le") + b"\x3d\xd8" + '"}\n{"a": 2}\n'.encode("utf-16-le"))
    rows, report = read(path)
    assert rows == [{"a": 1}, {"a": 2}]
    assert report.bad == [(f"{path}:2", "not UTF-8")]
    path.write_bytes('\ufeff{"a": 1}\n{"a"'.encode("utf-16-le") + b"x")
    rows, report = read(path)
    assert rows == [{"a": 1}]
    assert [reason for _, reason in report.bad] == ["text breaks off within a character"]


def test_text_lines_count_what_is_bad_or_stop_at_it(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"a\xc2\x85b\r\n \t\n\xff\nc\n")
    report = ReadReport()
    assert list(text_lines(path, report)) == [(1, "a\x85b"), (4, "c")]
    assert report.bad == [(f"{path}:3", "not UTF-8")]
    with pytest.raises(UserError, match=r"lines\.txt:3: not UTF-8$"):
        list(text_lines(path))
    with pytest.raises(UserError, match=r"lines\.txt:1: line too long$"):
        list(text_lines(path, max_bytes=3))
    cut = tmp_path / "lines.gz"
    cut.write_bytes(gzip.compress(DATA)[:-5000])
    with pytest.raises(UserError, match=r"lines\.gz: after byte [0-9]+ of its plain text: archive breaks off$"):
        list(text_lines(cut))


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "is no regular file"), ("", "is a directory"), ("none", "no such file")):
        with pytest.raises(UserError, match=message):
            open_stream(tmp_path / name)


def _plainly(data: bytes, max_bytes: int) -> tuple[list[tuple[int, object]], list[tuple[int, str]]]:
    """(number, value) of the lines and (number, reason) of the bad ones, with what the standard library does at its slowest."""
    decoder = json.JSONDecoder(parse_constant=refuse_constant)
    values: list[tuple[int, object]] = []
    bad = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(line) > max_bytes:
            bad.append((number, "line too long"))
        elif line.strip():
            try:
                value = decoder.decode(line.decode("utf-8"))
                cut = b"\\ud" in line or b"\\uD" in line
                values.append((number, without_surrogates(value) if cut else value))
            except UnicodeDecodeError:
                bad.append((number, "not UTF-8"))
            except RecursionError:
                bad.append((number, "nested too deep"))
            except ValueError:
                bad.append((number, "not JSON"))
    return values, bad


AWKWARD = [
    b'{"a": 1}', b' \t{"a": 2}\r', b"[1, 2]\r\r", b"\x0b[3]", b"[4]\x0c", b"\x0b \x0c", b"\t\r", b"", b"\xc2\xa0[5]", b"\xef\xbb\xbf[6]", b"[7] [8]",
    b"[9],", b'"x" ', b"-", b"1e999", b"-Infinity", b"nan", b"NaN", b"[NaN]", b'{"a": "\\ud83d"}', b'{"a": "\\uD83D\\uDE00"}', b'"\\\\ud83d"', b'"\\u00e9\\uDCFF"',
    b"tru", b"null", b"0 0", b'"\x01"', b'"\xed\xa0\x80"', b'"\xff"', b"[" * 90_000, b'"' + b"y" * 999 + b'"', b'{"a": 1, "a": 2}', b'{"k": "\xe2\x80\xa8"}\xe2\x80\xa8',
]  # fmt: skip


@pytest.mark.parametrize("block_bytes", [2, 7, 64, 2**18])
def test_awkward_lines_are_read_as_the_standard_library_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(streams, "_BLOCK_BYTES", block_bytes)
    draw = random.Random(block_bytes)
    path = tmp_path / "rows.jsonl"
    for limit in (200_000, 1000, 9):
        given = [draw.choice(AWKWARD) for _ in range(400 if block_bytes == 2**18 else 60)]
        path.write_bytes(b"\n".join(given))
        report = ReadReport()
        found = [(int(place.rpartition(":")[2]), value) for place, value in json_values(path, report, limit)]
        values, bad = _plainly(path.read_bytes(), limit)
        assert found == values and len(report.bad) == min(20, len(bad))
        assert report.bad == [(f"{path}:{number}", reason) for number, reason in bad[:20]]
        assert report.counts["records"] == len(values) + sum(reason != "line too long" for _, reason in bad)
        assert values and bad


@pytest.mark.parametrize(("name", "other"), [("_JSON_SPACES", None), ("_SURROGATE", lambda line: None)])
def test_a_reader_that_leaves_out_a_check_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: object
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(AWKWARD))
    values, _ = _plainly(path.read_bytes(), 200_000)
    assert [value for _, value in json_values(path, ReadReport(), 200_000)] == [value for _, value in values]
    monkeypatch.setattr(lines_module, name, other)
    assert [value for _, value in json_values(path, ReadReport(), 200_000)] != [value for _, value in values]
