"""Variable-length attention is taken where the GPU, the type, the heads and the settings allow it."""

from __future__ import annotations

import pytest
import torch

from lightning_e5 import rng
from lightning_e5.models.packed import varlen

CUDA = torch.device("cuda", 0)


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(varlen, "_flash", lambda: None)
    monkeypatch.setattr(varlen, "_torch_varlen", lambda: object())
    return monkeypatch


@pytest.mark.parametrize(("capability", "expected"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
@pytest.mark.parametrize("flash", [False, True])
def test_it_asks_for_the_compute_capability(ampere: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool, flash: bool) -> None:
    ampere.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    ampere.setattr(varlen, "_flash", lambda: object() if flash else None)
    assert varlen.has_varlen(CUDA, torch.bfloat16, 0.0) is expected


def test_types_widths_and_dropout(ampere: pytest.MonkeyPatch) -> None:
    assert [varlen.has_varlen(CUDA, dtype, 0.0) for dtype in (torch.float16, torch.bfloat16, torch.float32)] == [True, True, False]
    assert [varlen.has_varlen(CUDA, torch.bfloat16, 0.0, width) for width in (32, 64, 256, 12, 260, 512)] == [True, True, True, False, False, False]
    assert not varlen.has_varlen(torch.device("cpu"), torch.bfloat16, 0.0)
    assert not varlen.has_varlen(CUDA, torch.bfloat16, 0.1)
    ampere.setattr(varlen, "_flash", lambda: object())
    assert varlen.has_varlen(CUDA, torch.bfloat16, 0.1)


def test_a_window_is_asked_for_where_the_library_has_it(ampere: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def without_window(*args: object) -> None: ...

    def with_window(*args: object, window_size: tuple[int, int] = (-1, -1)) -> None:
        given["window_size"] = window_size

    for attend, expected in ((without_window, False), (with_window, True)):
        varlen._torch_has_windows.cache_clear()
        ampere.setattr(varlen, "_torch_varlen", lambda attend=attend: attend)
        assert varlen.has_varlen(CUDA, torch.bfloat16, 0.0) and varlen.has_varlen(CUDA, torch.bfloat16, 0.0, windowed=True) is expected
    varlen._torch_has_windows.cache_clear()
    tokens = [torch.zeros(4, 2, 8)] * 3
    varlen.varlen_attention(*tokens, torch.tensor([0, 4]), 4, 0.0, 64)
    assert given.pop("window_size") == (64, 64)
    varlen.varlen_attention(*tokens, torch.tensor([0, 4]), 4, 0.0)
    assert given == {"window_size": (-1, -1)}
    ampere.setattr(varlen, "_flash", lambda: lambda *args, **kwargs: given.update(kwargs))
    varlen.varlen_attention(*tokens, torch.tensor([0, 4]), 4, 0.1, 64)
    assert given == {"window_size": (64, 64), "dropout_p": 0.1, "deterministic": False}


def test_deterministic_kernels_alone_where_asked_for(ampere: pytest.MonkeyPatch) -> None:
    ampere.setattr(varlen, "deterministic_kernels", lambda: True)
    assert not varlen.has_varlen(CUDA, torch.bfloat16, 0.0), "torch's kernel promises no order"
    given: dict[str, object] = {}
    ampere.setattr(varlen, "_flash", lambda: lambda *args, **kwargs: given.update(kwargs))
    assert varlen.has_varlen(CUDA, torch.bfloat16, 0.1)
    varlen.varlen_attention(*[torch.zeros(4, 2, 8)] * 3, torch.tensor([0, 4]), 4, 0.1)
    assert given == {"dropout_p": 0.1, "deterministic": True}
    assert not rng.deterministic_kernels()
