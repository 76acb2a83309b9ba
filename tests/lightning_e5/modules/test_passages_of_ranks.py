"""Which schemes take the passages of the ranks by the ring, and what is refused; that it changes nothing is in test_ranks."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_e5.config.instantiate import check_node
from lightning_e5.errors import UserError
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.moco import MoCoModule
from tests.lightning_e5.modules.test_dimensions import SCHEMES, make


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_but_moco_has_the_ring(small_bert: Any, scheme: type[BiEncoderModule]) -> None:
    node = {"_target_": f"{scheme.__module__}.{scheme.__qualname__}", "_partial_": True, "passages_of_ranks": "ring"}
    if scheme is MoCoModule:
        for refused in (lambda: check_node(node, "module"), lambda: make(scheme, small_bert, passages_of_ranks="ring")):
            with pytest.raises(UserError, match="passages_of_ranks: ring: MoCo's candidates are a queue of keys"):
                refused()
        return
    check_node(node, "module")
    assert make(scheme, small_bert, passages_of_ranks="ring").ring.ranks == 1
    assert make(scheme, small_bert).ring is None


def test_another_value_is_named(small_bert: Any) -> None:
    with pytest.raises(UserError, match="passages_of_ranks: 'circle' is not one of gathered, ring"):
        make(InBatchModule, small_bert, passages_of_ranks="circle")
    with pytest.raises(UserError, match=r"module\.passages_of_ranks: 'circle' is not"):
        check_node({"_target_": "lightning_e5.modules.in_batch.InBatchModule", "_partial_": True, "passages_of_ranks": "circle"}, "module")
