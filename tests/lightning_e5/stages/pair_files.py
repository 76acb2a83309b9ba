"""A raw source and a rule of the tests, as other processes import them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.types import PairCandidate, ReadReport


@dataclass(frozen=True)
class TextFiles:
    """Lines ``query<TAB>passage[<TAB>source]`` of the ``.txt`` files of a folder; other lines are bad records.

    die_at: while the file ``die`` lies in the folder, reading this part removes it and kills its process half-way.
    Every reading of a part is noted in ``reads.log``.
    """

    name: str
    folder: Path
    die_at: str = ""
    kill: str = "worker"

    def parts(self) -> Sequence[str]:
        """The files."""
        return sorted(p.name for p in self.folder.glob("*.txt"))

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file."""
        with (self.folder / "reads.log").open("a") as log:
            log.write(f"{part}\n")
        lines = (self.folder / part).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            if part == self.die_at and number > len(lines) // 2 and (self.folder / "die").exists():
                (self.folder / "die").unlink()
                (self.folder / "pid").write_text(str(os.getpid()))
                os.kill(os.getpid() if self.kill == "worker" else os.getppid(), signal.SIGKILL)
                time.sleep(30)  # a worker ends with its parent
            report.counts["records"] += 1
            fields = line.split("\t")
            if len(fields) < 2:
                report.reject(f"{part}:{number}", "no tab")
                continue
            source = fields[2] if len(fields) > 2 else self.name
            yield PairCandidate(fields[0], fields[1], source, id=f"{part}:{number}")

    def fingerprint(self) -> Mapping[str, Any]:
        """The files."""
        files = [self.folder / part for part in self.parts()]
        return {"files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]}


@dataclass(frozen=True)
class SlowFiles(TextFiles):
    """As `TextFiles`; each reading of a part leaves a file with the reader's process in ``started`` and takes ``seconds``."""

    seconds: float = 0.0

    def read(self, part: str, report: ReadReport) -> Iterator[PairCandidate]:
        """The pairs of one file."""
        started = self.folder / "started"
        started.mkdir(exist_ok=True)
        (started / f"{part}.{os.getpid()}").touch()
        time.sleep(self.seconds)
        yield from super().read(part, report)


@dataclass(frozen=True)
class LongQuery:
    """Drops queries of fewer than ``words`` words."""

    words: int
    name: str = "long_query"

    def __call__(self, pair: PairCandidate) -> bool:
        return len(pair.query.split()) >= self.words

    def fingerprint(self) -> Mapping[str, Any]:
        """The setting."""
        return {"words": self.words}
