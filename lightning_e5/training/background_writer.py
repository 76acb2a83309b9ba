"""Checkpoints that a thread writes while training goes on, from a copy of the state in host memory."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """Copies of a training's state in host memory, which is used again for the next one.

    A copy has one storage for each of the state's, so that tensors that share one (the weights, under their names in the scheme and
    in its encoder) are copied once, and are one in the file, too. From a GPU the storages are copied to page-locked memory on a stream
    of their own: the host waits for nothing, and what the GPU is told to do next begins when the copy is done.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def take(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[torch.cuda.Event]]:
        """A copy of ``state``, good until the next is taken, and what must have happened before it is read.

        Args:
            state: of mappings, lists, tuples, tensors and values of Python.
        """
        tensors = {id(tensor): tensor for tensor in _plain_tensors(state)}
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors.values()}
        del self._buffers[len(storages) :]
        done = self._copy_storages(list(storages.values()))
        copies = dict(zip(storages, (buffer.untyped_storage() for buffer in self._buffers), strict=True))
        memo: dict[int, Any] = {}
        for number, tensor in tensors.items():
            own = copies[tensor.untyped_storage()._cdata]
            memo[number] = torch.empty(0, dtype=tensor.dtype, device="cpu").set_(own, tensor.storage_offset(), tensor.size(), tensor.stride())
        # Everything else as it is now: counters, settings, the names of weights.
        return copy.deepcopy(dict(state), memo), done

    def _copy_storages(self, storages: list[torch.UntypedStorage]) -> list[torch.cuda.Event]:
        devices = {storage.device for storage in storages if storage.device.type == "cuda"}
        for device in devices:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            self._streams[device].wait_stream(torch.cuda.current_stream(device))
        for number, storage in enumerate(storages):
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            buffer = self._buffer(number, source)
            if storage.device in devices:
                with torch.cuda.stream(self._streams[storage.device]):
                    buffer.copy_(source, non_blocking=True)
            else:
                buffer.copy_(source)
        done = [self._streams[device].record_event() for device in devices]
        for event, device in zip(done, devices, strict=True):
            # Before the next step writes to what is being copied, or to memory that is freed meanwhile.
            torch.cuda.current_stream(device).wait_event(event)
        return done

    def _buffer(self, number: int, source: Tensor) -> Tensor:
        """The memory of a storage: that of the last copy, where it fits."""
        known = self._buffers[number] if number < len(self._buffers) else None
        if known is None or known.numel() != source.numel() or known.is_pinned() != source.is_cuda:
            known = torch.empty(source.numel(), dtype=torch.uint8, device="cpu", pin_memory=source.is_cuda)
            self._buffers[number : number + 1] = [known]
        return known


def _plain_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a state whose memory is theirs; ``copy.deepcopy`` copies others itself."""
    if type(value) is Tensor and value.layout == torch.strided and not value.requires_grad:
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _plain_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _plain_tensors(item)


class BackgroundWriter:
    """Writes checkpoints in a thread, one at a time; who has one to write waits until the one before is written.

    Memory: one `HostCopy`. The thread is no daemon: a process that ends in the ordinary way finishes the checkpoint first; one that is
    killed leaves a temporary file, as if it had written itself.

    Args:
        write: writes one checkpoint (path, state).
    """

    def __init__(self, write: Callable[[Path, Mapping[str, Any]], None]) -> None:
        self._write, self._copy = write, HostCopy()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, path: Path, state: Mapping[str, Any]) -> None:
        """Copy ``state`` as it is now and write it in the background.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.finish()
        self._thread = threading.Thread(target=self._run, args=(path, *self._copy.take(state)), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait until everything is written; raise the error where it could not be."""
        error = self.wait()
        if error is not None:
            raise error

    def wait(self) -> BaseException | None:
        """Wait until everything is written; returns the error where it could not be."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        return error

    def _run(self, path: Path, state: Mapping[str, Any], copied: list[torch.cuda.Event]) -> None:
        try:
            for event in copied:
                event.synchronize()
            self._write(path, state)
        except BaseException as error:  # raised in the training
            self._error = error
