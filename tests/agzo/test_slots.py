"""The order of copies and computation on CUDA streams, shown without a CUDA device.

Streams and events are stand-ins that keep vector clocks: every access to a layer's host tensors or
to a slot must come after the accesses it conflicts with, by the waits that were asked for and not
by the order of the calls. Whatever a device then overlaps is right.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from agzo import AGZO
from agzo.execution.slots import ALIGNMENT, Slots
from agzo.execution.stream import StreamedLayers
from agzo.tuned.layers import decoder_layers
from tests.agzo.test_stream import deep
from tests.networks import Network

Clock = Counter[str]


class Timeline:
    """A stream, or the host ("host"): its clock has what is known to be done before its next op."""

    def __init__(self, name: str, host: "Timeline | None" = None) -> None:
        self.name, self.host = name, host
        self.clock: Clock = Counter()

    def record_event(self) -> Clock:
        return Counter(self.clock)

    def wait_event(self, event: Clock) -> None:
        self.clock |= event

    def wait_stream(self, other: "Timeline") -> None:
        self.clock |= other.clock

    def synchronize(self) -> None:
        assert self.host is not None
        self.host.clock |= self.clock

    def tick(self) -> Clock:
        if self.host is not None:
            self.clock |= self.host.clock  # what the host did before it gave the order
        self.clock[self.name] += 1
        return Counter(self.clock)


class Races:
    """Checks accesses to memory, by the address of each tensor's first byte."""

    def __init__(self) -> None:
        self.host = Timeline("host")
        self.compute = self.now = Timeline("compute", self.host)
        self.writes: dict[int, tuple[str, int]] = {}
        self.reads: dict[int, dict[str, int]] = {}
        self.checked = 0

    def access(self, line: Timeline, tensor: torch.Tensor, write: bool) -> None:
        at, clock = tensor.data_ptr(), line.tick()
        before = [self.writes[at]] if at in self.writes else []
        before += list(self.reads.get(at, {}).items()) if write else []
        for name, time in before:
            assert clock[name] >= time, f"{line.name} does not wait for {name}"
            self.checked += name != line.name
        if write:
            self.writes[at], self.reads[at] = (line.name, clock[line.name]), {}
        else:
            self.reads.setdefault(at, {})[line.name] = clock[line.name]


@pytest.fixture
def races(monkeypatch):
    found = Races()
    copy = torch.Tensor.copy_

    @contextmanager
    def stream(chosen: Timeline):
        before, found.now = found.now, chosen
        yield
        found.now = before

    def watched_copy(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False):
        if non_blocking:  # those of the slots
            found.access(found.now, source, write=False)
            found.access(found.now, self, write=True)
        return copy(self, source)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: found.now)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.Tensor, "copy_", watched_copy)
    return found


def streamed(net: Network, races: Races) -> tuple[StreamedLayers, AGZO]:
    """An optimizer whose slots have stand-ins for streams, and whose uses of weights are told."""
    layers = decoder_layers(net.model)[1]
    for layer in layers:  # before it is patched: what runs when the layer is here

        def used(*args, layer=layer, plain=layer.forward, **kwargs):
            with torch._C.DisableTorchFunction():
                for parameter in layer.parameters():
                    races.access(races.compute, parameter.data, write=False)
            return plain(*args, **kwargs)

        layer.forward = used
    found = Told(net.model, "cpu")
    found.races = races
    found._slots._in = Timeline("in", races.host)  # pyright: ignore
    found._slots._out = Timeline("out", races.host)  # pyright: ignore
    return found, AGZO(net.model, lr=1e-3, eps=1e-3, queries=2, stream=found)


class Told(StreamedLayers):
    """Tells of each change, a write by the compute stream."""

    races: Races

    def change(self, parameter: nn.Parameter, change: Callable[[], None]) -> None:
        def told() -> None:
            change()
            self.races.access(self.races.compute, parameter.data, write=True)

        super().change(parameter, told)


def read(net: Network, races: Races, write: bool = False) -> None:
    """What a checkpoint or a loader does: the host reads (or writes) every weight."""
    for layer in decoder_layers(net.model)[1]:
        for parameter in layer.parameters():
            races.access(races.host, parameter.data, write)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_copy_and_use_waits_for_what_it_needs(races, depth):
    net = deep(depth)
    found, optimizer = streamed(net, races)
    for _ in range(3):
        optimizer.step(net.closure)
        with torch.no_grad():
            net.closure()
    found.flush()
    read(net, races)
    optimizer.step(net.closure)
    net.model.state_dict()
    read(net, races, write=True)
    optimizer.step(net.closure)
    optimizer.state_dict()
    read(net, races)
    assert races.checked > 100


@pytest.mark.parametrize("missing", ["arrive", "left", "_written", "settle"])
def test_each_wait_is_needed(races, missing, monkeypatch):
    net = deep(3)
    found, optimizer = streamed(net, races)
    if missing in ("arrive", "settle"):
        monkeypatch.setattr(Slots, missing, lambda *_: None)
    bring = Slots.bring

    def forgetful(self, homes):
        for slot in self._all:
            slot.left = None if missing == "left" else slot.left
        self._written = None if missing == "_written" else self._written
        return bring(self, homes)

    monkeypatch.setattr(Slots, "bring", forgetful)

    def go() -> None:
        for _ in range(3):
            optimizer.step(net.closure)
            found.flush()
            read(net, races)

    with pytest.raises(AssertionError, match="does not wait for"):
        go()


def test_tensors_lie_apart_in_a_slot():
    slots = Slots(torch.device("cpu"))
    homes = [torch.randn(3, 5), torch.randn(()), torch.arange(6.0).double(), torch.empty(0, 4)]
    slot = slots.bring(homes)
    begins = [tensor.data_ptr() - slot.memory.data_ptr() for tensor in slot.tensors[:3]]
    assert begins == [0, ALIGNMENT, 2 * ALIGNMENT]
    assert all(a.equal(b) for a, b in zip(slot.tensors, homes, strict=True))
    slot.tensors[0].zero_()
    slots.write_back(slot, homes)
    assert not homes[0].any()
    slots.leave(slot)
    assert slots.bytes == 3 * ALIGNMENT
