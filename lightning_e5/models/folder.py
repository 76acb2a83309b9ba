"""What a model folder says of its use: modules, pooling, dense layers, similarity, truncation, prompts, length, letter case.

Read here once for every path that uses a model; what is not supported is refused by the name of the module or key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, reading
from lightning_e5.models.head import E5_HEAD, Dense, EmbeddingHead, HeadSettings, UnitLength
from lightning_e5.models.pooling import POOLING_MODES, POOLING_NAMES
from lightning_e5.models.training_record import read_record
from lightning_e5.text import E5_PREFIXES, Prefixes

#: Settings of the Transformer module; the newest name first, those of old folders after it.
_TRANSFORMER = [f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")]
_MODE_KEYS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_SUPPORTED = ("Transformer", "Pooling", "Dense", "Normalize")
#: Prompts of which texts are read as passages, in the order in which they are asked for.
_PASSAGE = ("document", "passage", "corpus")


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """What a folder says; None where it says nothing.

    ``transformer``: the folder with ``config.json``; ``head``: pooling and similarity; ``layers``: behind the pooling, the folder
    of each dense layer, None for unit vectors; ``prefixes``: None where no prompts are stored, empty ones where they are stored
    as empty; ``max_length`` (tokens) and the file that says so; ``lower_case``: texts are lower-cased first; ``truncate_dim``: the
    first values of an embedding that are used, None for all.
    """

    transformer: Path
    head: HeadSettings = E5_HEAD
    layers: tuple[Path | None, ...] = ()
    prefixes: Prefixes | None = None
    max_length: int | None = None
    length_file: Path | None = None
    lower_case: bool = False
    truncate_dim: int | None = None

    @property
    def pooling(self) -> str | None:
        """``mean`` (E5's), ``cls`` or ``lasttoken`` where that is all that makes an embedding of token states; else None."""
        alone = len(self.head.modes) == 1 and self.head.include_prompt and not self.layers
        return self.head.modes[0] if alone and self.head.modes[0] in POOLING_NAMES.values() else None

    def build_head(self, width: int) -> EmbeddingHead:
        """The head for token states of ``width``, not truncated; UserError for a dense layer that does not fit or cannot be read."""
        layers: list[Any] = []
        at = width * len(self.head.modes)
        for place in self.layers:
            layers.append(UnitLength() if place is None else _dense(place, at))
            at = at if place is None else layers[-1].linear.out_features
        return EmbeddingHead(width, self.head, layers)


def stored_settings(directory: Path) -> FolderSettings:
    """Read them; a folder without ``modules.json`` is pooled by the mean (a text generator's by the last token) and compared by cosine.

    Raises:
        UserError: a damaged file, a value of a wrong type, or something that is not supported.
    """
    modules = _modules(directory)
    transformer = directory / modules[0][1]
    config = _dict(transformer / "config.json")
    said = next((transformer / name for name in _TRANSFORMER if (transformer / name).is_file()), transformer / _TRANSFORMER[0])
    length = _dict(said)
    max_length = _value(said, length, "max_seq_length", int, None)
    if max_length is not None and max_length < 4:
        raise UserError(f"{said}: max_seq_length: {max_length!r} is not a number of tokens; the rule is >= 4")
    use = directory / "config_sentence_transformers.json"
    similarity = _value(use, _dict(use), "similarity_fn_name", str, "cosine")
    if similarity not in ("cosine", "dot"):
        raise UserError(f"{use}: similarity_fn_name: {similarity!r} is not supported; the rule is 'cosine' or 'dot'")
    truncate_dim = _value(use, _dict(use), "truncate_dim", int, None)
    if truncate_dim is not None and truncate_dim < 1:
        raise UserError(f"{use}: truncate_dim: {truncate_dim} is no number of values of an embedding; the rule is >= 1")
    if (kind_of_model := _dict(use).get("model_type")) not in (None, "SentenceTransformer"):
        raise UserError(f"{use}: model_type: {kind_of_model!r} is not supported; the rule is 'SentenceTransformer'")
    generator = len(modules) == 1 and any(str(a).endswith("ForCausalLM") for a in config.get("architectures") or ())
    modes: tuple[str, ...] = ("lasttoken",) if generator else ("mean",)
    include_prompt = True
    layers: list[Path | None] = []
    for number, (kind, path) in enumerate(modules[1:]):
        if kind == "Pooling":
            modes, include_prompt = _pooling(directory / path / "config.json")
        else:
            layers.append(directory / path if kind == "Dense" else None)
            if kind == "Normalize":
                _refuse_other_input(directory / path / "config.json", _dict(directory / path / "config.json"))
        if (kind == "Pooling") != (number == 0):
            raise UserError(f"{directory / 'modules.json'}: {kind} as module {number + 1} is not supported; the rule is one Pooling, behind the Transformer")
    normalize = bool(layers) and layers[-1] is None
    head = HeadSettings(modes, include_prompt, normalize, similarity)  # type: ignore[arg-type]
    lower_case = _value(said, length, "do_lower_case", bool, False)
    return FolderSettings(transformer, head, tuple(layers[:-1] if normalize else layers), _prompts(use), max_length, said, lower_case, truncate_dim)


def default_prefixes(reference: str, directory: Path) -> Prefixes:
    """The prefixes of a folder that stores no prompts: E5's own where it is an E5, else none.

    It is an E5 where our training record lies in it, or where ``e5`` is a word of its name, of the name in its
    ``config.json`` or of its card's ``base_model`` (the released models store no prompts, and sentence-transformers stores
    none when it saves one of them again). E5's instruction-tuned models have instructions instead of these prefixes.
    """
    record = read_record(directory)
    card = directory / "README.md"
    base = re.search(r"^base_model:\s*(?:-\s*)?(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) if card.is_file() else None
    config = directory / "config.json"
    hub = [part.removeprefix("models--") for part in directory.parts if part.startswith("models--")]
    names = [reference, directory.resolve().name, *hub, str(_dict(config).get("_name_or_path", "")), base[1] if base else ""]
    words = [re.split(r"[^a-z0-9]+", name.rstrip("/").rpartition("/")[2].lower()) for name in names]
    is_e5 = any("e5" in own and not {"instruct", "mistral"} & set(own) for own in words)
    return E5_PREFIXES if is_e5 or (record is not None and record.stages) else Prefixes("", "")


def _modules(directory: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each module."""
    path = directory / "modules.json"
    if not path.is_file():
        return [("Transformer", ""), *([("Pooling", "1_Pooling")] if (directory / "1_Pooling" / "config.json").is_file() else [])]
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: not a list of modules")
    modules = []
    for number, module in enumerate(content):
        kind, place = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not isinstance(place, str):
            raise UserError(f"{path}: module {number} is no object with the texts 'type' and 'path'")
        name = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers.") or name not in _SUPPORTED or (name == "Transformer") != (number == 0):
            raise UserError(f"{path}: module {number} ({kind}) is not supported; the rule is a Transformer, then Pooling, Dense and Normalize")
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise UserError(f"{path}: module {number}: the path {place!r} leads out of the folder")
        modules.append((name, place))
    return modules


def _pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """The modes and whether the prefix is pooled."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, which modules.json names")
    content = _dict(path)
    own = content.get("pooling_mode")
    if own is None:
        for key in content:
            if key.startswith("pooling_mode_") and key not in _MODE_KEYS:
                raise UserError(f"{path}: {key} is not supported (known: {', '.join(_MODE_KEYS)})")
        own = [mode for key, mode in _MODE_KEYS.items() if _value(path, content, key, bool, False)] or ["mean"]
    modes = [own] if isinstance(own, str) else own
    if not isinstance(modes, list) or not modes or any(mode not in POOLING_MODES for mode in modes):
        raise UserError(f"{path}: pooling_mode: {own!r} is not supported (known: {', '.join(POOLING_MODES)})")
    return tuple(modes), _value(path, content, "include_prompt", bool, True)


def _dense(folder: Path, width: int) -> Dense:
    """A dense layer with its weights; UserError where it takes another width than what comes before it."""
    path = folder / "config.json"
    content = _dict(path)
    _refuse_other_input(path, content)
    widths = [_value(path, content, key, int, 0) for key in ("in_features", "out_features")]
    if widths[0] != width or widths[1] < 1:
        raise UserError(f"{path}: in_features: {widths[0]} and out_features: {widths[1]} do not fit the {width} values before this layer")
    activation = _value(path, content, "activation_function", str, "torch.nn.modules.activation.Tanh")
    if not activation.startswith("torch.nn."):
        raise UserError(f"{path}: activation_function: {activation!r} is not supported; the rule is one of torch.nn")
    options = {"bias": _value(path, content, "bias", bool, True), "residual": _value(path, content, "use_residual", bool, False)}
    try:
        layer = Dense(*widths, activation=activation.rpartition(".")[2], **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    weights = next((folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()), folder / "model.safetensors")
    if not weights.is_file():
        raise UserError(f"{weights}: no such file")
    with reading(weights):
        layer.load_state_dict(_state(weights))
    return layer


def _state(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    return found


def _refuse_other_input(path: Path, content: dict[str, Any]) -> None:
    for key in ("module_input_name", "module_output_name"):
        if content.get(key) not in (None, "sentence_embedding"):
            raise UserError(f"{path}: {key}: {content[key]!r} is not supported; the rule is 'sentence_embedding'")


def _prompts(path: Path) -> Prefixes | None:
    """The prefixes that a folder stores, None for none.

    sentence-transformers writes an empty prompt for queries and for documents into every model that has none, so these two
    alone say nothing; an empty prompt under our own name, ``passage``, says that there is to be none.
    """
    content = _dict(path)
    prompts = _value(path, content, "prompts", dict, {})
    for name, prompt in prompts.items():
        if not isinstance(prompt, str | None):
            raise UserError(f"{path}: prompts: {name}: {prompt!r} is not a text")
    default = _value(path, content, "default_prompt_name", str, None)
    if default is not None and default not in prompts:
        raise UserError(f"{path}: default_prompt_name: {default!r} is none of the prompts ({', '.join(prompts) or 'none'})")
    if not any(prompts.get(name) for name in ("query", *_PASSAGE)):
        if default is not None and prompts[default]:
            return Prefixes(prompts[default], prompts[default])
        return Prefixes("", "") if {"query", "passage"} <= set(prompts) else None
    return Prefixes(prompts.get("query") or "", next((prompts[name] for name in _PASSAGE if prompts.get(name)), ""))


def _dict(path: Path) -> dict[str, Any]:
    """A JSON object, empty for a file that is not there."""
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object with keys")
    return content


def _value(path: Path, content: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """The value of ``key``, the default for null; UserError for another type."""
    value = content.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{path}: {key}: {value!r} is not a {'whole number' if kind is int else kind.__name__}")
    return value
