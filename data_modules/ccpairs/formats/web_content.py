"""A page's bytes from the body of an HTTP answer: chunks joined, compressed content unpacked, at bounded memory."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,1000})?\r?\n")
_PLAIN = frozenset(("", "identity", "none", "binary", "7bit", "8bit", "utf-8", "utf8"))
_MOST_ENCODINGS = 4
#: Of brotli and zstd; browsers refuse larger ones.
_MAX_ZSTD_WINDOW = 2**23


class BadContentError(Exception):
    """Content that cannot be unpacked; its message is the reason."""


def unpacked(body: bytes, content_encoding: str, transfer_encoding: str, max_bytes: int, *, cut: bool = False) -> bytes:
    """The content of an answer, up to a byte past the limit.

    Bodies that were unpacked when they were stored, but kept their headers, are taken as they are.

    Args:
        body: as it was sent.
        content_encoding, transfer_encoding: the headers, ``""`` where there is none.
        max_bytes: longest content; what follows is not unpacked.
        cut: the body is known to be cut off, so that its unpacked beginning is good.

    Raises:
        BadContentError: it is damaged, or packed as nobody knows.
    """
    if "chunked" in transfer_encoding.lower():
        body = _joined(body, cut)
    names = [name for part in content_encoding.split(",") if (name := part.strip().lower()) not in _PLAIN]
    if len(names) > _MOST_ENCODINGS:
        raise BadContentError("too many content encodings")
    for name in reversed(names):
        unpack = _UNPACK.get(name)
        is_markup = body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"
        if unpack is None and not is_markup:
            raise BadContentError("unknown content encoding")
        if unpack is None or not body:
            continue
        try:
            body, whole = unpack(body, max_bytes + 1)
        except BadContentError:
            raise
        except Exception as error:  # each library has errors of its own, and not all of them say so
            if not is_markup:
                raise BadContentError(f"damaged {name} content") from error
            continue
        if not whole and not cut and len(body) <= max_bytes:
            raise BadContentError(f"{name} content breaks off")
    return body[: max_bytes + 1]


def _joined(body: bytes, cut: bool) -> bytes:
    """The chunks of a body joined; the body itself where it begins with no chunk."""
    parts: list[bytes] = []
    at = 0
    while match := _CHUNK.match(body, at):
        size = int(match[1], 16)
        if not size:
            return b"".join(parts)
        part = body[match.end() : match.end() + size]
        parts.append(part)
        at = match.end() + size
        if body[at : at + 2] == b"\r\n":
            at += 2
        elif len(part) == size and at < len(body):
            raise BadContentError("damaged chunks")
    if not parts:
        return body
    if at < len(body):
        raise BadContentError("damaged chunks")
    if not cut:
        raise BadContentError("chunks break off")
    return b"".join(parts)


def _gzip(body: bytes, limit: int) -> tuple[bytes, bool]:
    return _members(body, limit, zlib.MAX_WBITS + 16)


def _deflate(body: bytes, limit: int) -> tuple[bytes, bool]:
    """With zlib's header, as the standard asks, or without it, as some servers send it."""
    try:
        return _members(body, limit, zlib.MAX_WBITS)
    except zlib.error:
        return _members(body, limit, -zlib.MAX_WBITS)


def _members(body: bytes, limit: int, bits: int) -> tuple[bytes, bool]:
    found = bytearray()
    while True:
        stream = zlib.decompressobj(bits)
        found += stream.decompress(body, limit - len(found))
        if not stream.eof or len(found) >= limit:
            return bytes(found), stream.eof
        body = stream.unused_data
        if body[:2] != b"\x1f\x8b":  # what follows is padding
            return bytes(found), True


def _brotli(body: bytes, limit: int) -> tuple[bytes, bool]:
    try:
        import brotli
    except ImportError:
        raise BadContentError("brotli content, and no library for it") from None
    stream, found = brotli.Decompressor(), bytearray()
    data = body
    while len(found) < limit and not stream.is_finished():
        part = stream.process(data, output_buffer_limit=limit - len(found))
        if not part and (not data or stream.can_accept_more_data()):
            break
        found += part
        data = b""
    return bytes(found), stream.is_finished()


def _zstd(body: bytes, limit: int) -> tuple[bytes, bool]:
    import zstandard

    found, rest = bytearray(), body
    while rest and len(found) < limit:
        stream = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj()
        # A kibibyte at a time: 4 bytes of zstd may stand for 128 KiB, and the library has no limit of its own.
        at = 0
        while at < len(rest) and not stream.eof and len(found) < limit:
            found += stream.decompress(rest[at : at + 1024])
            at += 1024
        if not stream.eof:
            return bytes(found), False
        rest = stream.unused_data + rest[at:]
        if rest[:4] != b"\x28\xb5\x2f\xfd":
            break
    return bytes(found), True


_UNPACK: dict[str, Callable[[bytes, int], tuple[bytes, bool]]] = {
    "gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "br": _brotli, "zstd": _zstd,
}  # fmt: skip
