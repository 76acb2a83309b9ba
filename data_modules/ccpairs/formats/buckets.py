"""A join in bounded memory: rows of big files are divided by their key into buckets on disk, each small enough to hold.

Why not a database: raw dumps have no order by key, so a map on disk is read and written at random places; dividing reads
and writes everything once, in sequence, and the buckets are independent parts of the work.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_modules.ccpairs.formats.files import file_fingerprint
from lightning_e5.errors import UserError
from lightning_e5.files.lines import json_rows
from lightning_e5.files.storage import MANIFEST, empty_directory, read_manifest, sha256_text, to_json, write_manifest
from lightning_e5.progress import progress
from lightning_e5.types import ReadReport

KIND = "bucketed-rows"
#: Rows wait in memory up to this many bytes before they are written, bucket by bucket.
FLUSH_BYTES = 64 * 2**20
#: Less than this is done before a bar can be read.
_QUIET_BYTES = 2**24
#: A row is made of a bounded input line, with some escapes more.
_MAX_ROW_BYTES = 256 * 2**20

#: One for all rows: ``json.dumps`` with a setting makes an encoder per call.
_ENCODER = json.JSONEncoder(separators=(",", ":"))

#: A file's (bucket, JSON object) rows; what is bad or left out goes into the report.
ReadRows = Callable[[Path, ReadReport], Iterator[tuple[int, dict[str, Any]]]]


@dataclass(frozen=True, slots=True)
class BucketedFile:
    """One file and how its rows are divided: into so many ``buckets``; ``settings`` is what decides the rows."""

    path: Path
    buckets: int
    settings: Mapping[str, Any]
    rows: ReadRows


@dataclass(frozen=True, slots=True)
class BucketPart:
    """The part of a source that is one bucket: of the file ``of``, or of all files of a kind. Its text names it in manifests."""

    of: str
    bucket: int
    buckets: int

    def __str__(self) -> str:
        return f"{self.of} {self.bucket} of {self.buckets}"


class Buckets:
    """Files whose rows lie in buckets under a working directory, made by whoever needs them first.

    Any number of processes may call `make` at once: each takes files that no other has in hand, then waits for the rest.
    What a killed process left half-made is made again. The directory may be removed when the pairs are made.

    Args:
        work_dir: directory with room for about the size of the compressed files.
        files: what is divided; a changed file or setting is divided anew.
    """

    def __init__(self, work_dir: Path | str, files: Sequence[BucketedFile]) -> None:
        self.work_dir, self.files = Path(work_dir).expanduser(), files

    def make(self) -> None:
        """Divide every file that is not divided yet."""
        missing = [file for file in self.files if not (self.directory(file) / MANIFEST).is_file()]
        if not missing:
            return
        self.work_dir.mkdir(parents=True, exist_ok=True)
        total = sum(file.path.stat().st_size for file in missing)
        bar = (
            progress(total, "dividing files into buckets", "B") if total > _QUIET_BYTES else nullcontext(lambda _: None)
        )
        with bar as advance:
            for wait in (False, True):
                for file in list(missing):
                    with _lock(self.directory(file).with_suffix(".lock"), wait) as ours:
                        if not ours:
                            continue
                        if not (self.directory(file) / MANIFEST).is_file():
                            _divide(file, self.directory(file))
                    missing.remove(file)
                    advance(file.path.stat().st_size)

    def directory(self, file: BucketedFile) -> Path:
        """Where the file's buckets lie; the name holds a digest of all that decides them."""
        facts = [file_fingerprint([file.path.resolve()]), file.buckets, dict(file.settings)]
        return self.work_dir / f"{file.path.name.split('.')[0]}-{sha256_text(to_json(facts))[:16]}"

    def report(self, file: BucketedFile) -> ReadReport:
        """What dividing the file counted, the same whoever did it."""
        return ReadReport.of_json(read_manifest(self.directory(file), KIND))

    def rows(self, file: BucketedFile, bucket: int) -> Iterator[dict[str, Any]]:
        """The rows of one bucket in the file's order.

        Raises:
            UserError: the bucket is not as it was written.
        """
        directory = self.directory(file)
        name = _bucket_name(bucket)
        if name not in read_manifest(directory, KIND)["files"]:
            return
        report = ReadReport()
        for _, row in json_rows(directory / name, report, _MAX_ROW_BYTES):
            yield row
        if report.bad:
            raise UserError(f"{report.bad[0][0]}: {report.bad[0][1]}; remove {directory} to have it made again")


def bucket_of(key: str, buckets: int) -> int:
    """The bucket of a key, the same in every process."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % buckets


def _bucket_name(bucket: int) -> str:
    return f"bucket-{bucket:05d}.jsonl.zst"


def _divide(file: BucketedFile, directory: Path) -> None:
    import zstandard

    empty_directory(directory)
    compressor = zstandard.ZstdCompressor(level=3)
    waiting: dict[int, list[bytes]] = {}
    names: set[str] = set()
    held = 0

    def flush() -> None:
        # Files are opened one after the other: thousands of buckets need no thousands of open files.
        for bucket, rows in sorted(waiting.items()):
            names.add(_bucket_name(bucket))
            with (directory / _bucket_name(bucket)).open("ab") as handle:
                handle.write(compressor.compress(b"".join(rows)))
        waiting.clear()

    report = ReadReport()
    for bucket, row in file.rows(file.path, report):
        line = _ENCODER.encode(row).encode() + b"\n"
        waiting.setdefault(bucket, []).append(line)
        held += len(line)
        if held >= FLUSH_BYTES:
            flush()
            held = 0
    flush()
    write_manifest(directory, kind=KIND, files=sorted(names), **report.as_json())


@contextmanager
def _lock(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock between processes; the value is whether we got it, always True with ``wait``. A dead process holds none."""
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
