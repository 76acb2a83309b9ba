"""Raw files as streams: compressed or plain bytes, lines, JSON objects, at bounded memory, with what is bad reported.

A bad record is counted with its place and skipped. An archive that breaks off is used up to where it breaks. A file
that is not what its suffix says is a `UserError`.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from lightning_e5.errors import UserError

if TYPE_CHECKING:
    from lightning_e5.types import ReadReport

#: Longest line that is read, in bytes; longer ones are skipped without being held.
MAX_LINE_BYTES = 16 * 2**20
#: Pushshift's dumps are written with a window of 2 GiB, past the library's default limit of 128 MiB.
MAX_ZSTD_WINDOW = 2**31
#: 4 bytes of zstd may stand for 128 KiB, so this much input gives at most 32 MiB at once.
_ZSTD_INPUT_BYTES = 2**10
_BLOCK_BYTES = 2**18
#: suffix -> (name of the format, first bytes that such a file may have)
_MAGIC: dict[str, tuple[str, tuple[bytes, ...]]] = {
    ".gz": ("gzip", (b"\x1f\x8b",)),
    ".bz2": ("bzip2", (b"BZh",)),
    ".xz": ("xz", (b"\xfd7zXZ\x00",)),
    ".zst": ("zstd", (b"\x28\xb5\x2f\xfd", *(bytes([n]) + b"\x2a\x4d\x18" for n in range(0x50, 0x60)))),
}


class DamagedFile(Exception):
    """A stream that cannot be read further; ``place`` says where, ``reason`` why."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.place, self.reason = place, reason


def expand(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that names and glob patterns (``**`` goes into directories) stand for, each once, sorted per pattern.

    Raises:
        UserError: nothing is given, a name is no file, or a pattern matches no file.
    """
    found: dict[Path, None] = {}
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise UserError("paths: is empty; give at least one file or pattern")
    for item in given:
        path = Path(item).expanduser()
        if path.is_file():
            found[path] = None
            continue
        if not glob.has_magic(str(path)):
            raise UserError(
                f"{path}: is a directory; give files or a pattern" if path.is_dir() else f"{path}: no such file"
            )
        matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not matches:
            raise UserError(f"paths: the pattern {str(item)!r} matches no file")
        found.update(dict.fromkeys(matches))
    return list(found)


def file_fingerprint(paths: Sequence[Path]) -> list[list[Any]]:
    """[path, bytes, time of the last change in ns] of every file, which changes when a file does."""
    return [[str(path), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in map(Path, paths)]


def open_stream(path: Path | str) -> IO[bytes]:
    """Open a plain, .gz, .bz2, .xz or .zst file as a stream of its plain bytes.

    Raises:
        UserError: there is no such file, or it does not begin as a file of its suffix does.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in _MAGIC:
        return path.open("rb", buffering=_BLOCK_BYTES)
    name, beginnings = _MAGIC[suffix]
    with path.open("rb") as handle:
        head = handle.read(8)
    # What is shorter than the mark may be cut off within it.
    if not any(head[: len(mark)] == mark[: len(head)] for mark in beginnings):
        raise UserError(f"{path}: does not begin as a {name} file")
    if suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if suffix == ".bz2":
        return bz2.open(path, "rb")
    if suffix == ".xz":
        return lzma.open(path, "rb")
    return io.BufferedReader(_ZstdReader(path), _BLOCK_BYTES)


def blocks(path: Path | str) -> Iterator[bytes]:
    """The plain bytes of a file, block by block (at most 256 KiB).

    Raises:
        DamagedFile: after the last block that could be read, when the archive breaks off or holds wrong bytes.
    """
    done = 0
    with open_stream(path) as stream:
        while True:
            try:
                # One read of what is below at a time: a longer read would lose what came before the damage.
                block = stream.read1(_BLOCK_BYTES)  # type: ignore[attr-defined]
            except (EOFError, zlib.error, lzma.LZMAError, _ZstdDamage) as error:
                _damaged(path, done, error)
            except OSError as error:
                if error.errno is not None:  # the disk's fault, not the archive's
                    raise
                _damaged(path, done, error)
            if not block:
                return
            done += len(block)
            yield block


def _damaged(path: Path | str, done: int, error: BaseException) -> NoReturn:
    reason = "archive breaks off" if isinstance(error, EOFError) else "archive is damaged"
    raise DamagedFile(f"{path}: after byte {done} of its plain text", reason) from error


def lines(path: Path | str, report: ReadReport, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its ``\\n``) of a file; lines end at ``\\n`` alone.

    Args:
        path: a file that `open_stream` opens.
        report: gets the lines over the limit and the place where a damaged archive breaks off; the piece of a line
            before the break is left out.
        max_bytes: longer lines are skipped and never held.
    """
    number, held, too_long = 1, bytearray(), False
    try:
        for block in blocks(path):
            *ended, rest = block.split(b"\n")
            for piece in ended:
                if too_long or len(held) + len(piece) > max_bytes:
                    report.reject(f"{path}:{number}", "line too long")
                else:
                    yield number, bytes(held) + piece
                number, too_long = number + 1, False
                held.clear()
            if too_long or len(held) + len(rest) > max_bytes:
                too_long = True
                held.clear()
            else:
                held += rest
    except DamagedFile as damage:
        report.reject(damage.place, damage.reason)
        return
    if too_long:
        report.reject(f"{path}:{number}", "line too long")
    elif held:
        yield number, bytes(held)


def json_rows(
    path: Path | str, report: ReadReport, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place ``file:line``, object) of every line of a JSONL file that holds a JSON object; see `json_values`."""
    for place, row in json_values(path, report, max_bytes):
        if isinstance(row, dict):
            yield place, row
        else:
            report.reject(place, "not a JSON object")


def json_values(path: Path | str, report: ReadReport, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[str, Any]]:
    """(place ``file:line``, value) of every line of a JSONL file; empty lines are passed over.

    Counts ``records`` and, for values in which lone surrogates became U+FFFD, ``cleaned: lone surrogates``.

    Args:
        path: a file that `open_stream` opens.
        report: gets every line that is not UTF-8, no JSON (NaN and Infinity are none) or nested too deep.
        max_bytes: longest line.
    """
    for number, line in lines(path, report, max_bytes):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        report.counts["records"] += 1
        place = f"{path}:{number}"
        try:
            row = _DECODER.decode(line.decode("utf-8"))
            if b"\\ud" in line or b"\\uD" in line:
                cleaned = without_surrogates(row)
                if cleaned != row:
                    report.counts["cleaned: lone surrogates"] += 1
                row = cleaned
        except UnicodeDecodeError:
            report.reject(place, "not UTF-8")
        except RecursionError:
            report.reject(place, "nested too deep")
        except ValueError:
            report.reject(place, "not JSON")
        else:
            yield place, row


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_not_a_number)


def without_surrogates(value: Any) -> Any:
    """A JSON value with U+FFFD in place of the lone surrogates of its strings, which UTF-8 cannot hold."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
        return value
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


class _ZstdDamage(Exception):
    """A zstd stream that holds wrong bytes."""


class _ZstdReader(io.RawIOBase):
    """The plain bytes of all frames of a .zst file; EOFError where it ends within a frame.

    The library's own stream reader ends a broken-off file without a word, so frames are followed here.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        self._file = path.open("rb", buffering=_BLOCK_BYTES)
        self._frame: Any = None
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            data = self._input or self._file.read(_ZSTD_INPUT_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            if self._frame is None:
                self._frame = self._decompressor.decompressobj()
            try:
                self._output = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise _ZstdDamage(str(error)) from error
            self._input = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
