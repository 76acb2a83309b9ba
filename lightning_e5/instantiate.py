"""From a checked YAML node to an object: ``_target_`` names a class or function, the other keys are its arguments.

A YAML is not a shell: a ``_target_`` resolves only to an object that was itself defined in an allowed package, so an
alias such as ``lightning_e5.storage.os.system`` is refused. ``_partial_: true`` leaves arguments for the stage to give.
"""

from __future__ import annotations

import collections.abc
import functools
import importlib
import inspect
import pathlib
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, Literal, Union, get_args, get_origin

from lightning_e5.errors import UserError, suggestion

ALLOWED_PACKAGES = ("lightning_e5", "data_modules", "torch.optim", "lightning.pytorch.callbacks")
SPECIAL_KEYS = ("_target_", "_partial_")
_NAMESPACE = {name: getattr(collections.abc, name) for name in collections.abc.__all__} | {
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union")},
    "Path": pathlib.Path,
}


def resolve_target(target: Any, key: str) -> Callable[..., Any]:
    """The class or function that ``target`` names.

    Raises:
        UserError: not a dotted name, not importable, not there (with a suggestion), or defined outside ALLOWED_PACKAGES.
    """
    if not isinstance(target, str) or "." not in target:
        raise UserError(f"{key}._target_: {target!r} is not a dotted name such as 'lightning_e5.stages.pretrain.pretrain'")
    if not _allowed(target):
        raise UserError(f"{key}._target_: {target!r} is not in an allowed package ({', '.join(ALLOWED_PACKAGES)})")
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name + ".").startswith(error.name + "."):
                continue
            raise
        break
    else:
        raise UserError(f"{key}._target_: no module of {target!r} can be imported")
    for depth, name in enumerate(parts[cut:], start=cut):
        if not hasattr(found, name):
            names = [n for n in dir(found) if not n.startswith("_") and callable(getattr(found, n, None))]
            if depth == cut and inspect.ismodule(found) and hasattr(found, "__path__"):
                import pkgutil

                names += [m.name for m in pkgutil.iter_modules(found.__path__)]
            raise UserError(f"{key}._target_: {'.'.join(parts[:depth])} has no {name!r}{suggestion(name, names)}")
        found = getattr(found, name)
    own_module = getattr(found, "__module__", None)
    if not callable(found) or inspect.ismodule(found) or not isinstance(own_module, str) or not _allowed(own_module + "."):
        raise UserError(f"{key}._target_: {target!r} is not a class or function of an allowed package")
    return found


def _allowed(dotted: str) -> bool:
    return any(dotted == p or dotted.startswith(p + ".") for p in ALLOWED_PACKAGES)


def check_node(node: Any, key: str, *, given: Collection[str] = (), special: Collection[str] = ()) -> None:
    """Check a node and all nodes in it: targets resolve, arguments exist, have the right type, none is missing.

    Args:
        node: a value of a YAML.
        key: its dotted key, for messages.
        given: arguments that the caller will add.
        special: keys of this node that are not arguments.

    Raises:
        UserError: naming the key, the value and the rule.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_node(item, f"{key}[{index}]")
    if not isinstance(node, dict):
        return
    for name, value in node.items():
        if name not in special:
            check_node(value, f"{key}.{name}")
    if "_target_" in node:
        _check_call(node, key, given, {*special, *SPECIAL_KEYS})
    elif "_partial_" in node:
        raise UserError(f"{key}: has _partial_ but no _target_")


def _check_call(node: dict[str, Any], key: str, given: Collection[str], special: Collection[str]) -> None:
    target = resolve_target(node["_target_"], key)
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise UserError(f"{key}._partial_: {partial!r} is not true or false")
    parameters = inspect.signature(target).parameters
    accepted, open_ended = _accepted(target)
    arguments = {name: value for name, value in node.items() if name not in special}
    name_of = getattr(target, "__qualname__", str(target))
    for name, value in arguments.items():
        if name not in accepted:
            if open_ended:
                continue
            choices = [p for p in accepted if p not in given]
            raise UserError(f"{key}: {name_of} has no argument {name!r}{suggestion(name, choices)}")
        if name in given:
            raise UserError(f"{key}.{name}: is given by the runner and cannot be set here")
        hint = _annotation(*accepted[name])
        if hint is not None and not (isinstance(value, dict) and "_target_" in value) and not fits(value, hint):
            raise UserError(f"{key}.{name}: {value!r} is not {describe(hint)}")
    required = [
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n not in arguments
    ]
    missing = [n for n in required if n not in given]
    if missing and not partial:
        raise UserError(f"{key}: {name_of} needs the argument {missing[0]!r}")


def _accepted(target: Callable[..., Any]) -> tuple[dict[str, tuple[Callable[..., Any], Any]], bool]:
    """Argument -> (function that has it, its annotation), and whether any other name is accepted too.

    A class that takes ``**arguments`` hands them to the class before it, so that one's arguments are its own too.
    """
    classes = target.__mro__[:-1] if inspect.isclass(target) else ()
    initialisers = [vars(c)["__init__"] for c in classes if "__init__" in vars(c)]
    accepted: dict[str, tuple[Callable[..., Any], Any]] = {}
    for function in initialisers or [target]:
        parameters = list(inspect.signature(function).parameters.values())[1 if initialisers else 0 :]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                accepted.setdefault(p.name, (function, p.annotation))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return accepted, False
    return accepted, True


def _annotation(function: Callable[..., Any], annotation: Any) -> Any:
    """The annotation as a type, or None where it cannot be checked."""
    if annotation is inspect.Parameter.empty:
        return None
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {**_NAMESPACE, **getattr(inspect.unwrap(function), "__globals__", {})})
    except Exception:  # a name imported for type checkers only: not a type a YAML value could have
        return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value has the annotated type; unknown annotations accept everything."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (str, pathlib.Path):
        return isinstance(value, str)
    container = origin or hint
    if container in (list, tuple, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable):
        if not isinstance(value, list):
            return False
        if container is tuple and arguments and Ellipsis not in arguments:
            return len(value) == len(arguments) and all(fits(v, a) for v, a in zip(value, arguments, strict=True))
        return all(fits(item, arguments[0]) for item in value) if arguments else True
    if container in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            return False
        return all(fits(v, arguments[1]) for v in value.values()) if len(arguments) == 2 else True
    if inspect.isclass(hint) and not getattr(hint, "_is_protocol", False):
        return isinstance(value, dict | str) or value is None if hint.__module__ != "builtins" else isinstance(value, hint)
    return True


def describe(hint: Any) -> str:
    """The annotated type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in arguments)
    if hint is None or hint is type(None):
        return "null"
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false", pathlib.Path: "a path"}
    if hint in words:
        return words[hint]
    if origin is not None and issubclass(origin, collections.abc.Mapping):
        return "a mapping"
    if origin is not None:
        return f"a list of {describe(arguments[0]).removeprefix('a ').removeprefix('an ')}s" if arguments else "a list"
    return getattr(hint, "__name__", str(hint))


def instantiate(node: Any, key: str = "", **given: Any) -> Any:
    """Build what a node describes; nested nodes first. ``given`` are further arguments of the outermost target."""
    if isinstance(node, list):
        return [instantiate(item, f"{key}[{index}]") for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    values = {n: instantiate(v, f"{key}.{n}") for n, v in node.items() if n not in SPECIAL_KEYS}
    if "_target_" not in node:
        return values | given
    target = resolve_target(node["_target_"], key)
    if node.get("_partial_", False):
        return functools.partial(target, **values, **given)
    return target(**values, **given)
