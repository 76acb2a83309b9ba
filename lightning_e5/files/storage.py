"""Files that are whole or absent: atomic writes, zstd Parquet tables, and manifests written last.

A directory of data is finished when its ``manifest.json`` exists and names every file with its sha256; anything
without one is half-written and is made again. Manifests, and the records of single files, carry a checksum of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.streams import regular_file
from lightning_e5.redaction import hidden

MANIFEST = "manifest.json"
#: The key of a record's own checksum: the sha256 of the other keys as `to_json` writes them.
CHECKSUM = "checksum"
TEMPORARY_SUFFIX = ".tmp"
#: A name that `atomic_path` gives.
_TEMPORARY = re.compile(rf"\..+\.(\d+)-[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)
#: Bytes of a file's name, of 255 that file systems take: temporary files have longer ones.
_LONGEST_NAME = 200


def fsync_directory(directory: Path) -> None:
    """Make renames in ``directory`` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """An OSError of a write inside names ``path``, which a failed write itself does not.

    Libraries written in Rust (safetensors, tokenizers) have exceptions of their own for it; they become OSErrors.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


@contextmanager
def reading(path: Path | str, what: str = "cannot be read") -> Iterator[None]:
    """What a library raises while it reads a user's file inside becomes one sentence with the file's name: a UserError.

    Our own UserErrors pass as they are; so do a full disk and the end of the process.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # Libraries written in Rust end a panic by an exception that is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(f"{path}: {what} ({line})") from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; at a clean exit it is fsynced and renamed to ``path``, else removed.

    The temporary file lies in the same directory, so the rename is atomic whatever TMPDIR is. No other writer has its name, on no other
    machine either: a task whose node is taken for dead may write yet while another node does it again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with naming_the_file(path):
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(directory: Path) -> int:
    """Remove what killed writers left in ``directory``; returns how many files."""
    orphans = [p for p in directory.glob(f".*{TEMPORARY_SUFFIX}") if p.is_file()]
    for orphan in orphans:
        orphan.unlink(missing_ok=True)
    return len(orphans)


def temporaries_below(directory: Path) -> Iterator[tuple[Path, int]]:
    """What `atomic_path` has not finished, anywhere in ``directory``, with the number of the process that made it."""
    for folder, _, names in os.walk(directory):
        for name in names:
            if (found := _TEMPORARY.fullmatch(name)) is not None:
                yield Path(folder) / name, int(found[1])


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, without the secrets of the configurations that this process has read."""
    with atomic_path(path) as temporary:
        temporary.write_text(hidden(text), encoding="utf-8")


def to_json(value: Any) -> str:
    """Canonical, readable JSON: sorted keys, no NaN, every float in its shortest exact form."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write ``to_json(value)`` atomically."""
    write_text(path, to_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError names the file and what is wrong with it."""
    try:
        return json.loads(regular_file(path).read_text(encoding="utf-8-sig"))
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{path}: not a JSON file (nested too deep)") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:  # not UTF-8, not JSON, or an integer of more than 4,300 digits
        raise UserError(f"{path}: not a JSON file ({str(error).partition(';')[0]})") from None


def write_checked(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with a checksum of its own, atomically."""
    write_json(path, {**value, CHECKSUM: sha256_text(to_json(value))})


def read_checked(path: Path, *, required: bool = True) -> Any:
    """What `write_checked` wrote, without the checksum; UserError for a file that is damaged, or has none where it is ``required``."""
    value = read_json(path)
    if not isinstance(value, dict) or CHECKSUM not in value:
        if not required:
            return value
        raise UserError(f"{path}: has no checksum, so it is damaged or of an earlier version; make it again")
    written = value.pop(CHECKSUM)
    try:
        whole = sha256_text(to_json(value)) == written
    except ValueError:  # NaN or Infinity, which JSON has not and Python reads
        whole = False
    if not whole:
        raise UserError(f"{path}: is damaged (its content does not have the checksum written with it); make it again")
    return value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL log, none where there is no file; a torn last line, a killed writer's, is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return rows


def sha256_text(text: str) -> str:
    """Hex sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_manifest(directory: Path, *, kind: str, files: Sequence[str], digest: Callable[[Path], str] = sha256_file, **facts: Any) -> dict[str, Any]:
    """Write ``directory/manifest.json``, last: the sha256 of each of ``files`` and the JSON ``facts`` about them."""
    manifest = {"kind": kind, "files": {name: digest(directory / name) for name in files}, **facts}
    write_checked(directory / MANIFEST, manifest)
    return manifest


def read_manifest(directory: Path, kind: str | None = None) -> dict[str, Any]:
    """The manifest of a finished directory.

    Raises:
        UserError: the directory is missing, unfinished (no manifest), or of another ``kind``, or the manifest is damaged.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    if not (directory / MANIFEST).is_file():
        raise UserError(f"{directory}: has no {MANIFEST}, so it is unfinished; make it again")
    manifest = read_checked(directory / MANIFEST)
    if not isinstance(manifest.get("files"), dict):
        raise UserError(f"{directory / MANIFEST}: not a manifest (needs an object with 'files')")
    if kind is not None and manifest.get("kind") != kind:
        raise UserError(f"{directory}: holds {manifest.get('kind')!r}, not {kind!r}")
    return manifest


def verify_manifest(directory: Path, kind: str | None = None, digest: Callable[[Path], str] = sha256_file) -> dict[str, Any]:
    """`read_manifest`, and every file is there with the sha256 it was written with; UserError names the first that is not."""
    manifest = read_manifest(directory, kind)
    for name, written in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path}: named by {MANIFEST} but missing; make {directory} again")
        if digest(path) != written:
            raise UserError(f"{path}: its sha256 is not the one in {MANIFEST}; make {directory} again")
    return manifest


def is_unwritable(text: str) -> bool:
    """Whether a text holds NUL or half a surrogate pair (bytes that are not UTF-8), which no path or name may have."""
    return re.search(r"[\x00\ud800-\udfff]", text) is not None


def safe_component(name: str) -> str:
    """A name from data as one component of a path, which no other name becomes: letters, digits and ``._-``, the rest as ``%2f``."""
    safe = re.sub(r"[^A-Za-z0-9._-]", lambda match: f"%{ord(match.group()):x}", name)
    safe = f"%2e{safe[1:]}" if safe.startswith(".") else safe or "%"
    return safe if len(safe) <= _LONGEST_NAME else f"{safe[:100]}%{sha256_text(name)[:32]}"


def check_component(name: object, what: str) -> str:
    """A name that a user gives and that also becomes a file's or folder's; UserError, naming ``what``, where it cannot."""
    rule = ""
    if not isinstance(name, str) or not name.strip() or name in (".", ".."):
        rule = "no name of a file"
    elif re.search(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        rule = "it holds a slash, a control character or half a character"
    elif len(name.encode()) > _LONGEST_NAME:
        rule = f"it has over {_LONGEST_NAME} bytes"
    if rule:
        shown = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:60]}..."
        raise UserError(f"{what}: {shown} cannot be a name of results, which are kept in a folder of that name ({rule})")
    return str(name)


def empty_directory(directory: Path) -> Path:
    """``directory``, there and empty: what an unfinished writer left in it is removed, its manifest first."""
    (directory / MANIFEST).unlink(missing_ok=True)
    if directory.is_dir():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    return directory
