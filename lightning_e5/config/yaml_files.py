"""YAML files as plain trees, and the ``${key}`` references in them; both bounded, whatever a file holds.

A reference names a key of the experiment itself (``${encoder}``, ``${variables.size}``) or, as ``${oc.env:NAME}``, a variable
of the environment, and nothing else: no function. Alone in a value it stands for the whole node, within a text for its words.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.storage import is_unwritable
from lightning_e5.files.streams import regular_file
from lightning_e5.redaction import remember

Node = dict[str, Any]

#: Bytes of a file, levels of it, and nodes and letters of it with all aliases and references written out.
MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_LETTERS = 2**20, 40, 100_000, 4 * 2**20
_REFERENCE = re.compile(r"\\?\$\{([^{}]*)\}")
#: A variable of the environment: its text, or the number that it is.
_VARIABLE = re.compile(r"oc\.env(\.number)?:([A-Za-z_][A-Za-z0-9_]*)")
_PART = re.compile(r"[^.\[\]]+")


def read_yaml(path: Path) -> Node:
    """One YAML file as a plain tree; UserError names the file and what is wrong in it."""
    tree = parse_yaml(_read_text(path), str(path))
    if not isinstance(tree, dict) or not tree or (len(tree) == 1 and next(iter(tree.values())) is None):
        raise UserError(f"{path}: not an experiment (needs keys such as 'name' and 'stages')")
    return tree


def _read_text(path: Path) -> str:
    if "\0" in str(path):
        raise UserError(f"{str(path)!r}: holds a NUL character, which no file's name has")
    size = regular_file(path).stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{path}: has {size:,} bytes; the most for a YAML is {MAX_BYTES:,}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None


def parse_yaml(text: str, where: str) -> Any:
    """A text as YAML 1.1 without aliases in it, keys once each; UserError begins with ``where``."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        _check_size(text, where)
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except AssertionError:  # OmegaConf's answer to a bare number
        return None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{where}:{line} {getattr(error, 'problem', None) or str(error).splitlines()[0]}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: holds a value that cannot be read ({str(error).splitlines()[0][:200]})") from None


def _check_size(text: str, where: str) -> None:
    """UserError for a text that is nested too deep, or too large once its aliases are written out."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: is nested more than {MAX_DEPTH} deep")
    root = yaml.compose(text, Loader=loader)
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MAX_NODES + 1  # of one that holds itself
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            sizes[id(node)] = 1 + sum(size(part) for item in inner for part in (item if isinstance(item, tuple) else (item,)))
        return sizes[id(node)]

    if root is not None and size(root) > MAX_NODES:
        raise UserError(f"{where}: has more than {MAX_NODES:,} nodes with its aliases written out")


def path_of(key: str) -> list[str]:
    """The parts of a dotted key; an item of a list is ``key.0`` or ``key[0]``."""
    return _PART.findall(key)


def child(node: Any, part: str) -> Any:
    """The value under a key, or the item of a list with a number; KeyError where there is none."""
    if isinstance(node, Mapping):
        return node[part]
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    raise KeyError(part)


def look_up(tree: Node, reference: str, where: str) -> Any:
    """What a reference names in the tree; UserError says which part is not there."""
    if not re.fullmatch(r"[^.:\s\[\]]+([.\[][^.:\s\[\]]+\]?)*", reference):
        raise UserError(f"{where}: '${{{reference}}}' is no reference; it is written as the experiment's key, such as ${{variables.size}}")
    node: Any = tree
    done = ""
    for part in path_of(reference):
        try:
            node = child(node, part)
        except KeyError:
            known = map(str, node) if isinstance(node, Mapping) else ()
            raise UserError(f"{where}: '${{{reference}}}': no key {part!r} in {done or 'the experiment'}{suggestion(part, known)}") from None
        done = f"{done}.{part}".lstrip(".")
    return node


def whole_reference(value: Any) -> str | None:
    """The key that a value refers to, where it is nothing but a reference."""
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) and value.startswith("$") else None
    return found.group(1) if found else None


def resolve_references(tree: Node, title: str) -> Node:
    """A copy of the tree with every ``${key}`` replaced by what it names, and ``${oc.env:NAME}`` by the environment's text.

    A variable whose name is that of a secret is hidden in all that is written, wherever the reference brings it.

    Raises:
        UserError: a reference to nothing or to itself, or a tree that would be too large.
    """
    resolver = _Resolver(tree, title)
    return {str(key): resolver.resolve(value, str(key)) for key, value in tree.items()}


def _of_environment(name: str, where: str, *, number: bool) -> str | int | float:
    text = os.environ.get(name)
    if text is None:
        raise UserError(f"{where}: Environment variable {name!r} not found")
    remember({name: text})
    if not number:
        return text
    try:
        return int(text) if re.fullmatch(r"-?\d{1,18}", text) else float(text)
    except ValueError:
        raise UserError(f"{where}: the environment variable {name!r} holds no number") from None


class _Resolver:
    def __init__(self, tree: Node, title: str) -> None:
        self.tree, self.title = tree, title
        self.nodes, self.letters = 0, 0
        self.open: list[str] = []

    def resolve(self, value: Any, key: str) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or self.letters > MAX_LETTERS:
            raise UserError(f"{self.title}: {key}: the experiment is too large with its references written out")
        if isinstance(value, dict):
            return {k: self.resolve(v, f"{key}.{k}") for k, v in value.items()}
        if isinstance(value, list):
            return [self.resolve(v, f"{key}[{index}]") for index, v in enumerate(value)]
        if not isinstance(value, str):
            return copy.deepcopy(value)
        if is_unwritable(value):
            raise UserError(f"{self.title}: {key}: {value!r} holds a character that no name or path can have")
        if (reference := whole_reference(value)) is not None:
            return self.follow(reference, key)
        return self.text(value, key) if "${" in value else value

    def follow(self, reference: str, key: str) -> Any:
        where = f"{self.title}: {key}"
        if (variable := _VARIABLE.fullmatch(reference)) is not None:
            return _of_environment(variable[2], where, number=variable[1] is not None)
        if reference in self.open or len(self.open) > MAX_DEPTH:
            raise UserError(f"{where}: '${{{reference}}}' refers to itself" if reference in self.open else f"{where}: references more than {MAX_DEPTH} deep")
        found = look_up(self.tree, reference, where)
        self.open.append(reference)
        try:
            return self.resolve(found, key)
        finally:
            self.open.pop()

    def text(self, value: str, key: str) -> str:
        pieces: list[str] = []
        end = 0
        for match in _REFERENCE.finditer(value):
            pieces.append(value[end : match.start()])
            end = match.end()
            if match.group().startswith("\\"):
                pieces.append(match.group()[1:])
                continue
            found = self.follow(match.group(1), key)
            if isinstance(found, dict | list):
                raise UserError(f"{self.title}: {key}: '{match.group()}' names a node, which has no place within a text")
            pieces.append(str(found))
        if "${" in _REFERENCE.sub("", value):
            raise UserError(f"{self.title}: {key}: {value[:80]!r} holds a reference without its end, or one within another")
        whole = "".join([*pieces, value[end:]])
        self.letters += len(whole)
        if self.letters > MAX_LETTERS:
            raise UserError(f"{self.title}: {key}: the experiment is too large with its references written out")
        return whole
