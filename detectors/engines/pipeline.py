"""Batches of pixels to a device and what is computed of them back: the one place where scoring moves data.

Two pairs of buffers take turns. While the device computes a batch, the host fills the other pair's pinned buffer, and a
stream of its own copies it up:

    host     fill 1 | fill 2        | fill 1 ...
    upload          | copy 1        | copy 2 ...
    compute                 | batch 1       | batch 2 ...

Batches are filled up to one of a few sizes: kernels are chosen, and graphs captured, by size. What fills them up is
what the buffer held before; its results are dropped. On a CPU nothing is moved: a call is one batch as it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Compute = Callable[[Tensor], Tensor]
"""(N, H, W, 3) uint8 on the device -> (N, K) on the device, row by row."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Of batches on a device: at most half of a batch is filling."""
RECOVERY_S = 600.0
"""After a batch that did not fit: until larger ones are tried again, as somebody else may have had the memory."""


class Pipeline:
    """Runs `compute` on images, whatever their number.

    uploaded_bytes, downloaded_bytes: moved so far, filling included. halvings: of batches that did not fit.
    """

    def __init__(
        self,
        device: torch.device,
        compute: Compute,
        sizes: Sequence[int] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sizes`: ascending, that batches are filled up to; empty: all images of a call are one batch, as they are.

        By default SIZES on a device, and empty on a CPU.
        """
        self.uploaded_bytes = self.downloaded_bytes = self.halvings = 0
        self._device, self._compute, self._now_s = device, compute, now_s
        self._sizes = tuple((() if device.type == "cpu" else SIZES) if sizes is None else sizes)
        self._largest = self._sizes[-1] if self._sizes else None
        self._most, self._halved_s = self._largest, 0.0
        self._stream = _stream(device) if device.type == "cuda" else None
        self._buffers = (_Buffers(device), _Buffers(device))
        self._lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels] | Pixels) -> Tensor:
        """(H, W, 3) images, N >= 1, all of one size -> (N, K) on the host.

        A batch for which the device has no memory is computed in halves, and those after it are as small.

        Raises:
            torch.OutOfMemoryError: there is not even room for one image.
        """
        with self._lock, torch.cuda.device(self._device) if self._stream else nullcontext():
            self._recover()
            parts: list[Tensor] = []
            start = turn = 0
            while start < len(images):
                batch = images[start : start + (self._most or len(images))]
                part = self._fitting(self._buffers[turn % 2], batch)
                turn += 1
                if part is None:
                    self._halve(len(batch))
                    continue
                parts.append(part)
                start += len(batch)
            if self._stream:
                torch.cuda.current_stream().synchronize()  # until the last results are down
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _fitting(self, buffers: _Buffers, batch: Sequence[Pixels] | Pixels) -> Tensor | None:
        """The results of a batch; None where the device has no memory for it."""
        try:
            pixels = self._up(buffers, batch)
            try:
                results = self._compute(pixels)[: len(batch)]
            finally:
                buffers.computed.record()
            return self._down(results)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        return None  # not in the handler, where the error still holds what was allocated

    def _up(self, buffers: _Buffers, batch: Sequence[Pixels] | Pixels) -> Tensor:
        if not self._sizes:
            host = torch.from_numpy(np.ascontiguousarray(batch) if isinstance(batch, np.ndarray) else np.stack(batch))
            self.uploaded_bytes += host.nbytes
            return host.to(self._device)
        size = next(size for size in self._sizes if size >= len(batch))
        host, there = (buffer[:size] for buffer in buffers.of(self._sizes[-1], batch[0].shape))
        buffers.uploaded.synchronize()  # the host's buffer is free
        np.stack(list(batch), out=host[: len(batch)].numpy())
        with _on(self._stream):
            buffers.computed.wait()  # the device's buffer is free
            there.copy_(host, non_blocking=True)
            buffers.uploaded.record()
        buffers.uploaded.wait()
        self.uploaded_bytes += host.nbytes
        return there

    def _down(self, results: Tensor) -> Tensor:
        self.downloaded_bytes += results.nbytes
        if self._stream is None:
            return results.cpu()
        host = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
        return host.copy_(results, non_blocking=True)

    def _halve(self, images: int) -> None:
        if self._stream:
            torch.cuda.empty_cache()  # a large block in pieces is no use to smaller batches
        smaller = [size for size in self._sizes if size <= images // 2]
        self._most = smaller[-1] if smaller else images // 2
        self.halvings += 1
        self._halved_s = self._now_s()
        log.warning("%s is out of memory for %d images: batches of %d from now on", self._device, images, self._most)

    def _recover(self) -> None:
        if self._most != self._largest and self._now_s() - self._halved_s > RECOVERY_S:
            self._most = self._largest


class _Event(Protocol):
    """Of `torch.cuda.Event`, what is used here."""

    def record(self) -> None: ...
    def wait(self) -> None: ...
    def synchronize(self) -> None: ...


class _Past:
    """The event of a device that has done what it was asked for when the call returns."""

    def record(self) -> None:
        """Nothing is under way."""

    wait = synchronize = record


class _Buffers:
    """A host buffer (pinned for CUDA) and the device's, and when each is free; made when first used.

    uploaded: the copy has been made. computed: the results are there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host = self._there = torch.empty(0, dtype=torch.uint8)
        self.uploaded, self.computed = self._event(), self._event()

    def _event(self) -> _Event:
        if self._device.type != "cuda":
            return _Past()
        event: _Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return event

    def of(self, images: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(images, H, W, 3) uint8, on the host and on the device."""
        if self._host.shape != (images, *shape):
            cuda = self._device.type == "cuda"
            self._host = torch.zeros((images, *shape), dtype=torch.uint8, pin_memory=cuda)
            self._there = torch.zeros_like(self._host, device=self._device)
            self.computed.record()  # what had this memory before may still be at work
        return self._host, self._there


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return torch.cuda.stream(stream) if stream else nullcontext()
