"""What a YAML may name as a ``_target_``: the classes and functions that declare it, and nothing else.

``@configurable(kind)`` declares it. A name stands for what was defined under exactly this name in its module: no method,
no attribute of a class, no alias, nothing that a module merely imports. Packages of the user's own can join on the
command line (``--allow-package``), never in a YAML.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lightning_e5.errors import UserError, suggestion

#: Packages whose classes and functions may declare themselves configurable.
OUR_PACKAGES = ("lightning_e5", "data_modules")
#: Packages of other projects: their classes of this base may be named, under the package's own name.
FOREIGN = {"torch.optim": "Optimizer", "lightning.pytorch.callbacks": "Callback"}
#: Names of earlier versions, which YAMLs and recorded configurations may still hold, and where the same thing is now.
MOVED = {
    "lightning_e5.curation.duplicates.NearDuplicates": "lightning_e5.curation.cleaning.duplicates.NearDuplicates",
    "lightning_e5.curation.engine.LocalEngine": "lightning_e5.curation.engines.engine.LocalEngine",
    "lightning_e5.curation.engine.RayEngine": "lightning_e5.curation.engines.engine.RayEngine",
    "lightning_e5.curation.evaluation_files.EvaluationFiles": "lightning_e5.curation.cleaning.evaluation_files.EvaluationFiles",
    "lightning_e5.curation.hard_negatives.NegativeRules": "lightning_e5.curation.mining.hard_negatives.NegativeRules",
    "lightning_e5.evaluation.baselines.bm25.BM25": "lightning_e5.retrieval.bm25.BM25",
    "lightning_e5.evaluation.zero_shot.ZeroShotPrompts": "lightning_e5.evaluation.tasks.zero_shot.ZeroShotPrompts",
    "lightning_e5.stages.tokens.tokens": "lightning_e5.stages.vocabulary.tokens",
}
#: Arguments of earlier versions, by the kind of what had them, and the key beside it that they stand under now.
MOVED_ARGUMENTS = {
    "training scheme": {
        **dict.fromkeys(
            ("learning_rate", "warmup_steps", "schedule", "weight_decay", "betas", "eps", "max_grad_norm", "learning_rate_factors", "freeze_positions"),
            "optimizer",
        ),
        **dict.fromkeys(("chunk_tokens", "graph_tokens", "gradient_checkpointing"), "trainer"),
    }
}
_allowed: list[str] = []

Thing = TypeVar("Thing", bound=Callable[..., Any])
#: Looks at a node's arguments, the defaults among them, and raises a `UserError` where they do not go together.
Check = Callable[[Mapping[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Declared:
    """What a configurable class or function says of itself.

    kind: what it is, in a word or two (``stage``, ``pair source``). check: see `Check`. constructs: its constructor
    does nothing but look at its arguments, so that checking calls it.
    """

    kind: str
    check: Check | None = None
    constructs: bool = False


_declared: dict[Any, Declared] = {}


def configurable(kind: str, *, check: Check | None = None, constructs: bool = False) -> Callable[[Thing], Thing]:
    """Declare that a YAML may name a class or function; the arguments are those of `Declared`.

    Of a protocol or abstract class, declare that what derives from it may be named, in a package that the user allows.
    """

    def mark(thing: Thing) -> Thing:
        _declared[thing] = Declared(kind, check, constructs)
        return thing

    return mark


def declared(thing: Any) -> Declared | None:
    """What a class or function says of itself, or of a class the one before it (but not of its constructor); else None."""
    if thing in _declared or not isinstance(thing, type):
        return _declared.get(thing)
    found = next((_declared[base] for base in thing.__mro__ if base in _declared), None)
    return None if found is None else replace(found, constructs=False)


def allow_packages(names: Iterable[str]) -> None:
    """Let YAMLs name what is configurable in these packages, too (for the rest of the process).

    Raises:
        UserError: a name that is none, or a package that is not installed.
    """
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--allow-package: {name!r} is not the name of a package, such as my_package")
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise UserError(f"--allow-package: there is no package {name!r} (it is looked for as Python does, here first)")
        if name not in _allowed:
            _allowed.append(name)


def allowed_packages() -> tuple[str, ...]:
    """The allowed packages."""
    return tuple(_allowed)


def allow_options() -> list[str]:
    """The allowed packages as words of a command line, for a command that this one starts."""
    return [word for name in _allowed for word in ("--allow-package", name)]


def resolve_target(target: Any, key: str, kind: str | None = None) -> Callable[..., Any]:
    """The class or function that ``target`` names.

    Args:
        target: a ``_target_`` of a YAML.
        key: of its node, for messages.
        kind: what it has to be; None for any.

    Raises:
        UserError: not a dotted name, of no allowed package, not there, not configurable, or of another kind.
    """
    where = f"{key}._target_"
    if not isinstance(target, str) or "." not in target or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"{where}: {target!r} is not a dotted name such as 'lightning_e5.stages.pretrain.pretrain'")
    if target in MOVED:
        raise UserError(f"{where}: {target!r} has moved; name {MOVED[target]!r}")
    packages = (*OUR_PACKAGES, *_allowed)
    if (foreign := next((p for p in FOREIGN if target.startswith(f"{p}.")), None)) is not None:
        found: Callable[..., Any] = _foreign(target, foreign, where)
    elif any(target.startswith(f"{p}.") for p in packages):
        found = _ours(target, where)
    else:
        raise UserError(
            f"{where}: {target!r} is not in an allowed package ({', '.join((*packages, *FOREIGN))}); one of your own is allowed by --allow-package"
        )
    says = declared(found)
    if kind is not None and (says is None or says.kind != kind):
        raise UserError(f"{where}: {target!r} is no {kind}" + (f" but of the kind {says.kind!r}" if says else ""))
    return found


def offered(module: types.ModuleType) -> list[str]:
    """Names of a module that a YAML may use."""
    return sorted(name for name, thing in vars(module).items() if _is_offered(thing, module.__name__, name))


def _is_offered(thing: Any, module: str, name: str) -> bool:
    """Whether the thing is a configurable class or function that was defined in the module under this name."""
    if not isinstance(thing, type | types.FunctionType) or name.startswith("_") or inspect.isabstract(thing):
        return False
    if thing.__module__ != module or thing.__qualname__ != name or vars(thing).get("_is_protocol", False):
        return False
    ours = any(f"{module}.".startswith(f"{p}.") for p in OUR_PACKAGES)
    return thing in _declared if ours else declared(thing) is not None


def _ours(target: str, where: str) -> Callable[..., Any]:
    parts = target.split(".")
    module = rest = None
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            module, rest = importlib.import_module(name), parts[cut:]
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".startswith(f"{error.name}."):
                continue
            raise
        break
    if module is None or not rest:
        raise UserError(f"{where}: no module of {target!r} can be imported")
    if len(rest) == 1 and _is_offered(vars(module).get(rest[0]), module.__name__, rest[0]):
        return vars(module)[rest[0]]  # type: ignore[no-any-return]
    if rest[0] not in vars(module):
        names = offered(module)
        if hasattr(module, "__path__"):
            import pkgutil

            names += [m.name for m in pkgutil.iter_modules(module.__path__)]
        raise UserError(f"{where}: {module.__name__} has no {rest[0]!r}{suggestion(rest[0], names)}")
    names = offered(module)
    raise UserError(
        f"{where}: {target!r} is not configurable: a YAML names classes and functions that declare it"
        + (f" (here: {', '.join(names)})" if names else "")
    )


def _foreign(target: str, package: str, where: str) -> type:
    module = importlib.import_module(package)
    base = getattr(module, FOREIGN[package])
    name = target[len(package) + 1 :]
    found = vars(module).get(name)
    if not isinstance(found, type) or not issubclass(found, base) or name.startswith("_"):
        choices = [n for n, thing in vars(module).items() if isinstance(thing, type) and issubclass(thing, base)]
        raise UserError(f"{where}: {package} has no {name!r} that is configurable: only its {base.__name__} classes are{suggestion(name, choices)}")
    return found
