"""Tiny random model folders of many families, as sentence-transformers and transformers write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["query", "passage", "text", "a", "the", "long", "bridge", "river", "song", "sea", "how", "to", "sort", "list", "in", "python", "planet", "rock", "orbit", "s", "cls", "sep", "mask", "pad"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "initializer_range": 0.4}
BERT = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
ROBERTA = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
NO_TYPES = ["input_ids", "attention_mask"]


def _template(backend: Tokenizer, begin: str, end: str) -> None:
    special = [(token, backend.token_to_id(token)) for token in {begin, end} if token]
    ends = f" {end}:0"
    backend.post_processor = processors.TemplateProcessing(single=f"{begin} $A{ends}".strip(), pair=f"{begin} $A{ends} $B:1 {end}:1".strip(), special_tokens=special)


def wordpiece(special: list[str], begin: str, end: str, *, lower: bool = True, strip: str = "") -> Tokenizer:
    """BERT's kind; ``strip``: a special token that takes the space before it."""
    pieces = [*special, *WORDS, *LETTERS, *(f"##{c}" for c in LETTERS), *"[]<>/:,."]
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate(dict.fromkeys(pieces))}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([AddedToken(t, lstrip=t == strip, special=True, normalized=False) for t in special])
    _template(backend, begin, end)
    return backend


def byte_bpe(first: list[str], begin: str, end: str, last: list[str], strip: str) -> Tokenizer:
    """RoBERTa's kind: bytes; ``last``: special tokens that the model's vocabulary does not have."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {p: i for i, p in enumerate([*first, *alphabet, "th", "the"])}
    backend = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(t, lstrip=t == strip, special=True, normalized=False) for t in [*first, *last]])
    _template(backend, begin, end)
    return backend


def unigram(special: list[str], begin: str, end: str) -> Tokenizer:
    """SentencePiece's kind, whose model has the special tokens among its pieces."""
    pieces = [(s, 0.0) for s in special] + [(f"▁{w}", -2.0 - i / 10) for i, w in enumerate(WORDS)]
    pieces += [(c, -6.0 - i / 50) for i, c in enumerate(["▁", *LETTERS, *"<>/[]:,."])]
    backend = Tokenizer(models.Unigram(pieces, unk_id=next(i for i, s in enumerate(special) if "unk" in s.lower())))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(special)
    _template(backend, begin, end)
    return backend


def family(name: str) -> tuple[Tokenizer, dict[str, Any], Any]:
    """(backend, arguments of its tokenizer, a function of the vocabulary's size that makes the model)."""
    if name in ("bert", "cased"):
        backend = wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]", lower=name == "bert")
        types = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        return backend, {**BERT, **types}, lambda v: transformers.BertModel(transformers.BertConfig(vocab_size=v, max_position_embeddings=40, **SIZE), add_pooling_layer=False)
    if name == "mpnet":
        backend = wordpiece(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"], "<s>", "</s>", strip="<mask>")
        config = lambda v: transformers.MPNetConfig(vocab_size=v, max_position_embeddings=40, **SIZE)  # noqa: E731
        return backend, {**ROBERTA, "unk_token": "[UNK]", "model_input_names": NO_TYPES}, lambda v: transformers.MPNetModel(config(v), add_pooling_layer=False)
    if name == "roberta":
        backend = byte_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s>", "</s>", [], "<mask>")
        more = {"model_input_names": NO_TYPES, "truncation_side": "left"}
        config = lambda v: transformers.RobertaConfig(vocab_size=v, max_position_embeddings=40, pad_token_id=1, type_vocab_size=1, **SIZE)  # noqa: E731
        return backend, {**ROBERTA, **more}, lambda v: transformers.RobertaModel(config(v), add_pooling_layer=False)
    if name == "modernbert":
        backend = byte_bpe(["<|padding|>"], "[CLS]", "[SEP]", ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], "[MASK]")
        more = {"pad_token_id": 260, "cls_token_id": 258, "sep_token_id": 259, "bos_token_id": 258, "eos_token_id": 259}
        config = lambda v: transformers.ModernBertConfig(vocab_size=v, max_position_embeddings=40, **more, **SIZE)  # noqa: E731
        return backend, {**BERT, "model_input_names": NO_TYPES}, lambda v: transformers.ModernBertModel(config(v))
    if name == "xlmr":
        backend = unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s>", "</s>")
        config = lambda v: transformers.XLMRobertaConfig(vocab_size=v, max_position_embeddings=40, pad_token_id=1, type_vocab_size=1, **SIZE)  # noqa: E731
        return backend, {**ROBERTA, "model_input_names": NO_TYPES}, lambda v: transformers.XLMRobertaModel(config(v), add_pooling_layer=False)
    if name == "deberta":
        backend = unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], "[CLS]", "[SEP]")
        config = lambda v: transformers.DebertaV2Config(vocab_size=v, max_position_embeddings=40, **SIZE)  # noqa: E731
        return backend, {**BERT, "padding_side": "right"}, lambda v: transformers.DebertaV2Model(config(v))
    assert name == "t5"
    backend = unigram(["<pad>", "</s>", "<unk>"], "", "</s>")
    config = lambda v: transformers.T5Config(vocab_size=v, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, initializer_factor=3.0)  # noqa: E731
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "model_input_names": NO_TYPES}
    return backend, names, lambda v: transformers.T5EncoderModel(config(v))


FAMILIES = ("bert", "mpnet", "roberta", "modernbert", "xlmr", "deberta", "t5")


def write_folder(folder: Path, name: str = "bert", *, length: int | None = 24, **files: Any) -> Path:
    """A folder of a family; ``files``: ``modules`` (kinds behind the Transformer), ``pooling``, ``dense`` and ``use`` (their JSON), ``lower``."""
    torch.manual_seed(5)
    backend, settings, make = family(name)
    make(max(backend.get_vocab(with_added_tokens=True).values()) + 1).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **settings).save_pretrained(folder)
    kinds = ["Transformer", *files.get("modules", ["Pooling", "Normalize"])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)
    ]
    written: dict[str, Any] = {"modules.json": modules, "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": files.get("lower", False)}}
    if "use" in files:
        written["config_sentence_transformers.json"] = files["use"]
    width = 16
    for module in modules[1:]:
        content: Mapping[str, Any] = {}
        place = folder / module["path"]
        place.mkdir()
        if "Pooling" in module["path"]:
            content = {"word_embedding_dimension": 16, **files.get("pooling", {"pooling_mode_mean_tokens": True})}
            width *= max(1, sum(value is True for key, value in content.items() if key.startswith("pooling_mode_")))
        elif "Dense" in module["path"]:
            from safetensors.torch import save_file

            content = {"in_features": width, "out_features": 6, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh", **files.get("dense", {})}
            weights = {"linear.weight": torch.randn(6, width), "linear.bias": torch.randn(6)}
            if content.get("use_residual"):
                weights["residual.weight"] = torch.randn(6, width)
            save_file(weights, place / "model.safetensors")
            width = 6
        written[f"{module['path']}/config.json"] = content
    for path, content in written.items():
        (folder / path).write_text(json.dumps(content))
    return folder
