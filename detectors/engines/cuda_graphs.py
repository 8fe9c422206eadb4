"""CUDA graphs: all kernels of a batch, from pixels to signals, started as one.

A small network is a few hundred kernels of some microseconds each, and starting them one by one takes the host longer
than running them takes the device. A graph is captured for each size of batch when it first comes, and replayed after.
It holds the same kernels as torch starts otherwise.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from detectors.engines.engine import EngineError
from detectors.engines.graph import first_line
from detectors.engines.pipeline import Compute

log = logging.getLogger(__name__)

WARM_UP = 3
"""Runs before a capture, in which libraries choose kernels and allocate what a capture must not."""


class CudaGraphs:
    """A `Compute` that runs another one by graphs; by itself where one cannot be captured."""

    name = "cudagraphs"

    def __init__(self, compute: Compute, device: torch.device) -> None:
        """Nothing is captured yet.

        Raises:
            EngineError: the device is not CUDA.
        """
        if device.type != "cuda":
            raise EngineError(f"cudagraphs needs a CUDA device, and the backbone is on {device}")
        self._compute = compute
        self._graphs: dict[tuple[int, ...], _Graph | None] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """What the other one gives; valid until the next call, which overwrites it on the same stream.

        Raises:
            EngineError: already the first graph cannot be captured.
        """
        shape = tuple(pixels.shape)
        if shape not in self._graphs:
            self._graphs[shape] = self._captured(pixels)
        graph = self._graphs[shape]
        return self._compute(pixels) if graph is None else graph(pixels)

    def forget(self) -> None:
        """Nothing is kept for the next start."""

    def _captured(self, pixels: Tensor) -> _Graph | None:
        try:
            return _Graph(self._compute, pixels)
        except torch.OutOfMemoryError:
            raise  # a smaller batch may fit
        except Exception as error:  # whatever a network does that a capture does not allow
            if not self._graphs:
                raise EngineError(f"cudagraphs cannot capture this network: {first_line(error)}") from error
            log.warning("no CUDA graph for batches of %d: kernels start one by one: %s", len(pixels), first_line(error))
            return None


class _Graph:
    """Of one size of batch. Its input and its result are tensors of its own, at addresses that stay."""

    def __init__(self, compute: Compute, pixels: Tensor) -> None:
        self._pixels = pixels.clone()
        stream = torch.cuda.Stream(pixels.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                compute(self._pixels)
        torch.cuda.current_stream(pixels.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may ask for the memory in use meanwhile, as metrics do
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = compute(self._pixels)

    def __call__(self, pixels: Tensor) -> Tensor:
        self._pixels.copy_(pixels)
        self._graph.replay()
        return self._result
