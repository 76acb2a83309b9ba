"""The process of one measurement: ``python -m benchmarks.memory.process FUNCTION FOLDER ROWS WORKERS OUT RESULT``.

It imports what the function's file imports, notes its memory, runs the function, and writes what it took as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks.memory.stage import Inputs, function_of
from benchmarks.memory.watch import memory_of


def main() -> None:
    """Command line."""
    name, folder, rows, workers, out, result = sys.argv[1:]
    function = function_of(name)
    from lightning_e5.memory import keep_freed_memory

    keep_freed_memory()  # as every verb does
    before = memory_of("self")
    started, cpu = time.perf_counter(), time.process_time()
    figures = dict(function(Inputs(Path(folder), int(rows), int(workers)), Path(out)) or {})
    seconds = time.perf_counter() - started
    taken = {"seconds": seconds, "rows": figures.pop("rows", int(rows)), "start_bytes": before.own, "start_rss_bytes": before.rss, "start_cpu_seconds": cpu}
    Path(result).write_text(json.dumps(taken | {"figures": figures}, indent=1, default=float))


if __name__ == "__main__":
    main()
