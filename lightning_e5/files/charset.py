"""The text of a page's bytes: which of the encodings that a page may have it is in."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

#: A page says its encoding near its beginning, or not at all.
_HEAD_BYTES = 4096
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.S)
_LABEL = rb"[\"']?\s*([A-Za-z0-9_:.+-]{2,40})"
_META = re.compile(rb"<meta\b[^>]{0,400}?\bcharset\s*=\s*" + _LABEL + rb"|\A\s*<\?xml\b[^>]{0,200}?\bencoding\s*=\s*" + _LABEL, re.I)
_HEADER = re.compile(r"\bcharset\s*=\s*[\"']?\s*([A-Za-z0-9_:.+-]{2,40})", re.I)
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
#: Of Python's codecs those that texts are written in; the others are no encodings, or take time with the square of the length.
_KNOWN = re.compile(
    r"utf-(?:8|16|32)(?:-[lb]e)?|ascii|iso8859-\d{1,2}|iso2022_\w+|cp\d{3,4}|koi8-[rut]|big5(?:hkscs)?|gb\d{4,5}|gbk|hz|euc_\w+|shift_jis\w*"
    r"|johab|mac-\w+|ptcp154|kz1048|tis-620"
)
#: As browsers read them: pages name the smaller set and use the larger one.
_LARGER = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874", "gb2312": "gb18030",
    "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
    "utf-16": "utf-16-le", "utf-32": "utf-32-le",
}  # fmt: skip
_OTHER_NAMES = {"x-sjis": "shift_jis", "x-gbk": "gbk", "x-euc-jp": "euc_jp", "utf8mb4": "utf-8", "unicode": "utf-8", "x-x-big5": "big5"}
#: A page with a larger share of wrong bytes is in another encoding than it says.
_WRONG_SHARE = 0.01


def decode_page(content: bytes, content_type: str | None = None) -> str:
    """The text of an HTML page: by its byte order mark, its HTTP header, its meta tag or its bytes, in that order.

    An encoding that nobody knows, or that the bytes are not in, is passed over; what fits nowhere is U+FFFD.

    Args:
        content: the page; a character cut in two at its end is left out.
        content_type: the header ``Content-Type``, where there is one.

    Source: the order of the WHATWG HTML standard, "determining the character encoding".
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return _decoded(content[len(mark) :], encoding, "replace")
    named = list(dict.fromkeys(_named(content, content_type)))
    for encoding in named:
        try:
            return _decoded(content, encoding, "strict")
        except UnicodeError:
            continue
    for encoding in named:
        text = _decoded(content, encoding, "replace")
        if text.count("\ufffd") <= _WRONG_SHARE * len(text):
            return text
    try:
        return _decoded(content, "utf-8", "strict")
    except UnicodeError:
        return _decoded(content, guessed_encoding(content) or (named[0] if named else "cp1252"), "replace")


def _named(content: bytes, content_type: str | None) -> Iterator[str]:
    """The encodings that the header and the page itself name, those that are known."""
    labels = [found[1]] if (found := _HEADER.search(content_type or "")) else []
    if meta := _META.search(_COMMENT.sub(b"", content[:_HEAD_BYTES])):
        labels.append((meta[1] or meta[2]).decode("ascii"))
    for label in labels:
        try:
            name = codecs.lookup(_OTHER_NAMES.get(label.lower(), label)).name
        except (LookupError, ValueError):
            continue
        if name.startswith(("utf-16", "utf-32")) and b"\0" not in content[:_HEAD_BYTES]:
            name = "utf-8"  # what could be read as ASCII so far is none of them
        if _KNOWN.fullmatch(name):
            yield _LARGER.get(name, name)


def guessed_encoding(content: bytes) -> str | None:
    """The encoding that bytes are most likely in, by their beginning and end; None where none fits."""
    from charset_normalizer import from_bytes

    best = from_bytes(content if len(content) < 3 * _HEAD_BYTES else content[:_HEAD_BYTES] + content[-_HEAD_BYTES:]).best()
    return None if best is None else best.encoding


def _decoded(content: bytes, encoding: str, errors: str) -> str:
    text = codecs.getincrementaldecoder(encoding)(errors).decode(content)
    return text.removeprefix("\ufeff")
