"""From a checked YAML node to an object: ``_target_`` names a class or function, the other keys are its arguments.

What may be named is said in ``lightning_e5.configurable``, what the arguments may be in their annotations
(``lightning_e5.config.annotations``). ``_partial_: true`` leaves arguments for the stage to give.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

from lightning_e5.config.annotations import arguments_of, check_value, describe, given_arguments, metadata, takes
from lightning_e5.configurable import MOVED_ARGUMENTS, declared, resolve_target
from lightning_e5.errors import UserError, suggestion
from lightning_e5.ranges import ArgumentsOf, Given

SPECIAL_KEYS = ("_target_", "_partial_")
#: Arguments that earlier versions had, and what takes their place.
REMOVED_ARGUMENTS = {"write_tokens": "is not needed any more, the stage writes the tokens itself; leave the line out"}


def check_node(node: Any, key: str, *, given: Collection[str] = (), special: Collection[str] = (), slot: Any = Any) -> None:
    """Check a node and all nodes in it: targets are configurable and fit their slot, arguments exist, have the right type
    and range, go together, and none is missing.

    Args:
        node: a value of a YAML.
        key: its dotted key, for messages.
        given: arguments that the caller will add.
        special: keys of this node that are not arguments.
        slot: the annotation of the argument that the node is for.

    Raises:
        UserError: naming the key, the value and the rule.
    """
    if isinstance(node, list):
        check_value(node, slot, key)
        inner = _of_items(slot)
        for index, item in enumerate(node):
            check_node(item, f"{key}[{index}]", slot=inner)
    if not isinstance(node, dict):
        check_value(node, slot, key)
        return
    if "_target_" in node:
        _check_call(node, key, given, {*special, *SPECIAL_KEYS}, slot)
        return
    if "_partial_" in node:
        raise UserError(f"{key}: has _partial_ but no _target_")
    check_value(node, slot, key)
    options, inner = metadata(slot, ArgumentsOf), _of_items(slot)
    slots = {name: p.annotation for name, p in arguments_of(options.function)[0].items()} if options is not None else {}
    for name, value in node.items():
        if name not in special:
            check_node(value, f"{key}.{name}", slot=slots.get(name, inner))


def _of_items(slot: Any) -> Any:
    """The annotation of a list's or mapping's items: Any where there is none, or several kinds of them."""
    import collections.abc
    import types
    from typing import Annotated, Union, get_args, get_origin

    origin, arguments = get_origin(slot), get_args(slot)
    if origin is Annotated:
        return _of_items(arguments[0])
    if origin in (Union, types.UnionType):
        inner = [found for option in arguments if (found := _of_items(option)) is not Any]
        return inner[0] if len(inner) == 1 else Any
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Collection) and arguments:
        return Any if origin is tuple else arguments[-1]
    return Any


def _check_call(node: dict[str, Any], key: str, given: Collection[str], special: Collection[str], slot: Any) -> None:
    target = resolve_target(node["_target_"], key)
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        raise UserError(f"{key}._partial_: {partial!r} is not true or false")
    name_of = getattr(target, "__qualname__", str(target))
    if not takes(slot, target, partial):
        if takes(slot, target, not partial):
            raise UserError(f"{key}: needs _partial_: true, since the stage gives the rest of its arguments" if not partial else f"{key}: _partial_ has no place here")
        raise UserError(f"{key}: {name_of} is not {describe(slot)}")
    by_slot = metadata(slot, Given)
    given = [*given, *given_arguments(by_slot, target)]
    accepted, open_ended = arguments_of(target)
    arguments = {name: value for name, value in node.items() if name not in special}
    for name, value in arguments.items():
        if name not in accepted:
            if open_ended:
                continue
            says = declared(target)
            if says is not None and (place := MOVED_ARGUMENTS.get(says.kind, {}).get(name)) is not None:
                raise UserError(f"{key}.{name}: stands beside this node now; write it as {key.rpartition('.')[0]}.{place}.{name}")
            if name in REMOVED_ARGUMENTS:
                raise UserError(f"{key}.{name}: {REMOVED_ARGUMENTS[name]}")
            choices = [p for p in accepted if p not in given]
            raise UserError(f"{key}: {name_of} has no argument {name!r}{suggestion(name, choices)}")
        if name in given:
            raise UserError(f"{key}.{name}: is given by the runner and cannot be set here")
        check_node(value, f"{key}.{name}", slot=accepted[name].annotation)
    if by_slot is not None and not open_ended and (surplus := [n for n in given if n not in accepted]):
        raise UserError(f"{key}: {name_of} has no argument {surplus[0]!r}, which the stage gives: it is of another stage")
    missing = [n for n, p in accepted.items() if p.default is p.empty and n not in arguments and n not in given]
    if missing and (not partial or by_slot is not None):
        raise UserError(f"{key}: {name_of} needs the argument {missing[0]!r}")
    _check_together(target, key, arguments, {n: p.default for n, p in accepted.items() if n not in given}, partial)


def _check_together(target: Callable[..., Any], key: str, arguments: dict[str, Any], defaults: dict[str, Any], partial: bool) -> None:
    says = declared(target)
    if says is None:
        return
    try:
        if says.check is not None:
            says.check({n: value for n, value in {**defaults, **arguments}.items() if value is not inspect.Parameter.empty})
        if says.constructs and not partial:
            instantiate({"_target_": f"{target.__module__}.{target.__qualname__}", **arguments}, key)
    except UserError as error:
        raise error if str(error).startswith(key) else UserError(f"{key}: {error}") from None


def instantiate(node: Any, key: str = "", **given: Any) -> Any:
    """Build what a node describes; nested nodes first. ``given`` are further arguments of the outermost target.

    Raises:
        UserError: a target that is not configurable, or an argument that is not of its type or out of its range.
    """
    if isinstance(node, list):
        return [instantiate(item, f"{key}[{index}]") for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    values = {n: instantiate(v, f"{key}.{n}") for n, v in node.items() if n not in SPECIAL_KEYS}
    if "_target_" not in node:
        return values | given
    target = resolve_target(node["_target_"], key)
    accepted, _ = arguments_of(target)
    for name in values:
        if name in accepted:
            check_value(node[name], accepted[name].annotation, f"{key}.{name}")
    if node.get("_partial_", False):
        return functools.partial(target, **values, **given)
    return target(**values, **given)
