"""Reading fine-tuning files in bounded memory: huge JSON arrays an element at a time, and what is a text in a row."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.hub import is_on_hub, local_file
from lightning_e5.files.lines import as_utf8
from lightning_e5.files.rows import DECODER, check_text
from lightning_e5.files.streams import DamagedFile, blocks
from lightning_e5.types import ReadReport

#: Characters read at once from a JSON array, and the most that one of its elements may have.
_CHUNK = 1 << 20
_LARGEST_ELEMENT = 1 << 26


def existing(path: Path | str, key: str) -> Path:
    """The path, as a file that is there, or ``<path>.gz`` beside it; UserError names the YAML's ``key``.

    A file on the Hub, ``hf://datasets/OWNER/NAME/PATH``, is fetched (see `lightning_e5.files.hub`).
    """
    if is_on_hub(path):
        return local_file(path)
    for found in (Path(path), Path(f"{path}.gz")):
        if found.is_file():
            return found
    if Path(path).exists():
        raise UserError(f"{key}: {path}: {'is a directory' if Path(path).is_dir() else 'is no regular file'}, not a file")
    raise UserError(f"{key}: {path}: no such file (nor {Path(path).name}.gz)")


def files_identity(paths: Sequence[Path]) -> list[list[Any]]:
    """Name, size and time of files: what changes when they do."""
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]


def json_array(path: Path, report: ReadReport, *, chunk: int = _CHUNK) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file: element n``, object) of a file that is one JSON array of objects, an element at a time.

    Args:
        path: the file; its size does not matter, one element and a chunk are in memory.
        report: counts the records; elements that are no objects are rejected.
        chunk: characters read at once.

    Raises:
        UserError: no JSON array, cut off, or an element that is damaged (what follows it cannot be found again).
    """
    check_text(path, "JSON (one array)")
    decoder = DECODER
    text = _Buffer(path, chunk)
    if text.next_character() != "[":
        raise UserError(f"{path}: not a JSON array (it does not start with '[')")
    text.drop(1)
    number = 0
    while (character := text.next_character()) != "]":
        if number:
            if character != ",":
                raise UserError(f"{path}: after element {number - 1} comes {character!r}, not ',' or ']'")
            text.drop(1)
            text.next_character()
        element = text.decode(decoder, number)
        report.counts["records"] += 1
        if isinstance(element, dict):
            yield f"{path}: element {number}", element
        else:
            report.reject(f"{path}: element {number}", "not a JSON object")
        number += 1


class _Buffer:
    """The part of a text that is not parsed yet."""

    def __init__(self, path: Path, chunk: int) -> None:
        self.path, self.chunk = path, chunk
        self.blocks, self.read = as_utf8(blocks(path), path), b""
        self.decode_bytes = codecs.getincrementaldecoder("utf-8")().decode
        self.text, self.start, self.ended = "", 0, False

    def more(self, size: int) -> bool:
        """Read on; False at the end."""
        if self.ended:
            return False
        try:
            while len(self.read) < size and (block := next(self.blocks, None)) is not None:
                self.read += block
            data, self.read = self.read[:size], self.read[size:]
            self.ended = not data
            self.text = self.text[self.start :] + self.decode_bytes(data, self.ended)
        except DamagedFile as damage:
            raise UserError(str(damage)) from None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: cannot be read to its end ({error})") from None
        self.start = 0
        return True

    def next_character(self) -> str:
        """The first character that is not white space, at which ``start`` then is."""
        while True:
            while self.start < len(self.text):
                if not self.text[self.start].isspace():
                    return self.text[self.start]
                self.start += 1
            if not self.more(self.chunk):
                raise UserError(f"{self.path}: the JSON array is cut off (it has no ']')")

    def drop(self, count: int) -> None:
        self.start += count

    def decode(self, decoder: json.JSONDecoder, number: int) -> Any:
        """The JSON value that begins here."""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.start)
                # A bare number may go on in the next chunk; objects cannot.
                if end < len(self.text) or self.ended:
                    self.start = end
                    return value
                problem = "it is cut off"
            except RecursionError:
                raise UserError(f"{self.path}: element {number} is nested too deeply") from None
            except json.JSONDecodeError as error:
                problem = error.msg
            except ValueError as error:  # an integer of more than 4,300 digits, NaN, a key twice
                raise UserError(f"{self.path}: element {number} is not JSON ({str(error).partition(';')[0]})") from None
            waiting = len(self.text) - self.start
            if waiting > _LARGEST_ELEMENT or not self.more(max(self.chunk, waiting)):
                raise UserError(f"{self.path}: element {number} is not JSON ({problem})") from None


def string(value: Any) -> str | None:
    """The text with white space around it cut, or None where it is no usable text (no string, empty, half a surrogate)."""
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value.strip()


def passage_text(row: Any, text_key: str = "text") -> str | None:
    """``"title text"`` of a passage object, as E5 embeds passages; None where it has no usable text."""
    if not isinstance(row, Mapping):
        return None
    text = string(row.get(text_key))
    title = row.get("title")
    if text is None or title in (None, "", "-"):
        return text
    title = string(title)
    return None if title is None else f"{title} {text}"
