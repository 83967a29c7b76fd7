"""Train a model that is larger than the device: its decoder layers come one at a time (as in ZO2).

The layers' weights lie in host memory, everything else (embedding, final norm, head) on the device.
All evaluations of a step run in lockstep, layer by layer: a layer is copied in once, each
evaluation runs it, base first, and it makes room for the next. What the step before found of a
layer is applied when the layer is in again, and copied out. So a step takes one upload of each
layer, and one download of each that is tuned, both beside the computation on CUDA; the numbers are
bit for bit those of a resident model, because the same operations see the same weights.

    stream = StreamedLayers(model, "cuda")
    optimizer = AGZO(model, lr=1e-6, eps=1e-3, stream=stream)

Any forward of the model without gradients will do, beside the optimizer's: layers come and go for
that one. `model.state_dict()` and `optimizer.state_dict()` bring the weights up to date; before
parameters are read in another way `flush` does. See arXiv 2503.12668 (ZO2).

Memory, with P bytes of weights outside the layers, B of the largest layer, h of one hidden state:

    device   P + 2 B + (evaluations of a step) * h + what one evaluation takes inside one layer
             + the factors (LOZO, AGZO) of one step, which resident weights need as well
             + cuBLAS's workspace for each evaluation, as each is a thread (8 MiB; Hopper 32 MiB)
    host     all layers; on CUDA page-locked (torch rounds each tensor up to a power of two)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agzo.execution.lockstep import Lockstep
from agzo.execution.slots import Slot, Slots
from agzo.torch_calls.surroundings import Closure, Surroundings
from agzo.tuned.layers import decoder_layers, own_parameters
from agzo.tuned.linears import is_quantised

Coming = tuple[int, list[Tensor], Slot]  # layer, its tensors on the host, their slot


class StreamedLayers:
    """The weights of a model whose decoder layers stay on the host; see `weights.Weights`.

    Args:
        model: on the host, or its layers at least; adapters in its layers are added before.
        device: where it is run.

    Raises:
        ValueError: the model has no decoder layers, or one shares weights with the rest, or is
            quantised.
    """

    def __init__(self, model: nn.Module, device: torch.device | str) -> None:
        here = torch.empty(0, dtype=torch.uint8, device=device).device  # with its index
        self.device: torch.device | None = here
        name, self._layers = decoder_layers(model)
        paths = [f"{name}.{index}".lstrip(".") for index in range(len(self._layers))]
        for path, layer in zip(paths, self._layers, strict=True):
            own_parameters(model, path)
            _refuse_quantised(path, layer)
        self._parameters = [list(layer.parameters()) for layer in self._layers]
        self._layer_of = {p: i for i, own in enumerate(self._parameters) for p in own}
        self._slots = Slots(here)
        self._coming: Coming | None = None
        self._pending: dict[int, list[Callable[[], None]]] = {}
        self._lockstep: Lockstep | None = None
        self.uploads = 0
        """Layers copied to the device so far."""
        self._settle(model, here)
        for index, layer in enumerate(self._layers):
            layer.forward = partial(self._forward, index, layer.forward)
        model.register_state_dict_pre_hook(lambda *_: self.flush())
        model.register_load_state_dict_pre_hook(lambda *_: self.flush())

    def about(self) -> dict[str, Any]:
        """Return how many layers are streamed, and the GiB they take on the host and the device."""
        host = sum(_bytes(p) for own in self._parameters for p in own)
        return {
            "layers": len(self._layers),
            "host_gib": host / 2**30,
            "device_gib": self._slots.bytes / 2**30,
            "uploads": self.uploads,
        }

    def together(self, evaluations: Sequence[Closure]) -> list[Tensor]:
        """Run evaluations side by side: each layer comes once for all of them."""
        self._fetch(0)
        lockstep = self._lockstep = Lockstep(evaluations)
        try:
            with lockstep:
                while (index := lockstep.place) is not None:
                    with self._here(index):
                        lockstep.pass_through(index)
                return lockstep.results
        finally:
            self._lockstep = None
            self._forget()

    def change(self, parameter: nn.Parameter, change: Callable[[], None]) -> None:
        """Change a parameter of a layer when the layer is here again, any other at once."""
        index = self._layer_of.get(parameter)
        if index is None:
            change()
        else:
            self._pending.setdefault(index, []).append(change)

    def flush(self) -> None:
        """Apply all changes that are still to come, and wait until the host holds the results."""
        self._forget()
        for index in sorted(self._pending):
            with self._here(index, ahead=False):
                pass
        self._slots.settle()

    def _forward(self, index: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a layer when its weights are here."""
        if torch.is_grad_enabled():
            raise ValueError(
                "streamed layers: gradients are recorded, and a backward pass would need weights "
                "that are gone by then; allowed is a forward under torch.no_grad() (for "
                "backpropagation a resident model)"
            )
        if self._lockstep is not None and self._lockstep.wait(index):
            return forward(*args, **kwargs)
        with self._here(index):
            return forward(*args, **kwargs)

    @contextmanager
    def _here(self, index: int, ahead: bool = True) -> Iterator[None]:
        """Have a layer on the device, its changes applied, and (if `ahead`) the next on its way."""
        parameters = self._parameters[index]
        with _unseen():
            self._fetch(index)
            assert self._coming is not None
            (_, homes, slot), self._coming = self._coming, None
            self._slots.arrive(slot)
            for parameter, tensor in zip(parameters, slot.tensors, strict=True):
                parameter.data = tensor
        try:
            with _unseen():
                if ahead and index + 1 < len(self._layers):
                    self._fetch(index + 1)
                if index in self._pending:
                    with Surroundings().left():
                        for change in self._pending[index]:
                            change()
                    del self._pending[index]
                    self._slots.write_back(slot, homes)
            yield
        finally:
            with _unseen():
                for parameter, home in zip(parameters, homes, strict=True):
                    parameter.data = home
                self._slots.leave(slot)

    def _fetch(self, index: int) -> None:
        """Set a layer on its way to the device, unless it is."""
        if self._coming is not None and self._coming[0] == index:
            return
        self._forget()
        homes = [parameter.data for parameter in self._parameters[index]]
        self._coming = (index, homes, self._slots.bring(homes))
        self.uploads += 1

    def _forget(self) -> None:
        """Give up the layer that is on its way: its weights may be others when it is wanted."""
        if self._coming is not None:
            self._slots.leave(self._coming[2])
            self._coming = None

    def _settle(self, model: nn.Module, device: torch.device) -> None:
        """Put the layers' parameters on the host, everything else on the device."""
        for parameter in model.parameters():
            if parameter not in self._layer_of:
                parameter.data = parameter.data.to(device)
                continue
            home = parameter.data.cpu().contiguous()
            parameter.data = home.pin_memory() if device.type == "cuda" else home
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _refuse_quantised(path: str, layer: nn.Module) -> None:
    for name, tensor in layer.named_parameters():
        if is_quantised(tensor):
            raise ValueError(
                f"{path}.{name}: its layer is quantised ({type(tensor).__name__}, {tensor.dtype}), "
                "and cannot be streamed; allowed are plain floats"
            )


def _unseen() -> Any:
    """Hide what is done to the parameters here from torch function modes that are active."""
    return torch._C.DisableTorchFunction()
