"""The lines of text files: UTF-8, or UTF-16 by its mark, plain or compressed, at bounded memory, with what is bad reported.

A bad line is counted with its place and skipped; what is read of a damaged archive is what stands before the damage.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from lightning_e5.errors import UserError
from lightning_e5.files.streams import DamagedFile, blocks
from lightning_e5.types import ReadReport

#: Longest line that is read, in bytes; longer ones are skipped without being held.
MAX_LINE_BYTES = 16 * 2**20
#: A file's first bytes -> its encoding; UTF-32's mark begins as UTF-16's does.
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF8, ""),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def as_utf8(parts: Iterable[bytes], name: Path | str) -> Iterator[bytes]:
    """Blocks of a text file as UTF-8 without a byte order mark; a mark of UTF-16 or UTF-32 says how they are decoded.

    Half a surrogate pair stays, as bytes that are not UTF-8, so that the line it stands in is found bad and no other.

    Raises:
        DamagedFile: a file of UTF-16 or UTF-32 that holds other bytes or ends within a character.
    """
    head, decoder, done, iterator = b"", None, 0, iter(parts)
    for block in iterator:
        head += block
        if len(head) >= 4:
            break
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            head = head[len(mark) :]
            decoder = codecs.getincrementaldecoder(encoding)("surrogatepass") if encoding else None
            break
    for block in itertools.chain([head], iterator):
        if decoder is None:
            yield block
            continue
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError:
            raise DamagedFile(f"{name}: after byte {done} of its plain text", "not in the encoding of its byte order mark") from None
        done += len(block)
        yield text.encode("utf-8", "surrogatepass")
    if decoder is not None and decoder.getstate()[0]:
        raise DamagedFile(f"{name}: after byte {done} of its plain text", "text breaks off within a character")


def lines(path: Path | str, report: ReadReport, max_bytes: int = MAX_LINE_BYTES, *, whole: bool = False) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its ``\\n``) of a file; lines end at ``\\n`` alone, and a byte order mark is none of it.

    Args:
        path: a file that `open_stream` opens.
        report: gets the lines over the limit and the place where a damaged archive breaks off; the piece of a line
            before the break is left out.
        max_bytes: longer lines are skipped and never held.
        whole: a damaged archive is a `UserError`.
    """
    number, held, too_long = 1, bytearray(), False
    try:
        for block in as_utf8(blocks(path), path):
            *ended, rest = block.split(b"\n")
            if ended and (held or too_long):
                piece = ended.pop(0)
                if not too_long and len(held) + len(piece) > max_bytes:
                    report.reject(f"{path}:{number}", "line too long")
                elif not too_long:
                    yield number, bytes(held) + piece
                number, too_long = number + 1, False
                held.clear()
            for line in ended:
                if len(line) > max_bytes:
                    report.reject(f"{path}:{number}", "line too long")
                else:
                    yield number, line
                number += 1
            if not too_long and len(held) + len(rest) > max_bytes:
                report.reject(f"{path}:{number}", "line too long")  # at once: its end may be gigabytes away
                too_long = True
                held.clear()
            elif not too_long:
                held += rest
    except DamagedFile as damage:
        if whole:
            raise UserError(str(damage)) from None
        report.reject(damage.place, damage.reason)
        return
    if held:
        yield number, bytes(held)


class _Strict(ReadReport):
    """A report that nothing bad may come to."""

    def reject(self, place: str, reason: str) -> None:
        raise UserError(f"{place}: {reason}")


def text_lines(
    path: Path | str, report: ReadReport | None = None, max_bytes: int = MAX_LINE_BYTES, *, whole: bool = False
) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its line end) of a text file; lines of white space alone are passed over.

    Args:
        path: a file that `open_stream` opens.
        report: gets every line that is too long or not UTF-8, and where an archive breaks off; None makes the first of
            them a `UserError`.
        max_bytes: longest line.
        whole: a damaged archive is a `UserError` with a report, too.

    Raises:
        UserError: without a ``report``, naming the line or the place.
    """
    report = _Strict() if report is None else report
    for number, line in lines(path, report, max_bytes, whole=whole):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError:
            report.reject(f"{path}:{number}", "not UTF-8")
            continue
        if text and not text.isspace():
            yield number, text


def json_rows(
    path: Path | str, report: ReadReport, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place ``file:line``, object) of every line of a raw dump that holds a JSON object; see `json_values`, and `rows.json_objects`."""
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
    name, counts = str(path), report.counts
    for number, line in lines(path, report, max_bytes):
        if not line or line.isspace():
            continue
        counts["records"] += 1
        place = f"{name}:{number}"
        try:
            text = line.decode("utf-8").strip(_JSON_SPACES)
            row, end = _DECODER.raw_decode(text)
            if end != len(text):
                raise ValueError("something follows the value")
            if _SURROGATE(line):
                cleaned = without_surrogates(row)
                if cleaned != row:
                    counts["cleaned: lone surrogates"] += 1
                row = cleaned
        except UnicodeDecodeError:
            report.reject(place, "not UTF-8")
        except RecursionError:
            report.reject(place, "nested too deep")
        except ValueError:
            report.reject(place, "not JSON")
        else:
            yield place, row


def refuse_constant(name: str) -> NoReturn:
    """For a JSON decoder: NaN and Infinity, which Python reads, are a ValueError."""
    raise ValueError(f"{name} is no JSON value")


#: One for all rows: ``json.loads`` with a setting makes a decoder per call.
_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
#: What JSON takes for white space, as which `str.strip` takes far more.
_JSON_SPACES = " \t\n\r"
#: Where half a surrogate pair may be written; ``in`` would search each line twice, each time in several times the time.
_SURROGATE = re.compile(rb"\\u[dD]").search


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
