"""Exported tokenizers of every family give the source's ids; a special token's name inside a text is text."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertForSequenceClassification

from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.sequence_classifier import SequenceClassifier
from lightning_e5.stages.vocabulary import train_wordpiece
from lightning_e5.text import Prefixes, TextTokenizer
from tests.lightning_e5.models.folders import FAMILIES, SIZE, write_folder

TEXTS = ["the long Bridge", "a song: how to sort", "the [MASK] and <mask> in the sea", "", "planet rock orbit " * 20]
NAMES = ("[SEP]", "[CLS]", "[PAD]", "[MASK]", "<s>", "</s>", "<pad>", "<mask>", "<|padding|>")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_tokenizer_gives_the_ids_of_its_source(family: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model", family)
    encoder = TextEncoder.from_pretrained(source)
    encoder.save_pretrained(tmp_path / "exported")
    before, after = (AutoTokenizer.from_pretrained(folder, trust_remote_code=False) for folder in (source, tmp_path / "exported"))
    ids = after(TEXTS)["input_ids"]
    assert ids == before(TEXTS)["input_ids"] and before.all_special_ids == after.all_special_ids
    assert after(TEXTS, padding=True, truncation=True, max_length=12).data == before(TEXTS, padding=True, truncation=True, max_length=12).data
    assert (before.padding_side, before.truncation_side, before.model_input_names) == (after.padding_side, after.truncation_side, after.model_input_names)
    theirs = [SentenceTransformer(str(folder), device="cpu", trust_remote_code=False) for folder in (source, tmp_path / "exported")]
    first, second = (dict(model.preprocess(TEXTS)) for model in theirs)
    assert torch.equal(first["input_ids"], second["input_ids"]) and torch.equal(first["attention_mask"], second["attention_mask"])
    if family == "bert":
        with_types = after([("a", "song")])["token_type_ids"]
        assert with_types == before([("a", "song")])["token_type_ids"] and 1 in with_types[0]
    ordinary = [text for text in TEXTS if "mask" not in text.lower()]
    own = TextTokenizer.replaced(encoder.tokenizer, prefixes=Prefixes("", ""))
    flat, lengths = own.encode(ordinary, "query")
    assert [piece.tolist() for piece in torch.from_numpy(flat).split(lengths.tolist())] == before(ordinary, truncation=True, max_length=24)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_names_in_texts_are_text(family: str, tmp_path: Path) -> None:
    encoder = TextEncoder.from_pretrained(write_folder(tmp_path / "model", family, length=40))
    plain = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=False)
    special = set(plain.all_special_ids) - {plain.unk_token_id}
    texts = [form.format(name) for name in NAMES for form in ("a {} song", "a{}song", "{}", "{0}{0}")] + ["a ＜s＞ song ＜／s＞"]
    assert any(special & set(ids[1:-1]) for ids in plain(texts)["input_ids"])  # the control: transformers reads them as tokens
    around = [len(encoder.tokenizer.backend.encode("").ids), len(set(encoder.tokenizer.backend.encode("").ids))]
    for tokenizer in (encoder.tokenizer, encoder.tokenizer.cut_at(39), copy.deepcopy(encoder).tokenizer, pickle.loads(pickle.dumps(encoder.tokenizer))):
        flat, lengths = tokenizer.encode(texts, "query")
        for piece in torch.from_numpy(flat).split(lengths.tolist()):
            assert len(special & set(piece.tolist())) == around[1] and sum(int(t) in special for t in piece) == around[0], piece
    encoder.save_pretrained(tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported", trust_remote_code=False)(texts).data == plain(texts).data


def test_a_separators_name_does_not_end_the_query_of_a_pair(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", length=16)
    model = CrossEncoder.from_encoder(TextEncoder.from_pretrained(folder)).eval()
    torch.nn.init.normal_(model.head.outer.weight)
    separator = model.separator
    for query in ("a [SEP] song", "[SEP][SEP]"):
        ids, _ = model.tokenizer.encode([query], "query")
        assert (ids == separator).sum() == 1
    scores = model.score(["a [SEP] song", "a song"], ["the [CLS] sea", "the sea"])
    assert scores[0] != scores[1] and bool(torch.isfinite(scores).all())


def test_a_released_cross_encoder_reads_them_as_text_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", length=16)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, num_labels=1, **{k: v for k, v in SIZE.items() if k == "initializer_range"})
    torch.manual_seed(3)
    BertForSequenceClassification(config).save_pretrained(folder)
    scorer = SequenceClassifier.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    pairs = [("a song", "the sea"), ("how to sort a list", "planet rock orbit " * 30)]
    expected = [scorer.model(**tokenizer(*pair, truncation=True, max_length=40, return_tensors="pt")).logits.item() for pair in pairs]
    assert scorer.score(*zip(*pairs, strict=True)).tolist() == pytest.approx(expected, abs=1e-5)  # type: ignore[arg-type]
    inputs = scorer._tokens(["a [SEP] song"], ["[PAD] the [CLS] sea"])
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert sum(token in special for token in inputs["input_ids"][0]) == 3 and inputs["token_type_ids"][0].count(1) > 5


def test_a_vocabulary_is_learnt_from_them_as_text(texts: list[str]) -> None:
    backend = train_wordpiece([*texts, "[SEP] and [PAD]"], ["[CLS] [MASK]"], 400)
    tokenizer = TextTokenizer(backend, Prefixes("", ""))
    ids, _ = tokenizer.encode(["[SEP] and [PAD] [CLS]"], "query")
    special = {backend.token_to_id(name) for name in ("[SEP]", "[PAD]", "[CLS]", "[MASK]")}
    assert sum(int(i) in special for i in ids) == 2
