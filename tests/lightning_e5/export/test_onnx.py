"""The ONNX file of an exported folder: its inputs, its values against torch's, and what is refused."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_e5.__main__ import main
from lightning_e5.errors import UserError
from lightning_e5.export import onnx as onnx_export
from lightning_e5.export.onnx import MODEL, PACKAGES, export_onnx, input_names
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.factory import EncoderSpec

HERE = all(importlib.util.find_spec(name) is not None for name in PACKAGES)
needs_onnx = pytest.mark.skipif(not HERE, reason="onnx, onnxscript and onnxruntime are optional")


@pytest.fixture
def folder(tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> Path:
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def embedded(path: Path, folder: Path, texts: list[str], prefix: str, max_length: int) -> np.ndarray:
    """What a user of onnxruntime computes from the folder: tokenise, run, pool, normalise."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)([prefix + t for t in texts], padding=True, truncation=True, max_length=max_length, return_tensors="np")
    run = session(path)
    (states,) = run.run(None, {one.name: tokens[one.name] for one in run.get_inputs()})
    mask = tokens["attention_mask"][..., None]
    pooled = (states * mask).sum(1) / mask.sum(1)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


@needs_onnx
def test_embeddings_from_the_exported_file_are_the_encoders(tmp_path: Path, folder: Path, texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "exported"
    assert main(["export", str(folder), str(out), "--onnx", "--no-card"]) == 0
    said = capsys.readouterr().out
    assert "largest difference from torch" in said and "to 48 tokens" in said
    assert sorted(p.name for p in (out / "onnx").iterdir()) == ["model.onnx"]  # one file, no data beside
    run = session(out / MODEL)
    assert {i.name: (i.type, [isinstance(d, str) for d in i.shape]) for i in run.get_inputs()} == {
        name: ("tensor(int64)", [True, True]) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert [o.name for o in run.get_outputs()] == ["last_hidden_state"]
    assert run.get_outputs()[0].type == "tensor(float)" and run.get_outputs()[0].shape[2] == 32
    encoder = TextEncoder.from_pretrained(out)
    for chosen, kind, prefix in ((texts[:40], "query", "query: "), (texts[40:41], "passage", "passage: "), (["a", " ".join(texts[:9])], "passage", "passage: ")):
        ours = encoder.embed(chosen, kind).numpy()  # type: ignore[arg-type]
        assert np.abs(embedded(out / MODEL, out, chosen, prefix, 48) - ours).max() < 1e-5


@needs_onnx
def test_a_file_that_does_not_compute_the_model_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnx_export._write

    def wrong(module: Any, *arguments: Any) -> None:
        weight = module.backbone.embeddings.word_embeddings.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.05)
            real(module, *arguments)
            weight.copy_(kept)

    monkeypatch.setattr(onnx_export, "_write", wrong)
    with pytest.raises(UserError, match="onnxruntime does not give torch's values: largest difference"):
        export_onnx(folder)
    assert list((folder / "onnx").iterdir()) == []


@needs_onnx
def test_an_encoder_that_is_no_bert(tmp_path: Path, small_tokenizer: Any, texts: list[str]) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=small_tokenizer.backend.get_vocab_size(), dim=16, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=64)
    TextEncoder(DistilBertModel(config), small_tokenizer).save_pretrained(tmp_path / "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        found = export_onnx(tmp_path / "other")
    assert max(found.hidden, found.embedding) < 1e-5 and found.longest == 48
    encoder = TextEncoder.from_pretrained(tmp_path / "other")
    assert input_names(encoder.backbone) == ["input_ids", "attention_mask"]
    theirs = embedded(tmp_path / "other" / MODEL, tmp_path / "other", texts[:5], "query: ", 48)
    assert np.abs(theirs - encoder.embed(texts[:5], "query").numpy()).max() < 1e-5


@needs_onnx
@pytest.mark.parametrize(("pooling", "dimensions"), [("cls", 12), ("last", None), ("mean", 5)])
def test_pooling_and_truncation_in_the_cards_programs(
    pooling: Any, dimensions: int | None, tmp_path: Path, folder: Path, texts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a user of transformers or of onnxruntime alone computes is what the encoder and sentence-transformers' ONNX backend give."""
    EncoderSpec(pretrained=str(folder), pooling=pooling, max_length=48).load_pretrained(folder).save_pretrained(tmp_path / "start")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "start"), str(out), "--onnx", *([] if dimensions is None else ["--truncate-dim", str(dimensions)])]) == 0
    encoder = TextEncoder.from_pretrained(out)
    assert encoder.width == (dimensions or 32)
    queries, passages = encoder.embed(["how do I read a file?"], "query"), encoder.embed(["Open the file and go through its lines.", "A graph has nodes and edges."], "passage")
    expected = (queries @ passages.T).numpy().ravel()
    found = re.findall(r"```python\n(.*?)\n```", (out / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(found) == 3
    monkeypatch.chdir(out)
    for program in found:
        capsys.readouterr()
        exec(program, {})
        printed = np.array([float(n) for n in re.findall(r"-?\d\.\d+", capsys.readouterr().out)])
        assert np.abs(printed - expected).max() < 2e-4, program  # as many digits as are printed


def test_a_missing_package_is_named_before_anything_is_written(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in ("onnx", "onnxscript") else real(name, *rest))
    assert main(["export", str(folder), str(tmp_path / "out"), "--onnx"]) == 2
    error = capsys.readouterr().err
    assert "--onnx: needs the package onnx and onnxscript" in error and "pip install onnx onnxscript" in error
    assert not (tmp_path / "out").exists()
