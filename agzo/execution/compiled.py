"""Decoder layers through torch.compile, perturbed and looked at as the eager ones are.

    layers = CompiledLayers(model)
    with layers:                         # elsewhere the model is as it was
        loss = optimizer.step(closure)

The layers of a decoder are alike, so one is compiled and serves them all, once for each of what is
done with it: run at W, run at W with its inputs looked at, run at W + eps Delta. Each call of a
layer reads which that is off the torch modes around it (`Perturbed`, `ActivationCapture`), sets
the layer up and runs the compiled code without them:

    linear, low rank     y = x W^T + (x right) (eps left)^T, the factors in two slots of the module
    any other parameter  perturbed copy, in memory that layers share: of one layer's size at most
    inputs               handed out of the layer and looked at behind it, then dropped; so only the
                         weights of `nn.Linear` modules have a basis here

Embeddings, last norm, head and loss stay eager. So do calls that need a gradient, and the first
step's check of the loss, which watches every call, here also for what the above would not perturb
(`agzo.execution.slotted`). That and what cannot be compiled as one graph are errors. The numbers
are those of the eager layers up to rounding.

Each shape is compiled for itself and nothing is chosen by a timing, so that code and bits do not
depend on what ran before, and a resumed run is the run: batches should come in few shapes. With
`graphs` the compiled layers run as CUDA graphs (torch's own), recorded for each shape and layer:
weights and copies stay at their addresses and are updated between replays. Memory beside the eager
layers: the inputs of one layer's linear layers at once, while bases are taken; the copies.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from agzo.activations.capture import ActivationCapture
from agzo.directions.low_rank import LowRank
from agzo.directions.seen import Lookups, SeenTokens
from agzo.execution.loss_check import Uses
from agzo.execution.perturbed import Perturbed, perturbed_into
from agzo.execution.slotted import Slotted, every_use_checked, give_slots, take_slots
from agzo.torch_calls.surroundings import Closure
from agzo.torch_calls.uses import TorchCalls
from agzo.tuned.layers import decoder_layers
from agzo.tuned.roles import Usage

VARIANTS = 512  # of a compiled layer: what is done with it x shapes; torch's own limit is 8


class CompiledLayers:
    """Runs a model's decoder layers compiled while it is entered.

    Args:
        model: with decoder layers, see `decoder_layers`; it keeps its modules, names and weights.
            Plain `nn.Linear` modules in them become `Slotted`, until `remove`.
        graphs: run them as CUDA graphs.
        backend: of torch.compile; "eager" is the reference, the layers' own kernels in one graph.

    Raises:
        ValueError: the model has no decoder layers, other code replaced their forward, or they
            share modules.
    """

    def __init__(self, model: nn.Module, graphs: bool = False, backend: str = "inductor") -> None:
        layers = decoder_layers(model)[1]
        for layer in layers:
            if "forward" in vars(layer):
                raise ValueError(
                    f"{type(layer).__name__}: its forward is replaced already (by compiled, "
                    "streamed or spread layers, say); allowed is the one of its class"
                )
        _refuse_shared(layers)
        self._entered = 0  # how often
        self._graphs = graphs
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
        dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, VARIANTS)
        dynamo.skip_nnmodule_hook_guards = False  # or code without hooks serves layers with some
        options: dict[str, Any] = {"deterministic": True, "triton.cudagraphs": graphs}
        run = torch.compile(
            _forward,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            options=options if backend == "inductor" else None,
        )
        shadows = _Shadows()
        self._layers = [_Layer(layer, self, run, shadows) for layer in layers]

    def remove(self) -> None:
        """Leave the model as it was."""
        while self._layers:
            self._layers.pop().remove()

    def __enter__(self) -> CompiledLayers:
        if self._graphs and not self._entered:
            torch.compiler.cudagraph_mark_step_begin()
        self._entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1

    def around(self, closure: Closure) -> Closure:
        """Return a closure that runs this one with compiled layers."""

        def compiled() -> Tensor:
            with self:
                return closure()

        return compiled

    def without_slots(self) -> list[nn.Parameter]:
        """List the layers' parameters whose inputs are not looked at."""
        return [parameter for layer in self._layers for parameter in layer.without_slots()]

    @property
    def on(self) -> bool:
        """Whether calls of the layers are to run compiled now."""
        return self._entered > 0 and not torch.is_grad_enabled()


class _Layer:
    """The forward of a decoder layer: compiled, or as it was."""

    def __init__(
        self, layer: nn.Module, layers: CompiledLayers, run: Callable[..., Any], shadows: _Shadows
    ) -> None:
        self._layer, self._layers, self._run, self._shadows = layer, layers, run, shadows
        self._eager = layer.forward
        self._slotted = give_slots(layer)
        self._modules = list(layer.named_modules())
        self._parameters = set(layer.parameters())
        layer.forward = self

    def remove(self) -> None:
        """Leave the layer as it was."""
        take_slots(self._slotted)
        del self._layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._layers.on:
            return self._eager(*args, **kwargs)
        modes = _get_current_function_mode_stack()
        watching = False
        for mode in modes:
            if isinstance(mode, Usage):
                mode.no_basis(self.without_slots())
                watching = True
        for mode in modes:
            if isinstance(mode, Uses):
                with every_use_checked(self._modules, self._slotted, mode.tuned):
                    return self._eager(*args, **kwargs)
        if watching:
            return self._eager(*args, **kwargs)
        perturbed, capture = _known(modes, self._parameters)
        inputs: list[tuple[int, Tensor]] = []
        with ExitStack() as undo, torch._C.DisableTorchFunction():  # copies are made without, too
            for module in self._slotted:
                undo.callback(module.clear)
                if capture is not None and capture.wants(module.weight):
                    module.inputs = inputs
            if perturbed is not None:
                self._perturb(perturbed, undo)
            undo.enter_context(torch.compiler.set_stance("default"))  # a step turns it off
            output = self._run(self._layer, args, kwargs)
            for number, x in inputs:
                assert capture is not None
                capture.see(x, self._slotted[number].weight)
        return output

    def without_slots(self) -> list[nn.Parameter]:
        """List the layer's parameters that are no weights of linear layers with slots."""
        slots = {id(module.weight) for module in self._slotted}
        own = [parameter for _, module in self._modules for parameter in module.parameters(False)]
        return [parameter for parameter in own if id(parameter) not in slots]

    def _perturb(self, mode: Perturbed, undo: ExitStack) -> None:
        """Have the parameters as a mode perturbs them, until `undo`."""
        for path, module in self._modules:
            own = cast(dict[str, nn.Parameter], module._parameters)
            for name, parameter in own.items():
                direction = mode.direction(parameter)
                if direction is None:
                    continue
                if isinstance(module, Slotted) and isinstance(direction, LowRank):
                    module.branch(direction, mode.scale)
                    continue
                shadow = self._shadows.of((path, name), parameter)
                perturbed_into(shadow, parameter, direction, mode.scale)
                own[name] = shadow
                undo.callback(own.__setitem__, name, parameter)


class _Shadows:
    """Memory for perturbed copies: one for all layers' parameters of one name and shape."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], nn.Parameter] = {}

    def of(self, where: tuple[str, str], parameter: nn.Parameter) -> nn.Parameter:
        key = (*where, parameter.shape, parameter.dtype, parameter.device)
        if key not in self._known:
            with torch.inference_mode(False):  # for calls outside of it too
                empty = torch.empty_like(parameter, requires_grad=False)
                # needs no gradient, or autocast would take its content for that of layers before
                self._known[key] = nn.Parameter(empty, requires_grad=False)
        return self._known[key]


def _forward(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _refuse_shared(layers: list[nn.Module]) -> None:
    """Refuse layers that share a module with parameters: each sets up and clears its own."""
    known: set[nn.Module] = set()
    for layer in layers:
        own = {name: module for name, module in layer.named_modules() if module._parameters}
        for name, module in own.items():
            if module in known:
                raise ValueError(
                    f"{type(layer).__name__}: shares its {name} with another decoder layer; "
                    "allowed are layers with modules of their own (weights may be tied)"
                )
        known.update(own.values())


def _known(
    modes: list[TorchFunctionMode], own: set[nn.Parameter]
) -> tuple[Perturbed | None, ActivationCapture | None]:
    """Return what the modes around a layer of these parameters do; others cannot be compiled in."""
    perturbed: Perturbed | None = None
    capture: ActivationCapture | None = None
    for mode in modes:
        if type(mode) is Perturbed and perturbed is None:
            perturbed = mode
        elif isinstance(mode, ActivationCapture) and capture is None:
            capture = mode
        elif isinstance(mode, SeenTokens | Lookups) and mode.tables.isdisjoint(own):
            continue  # it has nothing to see here
        elif type(mode) is not TorchCalls and not isinstance(mode, DeviceContext):
            # those two change nothing: torch.compile knows a default device
            raise ValueError(
                f"compiled layers run under {type(mode).__name__}; allowed are the modes of "
                "execution='side_branch'"
            )
    return perturbed, capture
