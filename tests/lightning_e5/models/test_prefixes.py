"""Prefixes of any text: from the spec through the trained folder to sentence-transformers and to the evaluation that refuses others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from lightning_e5.errors import UserError
from lightning_e5.evaluation.loaded_models import ModelSpec
from lightning_e5.export.model_card_usage import programs
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.models.folder import stored_settings
from lightning_e5.text import Prefixes
from tests.lightning_e5.models.folders import write_folder

TEXTS = ["long bridge river", "the song about the Sea", " a list", ""]
PREFIXES = [
    ("", ""), ("", "the text: "), ("query: ", ""), ("query:", "passage:   "), ("  ask:\t", "p\n"), ("質問：", "é ß 文書： "),
    ("{query} %s \\ \"'", "[SEP] </s> "), ("the long list of ", ""),
]  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "roberta"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words, and bytes of which white space is one."""
    pooling = {"pooling_mode_mean_tokens": True}
    return write_folder(tmp_path_factory.mktemp(request.param) / "model", request.param, length=38, pooling=pooling)


@pytest.mark.parametrize("given", PREFIXES)
def test_what_the_spec_says_is_what_every_reader_puts_there(start: Path, tmp_path: Path, given: tuple[str, str]) -> None:
    prefixes = Prefixes(*given)
    encoder = EncoderSpec(pretrained=str(start), max_length=None, prefixes={"query": given[0], "passage": given[1]}).load_pretrained(start)
    encoder.save_pretrained(tmp_path / "model")
    assert stored_settings(tmp_path / "model").prefixes == prefixes
    again = TextEncoder.from_pretrained(tmp_path / "model", training_start=True)
    assert again.tokenizer.prefixes == prefixes
    for kind, prefix in zip(("query", "passage"), given, strict=True):
        plain = again.tokenizer.replaced(prefixes=Prefixes("", ""))
        for ours, theirs in zip(again.tokenizer.encode(TEXTS, kind), plain.encode([prefix + t for t in TEXTS], kind), strict=True):  # type: ignore[arg-type]
            assert np.array_equal(ours, theirs)
    theirs_too = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=False)
    assert (theirs_too.prompts["query"], theirs_too.prompts["document"]) == given
    if "[SEP]" not in given[1]:  # names of special tokens are text to us, and tokens to them
        for kind, encode in (("query", theirs_too.encode_query), ("passage", theirs_too.encode_document)):
            assert np.abs(np.asarray(encode(TEXTS, show_progress_bar=False)) - again.embed(TEXTS, kind).numpy()).max() < 1e-6, kind  # type: ignore[arg-type]
    assert compile(programs(".", prefixes, 38)["transformers"], "program", "exec")


def test_only_the_very_same_prefix_is_evaluated(start: Path, tmp_path: Path) -> None:
    EncoderSpec(pretrained=str(start), max_length=None, prefixes={"query": "質問: ", "passage": ""}).load_pretrained(start).save_pretrained(tmp_path / "model")
    assert ModelSpec("m", tmp_path / "model", prefixes=Prefixes("質問: ", "")).load().prefix_ablation is False
    for other in (Prefixes("質問:", ""), Prefixes("質問: ", " "), Prefixes("質問：", ""), Prefixes("", ""), Prefixes()):
        with pytest.raises(UserError, match="the model stores the prefixes '質問: ' and ''"):
            ModelSpec("m", tmp_path / "model", prefixes=other).load()
        assert ModelSpec("m", tmp_path / "model", prefixes=other, prefix_ablation=True).load().prefix_ablation


def test_prefixes_that_cannot_be(start: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model: max_length: 38 leaves no room behind a prefix of 37 tokens"):
        TextEncoder.from_pretrained(start, prefixes=Prefixes("a song " * 40, ""))
    with pytest.raises(UserError, match="not a text that UTF-8 can hold"):
        Prefixes("a \ud800", "")
    with pytest.raises(UserError, match="prefixes: 5 is not a text"):
        Prefixes(5, "")  # type: ignore[arg-type]
    use = start / "config_sentence_transformers.json"
    use.write_text(json.dumps({"prompts": {"query": "\ud800", "document": ""}}))
    try:
        with pytest.raises(UserError, match="not a text that UTF-8 can hold"):
            TextEncoder.from_pretrained(start)
    finally:
        use.unlink()
