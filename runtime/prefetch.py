"""The next batches, read and copied to the device by a thread while the current one is used."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Batch = TypeVar("Batch", bound=tuple)


class Failed(NamedTuple):
    error: BaseException


class Prefetch(Generic[Batch]):
    """Iterates over `batches` a few ahead, in a thread; on CUDA they are copied on a stream of
    their own, from page-locked memory, so that neither reading nor copying delays the step.

        with Prefetch(batches, Batch.to_device, device) as ahead:
            for batch in ahead: ...

    Args:
        batches: of named tuples; only their tensors move.
        to_device: (batch, device) -> batch on the device, copied without waiting.
        depth: batches that are ready at most.

    Attributes:
        waited: seconds that the consumer has waited for data so far.
    """

    def __init__(
        self, batches: Iterator[Batch], to_device: Callable[[Batch, torch.device], Batch],
        device: torch.device, depth: int = 2,
    ) -> None:  # fmt: skip
        self.batches, self.to_device, self.device = batches, to_device, device
        self.on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self.on_gpu else None
        self.ready: queue.Queue = queue.Queue(depth)
        self.stopped = threading.Event()
        self.waited = 0.0
        self.thread = threading.Thread(target=self.fetch, name="prefetch", daemon=True)
        self.thread.start()

    def fetch(self) -> None:
        if self.on_gpu:  # a thread begins on GPU 0, where every rank would open a context
            torch.cuda.set_device(self.device)
        try:
            for batch in self.batches:
                self.put(self.copied(batch))
                if self.stopped.is_set():
                    return
            self.put(None)
        except BaseException as error:  # the consumer raises it
            self.put(Failed(error))

    def copied(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        if not self.on_gpu:
            return self.to_device(batch, self.device), None
        with torch.cuda.stream(self.stream):
            batch = self.to_device(batch, self.device)
            return batch, self.stream.record_event()

    def put(self, item) -> None:
        while not self.stopped.is_set():
            try:
                return self.ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.stopped.is_set():
            raise StopIteration
        begin = time.perf_counter()
        item = self.ready.get()
        self.waited += time.perf_counter() - begin
        if item is None or isinstance(item, Failed):
            self.ready.put(item)  # whoever asks again is told again
            raise item.error if item else StopIteration
        batch, copied = item
        if copied is not None:
            current = torch.cuda.current_stream()
            current.wait_event(copied)
            for part in tree_leaves(batch):
                if isinstance(part, Tensor) and part.is_cuda:
                    part.record_stream(current)  # its memory is not reused before that is done
        return batch

    def __enter__(self) -> "Prefetch[Batch]":
        return self

    def __exit__(self, *error) -> None:
        """End the thread before the interpreter ends under it; one that is stuck in a read of a
        storage that does not answer is left behind."""
        self.stopped.set()
        while not self.ready.empty():
            self.ready.get_nowait()
        self.thread.join(timeout=10)
