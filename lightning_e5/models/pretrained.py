"""Model folders: the layout of Hugging Face and sentence-transformers, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from lightning_e5.errors import UserError
from lightning_e5.storage import empty_directory, naming_the_file, read_json
from lightning_e5.text import Prefixes, TextTokenizer


class StoredSettings(NamedTuple):
    """What a sentence-transformers folder says of its use; None where it says nothing."""

    prefixes: Prefixes | None
    max_length: int | None


def load_pretrained(name: str) -> tuple[Any, Any, StoredSettings]:
    """The backbone, the ``tokenizers.Tokenizer`` and the stored settings of a local folder or a hub name.

    Raises:
        UserError: nothing there, or nothing that can be loaded.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    directory = Path(name)
    local = directory.is_dir()
    if not local and (directory.is_absolute() or name.startswith(".") or name.count("/") != 1):
        raise UserError(f"{name}: no such model folder")
    if local and not (directory / "config.json").is_file():
        raise UserError(f"{name}: no model folder (has no config.json)")
    logging.disable_progress_bar()
    try:
        backbone = AutoModel.from_pretrained(name, **_model_arguments(directory))
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if local else "the model hub cannot be reached or has no such model"
        raise UserError(f"{name}: cannot be loaded ({reason}); give the folder of a model that is here") from None
    return backbone.float(), tokenizer.backend_tokenizer, stored_settings(directory)


def _model_arguments(directory: Path) -> dict[str, Any]:
    """BertModel has a pooler that E5 does not use; it is left out so that saved and loaded weights are the same."""
    if directory.is_dir():
        config = read_json(directory / "config.json")
        return {"add_pooling_layer": False} if config.get("model_type") == "bert" else {}
    return {}


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
