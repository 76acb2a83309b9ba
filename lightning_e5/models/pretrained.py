"""Model folders: the layout of Hugging Face and sentence-transformers, read and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning_e5.errors import UserError
from lightning_e5.models.reference import model_folder
from lightning_e5.storage import empty_directory, naming_the_file, read_json
from lightning_e5.text import Prefixes, TextTokenizer


class StoredSettings(NamedTuple):
    """What a sentence-transformers folder says of its use; None where it says nothing."""

    prefixes: Prefixes | None
    max_length: int | None


def load_pretrained(name: str) -> tuple[Any, Any, StoredSettings]:
    """The backbone, the ``tokenizers.Tokenizer`` and the stored settings of a model.

    Args:
        name: see `model_folder`.

    Raises:
        UserError: nothing there, nothing that can be loaded, or weights that the model needs and the folder lacks.
    """
    from transformers import AutoModel, AutoTokenizer

    directory = model_folder(name)
    if not (directory / "config.json").is_file():
        raise UserError(f"{name}: no model folder (has no config.json)")
    # BertModel has a pooler that E5 does not use; it is left out so that saved and loaded weights are the same.
    options = {"add_pooling_layer": False} if read_json(directory / "config.json").get("model_type") == "bert" else {}
    with quiet_transformers():
        try:
            backbone, info = AutoModel.from_pretrained(str(directory), output_loading_info=True, trust_remote_code=False, **options)
            tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{name}: cannot be loaded ({_first_line(error)}); give the folder of a model that is here") from None
    _check_loaded(name, info)
    return backbone.float(), tokenizer.backend_tokenizer, stored_settings(directory)


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


def _check_loaded(name: str, info: Mapping[str, Any]) -> None:
    """UserError for weights that the folder lacks or that have another shape: they would be random."""
    missing = sorted(key for key in info.get("missing_keys") or () if not key.startswith("pooler."))
    wrong = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys") or ())
    for what, keys in (("lacks", missing), ("has other shapes of", wrong)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(f"{name}: {what} the weights {', '.join(keys[:3])}{more}, which would be random")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def stored_settings(directory: Path) -> StoredSettings:
    """Prompts and length limit that a sentence-transformers folder stores."""
    prefixes = max_length = None
    if (directory / "config_sentence_transformers.json").is_file():
        prompts = read_json(directory / "config_sentence_transformers.json").get("prompts") or {}
        passage = prompts.get("passage", prompts.get("document", ""))
        prefixes = Prefixes(prompts.get("query", ""), passage)
    if (directory / "sentence_bert_config.json").is_file():
        max_length = read_json(directory / "sentence_bert_config.json").get("max_seq_length")
    return StoredSettings(prefixes, max_length)


def save_pretrained(directory: Path, backbone: Any, tokenizer: TextTokenizer) -> None:
    """Write a folder that transformers, sentence-transformers and `load_pretrained` all read."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    empty_directory(directory)
    with naming_the_file(directory):
        backbone.save_pretrained(directory)
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.no_truncation()
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    known = {role: token for role, token in special.items() if backend.token_to_id(token) is not None}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=tokenizer.max_length, **known)
    with naming_the_file(directory):
        fast.save_pretrained(directory)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    pooling = {
        "word_embedding_dimension": backbone.config.hidden_size,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "include_prompt": True,
    }
    prompts = {"query": tokenizer.prefixes.query, "passage": tokenizer.prefixes.passage, "document": tokenizer.prefixes.passage}
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": tokenizer.max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
