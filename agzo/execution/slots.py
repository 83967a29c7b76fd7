"""Room on the device for two layers, and the copies between it and the host.

While one layer is used the next one is copied in, on a stream of its own; a changed layer is copied
out on a third. So copies and computation overlap, and the device never holds more than two layers,
however far the host runs ahead of it. With no CUDA device the copies are made at once, by the same
calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 256  # bytes: where a tensor may begin in a slot


class Slot:
    """Device memory for one layer; `tensors` are the layer's, while it is in."""

    def __init__(self, device: torch.device) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8, device=device)
        self.tensors: list[Tensor] = []
        self.arrived: Any = None  # CUDA event: the copies in are done
        self.left: Any = None  # CUDA event: the last use is done

    def lay_out(self, homes: Sequence[Tensor]) -> None:
        """Make `tensors` of the shapes and dtypes of `homes`, one behind another."""
        self.tensors, at = [], 0
        for home in homes:
            size = home.numel() * home.element_size()
            self.tensors.append(self.memory[at : at + size].view(home.dtype).view(home.shape))
            at += -(-size // ALIGNMENT) * ALIGNMENT


def room(homes: Sequence[Tensor]) -> int:
    """Count the bytes that a layer takes in a slot."""
    sizes = (home.numel() * home.element_size() for home in homes)
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


class Slots:
    """Two slots that layers take in turn."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cuda = device.type == "cuda"
        self._in = torch.cuda.Stream(device) if cuda else None
        self._out = torch.cuda.Stream(device) if cuda else None
        self._written: Any = None  # CUDA event: the copies out so far are done
        self._free = [Slot(device), Slot(device)]
        self._all = list(self._free)

    @property
    def bytes(self) -> int:
        """Device memory of both slots."""
        return sum(slot.memory.numel() for slot in self._all)

    def bring(self, homes: Sequence[Tensor]) -> Slot:
        """Begin to copy a layer's tensors into a free slot; `arrive` before they are used."""
        slot = self._free.pop(0)
        if slot.memory.numel() < room(homes):
            self.settle()
            slot.memory = torch.empty(0, dtype=torch.uint8, device=self.device)  # before the new
            slot.memory = torch.empty(room(homes), dtype=torch.uint8, device=self.device)
            if self._in is not None:
                self._in.wait_stream(torch.cuda.current_stream(self.device))
        slot.lay_out(homes)
        with _on(self._in):
            for event in (slot.left, self._written):
                if self._in is not None and event is not None:
                    self._in.wait_event(event)
            for tensor, home in zip(slot.tensors, homes, strict=True):
                tensor.copy_(home, non_blocking=True)
            slot.arrived = None if self._in is None else self._in.record_event()
        return slot

    def arrive(self, slot: Slot) -> None:
        """Let what is computed from now on wait for the copies into a slot."""
        if slot.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)

    def write_back(self, slot: Slot, homes: Sequence[Tensor]) -> None:
        """Begin to copy a slot's tensors, as what was computed so far leaves them, to the host."""
        if self._out is not None:
            self._out.wait_stream(torch.cuda.current_stream(self.device))
        with _on(self._out):
            for tensor, home in zip(slot.tensors, homes, strict=True):
                home.copy_(tensor, non_blocking=True)
            self._written = None if self._out is None else self._out.record_event()

    def leave(self, slot: Slot) -> None:
        """Free a slot once what was computed so far is done."""
        if self._in is not None:
            slot.left = torch.cuda.current_stream(self.device).record_event()
        slot.tensors = []
        self._free.append(slot)

    def settle(self) -> None:
        """Wait until every copy is done."""
        for stream in (self._in, self._out):
            if stream is not None:
                stream.synchronize()


def _on(stream: Any) -> Any:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
