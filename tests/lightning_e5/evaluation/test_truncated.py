"""Models that differ in their dimensions alone embed their texts once, and each as if it were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.loaded_models import ModelSpec, load_models
from lightning_e5.evaluation.truncated import TruncatedEncoder, WholeEmbeddings
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.retrieval.stored_embeddings import model_fingerprint
from tests.lightning_e5.models.folders import write_folder
from tests.lightning_e5.models.test_folder import KINDS, PROMPTS, TEXTS


@pytest.mark.parametrize("kind", ["mean", "dense", "dot", "several"])
def test_each_is_as_if_it_were_alone_and_texts_are_embedded_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, files = KINDS[kind]
    folder = write_folder(tmp_path / "model", name, **files)
    models = load_models([ModelSpec(f"m@{d}", folder, truncate_dim=d) for d in (5, 2)] + [ModelSpec("whole", folder)])
    embedded: list[int] = []
    embed = TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda self, texts, *a, **k: embedded.append(len(texts)) or embed(self, texts, *a, **k))
    for side in ("query", "passage"):
        for normalize in (True, False):
            for d in (5, 2):
                alone = TextEncoder.from_pretrained(folder, truncate_dim=d)
                model: Any = models[f"m@{d}"].model
                assert isinstance(model, TruncatedEncoder) and model.width == d and model.similarity == alone.similarity
                assert model_fingerprint(model) == model_fingerprint(alone)
                embedded.clear()
                found = model.embed(TEXTS, side, normalize=normalize)
                assert embedded == ([len(TEXTS)] if (normalize, d) == (True, 5) else [])
                assert torch.allclose(found, alone.embed(TEXTS, side, normalize=normalize), atol=1e-7, rtol=1e-6)  # type: ignore[arg-type]
                assert torch.allclose(model.embed_tokens(*tokens(model, side), normalize=normalize), found, atol=1e-6)
    assert models["whole"].model.width == TextEncoder.from_pretrained(folder).width


def tokens(model: TextEncoder, side: Any) -> tuple[Any, int]:
    from lightning_e5.types import TokenBatch

    ids, lengths = model.tokenizer.encode(TEXTS, side)
    return TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths)), model.prompt_of(side)


def test_no_more_is_kept_than_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WholeEmbeddings(TextEncoder.from_pretrained(write_folder(tmp_path / "model", use=PROMPTS)), kept_bytes=4 * 16 * 3)
    model = TruncatedEncoder(whole, 4)
    for texts in (["a"], ["the", "sea"], ["a"], ["long", "song"], TEXTS):
        assert torch.equal(model.embed(texts, "query"), model.embed(texts, "query"))
        assert sum(rows.nbytes for rows in whole._kept.values()) <= whole.kept_bytes
    assert [len(rows) for rows in whole._kept.values()] == [2]
    first = model.embed(["a"], "query", normalize=False)
    with torch.inference_mode():
        first.zero_()
    assert model.embed(["a"], "query", normalize=False).abs().max() > 0  # what is kept is nobody else's


def test_dimensions_that_one_of_them_does_not_have(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", use=PROMPTS)
    with pytest.raises(UserError, match="model: truncate_dim: 17 of the 16 values"):
        load_models([ModelSpec("a", folder, truncate_dim=8), ModelSpec("b", folder, truncate_dim=17)])
    with pytest.raises(UserError, match="model: truncate_dim: 17 of the 16 values"):
        load_models([ModelSpec("b", folder, truncate_dim=17), ModelSpec("a", folder, truncate_dim=8)])
