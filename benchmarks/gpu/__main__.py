"""Run every part, each in a process of its own, save what each has found, and say which aims are met.

A part that fails or is cut off leaves the rows that it has finished, and its error beside them; the others run. Without a GPU every
part runs at toy size on the CPU, whose figures say nothing of a GPU; the table and the file say so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, report, told
from benchmarks.gpu.aims import aims
from benchmarks.gpu.parts import PARTS, run_part
from benchmarks.gpu.size import SIZES
from lightning_e5.files.storage import write_json

_POLL_SECONDS = 0.2


def main() -> int:
    """Command line; 1 where a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), help="default: card where there is a GPU, else toy")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts; what is over it is cut off (default 8)")
    parser.add_argument("--json", metavar="FILE", default="gpu.json", help="saved after each row (default gpu.json)")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "OUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    size = SIZES[chosen.size or ("card" if torch.cuda.is_available() else "toy")]
    if chosen.part:
        run_part(chosen.part[0], size, Path(chosen.part[1]))
        return 0
    if size.name == "card" and not torch.cuda.is_available():
        parser.error("--size card: torch sees no GPU here")
    until = time.monotonic() + 60 * chosen.minutes
    found: dict[str, Any] = {"machine": machine(), "card": card(), "size": size.name, "parts": {}}
    if size.name == "toy":
        found["note"] = "toy size on the CPU: it shows that every part runs; its figures say nothing of a GPU"
        print(found["note"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(chosen.parts, 1):
            told(f"part {number} of {len(chosen.parts)}: {name}, {max(0, until - time.monotonic()) / 60:.1f} min left")
            for part in _run(name, size.name, Path(folder) / f"{name}.jsonl", until - time.monotonic()):
                found["parts"][name] = part
                found["aims"] = aims(found["parts"]) if size.name == "card" else {}
                write_json(Path(chosen.json), found)
    for name, part in found["parts"].items():
        print(f"\n{name}: {part['seconds']:.0f} s{', ' + part['error'] if part['error'] else ''}")
        report(part["rows"], None)
    print()
    for aim, said in found["aims"].items():
        print(f"{aim}: {said}")
    print(f"saved: {chosen.json}")
    return int(any(part["error"] for part in found["parts"].values()))


def _run(name: str, size: str, out: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """One part's rows, its seconds, and its error, if it had one: after each row, and at the end.

    A part is a group of processes, all of which end where it is cut off or this is: one that went on would share the GPU with the next.
    """
    started = time.monotonic()
    if seconds <= 0:
        yield {"seconds": 0.0, "error": "not begun: no time was left", "rows": _rows(out)}
        return
    command = [sys.executable, "-m", "benchmarks.gpu", "--size", size, "--part", name, str(out)]
    with out.with_suffix(".err").open("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        try:
            shown: list[dict[str, Any]] = []
            while process.poll() is None and time.monotonic() - started < seconds:
                time.sleep(_POLL_SECONDS)
                if (rows := _rows(out)) != shown:
                    shown = rows
                    yield {"seconds": time.monotonic() - started, "error": "still running", "rows": rows}
            error = f"cut off after {seconds:.0f} s" if process.poll() is None else None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if error is None and process.returncode:
            errors.seek(0)
            error = f"ended with {process.returncode}: {' | '.join(errors.read().strip().splitlines()[-4:])}"
    yield {"seconds": time.monotonic() - started, "error": error, "rows": _rows(out)}


def _rows(out: Path) -> list[dict[str, Any]]:
    """The whole lines of a part's file; a later row of a name stands for an earlier one."""
    whole = out.read_text(encoding="utf-8").rpartition("\n")[0] if out.exists() else ""
    return list({row["name"]: row for row in map(json.loads, whole.splitlines())}.values())


def card() -> dict[str, Any]:
    """What torch and the driver say of the first GPU; empty where there is none."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    asked = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.memory", "pcie.link.gen.max")
    try:
        told_by = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "-i", "0"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        told_by = ""
    return {
        "name": properties.name, "memory_gb": properties.total_memory / 2**30, "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        **dict(zip(asked, [value.strip() for value in told_by.split(",")], strict=False)),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
