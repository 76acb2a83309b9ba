"""BEIR's public sets on disk: fetched, proven by their checksum, unpacked safely, whole or absent.

What is unfinished has a name that nothing reads: ``.scifact.zip.part`` (a later call goes on with it) and ``.scifact.unpack``.
The folder ``scifact`` appears by one rename, with its manifest inside. Addresses and checksums stand in `sets`.
"""

# Not by pooch (1.9.0): it begins a broken download of 5 GB anew, and unpacks with `ZipFile.extractall`, which bounds neither
# how many bytes nor how many files an archive unpacks to. What would be left to it is one GET and one md5.

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.sets import beir_set
from lightning_e5.files.storage import (
    MANIFEST,
    fsync_directory,
    naming_the_file,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
)
from lightning_e5.progress import progress

KIND = "beir-set"
#: Digests of archives whose publisher gives none, in the folder that they were downloaded to.
DIGESTS = "first_digests.json"
#: What an archive may unpack to: the largest set (CQADupStack) takes about 20 GiB.
MAX_BYTES = 64 * 2**30
MAX_FILES = 2000
#: Text packs to a tenth; a member that unpacks to far more is made to fill the disk.
MAX_RATIO = 200
#: Bytes that a file's name may have.
_LONGEST_NAME = 255
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BLOCK = 1 << 20
_PART = ".part"


def download_beir(folder: Path | str, name: str, *, address: str | None = None, md5: str | None = None, timeout_s: float = 60.0) -> Path:
    """The folder of one of BEIR's public sets, downloaded where it is not there yet.

    Args:
        folder: the set's folder ``name`` is made in it.
        name: one of `BEIR_SETS`.
        address: of the archive; BEIR's own by default.
        md5: of the archive; the published one by default. An ``address`` of another archive needs its own; where it is
            given without, the archive's sha256 is kept in ``first_digests.json`` and a later, different one is refused.
        timeout_s: without a byte, after which the connection is given up.

    Raises:
        UserError: an unknown set, an answer that is not the archive, a connection that ends early (call again: it goes
            on), another checksum, or an archive that could write outside its folder or fill the disk.
    """
    facts = beir_set(name)
    folder = Path(folder)
    target = folder / name
    if target.is_dir():
        read_manifest(target, KIND)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    address, md5 = (address or facts.address), (md5 or (facts.md5 if address is None else None))
    part = folder / f".{name}.zip{_PART}"
    fetch(address, part, timeout_s=timeout_s)
    digests = _proven(part, address, md5)
    unpacked = folder / f".{name}.unpack"
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        files = unpack(part, unpacked, top=name)
        write_manifest(unpacked, kind=KIND, files=files, address=address, archive=digests)
        os.replace(unpacked, target)
        fsync_directory(folder)
    except UserError:
        part.unlink(missing_ok=True)  # a refused archive is not gone on with
        raise
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    part.unlink()
    return target


def fetch(address: str, part: Path, *, timeout_s: float = 60.0) -> None:
    """Download ``address`` to ``part``, going on after the bytes that ``part`` holds where the server can.

    Raises:
        UserError: the server's refusal, no connection, an end before the announced length (what came is kept), or a page
            of HTML in place of the file (nothing is kept).
    """
    if not address.startswith(("https://", "http://")):
        raise UserError(f"{address}: not an address of http or https")
    have = part.stat().st_size if part.is_file() else 0
    try:
        try:
            reply = _open(address, have, timeout_s)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:
                raise
            if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
                return  # it is whole already
            part.unlink()
            have, reply = 0, _open(address, 0, timeout_s)
        with reply:
            if "html" in reply.headers.get_content_type():
                part.unlink(missing_ok=True)
                raise UserError(f"{address}: the answer is a page of HTML, not an archive")
            resumed = reply.status == 206 and reply.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            have = have if resumed else 0
            length = reply.headers.get("Content-Length")
            total = None if length is None else have + int(length)
            with progress(total, f"download {part.name.strip('.').removesuffix(_PART)}", "B") as bar:
                bar(have)
                got = have + _receive(reply, part, append=resumed, bar=bar)
    except urllib.error.HTTPError as error:
        raise UserError(f"{address}: the server answered {error.code} ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{address}: the download stopped ({reason}); call again to go on") from None
    if total is not None and got != total:
        raise UserError(f"{address}: the connection ended after {got:,} of {total:,} bytes; call again to go on")


def unpack(archive: Path, target: Path, *, top: str) -> list[str]:
    """Unpack a zip whose members all lie in the folder ``top`` to ``target``, without that folder; returns the files.

    Every name is checked before the first byte is written, and sizes again while they are written.

    Raises:
        UserError: not a zip, damaged, a member with an absolute name, ``..``, a link, a name twice, one that is a file and a
            folder at once or that no file can have, or more bytes or files than `MAX_BYTES`, `MAX_FILES` and `MAX_RATIO` allow.
    """
    try:
        with zipfile.ZipFile(archive) as stored:
            members = _checked_members(archive, stored.infolist(), top)
            with progress(sum(info.file_size for info, _ in members), f"unpack {top}", "B") as bar:
                for info, name in members:
                    path = target / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with naming_the_file(path), stored.open(info) as source, path.open("xb") as out:
                        _copy(source, out, info, archive, bar)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, UnicodeError, zlib.error) as error:
        raise UserError(f"{archive}: not a readable zip archive ({error})") from None
    return sorted(str(name) for _, name in members)


def _open(address: str, have: int, timeout_s: float) -> Any:
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=timeout_s)


def _receive(reply: Any, part: Path, *, append: bool, bar: Callable[[int], object]) -> int:
    got = 0
    with naming_the_file(part), part.open("ab" if append else "wb") as handle:
        while block := reply.read1(_BLOCK):
            handle.write(block)
            got += len(block)
            bar(len(block))
        handle.flush()
        os.fsync(handle.fileno())
    return got


def _proven(part: Path, address: str, md5: str | None) -> dict[str, str]:
    """The archive's digests; UserError, and the archive is gone, where they are not those that were published or kept."""
    sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with part.open("rb") as handle:
        while block := handle.read(_BLOCK):
            for digest in sums.values():
                digest.update(block)
    found = {name: digest.hexdigest() for name, digest in sums.items()}
    if md5 is not None:
        if found["md5"] != md5:
            part.unlink()
            raise UserError(f"{address}: the archive's md5 is {found['md5']}, the published one is {md5}")
        return found
    if not zipfile.is_zipfile(part):  # an error page is no first digest
        part.unlink()
        raise UserError(f"{address}: the answer is not a zip archive")
    path = part.parent / DIGESTS
    known = read_json(path) if path.is_file() else {}
    if known.get(address, found["sha256"]) != found["sha256"]:
        part.unlink()
        raise UserError(f"{address}: the archive's sha256 is {found['sha256']}, at the first download it was {known[address]} ({path})")
    write_json(path, {**known, address: found["sha256"]})
    return found


def _checked_members(archive: Path, infos: list[zipfile.ZipInfo], top: str) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """(member, path below ``top``) of the files, all of them harmless."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        name = PurePosixPath(info.filename)
        where = f"{archive}: the member {info.filename!r}"
        if not name.parts or name.is_absolute() or ".." in name.parts or "\\" in info.filename or ":" in name.parts[0] or "\0" in info.orig_filename:
            raise UserError(f"{where} could write outside the folder")
        if name.parts[0] != top:
            if name.parts[0] == "__MACOSX":
                continue
            raise UserError(f"{where} does not lie in the folder {top!r}")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{where} is a link or a device, not a file")
        if info.is_dir():
            continue
        below = name.relative_to(top)
        if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME or _SURROGATE.search(part) for part in below.parts):
            raise UserError(f"{archive}: the member {info.filename[:60]!r} has a name that no file can have")
        if below in members or str(below) in ("", ".", MANIFEST):
            raise UserError(f"{where} is there twice or has a name that is not allowed")
        if info.file_size > _BLOCK and info.file_size > MAX_RATIO * max(1, info.compress_size):
            raise UserError(f"{where} unpacks to {info.file_size:,} bytes from {info.compress_size:,}, which is no text")
        members[below] = info
    folder = next((parent for below in members for parent in below.parents if parent in members), None)
    if folder is not None:
        raise UserError(f"{archive}: the member {str(folder)!r} is a file and a folder at once")
    total = sum(info.file_size for info in members.values())
    if total > MAX_BYTES or len(members) > MAX_FILES:
        raise UserError(f"{archive}: {len(members):,} files of {total:,} bytes; at most {MAX_FILES:,} of {MAX_BYTES:,} are unpacked")
    if not members:
        raise UserError(f"{archive}: has no files")
    return [(info, name) for name, info in members.items()]


def _copy(source: Any, out: Any, info: zipfile.ZipInfo, archive: Path, bar: Callable[[int], object]) -> None:
    written = 0
    while block := source.read(_BLOCK):
        written += len(block)
        if written > info.file_size:  # the directory of the archive understated it
            raise UserError(f"{archive}: the member {info.filename!r} is longer than the archive says")
        out.write(block)
        bar(len(block))
    out.flush()
    os.fsync(out.fileno())
