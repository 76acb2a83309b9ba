"""A validation's nDCG@10 is that of the evaluation, and follows the weights as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.collection import load_collection
from lightning_e5.evaluation.beir.validation import ValidationCollection
from lightning_e5.models.encoder import TextEncoder


def test_the_values_are_the_evaluations_after_every_change_of_the_weights(encoder_folder: Path, collection: Path) -> None:
    encoder = TextEncoder.from_pretrained(encoder_folder).train()
    validation = ValidationCollection(collection, encoder)
    for _ in range(2):
        expected = load_collection(collection, "x", rules="none").evaluate(encoder).per_query["ndcg@10"]
        state = torch.random.get_rng_state()
        assert validation() == expected and len(expected) == 8
        assert encoder.training and torch.equal(state, torch.random.get_rng_state())
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter))


def test_its_name_is_by_content(encoder_folder: Path, collection: Path) -> None:
    encoder = TextEncoder.from_pretrained(encoder_folder)
    before = ValidationCollection(collection, encoder, max_length=16).identity()
    assert before == ValidationCollection(collection, encoder).identity() and before.startswith("collection ")
    path = collection / "qrels" / "test.tsv"
    path.write_text(path.read_text().replace("q0\td0", "q0\td1"))
    assert ValidationCollection(collection, encoder).identity() != before


@pytest.mark.parametrize("name", ["corpus.jsonl", "qrels/test.tsv"])
def test_a_collection_without_a_file(encoder_folder: Path, collection: Path, name: str) -> None:
    (collection / name).unlink()
    with pytest.raises(UserError, match=name):
        ValidationCollection(collection, TextEncoder.from_pretrained(encoder_folder))
