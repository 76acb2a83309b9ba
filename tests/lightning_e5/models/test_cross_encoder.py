"""The cross-encoder from any encoder: a pair is joined as its tokenizer would join it, and padded ways agree with one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
)

from lightning_e5.errors import UserError
from lightning_e5.models.cross_encoder import CrossEncoder, segment_means
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.cross_encoder import CrossEncoderModule
from lightning_e5.text import TextTokenizer
from lightning_e5.training.optimizer import AdamWConfig

NAMES = ("bert", "roberta", "distilbert", "electra")


def backbone(name: str, vocabulary: int) -> Any:
    torch.manual_seed(1)
    common: dict[str, Any] = {"vocab_size": vocabulary, "max_position_embeddings": 130}
    like_bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "initializer_range": 0.2, **common}
    if name == "bert":
        return BertModel(BertConfig(**like_bert), add_pooling_layer=False)
    if name == "roberta":
        return RobertaModel(RobertaConfig(**like_bert, pad_token_id=1, type_vocab_size=1), add_pooling_layer=False)
    if name == "distilbert":
        return DistilBertModel(DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **common))
    return ElectraModel(ElectraConfig(**like_bert, embedding_size=16))


def of(name: str, tokenizer: TextTokenizer) -> CrossEncoder:
    return CrossEncoder.from_encoder(TextEncoder(backbone(name, tokenizer.backend.get_vocab_size()), tokenizer)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_hugging_faces_call_on_each_pair(name: str, small_tokenizer: TextTokenizer, texts: list[str]) -> None:
    model = of(name, small_tokenizer)
    assert (model.packed is None) == (name == "electra")
    queries, passages = texts[:9], texts[30:39]
    scores = model.score(queries, passages)
    assert scores.std() > 1e-3
    for query, passage, score in zip(queries, passages, scores.tolist(), strict=True):
        first, second = small_tokenizer.encode([query], "query")[0].tolist(), small_tokenizer.encode([passage], "passage")[0].tolist()[1:]
        ids, types = torch.tensor([first + second]), torch.tensor([[0] * len(first) + [1] * len(second)])
        given = {"token_type_ids": types} if name in ("bert", "electra") else {}
        with torch.inference_mode():
            states = model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids), **given).last_hidden_state[0]
            sides = segment_means(states, types[0], 2)
            wanted = model.head(sides[:1], sides[1:])
        assert score == pytest.approx(float(wanted), abs=2e-4)


def test_sums_of_segments_in_order_are_the_same() -> None:
    """As a GPU makes them; a segment may be empty, the last one too."""
    draw = torch.Generator().manual_seed(0)
    segment_T = torch.tensor([0] * 5 + [1] + [3] * 7 + [4] * 2)
    states_TD = torch.randn(15, 6, generator=draw, dtype=torch.float64).requires_grad_()
    ways = [segment_means(states_TD, segment_T, 6, in_order=way) for way in (False, True)]
    assert torch.allclose(*ways, atol=1e-15) and float(ways[1][[2, 5]].detach().abs().max()) == 0.0
    weights = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    first, second = (torch.autograd.grad((way * weights).sum(), states_TD)[0] for way in ways)
    assert torch.allclose(first, second, atol=1e-15) and float(first.abs().min()) > 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_it_back(name: str, tmp_path: Path, small_tokenizer: TextTokenizer, texts: list[str]) -> None:
    model = of(name, small_tokenizer)
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "teacher")
    again = CrossEncoder.from_pretrained(tmp_path / "teacher")
    assert torch.allclose(again.score(texts[:6], texts[6:12]), model.score(texts[:6], texts[6:12]), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_gets_a_gradient(name: str, small_tokenizer: TextTokenizer, texts: list[str]) -> None:
    model = of(name, small_tokenizer)
    module = CrossEncoderModule(model, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=4)
    ids, lengths = small_tokenizer.encode(texts[:4], "query")
    logits = model(torch.from_numpy(ids).long(), lengths.tolist())
    logits.sum().backward()
    without = {n for n, p in module.named_parameters() if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())}
    assert not {n for n in without if "head" not in n and "position" not in n and "pooler" not in n}


def test_two_texts_must_fit(small_tokenizer: TextTokenizer) -> None:
    long = TextTokenizer(small_tokenizer.backend, max_length=66)
    assert of("bert", TextTokenizer(small_tokenizer.backend, max_length=65))
    for name in ("bert", "roberta"):  # 130 positions, of which RoBERTa has 128 for tokens
        with pytest.raises(UserError, match="two texts of 66 tokens do not fit"):
            of(name, long)


def test_a_tokenizer_without_two_special_tokens_is_refused(small_tokenizer: TextTokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    backend = type(small_tokenizer.backend).from_str(small_tokenizer.backend.to_str())
    backend.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", backend.token_to_id("[SEP]"))])
    with pytest.raises(UserError, match="puts 1 special tokens around a text"):
        of("bert", TextTokenizer(backend, max_length=48))
