"""Reading the configuration that a run directory keeps: what a comparison of a hundred runs does a hundred times."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from lightning_e5.config.experiment import Node, load_experiment, read_yaml
from lightning_e5.errors import UserError
from lightning_e5.redaction import redact, remember
from lightning_e5.results.result_files import CONFIG, check_shape

_FLOAT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*[eE][-+]?[0-9]+$")


def load_recorded(path: Path) -> Node:
    """A run's own ``config.yaml``: as `load_experiment` reads it, some ten times faster.

    A resolved configuration needs no OmegaConf, only its reading of scalars (``1e-5`` is a number, a date a text). Secrets
    that a run of an earlier version left in it are hidden, here and in all that is written from now on.

    Raises:
        UserError: as `load_experiment`.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = None if "${" in text else yaml.load(text, Loader=_loader())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        tree = None
    if isinstance(tree, dict) and {"name", "seed", "runs_dir", "threads", "stages"} <= tree.keys() and "extends" not in tree:
        return _without_secrets(tree, path)
    try:
        return _without_secrets(load_experiment(path), path)  # which fills in what is absent and says what is wrong
    except UserError:
        raise
    except (RecursionError, ValueError) as error:  # of deep nesting, of an integer of thousands of digits
        raise UserError(f"{path}: is damaged ({type(error).__name__})") from None


def recorded_text(path: Path) -> str:
    """A run's own ``config.yaml`` as it is written there, but for secrets in one of an earlier version."""
    config, text = load_recorded(path), Path(path).read_text(encoding="utf-8")
    if redact(read_yaml(path)) == read_yaml(path):
        return text
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def _without_secrets(config: Node, path: Path) -> Node:
    check_shape(config, CONFIG, path)
    remember(config)
    return {**redact(config), "name": config["name"], "runs_dir": config["runs_dir"]}


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return Loader
