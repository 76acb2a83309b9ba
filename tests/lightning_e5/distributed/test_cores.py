"""Independent pieces of work on several cores: in order, with torch's state of the caller, ended by the first error."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from lightning_e5.distributed import cores
from lightning_e5.distributed.cores import map_on_cores, pieces_at_once

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_results_come_in_order(threads: int) -> None:
    """Also where later pieces end earlier: the first of each three waits for the other two."""
    ended = {i: threading.Event() for i in range(9)}

    def piece(i: int) -> tuple[int, str, int]:
        if i % 3 == 0:
            assert ended[i + 1].wait(60) and ended[i + 2].wait(60)
        ended[i].set()
        return i, threading.current_thread().name, torch.get_num_threads()

    found = list(map_on_cores(piece, range(9), CPU))
    assert [i for i, _, _ in found] == list(range(9))
    assert {n for _, _, n in found} == {1}, "each piece has its share of the threads"
    assert torch.get_num_threads() == threads, "the caller has all of them again"
    lazily: list[int] = []
    other = threading.Thread(target=lambda: lazily.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert lazily == [threads], "a thread that begins later, too"


def test_one_core_one_piece_or_a_gpu_needs_no_thread(threads: int) -> None:
    def name(_: int) -> tuple[str, bool]:
        return threading.current_thread().name, torch.is_grad_enabled()

    here = threading.current_thread().name, False
    assert list(map_on_cores(name, [1], CPU)) == [here] and list(map_on_cores(name, [], CPU)) == []
    assert list(map_on_cores(name, range(4), torch.device("meta"))) == [here] * 4
    torch.set_num_threads(1)
    assert list(map_on_cores(name, range(4), CPU)) == [here] * 4


def test_more_threads_than_pieces_are_shared(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "MOST_AT_ONCE", 2)
    torch.set_num_threads(5)
    assert pieces_at_once(CPU) == 2
    assert set(map_on_cores(lambda _: torch.get_num_threads(), range(6), CPU)) == {2}


def test_pieces_have_the_state_of_their_caller(threads: int) -> None:
    def state(_: int) -> tuple[bool, bool, bool, torch.dtype]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    plain = (False, False, False, torch.get_autocast_dtype("cpu"))
    assert set(map_on_cores(state, range(4), CPU)) == {plain}
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        assert set(map_on_cores(state, range(4), CPU)) == {(False, True, True, torch.float16)}


@pytest.mark.parametrize("count", [1, 3])
def test_the_caller_keeps_its_own_state(threads: int, count: int) -> None:
    torch.set_num_threads(count)
    for _ in map_on_cores(lambda i: i, range(4), CPU):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_an_error_ends_it(threads: int) -> None:
    begun: list[int] = []

    def piece(i: int) -> int:
        begun.append(i)
        if i == 4:
            raise ValueError("the fifth")
        return i

    taken: list[int] = []
    with pytest.raises(ValueError, match="the fifth"):
        taken.extend(map_on_cores(piece, range(1000), CPU))
    assert len(begun) < 50 and torch.get_num_threads() == threads
    assert not [t for t in threading.enumerate() if t.name.startswith("chunks")]


def test_who_stops_taking_stops_it(threads: int) -> None:
    begun: list[int] = []
    results = map_on_cores(lambda i: begun.append(i) or i, range(1000), CPU)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert len(begun) < 50 and torch.get_num_threads() == threads
