"""Model folders: the layout of Hugging Face and sentence-transformers, read and written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning_e5.errors import UserError
from lightning_e5.files.storage import empty_directory, naming_the_file, read_json, reading
from lightning_e5.models.folder import FolderSettings, stored_settings
from lightning_e5.models.head import EmbeddingHead, save_head
from lightning_e5.models.padded import usable_positions
from lightning_e5.models.reference import model_folder
from lightning_e5.progress import say
from lightning_e5.text import TextTokenizer, TokenizerSettings

#: Model types of which the encoder half alone is used, and its class.
_ENCODER_HALVES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel", "longt5": "LongT5EncoderModel"}
#: Files of which at least one must be there for a tokenizer; without any, transformers makes an empty one.
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
#: What configurations of transformers call the dropout within an encoder; heads of other uses have names of their own.
_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "embedding_dropout",
    "mlp_dropout", "dropout_rate", "embd_pdrop", "attn_pdrop", "resid_pdrop",
)  # fmt: skip
#: Those of them that are the attention's alone: of its probabilities (in ModernBERT, also of what it adds).
_ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
#: Weights of other uses of the same architecture, which an encoder does not miss: heads, poolers, decoders and counted positions.
_OTHER_USES = ("pooler", "cls.", "lm_head", "classifier", "qa_outputs", "score", "decoder", "vocab_", "generator_", "discriminator_", "lm_", "mask_")


class PretrainedEncoder(NamedTuple):
    """A folder's backbone (float32), its ``tokenizers.Tokenizer`` with what belongs to it, and what the folder says of its use.

    ``model_max_length``: the tokenizer's own limit, None where it has none; ``directory``: the folder.
    """

    directory: Path
    backbone: Any
    backend: Any
    tokenizer: TokenizerSettings
    model_max_length: int | None
    stored: FolderSettings


def load_pretrained(name: str, *, dropout: float | None = None, attention_dropout: float | None = None) -> PretrainedEncoder:
    """The model of a folder.

    Args:
        name: see `model_folder`.
        dropout: in the place of what its ``config.json`` says; it is stored with the model when that is saved.
        attention_dropout: likewise, of the attention alone.

    Raises:
        UserError: nothing there, nothing that can be loaded or is supported, weights that the model needs and the folder lacks,
            or a dropout for a model that has none.
    """
    directory = model_folder(name)
    stored = stored_settings(directory)
    place = stored.transformer
    if not (place / "config.json").is_file():
        raise UserError(f"{name}: no model folder (has no config.json)")
    with quiet_transformers():
        backbone = _backbone(name, place, {_DROPOUTS: ("dropout", dropout), _ATTENTION_DROPOUTS: ("attention_dropout", attention_dropout)})
        tokenizer = load_tokenizer(name, place)
    backend = tokenizer.backend_tokenizer
    check_vocabulary(name, backend, backbone)
    if any(backend.encode("").type_ids):
        raise UserError(f"{name}: {type(tokenizer).__name__} gives a single text other token types than 0, which is not supported")
    limit = tokenizer.model_max_length
    return PretrainedEncoder(directory, backbone, backend, tokenizer_settings(tokenizer), limit if 0 < limit < 1 << 24 else None, stored)


def _backbone(name: str, place: Path, dropouts: Mapping[tuple[str, ...], tuple[str, float | None]]) -> Any:
    """The Transformer of a folder, in float32; ``dropouts``: keys of its configuration -> what a user calls it, and the rate."""
    import transformers

    config = load_config(place)
    for keys, (called, rate) in dropouts.items():
        named = [key for key in keys if key in config.to_dict()]
        if rate and not named:
            raise UserError(f"{place / 'config.json'}: {called}: {rate} for a model that has none; the rule is null or 0 for such a model")
        for key in named if rate is not None else ():
            setattr(config, key, rate)
    kind = getattr(config, "model_type", "")
    if kind in _ENCODER_HALVES:
        backbone = load_weights(name, place, getattr(transformers, _ENCODER_HALVES[kind]), config)
    elif getattr(config, "is_encoder_decoder", False):
        known = ", ".join(_ENCODER_HALVES)
        raise UserError(f"{place / 'config.json'}: {kind} is an encoder with a decoder, which is not supported; the rule is an encoder, or one of {known}")
    else:
        # A pooler is not used; it is left out where it can be, so that saved and loaded weights are the same.
        made = transformers.MODEL_MAPPING.get(type(config), None)
        parameters = inspect.signature(made.__init__).parameters if isinstance(made, type) else ()
        options = {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}
        backbone = load_weights(name, place, transformers.AutoModel, config, unused=("pooler.",), **options)
    if not isinstance(getattr(backbone.config, "hidden_size", None), int):
        raise UserError(f"{place / 'config.json'}: {kind} has no hidden_size, so it is no encoder of texts")
    return backbone


def load_config(place: Path) -> Any:
    """A folder's ``config.json``, by transformers; UserError with its name."""
    from transformers import AutoConfig

    path = place / "config.json"
    if not isinstance(read_json(path), dict):
        raise UserError(f"{path}: not a model's configuration (no object with keys)")
    with reading(path, "not a model's configuration"):
        return AutoConfig.from_pretrained(str(place), trust_remote_code=False)


def load_tokenizer(name: Path | str, place: Path) -> Any:
    """A folder's fast tokenizer, by transformers; UserError for a folder without one and for a damaged one."""
    from transformers import AutoTokenizer

    file = next((path for pattern in _TOKENIZERS for path in sorted(place.glob(pattern))), None)
    if file is None:
        raise UserError(f"{name}: has no tokenizer ({', '.join(_TOKENIZERS)})")
    with reading(file, "the tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(str(place), trust_remote_code=False)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"{name}: {type(tokenizer).__name__} has no fast version (a tokenizer.json), which is needed")
    return tokenizer


def load_weights(name: Path | str, place: Path, kind: Any, config: Any, *, unused: tuple[str, ...] = (), **options: Any) -> Any:
    """A model of transformers with all its weights, in float32.

    Args:
        name: for messages.
        place: the folder.
        kind: class with ``from_pretrained``.
        config: of the model.
        unused: beginnings of the names of weights that may be missing.
        options: for ``from_pretrained``.

    Raises:
        UserError: a damaged file, or weights that are not there: they would be random.
    """
    from safetensors import safe_open

    if (place / "adapter_config.json").is_file():
        raise UserError(f"{name}: holds an adapter (adapter_config.json), which is not supported; merge it into the weights first")
    files = sorted(place.glob("model*.safetensors"))
    for path in files:
        with reading(path, "damaged weights"), safe_open(path, framework="pt") as handle:
            handle.keys()
    older = sorted(place.glob("pytorch_model*.bin"))
    if not files and not older:
        raise UserError(f"{name}: has no weights (model.safetensors)")
    with reading((files or older)[0], "the weights cannot be loaded"):
        model, info = kind.from_pretrained(str(place), config=config, output_loading_info=True, trust_remote_code=False, **options)
    _check_loaded(name, info, unused)
    return model.float()


def stored_length(loaded: PretrainedEncoder) -> int:
    """Tokens per text where no other number is asked for: as the folder stores it, at most the model's positions.

    A stored length that is the size of the model's table of positions is cut to those of them that tokens can have (RoBERTa
    leaves two unused); any other that is above them is a UserError.
    """
    positions, stored = usable_positions(loaded.backbone), loaded.stored
    length = stored.max_length or loaded.model_max_length or positions or 512
    if positions is None or length <= positions:
        return length
    table = getattr(loaded.backbone.config, "max_position_embeddings", None)
    if stored.max_length is not None and length != table:
        raise UserError(f"{stored.length_file}: max_seq_length: {length} is above the {positions} positions that the model has for tokens")
    return positions


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no report of the weights loaded, which a user cannot act on; what must be said is an error here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_loaded(name: Path | str, info: Mapping[str, Any], unused: tuple[str, ...]) -> None:
    """UserError for weights that the folder lacks or that have another shape. Those that the model does not have are counted
    in a message, but for heads of other uses."""
    missing = sorted(key for key in info.get("missing_keys") or () if not key.startswith(unused))
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys") or ())
    for what, keys in (("lacks", missing), ("has other shapes of", wrong)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(f"{name}: {what} the weights {', '.join(keys[:3])}{more}, which would be random")
    unknown = sorted(key for key in info.get("unexpected_keys") or () if not key.startswith(_OTHER_USES) and "position_ids" not in key)
    if unknown:
        say(f"{name}: {len(unknown)} weights are not part of this model and are not used ({', '.join(unknown[:3])})")


def check_vocabulary(name: Path | str, backend: Any, backbone: Any) -> None:
    """UserError for tokens that texts can give and that have no embedding."""
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    highest = max([*(n for n in backend.get_vocab(with_added_tokens=True).values() if n not in special), *backend.encode("").ids], default=0)
    with reading(f"{name}: config.json", "no encoder of texts"):
        rows = int(backbone.get_input_embeddings().weight.shape[0])
    if highest >= rows:
        raise UserError(f"{name}: the tokenizer gives tokens up to {highest}, and the model has {rows} embeddings")


def tokenizer_settings(tokenizer: Any) -> TokenizerSettings:
    """What a tokenizer of transformers holds beside its backend."""
    roles = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    special = {role: str(token) for role in roles if (token := getattr(tokenizer, role, None)) is not None}
    return TokenizerSettings(special, tokenizer.padding_side, tokenizer.truncation_side, tuple(tokenizer.model_input_names))


def save_pretrained(directory: Path, backbone: Any, tokenizer: TextTokenizer, head: EmbeddingHead | None = None) -> None:
    """Write a folder that transformers, sentence-transformers and `load_pretrained` all read.

    Args:
        directory: new or to be overwritten.
        backbone: a Hugging Face encoder.
        tokenizer: written as it was read: its special tokens, sides and inputs.
        head: pooling, dense layers and similarity; E5's by default.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    empty_directory(directory)
    with naming_the_file(directory):
        backbone.save_pretrained(directory)
    backend = tokenizer.stored_backend()
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}  # with what they strip of a text
    special = {role: added.get(token, token) for role, token in tokenizer.settings.special.items()}
    settings = tokenizer.settings
    more: dict[str, Any] = {"padding_side": settings.padding_side, "truncation_side": settings.truncation_side}
    more |= {} if settings.input_names is None else {"model_input_names": list(settings.input_names)}
    more = {key: value for key, value in more.items() if value != getattr(PreTrainedTokenizerFast, key)}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=tokenizer.max_length, **more, **special)
    with naming_the_file(directory):
        fast.save_pretrained(directory)
    head = head or EmbeddingHead(backbone.config.hidden_size)
    prompts = {"query": tokenizer.prefixes.query, "passage": tokenizer.prefixes.passage, "document": tokenizer.prefixes.passage}
    use: dict[str, Any] = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": head.settings.similarity}
    use |= {} if head.settings.truncate_dim is None else {"truncate_dim": head.settings.truncate_dim}
    files: dict[str, Any] = {
        **save_head(head, directory, backbone.config.hidden_size),
        "sentence_bert_config.json": {"max_seq_length": tokenizer.max_length, "do_lower_case": tokenizer.lower_case},
        "config_sentence_transformers.json": use,
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
