"""``key=value`` of the command line, put into an experiment's tree before its references are resolved."""

from __future__ import annotations

import copy
from typing import Any

from lightning_e5.config.yaml_files import Node, child, look_up, parse_yaml, path_of, whole_reference
from lightning_e5.errors import UserError, suggestion

#: Keys of every stage beside its arguments.
_OF_STAGES = ("inputs", "description", "seed")
#: Top-level keys that hold keys of their own, whether the YAML has them or not.
_MAPPINGS = ("logger",)


def apply_override(tree: Node, override: str) -> None:
    """Set one key of the tree, in place.

    The key is one that the tree has, an argument of the class or function that a node's ``_target_`` names, whether it is
    written there or not, or a key of a mapping. A node that is but a reference (``${encoder}``) is first replaced by a copy
    of what it names.

    Args:
        tree: an experiment with its references still in it.
        override: such as ``stages.pretrain.data.batch_size=256``; items of a list are ``key.0`` or ``key[0]``.

    Raises:
        UserError: no such key, or a value that is no YAML.
    """
    from lightning_e5.config.experiment import TOP_LEVEL, merge

    key, separator, text = override.partition("=")
    parts = path_of(key)
    if not separator or not parts:
        raise UserError(f"{override!r}: an override is key=value, such as stages.pretrain.max_steps=10")
    value = _value(override, text)
    node: Any = tree
    for depth, part in enumerate(parts[:-1]):
        node = _step_into(tree, node, part, ".".join(parts[:depth]), override)
    last = parts[-1]
    if not isinstance(node, dict | list):
        raise UserError(f"override {override!r}: {'.'.join(parts[:-1])} holds no keys")
    if len(parts) == 1 and last not in TOP_LEVEL:
        raise UserError(f"override {override!r}: unknown key {last!r}{suggestion(last, [*TOP_LEVEL])}")
    if parts[0] == "variables" and len(parts) == 2 and last not in node:
        raise UserError(f"override {override!r}: no variable {last!r}{suggestion(last, map(str, node))}")
    if isinstance(node, list):
        _missing_item(node, last, ".".join(parts[:-1]), override)
        node[int(last)] = value
        return
    if isinstance(node.get(last), dict) and isinstance(value, dict):
        value = merge(node[last], value)
    node[last] = value


def _value(override: str, text: str) -> Any:
    if not text:
        return None
    try:
        return parse_yaml(f"value: {text}", "value")["value"]
    except UserError:
        raise UserError(f"{override!r}: {text!r} is not a YAML value") from None


def _step_into(tree: Node, node: Any, part: str, here: str, override: str) -> Any:
    """The node under ``part``, made where it may be but is not there."""
    try:
        found = child(node, part)
    except KeyError:
        found = None
        if isinstance(node, list):
            _missing_item(node, part, here, override)
        if not isinstance(node, dict) or part not in (known := [*map(str, node), *_not_written(node, here)]):
            choices = known if isinstance(node, dict) else ()
            raise UserError(f"override {override!r}: no key {part!r} in {here or 'the experiment'}{suggestion(part, choices)}") from None
    if (reference := whole_reference(found)) is not None:
        found = copy.deepcopy(look_up(tree, reference, f"override {override!r}"))
    if found is None:
        found = {}
    node[int(part) if isinstance(node, list) else part] = found
    return found


def _missing_item(node: list[Any], part: str, here: str, override: str) -> None:
    if not part.isdecimal() or int(part) >= len(node):
        raise UserError(f"override {override!r}: {here} is a list of {len(node)}, whose items are 0 to {len(node) - 1}; it has no {part!r}")


def _not_written(node: Node, here: str) -> list[str]:
    """Keys that a node may have beside those that are written: arguments of its target, and a few by their place."""
    if not here:
        return [*_MAPPINGS]
    if "_target_" not in node:
        return []
    from lightning_e5.config.annotations import arguments_of
    from lightning_e5.configurable import resolve_target

    try:
        target = resolve_target(node["_target_"], here)
    except UserError:  # the check says what is wrong with it
        return []
    return [*arguments_of(target)[0], *(_OF_STAGES if here.startswith("stages.") and here.count(".") == 1 else ())]
