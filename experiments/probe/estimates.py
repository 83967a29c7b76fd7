"""Each method's estimates as directions of the model's own weights, so that they can be compared.

Most methods perturb these weights and are taken as they are. Two perturb something else or less:

* ZO-Act perturbs C of W + C V^T. A direction Z of C is the direction Z V^T of W. V is frozen: found
  once, on the run's first batches and at its first weights, as in a run. The branches are on the
  model while it measures and at no other time.
* The dominant layer perturbs one decoder layer: its directions are zero elsewhere.

What Adam or momentum makes of an estimate is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from agzo import ZeroOrderOptimizer, alignment
from agzo.estimator import Measurement, forwards_per_step
from agzo.torch_calls.inputs import is_low_precision
from agzo.torch_calls.surroundings import Closure
from agzo.tuned.layers import check_layer, decoder_layers
from agzo.tuned.linears import body_linears, held
from agzo.tuned.select import Tuned
from baselines import DominantLayer, ZOAct, on_dominant_layer
from baselines.dominant_layer import BASES

if TYPE_CHECKING:
    from experiments.probe.scene import Scene


class Estimates(Protocol):
    """A method that measures at one seed and leaves the model as it was."""

    @property
    def estimator(self) -> str:
        """Its difference, "one_sided" or "two_sided"."""
        ...

    @property
    def eps(self) -> float:
        """The size of its perturbation."""
        ...

    @property
    def tuned(self) -> Sequence[Tuned]:
        """The weights it perturbs."""
        ...

    def _captures(self, step: int) -> bool:
        """Tell whether a step looks at activations."""
        ...

    def estimate(
        self, closure: Closure, token_mask: Tensor | None = None, step: int | None = None
    ) -> Measurement:
        """Measure; the directions are of the weights in `tuned`."""
        ...


Make = Callable[..., Estimates]  # (queries=, params=, seed=) -> estimates


class OfCoefficients:
    """ZO-Act's estimates on some weights of a model.

    Args:
        model: without branches.
        bases: V (d_in, r) of each layer, as `ZOAct.bases` has them.
        params: weights that may be perturbed; those of body linear layers among them are.
        values: further arguments of `ZOAct`, of which `estimator` and `eps` are needed.
    """

    def __init__(
        self,
        model: nn.Module,
        bases: Mapping[str, Tensor],
        params: Sequence[nn.Parameter],
        **values: Any,
    ) -> None:
        wanted = {id(parameter) for parameter in params}
        self._model, self._bases, self._values = model, bases, values
        self.estimator: str = values["estimator"]
        self.eps: float = values["eps"]
        self.tuned = [
            Tuned(f"{name}.weight", weight, "linear")
            for name, layer in body_linears(model).items()
            if id(weight := held(layer)) in wanted and isinstance(weight, nn.Parameter)
        ]

    def _captures(self, step: int) -> bool:
        return False

    def estimate(
        self, closure: Closure, token_mask: Tensor | None = None, step: int | None = None
    ) -> Measurement:
        """Measure C beside these weights, with C = 0; return Z V^T for each direction Z."""
        own = {id(each.parameter) for each in self.tuned}
        optimizer = ZOAct(self._model, params=lambda _, weight: id(weight) in own, **self._values)
        try:
            optimizer.use(self._bases)
            measured = optimizer.estimate(closure, token_mask, step)
            queries = [(optimizer.on_weights(d), g) for d, g in measured.queries]
        finally:
            optimizer.remove()
        return replace(measured, queries=queries)


def affordable(estimates: Estimates, forwards: int) -> int:
    """Return the queries that one step of so many forwards can measure."""
    captures = estimates._captures(0)
    queries = 0
    while forwards_per_step(estimates.estimator, queries + 1, captures) <= forwards:
        queries += 1
    return queries


def reached(
    estimates: Estimates, gradient: Mapping[nn.Parameter, Tensor]
) -> tuple[dict[nn.Parameter, Tensor], float]:
    """Return the gradient G_S of the weights that are perturbed, and |G_S| / |G|.

    A direction is zero elsewhere, so its cosine with G is the one with G_S times this share.
    """
    tuned = {each.parameter for each in estimates.tuned}
    own = {p: g for p, g in gradient.items() if p in tuned}
    return own, (alignment.norm(own) / alignment.norm(gradient)).item()


def makers(
    names: Sequence[str], overrides: Sequence[str], scene: Scene, layer: int
) -> dict[str, Make]:
    """Return a constructor for each method: the run's own as it is, others as conf/ has them.

    Args:
        names: of the methods.
        overrides: of the run.
        scene: the run, before its first step.
        layer: of the dominant layer, from 0, where that is not the run's own method.
    """
    from experiments.config.composed import compose
    from experiments.config.errors import BadInput
    from experiments.methods import registry

    if scene.config.method["name"] == "zo_act":
        raise BadInput(
            "method=zo_act: its run leaves the weights as they are; allowed is a run of another "
            "method, with zo_act among --methods"
        )
    shared = [each for each in overrides if not each.startswith(("method", "+method"))]
    made: dict[str, Make] = {}
    for name in names:
        own = name == scene.config.method["name"]
        config = scene.config if own else compose([*shared, f"method={name}"])
        values = registry.settings(config.method, "nearest")
        method = registry.method_class(name)
        try:
            registry.check_fit(config)
        except BadInput as error:
            raise BadInput(f"--methods={name}: {error}") from error
        if method is ZOAct:
            made[name] = _coefficients(scene, values)
            continue
        if method is on_dominant_layer:
            values = values | dominant(scene, layer)
        elif not method.about.needs_gradient and method.about.trains and not method.about.alters:
            values = values | {"embeddings": "tuned"}
        else:
            raise BadInput(f"--methods={name}: allowed are zeroth-order methods")

        def make(
            seed: int, params: Any, queries: int = 1, name: str = name, values: Any = values
        ) -> ZeroOrderOptimizer:
            given = values | {"params": params, "queries": queries}
            optimizer = registry.build(name, scene.model, given, seed)
            assert isinstance(optimizer, ZeroOrderOptimizer)
            return optimizer

        made[name] = make
    return made


def dominant(scene: Scene, layer: int) -> dict[str, Any]:
    """Return layer and base of the dominant layer: of the run, or `layer` and MeZO.

    Raises:
        BadInput: no such layer in the model, or a model of low precision.
    """
    from experiments.config.errors import BadInput

    own = scene.parts.optimizer
    scope = getattr(own, "scope", None)
    if isinstance(scope, DominantLayer):
        assert scope.layer is not None
        base = next(name for name, method in BASES.items() if type(own) is method)
        return {"layer": scope.layer, "base": base}
    low = {p.dtype for p in scene.model.parameters() if is_low_precision(p.dtype)}
    if low:
        raise BadInput(
            "--methods=dominant_layer: it holds its layer in float32, which in a model of "
            f"{low.pop()} changes what the others find; allowed are models of float32 and the "
            "other methods"
        )
    try:
        layers = decoder_layers(scene.model)[1]
    except ValueError as error:
        raise BadInput(f"--methods=dominant_layer: {error}") from error
    try:
        check_layer(layer, len(layers))
    except ValueError as error:
        raise BadInput(f"--{error}") from error
    return {"layer": layer, "base": "mezo"}


def _coefficients(scene: Scene, values: dict[str, Any]) -> Make:
    """Find ZO-Act's bases at the weights as they are now; return the maker of its estimates."""
    from experiments.methods import registry
    from experiments.training import prepare

    optimizer = registry.build("zo_act", scene.model, values, scene.config.seed)
    assert isinstance(optimizer, ZOAct)
    try:
        prepare.calibrate(scene.config, scene.parts, optimizer)
        bases = optimizer.bases
    finally:
        optimizer.remove()

    def make(seed: int, params: Sequence[nn.Parameter], queries: int = 1) -> OfCoefficients:
        given = values | {"seed": seed, "queries": queries}
        return OfCoefficients(scene.model, bases, params, **given)

    return make
