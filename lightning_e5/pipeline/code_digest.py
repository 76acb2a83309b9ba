"""The code that a stage's result comes from: one digest of the files that its function and its arguments' classes import.

Followed are this project's packages, those of ``--allow-package``, and whatever else is imported from outside the installed
packages, all the way down, inside functions too. Imports are found by their text (a syntax tree of all files takes seconds),
which may find too many, as in a docstring: then a stage is computed once more than it had to be. Not found are modules whose
names the code puts together while it runs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning_e5.configurable import OUR_PACKAGES, allowed_packages
from lightning_e5.files.storage import sha256_text, to_json

#: An import that begins where it is matched, or behind a ``:`` or ``;`` of that line.
_IMPORT = re.compile(
    r"(?:[^\n]*?[:;])??[ \t]*(?:from[ \t]+(?P<base>\.*[ \t]*[\w.]*)[ \t]+import\b[ \t]*(?P<names>\((?:[^)#]|#[^\n]*)*\)|[^\n;#(]+)"
    r"|import[ \t]+(?P<modules>[^\n;#]+))|[^\n]*?import_module\([ \t\n]*[\"'](?P<literal>[\w.]+)"
)
_COMMENT = re.compile(r"#[^\n]*")
#: (path, size, time of change) -> sha256 of the file and the dotted names that it imports.
_read: dict[tuple[str, int, int], tuple[str, tuple[str, ...]]] = {}


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` in a stage's node."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def code_digest(names: Iterable[str]) -> str:
    """One digest of the code behind dotted names of modules, functions or classes, as the files are now.

    Args:
        names: such as ``lightning_e5.stages.pretrain.pretrain``; those of installed libraries are passed over, but for the
            versions of what a user's own code imports.
    """
    return sha256_text(to_json(code_files(names)))


def code_files(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str | None]]:
    """The modules behind dotted names with the sha256 of their files, and the libraries that a user's own code imports with
    their versions."""
    ours = (*OUR_PACKAGES, *(name.partition(".")[0] for name in allowed_packages()))
    waiting, found, libraries = list(names), dict[str, str](), dict[str, str | None]()
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in seen:
            continue
        seen.add(name)
        if top not in ours and not _is_local(top):
            continue
        for module, path in _files(name):
            if module in found:
                continue
            found[module], imports = _scan(path, module)
            waiting += imports
            if top not in OUR_PACKAGES:  # what decides results of ours is in a stage's fingerprint
                outside = {i.partition(".")[0] for i in imports} - set(ours) - set(sys.stdlib_module_names)
                libraries |= {library: _version(library) for library in outside if library and not _is_local(library)}
    return found, libraries


def imported_names(source: str, module: str, is_package: bool) -> tuple[str, ...]:
    """The dotted names that a file's text imports: of ``from a import b`` both ``a`` and ``a.b``, which may be a module."""
    names: list[str] = []
    for match in _imports(source.replace("\\\n", " ")):
        if match["literal"]:
            names.append(match["literal"])
        elif match["modules"]:
            names += [part.split(" as ")[0].strip() for part in match["modules"].split(",")]
        else:
            base = _absolute(match["base"].replace(" ", ""), module, is_package)
            parts = _COMMENT.sub("", match["names"]).strip("() \t").split(",")
            names += [base, *(f"{base}.{part.split(' as ')[0].strip()}" for part in parts if part.strip() not in ("", "*"))]
    return tuple(dict.fromkeys(name for name in names if all(part.isidentifier() for part in name.split("."))))


def _imports(source: str) -> Iterator[re.Match[str]]:
    """The imports in a text, looked for only in lines with that word, as the pattern alone is slow."""
    end, word = 0, source.find("import")
    while word >= 0:
        match = _IMPORT.match(source, max(end, source.rfind("\n", 0, word) + 1))
        end = match.end() if match else word + len("import")
        if match:
            yield match
        word = source.find("import", max(end, word + 1))


def _absolute(base: str, module: str, is_package: bool) -> str:
    """A relative import's module (``.files``) as an absolute one."""
    rest = base.lstrip(".")
    level = len(base) - len(rest)
    if not level:
        return base
    parts = module.split(".")
    above = parts[: len(parts) - level + (1 if is_package else 0)]
    return ".".join([*above, *([rest] if rest else [])])


def _scan(path: Path, module: str) -> tuple[str, tuple[str, ...]]:
    try:
        facts = path.stat()
        key = (str(path), facts.st_size, facts.st_mtime_ns)
        if key not in _read:
            content = path.read_bytes()
            text = content.decode("utf-8", "replace") if path.suffix == ".py" else ""
            _read[key] = hashlib.sha256(content).hexdigest(), imported_names(text, module, path.name == "__init__.py")
        return _read[key]
    except OSError:  # removed since it was found
        return "missing", ()


@functools.cache
def _files(name: str) -> tuple[tuple[str, Path], ...]:
    """The files of a dotted name: its module and the packages around it; what is not a module stands in the one above it."""
    parts = name.split(".")
    file, places = _top(parts[0])
    found = [(parts[0], file)] if file is not None else []
    for number in range(2, len(parts) + 1):
        inside = [place / parts[number - 1] for place in places]
        package = next((p / "__init__.py" for p in inside if (p / "__init__.py").is_file()), None)
        file = package or next((f for p in inside for f in _modules(p)), None)
        places = [p for p in inside if p.is_dir()]
        if file is not None:
            found.append((".".join(parts[:number]), file))
        elif not places:
            break
    return tuple(found)


def _modules(path: Path) -> Iterator[Path]:
    """The file of a module that is no package: Python's, or a compiled one."""
    if path.with_name(f"{path.name}.py").is_file():
        yield path.with_name(f"{path.name}.py")
    elif path.parent.is_dir():
        yield from sorted(path.parent.glob(f"{path.name}.*.so"))[:1]


@functools.cache
def _top(name: str) -> tuple[Path | None, list[Path]]:
    """The file of a top-level module, and the folders of its submodules; looked for without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return None, []
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    return file, [Path(place) for place in spec.submodule_search_locations or []]


@functools.cache
def _is_local(top: str) -> bool:
    """Whether a top-level module lies outside Python's library and the installed packages."""
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    file, places = _top(top)
    path = file or next(iter(places), None)
    if path is None:
        return False
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not ({"site-packages", "dist-packages"} & {*path.parts} or any(path.is_relative_to(folder) for folder in installed))


@functools.cache
def _version(library: str) -> str | None:
    """The version of an installed package, where it has the name of its module."""
    try:
        return metadata.version(library)
    except (metadata.PackageNotFoundError, ValueError):
        return None
