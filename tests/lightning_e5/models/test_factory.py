"""An encoder's own prefixes and length, as a spec takes them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec
from lightning_e5.text import E5_PREFIXES, Prefixes


@pytest.fixture
def folder(tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> Path:
    TextEncoder(small_bert, small_tokenizer.replaced(prefixes=Prefixes("ask: ", "text: "))).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_stored_prompts_and_length_are_its_own(folder: Path) -> None:
    made = EncoderSpec(pretrained=str(folder), max_length=None, prefixes="own").load_pretrained(folder)
    assert made.tokenizer.prefixes == Prefixes("ask: ", "text: ") and made.tokenizer.max_length == 48
    assert EncoderSpec(pretrained=str(folder), max_length=32).load_pretrained(folder).tokenizer.prefixes == E5_PREFIXES


@pytest.mark.parametrize(("name", "prefixes"), [("plain-model", Prefixes("", "")), ("my-e5-small", E5_PREFIXES)])
def test_a_folder_without_prompts_has_those_that_belong_to_it(folder: Path, name: str, prefixes: Prefixes) -> None:
    (folder / "config_sentence_transformers.json").unlink()
    place = folder.rename(folder.with_name(name))
    assert EncoderSpec(pretrained=str(place), prefixes="own", max_length=32).load_pretrained(place).tokenizer.prefixes == prefixes


@pytest.mark.parametrize("given", [{"prefixes": "own"}, {"max_length": None}, {"prefixes": "other", "pretrained": "x"}])
def test_what_only_a_pretrained_encoder_has_is_refused_without_one(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"encoder\.(prefixes|max_length): "):
        EncoderSpec(**given)
