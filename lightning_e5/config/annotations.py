"""Whether a YAML's value is what an argument's annotation says: its type, its range, and what a slot for an object takes."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lightning_e5.configurable import declared
from lightning_e5.errors import UserError, suggestion
from lightning_e5.ranges import ArgumentsOf, Given, Range

_NAMESPACE = {name: getattr(collections.abc, name) for name in collections.abc.__all__} | {
    **{name: getattr(typing, name) for name in ("Annotated", "Any", "Literal", "Optional", "Union")},
    "Path": pathlib.Path,
}
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
_MAPPINGS = (dict, collections.abc.Mapping)


@functools.cache
def arguments_of(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Argument -> its parameter with the annotation resolved, and whether any other name is accepted too.

    A class that takes ``**arguments`` hands them to the class before it, so that one's arguments are its own too.
    """
    classes = target.__mro__[:-1] if inspect.isclass(target) else ()
    initialisers = [vars(c)["__init__"] for c in classes if "__init__" in vars(c)]
    accepted: dict[str, inspect.Parameter] = {}
    for depth, function in enumerate(initialisers or [target]):
        parameters = list(inspect.signature(function).parameters.values())[1 if initialisers else 0 :]
        for p in parameters:
            handed_on = depth > 0 and p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty  # by the class itself
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and not handed_on:
                accepted.setdefault(p.name, p.replace(annotation=resolved(function, p.annotation)))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return accepted, False
    return accepted, True


def resolved(function: Callable[..., Any], annotation: Any) -> Any:
    """The annotation as a type; Any where it says none, or names what is imported for type checkers only."""
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {**_NAMESPACE, **getattr(inspect.unwrap(function), "__globals__", {})})
    except Exception:
        return Any


def metadata(hint: Any, kind: type) -> Any:
    """What of this kind stands in an annotation, or None."""
    if get_origin(hint) is Annotated:
        found = next((item for item in get_args(hint)[1:] if isinstance(item, kind)), None)
        return found if found is not None else metadata(get_args(hint)[0], kind)
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for option in get_args(hint) if (found := metadata(option, kind)) is not None), None)
    return None


def check_value(value: Any, hint: Any, key: str) -> None:
    """UserError where a value (with no node to build in it) is not what the annotation says."""
    options = metadata(hint, ArgumentsOf)
    if options is not None and isinstance(value, dict):
        accepted = {name: p for name, p in arguments_of(options.function)[0].items() if name in options.names}
        for name, item in value.items():
            if name not in accepted:
                raise UserError(f"{key}: has no argument {name!r}{suggestion(name, accepted)}")
            check_value(item, accepted[name].annotation, f"{key}.{name}")
    elif not fits(value, hint):
        note = metadata(hint, str)
        shown = repr(value) if len(repr(value)) <= 200 else f"{repr(value)[:200]}..."
        raise UserError(f"{key}: {shown} is not {describe(hint, value)}" + (f" ({note})" if note else ""))


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value has the annotated type and range; a node that is to be built fits every slot (see `takes`)."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, dict) and "_target_" in value:
        return True
    if hint is Any:
        return True
    if origin is Annotated:
        ranges = [item for item in arguments[1:] if isinstance(item, Range)]
        return fits(value, arguments[0]) and all(r.holds(value) for r in ranges)
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
    if container in _LISTS:
        if not isinstance(value, list):
            return False
        if container is tuple and arguments and Ellipsis not in arguments:
            return len(value) == len(arguments) and all(fits(v, a) for v, a in zip(value, arguments, strict=True))
        return all(fits(item, arguments[0]) for item in value) if arguments else True
    if container in _MAPPINGS:
        if not isinstance(value, dict):
            return False
        return all(fits(v, arguments[1]) for v in value.values()) if len(arguments) == 2 else True
    return False  # an object, which only a node with a _target_ gives


def describe(hint: Any, value: Any = None) -> str:
    """The annotated type in words; for a number out of its range, the bound that it breaks alone."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind = next((item.kind for item in arguments[1:] if isinstance(item, Given)), None)
        if kind is not None:
            return f"a {kind} (a node with _target_ and _partial_: true)"
        rule = next((item for item in arguments[1:] if isinstance(item, Range)), None)
        number = value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
        return describe(arguments[0], value) + (f" {rule.rule(number)}" if rule is not None else "")
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option, value) for option in arguments)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(repr(option) for option in arguments)
    if hint is None or hint is type(None):
        return "null"
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false", pathlib.Path: "a path"}
    if hint in words:
        return words[hint] if value is None or hint is not float or not isinstance(value, float) or math.isfinite(value) else "a finite number"
    container = origin or hint
    if container in _MAPPINGS:
        return f"a mapping of names to {_plural(arguments[1])}" if len(arguments) == 2 and arguments[1] is not Any else "a mapping"
    if container in _LISTS:
        return f"a list of {_plural(arguments[0])}" if arguments else "a list"
    if container is collections.abc.Callable:
        return "a node with _target_ and _partial_: true"
    return f"{getattr(hint, '__name__', hint)} (a node with _target_)"


def _plural(hint: Any) -> str:
    first, _, rest = describe(hint).partition(" (")
    for article in ("a ", "an "):
        first = first.removeprefix(article)
    words = first.split(" ")
    place = 0 if words[0] in ("integer", "number", "string", "path", "list", "mapping") else len(words) - 1
    words[place] += "s" if not words[place].endswith("s") else ""
    return " ".join(words) + (f" ({rest}" if rest else "")


def takes(hint: Any, target: Callable[..., Any], partial: bool) -> bool:
    """Whether a slot of this annotation takes what a node makes: the target's result or, with ``_partial_``, the target."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        kind = next((item.kind for item in arguments[1:] if isinstance(item, Given)), None)
        says = declared(target)
        return takes(arguments[0], target, partial) and (kind is None or (says is not None and says.kind == kind))
    if origin in (Union, types.UnionType):
        return any(takes(option, target, partial) for option in arguments)
    if origin is collections.abc.Callable:
        return partial and (len(arguments) < 2 or _makes(target, arguments[1]))
    return not partial and _makes(target, hint)


def _makes(target: Callable[..., Any], wanted: Any) -> bool:
    """Whether calling the target gives an object of the wanted class, protocol (by its methods) or generic container."""
    if wanted is Any:
        return True
    made = target if inspect.isclass(target) else resolved(target, inspect.signature(target).return_annotation)
    made, wanted = get_origin(made) or made, get_origin(wanted) or wanted
    if not inspect.isclass(made) or not inspect.isclass(wanted) or wanted in (int, float, str, bool, pathlib.Path):
        return made is Any
    if not getattr(wanted, "_is_protocol", False) or made is wanted:
        return issubclass(made, wanted)
    methods = [name for name, item in vars(wanted).items() if inspect.isfunction(item) and (name in ("__iter__", "__call__") or name[0] != "_")]
    says, wants = declared(made), declared(wanted)
    same_kind = says is None or wants is None or says.kind == wants.kind
    return same_kind and all(any(name in vars(c) for c in made.__mro__[:-1]) for name in methods)


def given_arguments(given: Given | None, target: Callable[..., Any]) -> list[str]:
    """Arguments of a partial's target that its slot says the caller adds."""
    if given is None:
        return []
    accepted = arguments_of(target)[0]
    by_position = [name for name, p in accepted.items() if p.kind is p.POSITIONAL_OR_KEYWORD][: given.positional]
    return [*by_position, *given.names]
