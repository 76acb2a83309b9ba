"""The records of a big XML dump one by one: a damaged one costs itself alone, and no document type is ever read.

A dump is a flat list of ``<row .../>`` or ``<page>...</page>`` elements in which every ``<`` of a text is escaped, so
that the marks of a record are found in the bytes and each record is parsed alone. A parser of the whole stream would
lose all that follows one bad byte, and would meet the entity declarations of a hostile file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lightning_e5.errors import UserError
from lightning_e5.files.streams import DamagedFile

if TYPE_CHECKING:
    from lightning_e5.types import ReadReport

#: Longest record, in bytes.
MAX_RECORD_BYTES = 4 * 2**20
#: How far into a file its root element may begin.
_MAX_PROLOG_BYTES = 2**20
_DECLARATION = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.I)


def xml_records(
    name: str,
    blocks: Iterable[bytes],
    report: ReadReport,
    *,
    root: str,
    tag: str,
    end: str,
    max_bytes: int = MAX_RECORD_BYTES,
) -> Iterator[tuple[str, Any]]:
    """(place ``name:line``, lxml element) of every record of a dump in UTF-8; ``records`` counts them, bad ones too.

    Args:
        name: what places and messages call the file.
        blocks: its plain bytes, as `files.blocks` gives them.
        report: gets records that are too long, cut off, not UTF-8 or not well-formed, and where the file breaks off.
        root: the element that the file must begin with, ``posts``.
        tag: the records' element, ``row``.
        end: how every record ends: ``/>`` where elements are empty, else the closing tag.
        max_bytes: longest record that is held.

    Raises:
        UserError: the file begins with another element, or declares a document type or entity.
    """
    import lxml.etree

    parser = lxml.etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False, load_dtd=False)
    for place, record in _cut(name, blocks, report, root, tag, end.encode(), max_bytes):
        report.counts["records"] += 1
        try:
            record.decode("utf-8")
            element = lxml.etree.fromstring(record, parser)
        except UnicodeDecodeError:
            report.reject(place, "not UTF-8")
        except lxml.etree.XMLSyntaxError:
            report.reject(place, "not well-formed XML")
        else:
            yield place, element


def _cut(
    name: str, blocks: Iterable[bytes], report: ReadReport, root: str, tag: str, end: bytes, max_bytes: int
) -> Iterator[tuple[str, bytes]]:
    """(place, bytes) of every record, found by its marks."""
    begin = re.compile(rb"<" + tag.encode() + rb"[\s/>]")
    ending = re.compile(re.escape(end))  # finds two characters in a third of the time that `bytearray.find` takes
    overlap = len(tag) + len(end) + 4  # a mark may lie across two blocks
    buffer, line, inside, searched = bytearray(), 1, False, 0
    in_prolog = True

    def drop(size: int) -> None:
        nonlocal line, searched
        line += buffer.count(b"\n", 0, size)
        del buffer[:size]
        searched = 0

    try:
        for block in blocks:
            buffer += block
            while True:
                if not inside:
                    found = begin.search(buffer, searched)
                    if in_prolog:
                        in_prolog = not _is_dump(
                            name, bytes(buffer[: found.start()] if found else buffer), root, bool(found)
                        )
                    if not found:
                        if in_prolog:
                            searched = max(0, len(buffer) - overlap)
                        else:
                            drop(max(0, len(buffer) - max(overlap, len(root) + 8)))
                        break
                    drop(found.start())
                    inside = True
                ended = ending.search(buffer, searched)
                closing = ended.start() if ended else -1
                another = begin.search(buffer, max(1, searched), closing if closing > 0 else len(buffer))
                if another:  # its end is missing; the next record shall not be lost with it
                    report.counts["records"] += 1
                    report.reject(f"{name}:{line}", "record without its end")
                    drop(another.start())
                    continue
                if closing < 0:
                    if len(buffer) > max_bytes:
                        report.counts["records"] += 1
                        report.reject(f"{name}:{line}", "record too long")
                        drop(len(buffer) - overlap)
                        inside = False
                    else:
                        searched = max(0, len(buffer) - overlap)
                    break
                size = closing + len(end)
                if size > max_bytes:
                    report.counts["records"] += 1
                    report.reject(f"{name}:{line}", "record too long")
                else:
                    yield f"{name}:{line}", bytes(buffer[:size])
                drop(size)
                inside = False
    except DamagedFile as damage:
        report.reject(damage.place, damage.reason)
        return
    if in_prolog:
        _is_dump(name, bytes(buffer), root, True)
    if inside or not re.search(rb"</" + root.encode() + rb"\s*>|<" + root.encode() + rb"(?:\s[^<>]*)?/>", buffer):
        last = line + buffer.count(b"\n")
        report.reject(f"{name}:{last}", "file breaks off")


def _is_dump(name: str, prolog: bytes, root: str, complete: bool) -> bool:
    """Whether the root element was seen; UserError when it cannot come any more."""
    if _DECLARATION.search(prolog):
        raise UserError(f"{name}: declares a document type, which no dump does; it is not read")
    if re.search(rb"<" + root.encode() + rb"[\s/>]", prolog):
        return True
    if complete or len(prolog) > _MAX_PROLOG_BYTES:
        raise UserError(f"{name}: does not begin with <{root}>, so it is no such dump")
    return False
