"""What `lightning-e5 adapt` gains on three kinds of own texts, and what it costs.

    python -m benchmarks.own_texts --data-dir FOLDER --work FOLDER --json benchmarks/results/own_texts.json

The texts: the docstrings of this Python's library as a folder of documents (reStructuredText, Markdown and plain text, a file per
module), 5,000 pairs as JSONL and 300 as CSV. The pairs are drawn evenly from ``FOLDER/pairs/{msdocs,medquad}.parquet`` (string columns
``query``, ``passage``, ``title``). Runs that are finished are read, not repeated.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import re
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from lightning_e5.__main__ import main as lightning_e5
from lightning_e5.files.parquet import read_parquet
from lightning_e5.files.storage import write_json, write_text
from lightning_e5.report.tables.adaptation import decision_lines
from lightning_e5.results.adaptation import ADAPTED, START, adaptation
from lightning_e5.results.run import RunData

_NO_DOCUMENTATION = re.compile(
    r"(tests?|idlelib|lib2to3|turtledemo|ensurepip|site-packages|pydoc_data|lib-dynload|config-.*|__pycache__|__phello__|encodings|_.*)$"
)
#: A documented name: its dotted name, its docstring, whether it is a class.
Member = tuple[str, str, bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds pairs/msdocs.parquet and pairs/medquad.parquet")
    parser.add_argument("--work", type=Path, required=True, help="gets the texts and the runs")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    made: dict[str, Callable[[Path], None]] = {
        "python_library": write_library, "msdocs.jsonl": lambda path: write_jsonl(path, pairs(given.data_dir, "msdocs", 5000)),
        "medquad.csv": lambda path: write_csv(path, pairs(given.data_dir, "medquad", 300)),
    }  # fmt: skip
    found = {}
    for name, make in made.items():
        texts, run = given.work / name, name.partition(".")[0]
        if not texts.exists():
            make(texts)
        if lightning_e5(["adapt", str(texts), "--name", run, f"runs_dir={given.work / 'runs'}", "logger.mode=disabled"]):
            raise SystemExit(f"{name}: adapt failed")
        found[name] = figures(given.work / "runs" / run)
    print(json.dumps(found, indent=1))
    if given.json is not None:
        write_json(given.json, {"machine": machine(), "texts": found})


def figures(directory: Path) -> dict[str, Any]:
    """What a finished adaptation says, and what its stages took."""
    run = RunData(directory)
    told = adaptation(run)
    assert told is not None
    gain, times = told.compared(ADAPTED, START), run.times()
    assert gain is not None
    return {
        "pairs": int(run.metrics["pairs/pairs"]), "queries": int(run.metrics["pairs/test_queries"]),
        "ndcg@10": {name: round(row.value, 4) for name, row in told.rows.items()},
        "adapted to start": [round(value, 4) for value in (gain.difference, gain.low, gain.high)],
        "kept step": told.best_step, "says": decision_lines(told)[0].partition(":")[0].replace(str(told.encoder), "the encoder"),
        "seconds of the stages": {name: round(spent["seconds"], 1) for name, spent in times.items()},
        "peak memory GB": round(max(spent["peak_memory_gb"] for spent in times.values()), 2),
    }  # fmt: skip


def pairs(data_dir: Path, name: str, count: int) -> list[dict[str, str]]:
    """``count`` rows of a table of pairs, evenly spaced."""
    columns = ("query", "passage", "title")
    table = read_parquet(data_dir / "pairs" / f"{name}.parquet", dict.fromkeys(columns, "string"))
    step = table.num_rows // count
    return list(table.take(list(range(0, step * count, step))).to_pylist())


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer", "title"])
        writer.writerows([row["query"], row["passage"], row["title"]] for row in rows)


def write_library(folder: Path) -> None:
    """The docstrings of the standard library, a file per module."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for number, path in enumerate(sorted(library.rglob("*.py"))):
        parts = [part for part in path.relative_to(library).with_suffix("").parts if part != "__init__"]
        if not parts or any(_NO_DOCUMENTATION.match(part) for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        if docstring := ast.get_docstring(tree):
            module = ".".join(parts)
            form, ending = ((_rest, "rst"), (_markdown, "md"), (_rest, "rst"), (_plain, "txt"))[number % 4]
            write_text(folder / f"{'/'.join(parts)}.{ending}", form(module, docstring, list(members(tree, module))))


def members(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Member]:
    """The public functions and classes with a docstring, all the way down."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            name = f"{prefix}.{child.name}"
            if docstring := ast.get_docstring(child):
                yield name, docstring, isinstance(child, ast.ClassDef)
            if isinstance(child, ast.ClassDef):
                yield from members(child, name)


def _rest(module: str, docstring: str, found: list[Member]) -> str:
    first, _, rest = docstring.partition("\n")
    title = f":mod:`{module}` --- {first.strip().rstrip('.')}"
    parts = [title, "=" * len(title), "", f".. module:: {module}", "", textwrap.dedent(rest).strip(), ""]
    for name, text, is_class in found:
        parts += [name, "-" * len(name), "", text, ""] if is_class else [f".. function:: {name}()", "", textwrap.indent(text, "   "), ""]
    return "\n".join(parts)


def _markdown(module: str, docstring: str, found: list[Member]) -> str:
    first, _, rest = docstring.partition("\n")
    parts = [f"# {module}: {first.strip().rstrip('.')}", "", textwrap.dedent(rest).strip(), ""]
    for name, text, is_class in found:
        parts += [f"{'##' if is_class else '###'} `{name}`", "", text, ""]
    return "\n".join(parts)


def _plain(module: str, docstring: str, found: list[Member]) -> str:
    return "\n\n".join([docstring, *(text for _, text, _ in found)])


if __name__ == "__main__":
    main()
