"""The pages of WARC and WET archives, one at a time and at bounded memory, whatever stands in the archive.

A record's header says how long the record is, so that damage within its content costs that record alone; after damage in
a header, the next line that begins a record is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from data_modules.ccpairs.formats.web_content import BadContentError, unpacked
from lightning_e5.files.streams import DamagedFile, blocks
from lightning_e5.types import ReadReport

#: Longest header line and longest header (many lines) of a record, in bytes.
MAX_HEADER_LINE = 2**16
MAX_HEADER = 2**20
#: A body may be longer than its content by the marks of its chunks.
_BODY_MARGIN = 2**17
_BEGINNING = re.compile(rb"WARC/[01]\.\d+\s*$")
_HTTP = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})\b")


class Page(NamedTuple):
    """One page: where it stands (``file:record``), its address, its bytes unpacked, and the header Content-Type."""

    place: str
    url: str
    content: bytes
    content_type: str


class _BadHeaderError(Exception):
    """A header that is too long."""


class _Stream:
    """Blocks as lines and pieces."""

    def __init__(self, path: str) -> None:
        self._blocks, self._held, self._at = blocks(path), b"", 0

    def _fill(self) -> bool:
        if self._at < len(self._held):
            return True
        self._held, self._at = next(self._blocks, b""), 0
        return bool(self._held)

    def line(self) -> bytes:
        """The next line with its end, or a piece of a line that is too long; nothing at the end."""
        parts, size = [], 0
        while size < MAX_HEADER_LINE and self._fill():
            end = self._held.find(b"\n", self._at, self._at + MAX_HEADER_LINE - size)
            stop = min(len(self._held), self._at + MAX_HEADER_LINE - size) if end < 0 else end + 1
            parts.append(self._held[self._at : stop])
            size += stop - self._at
            self._at = stop
            if end >= 0:
                break
        return b"".join(parts)

    def read(self, size: int) -> bytes:
        """The next bytes, less at the end."""
        parts = []
        while size > 0 and self._fill():
            part = self._held[self._at : self._at + size]
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> int:
        """Pass over bytes; returns how many are missing at the end."""
        while size > 0 and self._fill():
            step = min(size, len(self._held) - self._at)
            self._at += step
            size -= step
        return size


def pages(path: str, report: ReadReport, kind: str, max_bytes: int) -> Iterator[Page]:
    """The ``response`` records with HTML, or the ``conversion`` records (WET), of an archive; ``records`` counts them.

    Args:
        path: a WARC file, also compressed.
        report: gets the pages that are skipped, those that are damaged, and where a damaged archive breaks off.
        kind: ``response`` or ``conversion``.
        max_bytes: longest content of a page; longer ones are skipped and never held.
    """
    stream, number, lost = _Stream(path), 0, False
    try:
        while line := stream.line():
            if not line.strip():
                continue
            if not _BEGINNING.match(line):
                if not lost:  # once for all that is passed over
                    report.reject(f"{path}:{number + 1}", "not a WARC record")
                lost = True
                continue
            number, lost = number + 1, False
            place = f"{path}:{number}"
            try:
                headers = _headers(stream)
            except _BadHeaderError:
                report.reject(place, "header too long")
                lost = True
                continue
            length = headers.get("content-length", "")
            if not (length.isascii() and length.isdecimal() and len(length) < 16):
                report.reject(place, "no length")
                lost = True
                continue
            wanted = headers.get("warc-type", "").lower() == kind
            # A page too long for us is not held.
            body = stream.read(min(int(length), max_bytes + _BODY_MARGIN)) if wanted else b""
            missing = stream.skip(int(length) - len(body))
            if wanted:
                report.counts["records"] += 1
            if missing:
                report.reject(place, "archive breaks off")
                return
            if wanted:
                yield from _page(place, headers, body, kind, max_bytes, report)
    except DamagedFile as damage:
        report.reject(damage.place, damage.reason)


def _headers(stream: _Stream) -> dict[str, str]:
    """Names in small letters -> values, up to the empty line."""
    found: dict[str, str] = {}
    size, last = 0, ""
    while (line := stream.line()).strip():
        size += len(line)
        if size > MAX_HEADER or len(line) >= MAX_HEADER_LINE:
            raise _BadHeaderError
        last = _add_header(found, line, last)
    return found


def _add_header(found: dict[str, str], line: bytes, last: str) -> str:
    """Add a header line; a line that begins with white space goes on with the one before."""
    text = line.decode("utf-8", "replace").strip()
    if line[:1] in b" \t" and last:
        found[last] = f"{found[last]} {text}"
        return last
    name, colon, value = text.partition(":")
    name = name.strip().lower()
    if not colon:
        return last
    found[name] = f"{found[name]}, {value.strip()}" if name in found and name.endswith("-encoding") else value.strip()
    return name


def _page(
    place: str, headers: Mapping[str, str], body: bytes, kind: str, max_bytes: int, report: ReadReport
) -> Iterator[Page]:
    http: dict[str, str] = {}
    if kind == "conversion":
        reason = "" if headers.get("content-type", "").startswith("text/plain") else "no plain text"
    else:
        status, http, body = _answer(body)
        reason = _why_not(status, http)
    if reason:
        report.skip(place, reason)
        return
    encodings = http.get("content-encoding", ""), http.get("transfer-encoding", "")
    try:
        content = unpacked(body, *encodings, max_bytes, cut="warc-truncated" in headers)
    except BadContentError as error:
        report.reject(place, str(error))
        return
    if len(content) > max_bytes:
        report.skip(place, "page too long")
        return
    yield Page(place, headers.get("warc-target-uri", "").strip("<>"), content, http.get("content-type", ""))


def _answer(body: bytes) -> tuple[str, dict[str, str], bytes]:
    """(status, headers, body) of an HTTP answer; the status is empty where it is none."""
    first, _, rest = body.partition(b"\n")
    match = _HTTP.match(first)
    if match is None:
        return "", {}, body
    headers: dict[str, str] = {}
    last = ""
    at = len(body) - len(rest)
    while at < len(body):
        end = body.find(b"\n", at)
        line, at = (body[at:], len(body)) if end < 0 else (body[at : end + 1], end + 1)
        if not line.strip():
            break
        last = _add_header(headers, line, last)
    return match[1].decode("ascii"), headers, body[at:]


def _why_not(status: str, http: Mapping[str, str]) -> str:
    if not status:
        return "no HTTP answer"
    if status != "200":
        return "status not 200"
    mime = http.get("content-type", "").split(";")[0].strip().lower()
    return "" if mime in ("text/html", "application/xhtml+xml") else "no HTML"
