"""``check`` says of an encoder that is padded that it is, why, and what it costs; of one that is not here that this is not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.models.padding_cost import padding_line, padding_share
from lightning_e5.pipeline.plan import plan
from tests.lightning_e5.models.packed.small_models import small_model


def folder(path: Path, name: str, **changes: Any) -> Path:
    """A model folder as far as ``check`` reads it."""
    path.mkdir()
    small_model(name, **changes).config.to_json_file(path / "config.json")
    return path


def lines(pretrained: str, **stage: Any) -> list[str]:
    data = {"_target_": "data_modules.ccpairs.datamodule.CCPairsDataModule", "batch_size": 512, "max_steps": 10}
    train = {"_target_": "lightning_e5.stages.pretrain.pretrain", "data": data, "module": {}, "trainer": {"chunk_tokens": 2048}, **stage}
    experiment = {"name": "e", "seed": 0, "runs_dir": "runs", "encoder": {"pretrained": pretrained, "max_length": 100}, "stages": {"train": train}}
    return [line.strip() for line in plan(experiment) if "padd" in line]


def test_an_encoder_that_is_padded_is_told_with_its_cost(tmp_path: Path) -> None:
    electra = folder(tmp_path / "electra", "electra")
    first, second = lines(f"path:{electra}")
    assert first.startswith("encoder: padded path: electra has no forward pass without padding here (bert, roberta, ")
    share = padding_share(1024, 100, 2048)
    assert second.startswith(f"padded path: about {share:.2f}x the tokens, reckoned for lengths spread evenly up to 100, after sorting")
    decoder = folder(tmp_path / "decoder", "roberta", is_decoder=True)
    assert "roberta with is_decoder: true has no forward pass" in lines(str(decoder))[0]


def test_one_that_is_not_padded_costs_nothing(tmp_path: Path) -> None:
    for known in (f"path:{folder(tmp_path / 'modernbert', 'modernbert')}", "google-bert/bert-base-uncased", "google-bert/bert-base-uncased#sha256=0"):
        assert lines(known) == ["encoder: runs without padding"]


def test_a_stage_may_name_its_own_encoder(tmp_path: Path) -> None:
    electra, mpnet = (folder(tmp_path / name, name) for name in ("electra", "mpnet"))
    own = lines(f"path:{mpnet}", inputs={"encoder": f"path:{electra}"})
    assert len(own) == 3 and "electra" in own[1] and own[2].startswith("padded path: about")
    assert [line for line in lines(f"path:{electra}", inputs={"encoder": f"path:{mpnet}"}) if "about" in line] == []


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_what_is_not_here_or_cannot_be_read_is_not_known(tmp_path: Path, content: str | None) -> None:
    assert padding_line("nobody/has-this")[0] is None
    assert "nobody/has-this is not here, so whether it runs without padding is not known yet (bert, roberta, " in lines("nobody/has-this")[0]
    (tmp_path / "model").mkdir()
    if content is not None:
        (tmp_path / "model" / "config.json").write_text(content)
    assert padding_line(f"path:{tmp_path / 'model'}")[0] is None
    assert padding_line(str(tmp_path / "nowhere"))[0] is None


def test_a_folder_of_sentence_transformers_is_read_where_its_modules_say(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    folder(tmp_path / "model" / "0_Transformer", "electra")
    modules = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    assert padding_line(f"path:{tmp_path / 'model'}")[0] is True


def test_the_share_is_that_of_sorted_chunks() -> None:
    assert padding_share(1, 64, 2048) == 1.0
    assert padding_share(60, 64, 5) == 1.0  # every chunk is one text
    # Lengths 5 to 104, one text of each: chunks are filled in that order.
    lengths, padded, chunk = range(5, 105), 0, []
    for length in lengths:
        if sum(chunk) + length > 500:
            padded, chunk = padded + len(chunk) * chunk[-1], []
        chunk.append(length)
    assert padding_share(100, 104, 500) == pytest.approx((padded + len(chunk) * chunk[-1]) / sum(lengths))
    assert padding_share(100, 104, 500) < padding_share(100, 104, 5000)
