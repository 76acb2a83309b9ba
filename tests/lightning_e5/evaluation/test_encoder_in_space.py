"""Encoders are measured, searched and mapped over the same texts; on a real small encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_e5.evaluation import embedding_space as space_data
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.evaluation.embedding_space import alignment
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.report.figures import spaces as space_figures
from lightning_e5.report.figures.drawing import svg
from lightning_e5.report.tables.spaces import measure_table


@pytest.fixture
def encoder(small_bert, small_tokenizer):
    return TextEncoder(small_bert, small_tokenizer).eval()


@pytest.fixture
def data(texts):
    corpus = {f"d{i}": text for i, text in enumerate(texts[:60])} | {"empty": ""}
    queries = {f"q{i}": " ".join(texts[i].split()[:4]) for i in range(40)}
    qrels = {q: {f"d{int(q[1:]) // 2}": 1, "gone": 1} for q in queries}  # two queries a passage
    return RetrievalData("docs", "test", corpus, queries, qrels)


def test_measures_are_of_different_passages(encoder, data):
    found = space_data.measures(encoder, "e5", data)
    assert (found.model, found.collection, found.pairs) == ("e5", "docs", 20)  # every passage once
    assert found == space_data.measures(encoder, "e5", data)
    everything = [(data.queries[q], data.corpus[f"d{int(q[1:]) // 2}"]) for q in data.queries]
    values = [alignment(*(encoder.embed([text], kind) for text, kind in zip(pair, ("query", "passage"), strict=True))) for pair in everything]
    assert min(values) < found.alignment < max(values)
    assert space_data.measures(encoder, "e5", RetrievalData("x", "test", data.corpus, data.queries, {"q0": {"d0": 1}})) is None
    rows = measure_table([found]).cells
    assert rows[0][:3] == ["e5", "docs", "20"] and len(rows[0]) == 9


def test_neighbours_are_the_nearest_of_all(encoder, data):
    passages = space_data.some_passages(data)
    assert "" not in passages and len(passages) == 60 and space_data.some_passages(data, 7) == space_data.some_passages(data, 7)
    texts = ["loss of a batch", "a file"]
    found = space_data.neighbours(encoder, texts, passages, count=4)
    cosines = encoder.embed(texts, "query") @ encoder.embed(passages, "passage").T
    for near, row in zip(found, cosines, strict=True):
        order = torch.argsort(row, descending=True)[:4]
        assert [n.passage for n in near] == [passages[int(i)] for i in order]
        assert [n.cosine for n in near] == pytest.approx(row[order].tolist())


def test_a_map_has_a_point_for_every_text(encoder, texts):
    kinds = {"one": texts[:15], "two": texts[15:25], "test: docs": texts[25:32]}
    flat = space_data.flat_map(encoder, kinds)
    assert flat.xy_N2.shape == (32, 2) and np.isfinite(flat.xy_N2).all()
    assert np.bincount(flat.kind_N).tolist() == [15, 10, 7] and flat.is_test == (False, False, True)
    assert (flat.xy_N2 == space_data.flat_map(encoder, kinds).xy_N2).all()
    figure = space_figures.map_of_texts(flat, "e5")
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 32
    assert svg(figure).startswith("<?xml")
    assert space_data.flat_map(encoder, {"one": texts[:9]}) is None and space_figures.map_of_texts(None, "e5") is None
    assert space_data.neighbours_of_own_kind(encoder, {"one": [texts[0]] * 3, "two": [texts[9]] * 3}) == 1


def test_a_point_for_every_encoder_and_collection(encoder, data):
    found = [space_data.measures(encoder, model, data) for model in ("first", "second")]
    figure = space_figures.alignment_and_uniformity(found)
    assert len(figure.axes[0].lines) == 2 and svg(figure).startswith("<?xml")
    assert space_figures.alignment_and_uniformity([]) is None
