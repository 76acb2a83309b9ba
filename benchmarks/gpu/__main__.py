"""Run every part, each in a process of its own, save what each has found, and say which aims are met.

A part that fails or is cut off leaves the rows that it has finished, and its error beside them; the others run. Without a GPU every
part runs at toy size on the CPU, whose figures say nothing of a GPU; the table and the file say so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, report, told
from benchmarks.gpu.aims import aims
from benchmarks.gpu.parts import PARTS, run_part
from benchmarks.gpu.size import SIZES
from lightning_e5.files.storage import write_json


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
            found["parts"][name] = _run(name, size.name, Path(folder) / f"{name}.jsonl", until - time.monotonic())
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


def _run(name: str, size: str, out: Path, seconds: float) -> dict[str, Any]:
    """One part's rows, its seconds, and its error, if it had one."""
    started, error = time.monotonic(), None
    command = [sys.executable, "-m", "benchmarks.gpu", "--size", size, "--part", name, str(out)]
    try:
        if seconds <= 0:
            error = "not begun: no time was left"
        else:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=seconds, text=True)
            if done.returncode:
                error = f"ended with {done.returncode}: {' | '.join(done.stderr.strip().splitlines()[-4:])}"
    except subprocess.TimeoutExpired:
        error = f"cut off after {seconds:.0f} s"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    return {"seconds": time.monotonic() - started, "error": error, "rows": rows}


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
