"""Files as streams of plain bytes, whatever they are compressed with, at bounded memory.

An archive that breaks off is used up to where it breaks. A file that is not what its suffix says is a `UserError`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from lightning_e5.errors import UserError

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


def regular_file(path: Path | str) -> Path:
    """The path of a file that is there; UserError for what is none: a directory, or a pipe that would be waited for."""
    path = Path(path)
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"{path}: is a directory, not a file")
    raise UserError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}")


def open_stream(path: Path | str) -> IO[bytes]:
    """Open a plain, .gz, .bz2, .xz or .zst file as a stream of its plain bytes.

    Raises:
        UserError: there is no such file, or it does not begin as a file of its suffix does.
    """
    path = regular_file(path)
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
