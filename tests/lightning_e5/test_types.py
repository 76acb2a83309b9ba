"""Where a batch lies: Lightning moves its tokens to the device and leaves the lengths, by which a step is cut up, on the host."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from lightning_e5.models.cross_encoder import join_pairs
from lightning_e5.training.chunks import concatenate, sorted_chunks
from lightning_e5.training.token_dropout import drop_inner_tokens
from lightning_e5.types import PairBatch, TokenBatch

META = torch.device("meta")


def pair_batch() -> PairBatch:
    queries = TokenBatch(torch.arange(9), torch.tensor([4, 2, 3]))
    passages = TokenBatch(torch.arange(30), torch.tensor([9, 2, 5, 4, 7, 3]))
    return PairBatch(queries, passages, torch.arange(3), torch.arange(6), torch.arange(3), teacher_BG=torch.rand(3, 2))


def moved() -> PairBatch:
    """As the training loop has it moved."""
    module = L.LightningModule()
    return module._apply_batch_transfer_handler(pair_batch(), device=META, dataloader_idx=0)  # type: ignore[no-any-return]


def test_lengths_stay_on_the_host_and_all_else_moves() -> None:
    before, after = pair_batch(), moved()
    assert isinstance(after, PairBatch) and isinstance(after.queries, TokenBatch)
    for ours, theirs in ((before.queries, after.queries), (before.passages, after.passages)):
        assert theirs.ids_T.device == META and theirs.ids_T.shape == ours.ids_T.shape
        assert theirs.lengths_B.device.type == "cpu" and torch.equal(theirs.lengths_B, ours.lengths_B)
    rest = (after.query_text_B, after.passage_text_P, after.rows_B, after.teacher_BG)
    assert all(tensor is not None and tensor.device == META for tensor in rest)
    again = move_data_to_device(after, META)  # what was moved ahead of the step
    assert again.queries.ids_T is after.queries.ids_T


def test_on_the_cpu_nothing_is_copied() -> None:
    before = pair_batch()
    after = move_data_to_device(before, torch.device("cpu"))
    assert after.queries.ids_T is before.queries.ids_T and after.queries.lengths_B is before.queries.lengths_B


def test_a_step_is_cut_up_without_a_word_from_the_device() -> None:
    """The ``meta`` device has no values: whoever asked it for lengths would be refused."""
    chunks = sorted_chunks(concatenate([moved().queries, moved().passages]), 12)
    host = sorted_chunks(concatenate([pair_batch().queries, pair_batch().passages]), 12)
    assert [c.lengths for c in chunks] == [c.lengths for c in host] and {c.ids_T.device for c in chunks} == {META}
    assert [c.ids_T.shape for c in chunks] == [c.ids_T.shape for c in host]
    pairs = join_pairs(moved().queries, moved().passages)
    assert pairs.ids_T.device == META and pairs.lengths_B.tolist() == join_pairs(pair_batch().queries, pair_batch().passages).lengths_B.tolist()


def test_lengths_on_the_device_would_be_asked_for() -> None:
    """The control."""
    texts = moved().queries._replace(lengths_B=torch.tensor([4, 2, 3], device=META))
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        sorted_chunks(texts, 12)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        drop_inner_tokens(texts, 0.5, seed=0, keep_first=1)
