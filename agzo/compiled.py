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
    inputs               handed out of the layer and looked at behind it, then dropped

Embeddings, last norm, head and loss stay eager. So do calls that need a gradient, and the first
step's check of the loss, which watches every call. What cannot be compiled as one graph is an
error. The numbers are those of the eager layers up to rounding.

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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from agzo.activations import ActivationCapture
from agzo.direction import LowRank, at_least_float32
from agzo.kernels import thin
from agzo.layers import decoder_layers
from agzo.loss_check import Uses
from agzo.perturb import Closure, Perturbed, perturbed_into

VARIANTS = 512  # of a compiled layer: what is done with it x shapes; torch's own limit is 8


class Slotted(nn.Linear):
    """A linear layer with slots: factors of a low-rank branch in, its input out."""

    number: int  # among those of its decoder layer
    right: Tensor | None = None  # (r, d_in) in the dtype of the input
    left: Tensor | None = None  # (r, d_out), times the scale, in the dtype of the output
    inputs: list[tuple[int, Tensor]] | None = None  # where its input is wanted: all, as they come

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b, and with a branch + (x right^T) left."""
        if self.inputs is not None:
            self.inputs.append((self.number, input))
        y = F.linear(input, self.weight, self.bias)
        if self.right is None or self.left is None:
            return y
        return y + F.linear(input, self.right) @ self.left

    def branch(self, direction: LowRank, scale: float) -> None:
        """Put in the branch of scale * direction."""
        exact = at_least_float32(self.weight.dtype)
        left = thin.rows(direction.left).to(exact) * scale
        self.right = thin.rows(direction.right).to(self.weight.dtype)
        self.left = left.to(self.weight.dtype)

    def clear(self) -> None:
        """Empty the slots."""
        self.right = self.left = self.inputs = None


class CompiledLayers:
    """Runs a model's decoder layers compiled while it is entered.

    Args:
        model: with decoder layers, see `decoder_layers`; it keeps its modules, names and weights.
            Plain `nn.Linear` modules in them become `Slotted`, until `remove`.
        graphs: run them as CUDA graphs.
        backend: of torch.compile; "eager" is the reference, the layers' own kernels in one graph.

    Raises:
        ValueError: the model has no decoder layers, or other code replaced their forward.
    """

    def __init__(self, model: nn.Module, graphs: bool = False, backend: str = "inductor") -> None:
        layers = decoder_layers(model)[1]
        for layer in layers:
            if "forward" in vars(layer):
                raise ValueError(
                    f"{type(layer).__name__}: its forward is replaced already (by compiled, "
                    "streamed or spread layers, say); allowed is the one of its class"
                )
        self._entered = False
        self._graphs = graphs
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
        limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, VARIANTS)
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
        for layer in self._layers:
            layer.remove()

    def __enter__(self) -> CompiledLayers:
        self._entered = True
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False

    def around(self, closure: Closure) -> Closure:
        """Return a closure that runs this one with compiled layers."""

        def compiled() -> Tensor:
            with self:
                return closure()

        return compiled

    @property
    def on(self) -> bool:
        """Whether calls of the layers run compiled now."""
        watched = any(isinstance(mode, Uses) for mode in _get_current_function_mode_stack())
        return self._entered and not torch.is_grad_enabled() and not watched


class _Layer:
    """The forward of a decoder layer: compiled, or as it was."""

    def __init__(
        self, layer: nn.Module, layers: CompiledLayers, run: Callable[..., Any], shadows: _Shadows
    ) -> None:
        self._layer, self._layers, self._run, self._shadows = layer, layers, run, shadows
        self._eager = layer.forward
        plain = [module for module in layer.modules() if type(module) is nn.Linear]
        self._slotted = [_slotted(module, number) for number, module in enumerate(plain)]
        self._modules = list(layer.named_modules())
        layer.forward = self

    def remove(self) -> None:
        """Leave the layer as it was."""
        for module in self._slotted:
            del module.number
            module.__class__ = nn.Linear  # pyright: ignore[reportAttributeAccessIssue]
        del self._layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._layers.on:
            return self._eager(*args, **kwargs)
        perturbed, capture = _active()
        inputs: list[tuple[int, Tensor]] = []
        with ExitStack() as undo, torch._C.DisableTorchFunction():  # copies are made without, too
            for module in self._slotted:
                undo.callback(module.clear)
                if capture is not None and capture.wants(module.weight):
                    module.inputs = inputs
            if perturbed is not None:
                self._perturb(perturbed, undo)
            output = self._run(self._layer, args, kwargs)
            for number, x in inputs:
                assert capture is not None
                capture.see(x, self._slotted[number].weight)
        return output

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
            empty = torch.empty_like(parameter)
            self._known[key] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        return self._known[key]


def _slotted(module: nn.Linear, number: int) -> Slotted:
    """Give a linear layer slots, in place."""
    module.__class__ = Slotted
    slotted = cast(Slotted, module)
    slotted.number = number
    return slotted


def _forward(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


def _active() -> tuple[Perturbed | None, ActivationCapture | None]:
    """Return the modes around this call; others cannot be compiled in."""
    perturbed: Perturbed | None = None
    capture: ActivationCapture | None = None
    for mode in _get_current_function_mode_stack():
        if type(mode) is Perturbed and perturbed is None:
            perturbed = mode
        elif isinstance(mode, ActivationCapture) and capture is None:
            capture = mode
        else:
            raise ValueError(
                f"compiled layers run under {type(mode).__name__}; allowed are the modes of "
                "execution='side_branch' with flush_every=1"
            )
    return perturbed, capture
