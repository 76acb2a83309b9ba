"""The pages of WARC and WET archives, one at a time and at bounded memory, whatever stands in the archive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from lightning_e5.errors import UserError
from lightning_e5.streams import DamagedFile, blocks
from lightning_e5.types import ReadReport

#: Longest header line and longest header (many lines) of a record, in bytes.
MAX_HEADER_LINE = 2**16
MAX_HEADER = 2**20


class Page(NamedTuple):
    """One page: its address, its bytes as they were sent, and where it stands (``file:record``)."""

    place: str
    url: str
    content: bytes


class _Bytes:
    """Blocks as a stream. warcio takes an EOFError for the regular end, so a damaged archive raises `DamagedFile`."""

    def __init__(self, path: str) -> None:
        self._blocks, self._held, self._offset = blocks(path), b"", 0

    def tell(self) -> int:
        return self._offset

    def read(self, size: int = -1) -> bytes:
        if not self._held:
            self._held = next(self._blocks, b"")
        size = len(self._held) if size < 0 else size
        data, self._held = self._held[:size], self._held[size:]
        self._offset += len(data)
        return data


def pages(path: str, report: ReadReport, kind: str, max_bytes: int) -> Iterator[Page]:
    """The ``response`` records with HTML, or the ``conversion`` records (WET), of an archive; ``records`` counts them.

    Args:
        path: a WARC file, also compressed.
        report: gets the pages that are skipped and where a damaged archive breaks off.
        kind: ``response`` or ``conversion``.
        max_bytes: longest content of a page; longer ones are skipped and never held.
    """
    from warcio.exceptions import ArchiveLoadFailed
    from warcio.statusandheaders import StatusAndHeadersParserException

    number = 0
    archive = _archive(path)
    reader = archive.reader
    try:
        for number, record in enumerate(archive, 1):
            reader.header_bytes = 0
            if not (record.rec_headers.get_header("Content-Length") or "").isdecimal():
                raise ValueError("no length, so that its end is not known")
            if record.rec_type != kind:
                continue
            report.counts["records"] += 1
            place = f"{path}:{number}"
            reason = _why_not(record, kind)
            if reason:
                report.skip(place, reason)
                continue
            content = _content(record, max_bytes)
            if len(content) > max_bytes:
                report.skip(place, "page too long")
            elif getattr(record.raw_stream, "limit", 0) > 0:
                report.reject(place, "archive breaks off")
                return
            else:
                yield Page(place, record.rec_headers.get_header("WARC-Target-URI") or "", content)
            reader.header_bytes = 0
    except UserError:  # a ValueError, but not of a record
        raise
    except DamagedFile as damage:
        report.reject(damage.place, damage.reason)
    except (ArchiveLoadFailed, StatusAndHeadersParserException, ValueError, AttributeError, TypeError) as error:
        # warcio meets records without the headers that it takes for granted with the last two.
        report.reject(f"{path}:{number + 1}", f"not a WARC record ({type(error).__name__}), the rest is not read")


def _archive(path: str) -> Any:
    from warcio.archiveiterator import WARCIterator
    from warcio.bufferedreaders import BufferedReader

    class Reader(BufferedReader):  # type: ignore[misc]
        """warcio's reader, with an end to header lines and headers; decompression is `blocks`' affair."""

        header_bytes = 0

        def readline(self, length: int | None = None) -> bytes:
            line: bytes = super().readline(min(length or MAX_HEADER_LINE, MAX_HEADER_LINE))
            self.header_bytes += len(line)
            if self.header_bytes > MAX_HEADER or len(line) == MAX_HEADER_LINE:
                raise ValueError("header too long")
            return line

    archive = WARCIterator(_Bytes(path))
    archive.reader = Reader(archive.fh, block_size=2**16)
    return archive


def _why_not(record: Any, kind: str) -> str:
    if kind == "conversion":
        return "" if (record.rec_headers.get_header("Content-Type") or "").startswith("text/plain") else "no plain text"
    if record.http_headers is None:
        return "no HTTP answer"
    if record.http_headers.get_statuscode() != "200":
        return "status not 200"
    mime = (record.http_headers.get_header("Content-Type") or "").split(";")[0].strip().lower()
    return "" if mime in ("text/html", "application/xhtml+xml") else "no HTML"


def _content(record: Any, max_bytes: int) -> bytes:
    """The content up to one byte past the limit."""
    stream, parts, size = record.content_stream(), [], 0
    while size <= max_bytes:
        part = stream.read(min(2**16, max_bytes + 1 - size))
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)
