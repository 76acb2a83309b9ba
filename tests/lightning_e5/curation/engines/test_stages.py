"""Every curation stage gives the same bytes from an engine as without one; tests/cluster has the engines of several machines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_e5.curation.engines import run_parts as running
from lightning_e5.curation.engines.encoder import EncoderOnEngine, TasksOn
from lightning_e5.curation.engines.inference import EmbedTexts
from lightning_e5.curation.engines.run_parts import MadeWhenUsed, Part, parts_of, run_parts
from lightning_e5.errors import UserError
from lightning_e5.models import encoder as encoders
from lightning_e5.models.encoder import TextEncoder
from tests.lightning_e5.curation.engines.all_stages import digests, prepare, run_stages
from tests.lightning_e5.curation.engines.engine_tasks import Sent, Tens


def test_every_stage_gives_the_same_bytes(tmp_path: Path, texts: list[str], small_bert, small_tokenizer) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "data", texts, TextEncoder(small_bert, small_tokenizer))
    run_stages(tmp_path / "data", tmp_path / "here", None)
    run_stages(tmp_path / "data", tmp_path / "engine", Sent())
    here = digests(tmp_path / "here")
    assert here == digests(tmp_path / "engine")
    assert sum(name.startswith("tokens/tokens/tokens-") for name in here) > 5 and sum(name.startswith("filter/ranks/part-") for name in here) > 5
    assert not [name for name in here if "parts/" in name or "work/" in name], "what a killed stage goes on from is gone"


def test_an_encoder_on_an_engine_embeds_as_it_does_alone(
    tmp_path: Path, texts: list[str], small_bert, small_tokenizer, monkeypatch: pytest.MonkeyPatch  # type: ignore[no-untyped-def]
) -> None:
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr(encoders, "TEXTS_AT_ONCE", 7)
    by = EmbedTexts(tmp_path / "encoder", 20, "fp32")
    alone, on_engine = by.model, EncoderOnEngine.of(by, TasksOn(Sent(), 0, tmp_path / "parts"))
    done: list[int] = []
    for normalize in (True, False):
        found = on_engine.embed(texts[:30], "passage", normalize=normalize, progress=done.append)
        assert torch.equal(found, alone.embed(texts[:30], "passage", normalize=normalize))
        assert not torch.equal(found, alone.embed(texts[:30], "query", normalize=normalize)), "the control"
    assert sum(done) == 60 and not list((tmp_path / "parts").rglob("*.npz"))
    monkeypatch.setattr(running, "make_engine", lambda engine: pytest.fail("few texts are embedded here"))
    assert torch.equal(on_engine.embed(texts[:7], "query"), alone.embed(texts[:7], "query"))
    with pytest.raises(UserError):
        on_engine.embed("one text of several letters", "query")


class Elsewhere(Sent):
    """A node that does not see the shared folder: what it writes is not here."""

    def map(self, function, tasks, *, title, gpus_per_task=0):  # type: ignore[no-untyped-def]
        for task, result in zip(tasks, super().map(function, tasks, title=title), strict=True):
            task.part.path.unlink()
            yield result


def test_a_part_that_another_node_has_written_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LATE_SECONDS", 0.3)
    with pytest.raises(UserError, match=r"x-00000\.npz: a task has written it, but it is not there; all nodes of the engine must see .*parts as one shared folder"):
        list(run_parts(Tens(tmp_path), parts_of(tmp_path / "parts" / "x", 7, 2), title="tens", engine=Elsewhere()))


def double(work: list[int], progress: object) -> dict[str, np.ndarray]:
    return {"a": 2 * np.array(work)}


def test_work_that_is_made_where_it_is_used(tmp_path: Path) -> None:
    made = []

    def make() -> list[int]:
        made.append(1)
        return [1, 2]

    for engine in (None, Sent()):
        parts = [Part("one", tmp_path / str(engine is None) / "one.npz", MadeWhenUsed(make), rows=2)]
        assert not made
        assert next(iter(run_parts(double, parts, title="double", engine=engine)))["a"].tolist() == [2, 4]
        assert made.pop() == 1 and not made
