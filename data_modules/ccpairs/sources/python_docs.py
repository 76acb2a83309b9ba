"""Text pairs from the documentation of Python packages: real text that every machine with Python already has.

Files are read from source with ``ast``; nothing is imported or executed. A function ``diameter`` with the docstring::

    Return the diameter of the graph G.

    The diameter is the maximum eccentricity, the largest distance between two nodes.

gives the first line as query and the rest as passage; parameters and examples are told apart (see `docstrings`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from data_modules.ccpairs.formats.docstrings import EXTRACTOR_VERSION, Limits, docstring_pairs
from data_modules.ccpairs.formats.python_source import docstrings_of, name_in_words
from lightning_e5.configurable import configurable
from lightning_e5.distributed.launch import end_with_parent
from lightning_e5.errors import UserError
from lightning_e5.files import parquet
from lightning_e5.files.storage import empty_directory, sha256_text, to_json, verify_manifest, write_manifest
from lightning_e5.interrupts import starting_workers
from lightning_e5.progress import progress
from lightning_e5.ranges import Count, Workers
from lightning_e5.text import text_id
from lightning_e5.types import TextPair

STDLIB = "stdlib"
CACHE_KIND = "python-docs-cache"
#: A query with more passages in one package ("Return self."), or a passage with more queries, is left out.
MAX_PARTNERS = 3
_SKIPPED_PARTS = re.compile(
    r"^(tests?|testing|_?testing?|tests?_.*|.*_tests?|conftest|_?vendor(ed)?|_?vendored_.*|third_?party|_?extern(al|als)?|"
    r"examples?|benchmarks?|asv_bench|setup|idlelib|lib2to3|turtledemo|ensurepip|site-packages|dist-packages|__pycache__|"
    r"pydoc_data|lib-dynload|config-.*|.*_pb2(_grpc)?|_?version|.*\.dist-info)$"
)


class _File(NamedTuple):
    source: str
    path: str
    #: path inside the package root, with ``/``
    relative: str


class _Read(NamedTuple):
    source: str
    pairs: list[tuple[str, str]]
    counts: Counter[str]


@configurable("pair source")
class PythonDocs:
    """Pairs (short description, the text below it) of the docstrings of the standard library and installed packages.

    After an iteration ``counts`` holds what was read and dropped, and ``missing`` the named packages not found.

    Args:
        packages: distribution names, ``"stdlib"`` for the standard library; None for all that are installed. One
            that is not installed is recorded in ``missing``.
        min_query_chars: shortest query, in characters.
        max_query_chars: longest query, in characters; longer descriptions are split after their first sentence.
        min_passage_chars: shortest passage, in characters.
        max_passage_chars: passages are cut to this many characters, at a sentence where possible.
        workers: processes that parse; the pairs and their order do not depend on it.
        cache_dir: directory for the extracted pairs, keyed by the settings and the packages' versions; None for none.
        roots: package name -> directory of source files, read in addition to ``packages`` (None then means no other).
        show_progress: show a bar with the time left on stderr.

    Raises:
        UserError: no package was found, or a setting is out of range.
    """

    name = "python-docs"

    def __init__(
        self,
        packages: Sequence[str] | None = None,
        *,
        min_query_chars: Count = 16,
        max_query_chars: Count = 240,
        min_passage_chars: Count = 60,
        max_passage_chars: Count = 1200,
        workers: Workers = 2,
        cache_dir: str | None = None,
        roots: Mapping[str, str | Path] | None = None,
        show_progress: bool = True,
    ) -> None:
        if isinstance(packages, str):
            raise UserError(f"packages must be a list of names, not the string {packages!r}")
        for key, low, high in (("query", min_query_chars, max_query_chars), ("passage", min_passage_chars, max_passage_chars)):
            if not 1 <= low <= high:
                raise UserError(f"min_{key}_chars={low} and max_{key}_chars={high} must satisfy 1 <= min <= max")
        if workers < 1:
            raise UserError(f"workers={workers} must be at least 1")
        self.limits = Limits(min_query_chars, max_query_chars, min_passage_chars, max_passage_chars)
        self.workers = workers
        self.cache_dir = Path(cache_dir) if cache_dir is not None else None
        self.show_progress = show_progress
        self.counts: dict[str, int] = {}
        self._roots = {_normalise_name(name): Path(root) for name, root in (roots or {}).items()}
        for name, root in self._roots.items():
            if not root.is_dir():
                raise UserError(f"roots: {name}={str(root)!r} is no directory")
        wanted = None if packages is None else {_normalise_name(name) for name in packages}
        self._distributions = {} if roots and wanted is None else _installed(wanted)
        self._stdlib = not roots if wanted is None else STDLIB in wanted
        found = {*self._distributions, *self._roots, *([STDLIB] if self._stdlib else [])}
        #: named packages that are not installed
        self.missing = sorted((wanted or set()) - found)
        if not found:
            raise UserError(f"packages: none of {', '.join(self.missing) or 'the named packages'} is installed")

    def versions(self) -> dict[str, str]:
        """Return package -> version; for a directory given in ``roots``, a digest of its Python files."""
        versions = {name: distribution.version for name, distribution in self._distributions.items()}
        if self._stdlib:
            versions[STDLIB] = platform.python_version()
        for name, root in self._roots.items():
            digest = hashlib.sha256()
            for file in _directory_files(name, root):
                digest.update(file.relative.encode("utf-8", "surrogateescape") + b"\0")
                try:
                    digest.update(hashlib.sha256(Path(file.path).read_bytes()).digest())
                except OSError:
                    digest.update(b"unreadable")
            versions[name] = f"sha256-{digest.hexdigest()[:16]}"
        return dict(sorted(versions.items()))

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the pairs: the packages' versions, the settings and the extractor's version."""
        return {
            "packages": self.versions(),
            "settings": {**asdict(self.limits), "max_partners": MAX_PARTNERS},
            "extractor": EXTRACTOR_VERSION,
            "python": ".".join(platform.python_version_tuple()[:2]),
        }

    def __iter__(self) -> Iterator[TextPair]:
        fingerprint = self.fingerprint()
        cache = self.cache_dir / f"{self.name}-{sha256_text(to_json(fingerprint))[:24]}" if self.cache_dir else None
        rows = self._cached(cache) if cache else None
        if rows is None:
            rows = self._extract()
            if cache:
                self._write_cache(cache, rows, fingerprint)
        for source, query, passage in rows:
            yield TextPair(query=query, passage=passage, source=source)

    def files(self) -> list[_File]:
        """Return the Python files that are read, sorted by package and path."""
        files = [file for name, root in self._roots.items() for file in _directory_files(name, root)]
        for name, distribution in self._distributions.items():
            for entry in distribution.files or ():
                relative = entry.as_posix()
                if _is_wanted(relative):
                    files.append(_File(name, str(distribution.locate_file(entry)), relative))
        if self._stdlib:
            files.extend(_directory_files(STDLIB, Path(sysconfig.get_path("stdlib"))))
        return sorted(set(files))

    def _extract(self) -> list[tuple[str, str, str]]:
        files = self.files()
        counts: Counter[str] = Counter()
        rows: list[tuple[str, str, str]] = []
        read = partial(_read_file, limits=self.limits)
        workers = min(self.workers, max(1, len(files) // 50))
        with _pool(workers) as executor:
            with starting_workers():
                results = executor.map(read, files, chunksize=16) if executor is not None else map(read, files)
            with progress(len(files), "read", "file") if self.show_progress else nullcontext(lambda _: None) as bar:
                for result in results:
                    counts.update(result.counts)
                    rows.extend((result.source, query, passage) for query, passage in result.pairs)
                    bar(1)
        kept = _without_vague_texts(rows)
        counts["dropped: text with many partners"] = len(rows) - len(kept)
        counts["pairs"] = len(kept)
        self.counts = dict(sorted(counts.items()))
        return kept

    def _cached(self, cache: Path) -> list[tuple[str, str, str]] | None:
        """The rows of a whole cache directory, or None where there is none or its files are not those written."""
        try:
            manifest = verify_manifest(cache, CACHE_KIND)
            columns = {"source": "string", "query": "string", "passage": "string"}
            table = parquet.read_parquet(cache / "pairs.parquet", columns, allow_empty=True)
        except UserError:
            return None
        self.counts = dict(manifest["counts"])
        return list(zip(*(table[name].to_pylist() for name in columns), strict=True))

    def _write_cache(self, cache: Path, rows: list[tuple[str, str, str]], fingerprint: dict[str, Any]) -> None:
        import pyarrow as pa

        empty_directory(cache)
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        names = ("source", "query", "passage")
        table = {name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)}
        parquet.write_parquet(cache / "pairs.parquet", table)
        write_manifest(cache, kind=CACHE_KIND, files=["pairs.parquet"], fingerprint=fingerprint, counts=self.counts)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that end with this one, and without what is left to do where the block ends with an exception; None for one."""
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _normalise_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()


def _installed(wanted: set[str] | None) -> dict[str, importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = _normalise_name(distribution.metadata["Name"] or "") if distribution.metadata else ""
        if name and (wanted is None or name in wanted):
            found.setdefault(name, distribution)  # the first on the path is the one that Python imports
    return dict(sorted(found.items()))


def _is_wanted(relative: str) -> bool:
    if not relative.endswith(".py") or relative.startswith(("..", "/")):
        return False
    return not any(_SKIPPED_PARTS.match(part) for part in relative[: -len(".py")].split("/"))


def _directory_files(source: str, root: Path) -> list[_File]:
    """The wanted files below ``root``; links to directories are not followed, so a loop of links does no harm."""
    files = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(name for name in subdirectories if not _SKIPPED_PARTS.match(name))
        for name in sorted(names):
            path = Path(directory, name)
            relative = path.relative_to(root).as_posix()
            if _is_wanted(relative):
                files.append(_File(source, str(path), relative if source == STDLIB else f"{source}/{relative}"))
    return files


def _read_file(file: _File, limits: Limits) -> _Read:
    """The pairs of one file; a file that cannot be read or parsed is counted and gives none."""
    counts: Counter[str] = Counter(files=1)
    pairs: list[tuple[str, str]] = []
    drops: Counter[str] = Counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(Path(file.path).read_bytes())
    except OSError:
        return _Read(file.source, [], counts + Counter({"files unreadable": 1}))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Read(file.source, [], counts + Counter({"files that do not parse": 1}))
    module = [part for part in file.relative[: -len(".py")].split("/") if not part.startswith("_")]
    for names, docstring in docstrings_of(tree):
        counts["docstrings"] += 1
        try:
            docstring.encode("utf-8")
        except UnicodeEncodeError:  # a lone surrogate, which no tokenizer takes
            drops["not UTF-8"] += 1
            continue
        pairs.extend(docstring_pairs(docstring, name_in_words(module, names), limits, drops))
    counts["pairs extracted"] = len(pairs)
    counts.update({f"dropped: {rule}": n for rule, n in drops.items()})
    return _Read(file.source, pairs, counts)


def _without_vague_texts(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Leave out what a package says of too many things: such a query or passage tells nothing of its partner."""
    keys = [(source, text_id(query), text_id(passage)) for source, query, passage in rows]
    passages = Counter((source, query) for source, query, _ in set(keys))
    queries = Counter((source, passage) for source, _, passage in set(keys))
    few = [passages[source, query] <= MAX_PARTNERS and queries[source, passage] <= MAX_PARTNERS for source, query, passage in keys]
    return [row for row, kept in zip(rows, few, strict=True) if kept]
