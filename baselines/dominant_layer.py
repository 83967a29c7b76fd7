"""Dominant-layer ZO (Yu et al. 2026, arXiv 2606.05516): tune one decoder layer and no other.

The layer is the first one with activation outliers, found by a scan of a few batches (inference
only) before the first step. The paper's own statistic is not public; `baselines.outliers` has three
that are, and `layer` overrides them. Inside the layer the method is MeZO, LOZO, LOZO-M or AGZO as
it is.

Held in float32, the layer has none of the rounding that low precision costs a zeroth-order method.
In a step the layers before it are run once: their result is the same in every evaluation. Memory
beside the base method's: the layer in float32, and one hidden state.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.agzo import AGZO
from agzo.check import check_choice, check_count, check_mask
from agzo.directions.sampler import Gaussian
from agzo.distributed.pieces import Joint
from agzo.estimator import Measurement
from agzo.execution.perturb import Directions
from agzo.execution.prefix import Prefix
from agzo.optimizer import ZeroOrderOptimizer
from agzo.rng import Noise
from agzo.torch_calls.surroundings import Closure, apart
from agzo.tuned.layers import check_layer, decoder_layers, hold_in_float32, own_parameters
from baselines.lozo import LOZO
from baselines.lozo_m import LOZOM
from baselines.mezo import MeZO
from baselines.outliers import DETECTORS, THRESHOLDS, Scan, Scores, first_above

ONE_SHOT = "one_shot"  # word for refresh_every


class DominantLayer(ZeroOrderOptimizer):
    """A zeroth-order method on the parameters with requires_grad inside one decoder layer.

    Args:
        model, lr, eps, shared: see `ZeroOrderOptimizer`. Embeddings lie in no layer: frozen.
        layer: index from 0 of the layer; None takes the detector's, and `calibrate` must come
            before the first step.
        detector: one of `baselines.outliers.DETECTORS`.
        scan_batches: training batches that `calibrate` scans, one forward each; 0 only with
            `layer`, whose scan is for the record.
        base: "mezo", "lozo", "lozo_m" or "agzo"; an instance is of its class as well.
        estimator, update, rank, power_steps, refresh_every, basis, warm_start: the base's own; None
            is its default. "one_shot" is the refresh_every=None of AGZO itself.
        reuse_prefix: run the layers before the tuned one once a step; the same numbers, less time.

    Raises:
        ValueError: also for a layer outside the model, an argument that the base does not have, a
            layer without parameters to tune, or one that shares weights with others.
    """

    about: ClassVar[About] = About(alters=True, fixed=("embeddings",))

    def __new__(cls, *_: Any, base: str = "mezo", **__: Any) -> DominantLayer:
        """Return an instance of the class that is `base` on one layer."""
        check_choice("base", base, tuple(BASES))
        return object.__new__(BASES[base] if cls is DominantLayer else cls)

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        *,
        layer: int | None = None,
        detector: str = "massive_activations",
        scan_batches: int = 4,
        base: str = "mezo",
        estimator: str | None = None,
        update: str | None = None,
        rank: int | None = None,
        power_steps: int | None = None,
        refresh_every: int | Literal["one_shot"] | None = None,
        basis: str | None = None,
        warm_start: bool | None = None,
        reuse_prefix: bool = True,
        **shared: Any,
    ) -> None:
        if reuse_prefix and shared.get("stream") is not None:
            raise ValueError(
                "reuse_prefix=True: the evaluations of streamed layers run side by side, so none "
                "can use what another left; allowed is False"
            )
        check_choice("detector", detector, DETECTORS)
        minimum = 1 if layer is None else 0
        scan_batches = check_count("scan_batches", scan_batches, minimum=minimum)
        own = {"estimator": estimator, "update": update, "rank": rank, "power_steps": power_steps,
               "refresh_every": refresh_every, "basis": basis,
               "warm_start": warm_start}  # fmt: skip
        own = {key: value for key, value in own.items() if value is not None}
        for key, value in own.items():
            if key not in _arguments(BASE_METHODS[base]):
                raise ValueError(f"{key}={value}: base={base} has no {key}; allowed is None")
        if isinstance(refresh_every, str):
            own["refresh_every"] = _one_shot(base, refresh_every)
        elif refresh_every is not None:
            check_count("refresh_every", refresh_every)
        self.layers_name, self._layers = decoder_layers(model)
        if layer is not None:
            check_layer(layer, len(self._layers))
        self.base, self.layer, self.detector = base, layer, detector
        self.reuse_prefix = reuse_prefix
        self.wants_batches = scan_batches
        self._prefix = Prefix([])
        super().__init__(model, lr=lr, eps=eps, embeddings="frozen", **own, **shared)
        self.forwards_once = 2 + 3 * reuse_prefix + scan_batches  # see `_check`

    def _ready(self) -> None:
        """Narrow what is tuned to the layer, once it is known."""
        if self.layer is None:
            return
        own = own_parameters(self.model, self._path)
        self.tuned = [each for each in self.tuned if each.parameter in own]
        if not self.tuned:
            raise ValueError(
                f"layer={self.layer}: {self._path} has no parameter to tune; "
                "allowed is a layer with parameters that require grad"
            )
        for group in self.param_groups:
            group["params"] = [p for p in group["params"] if p in own]
        hold_in_float32(self._layers[self.layer])
        if self.reuse_prefix:
            self._prefix = Prefix(self._layers[: self.layer])
        self._zo["settings"]["layer"] = self.layer
        super()._ready()

    @apart
    def calibrate(self, batches: Sequence[tuple[Closure, Tensor | None]]) -> None:
        """Score every layer on these batches; choose the layer where none was given.

        Raises:
            ValueError: the detector finds no layer and none was given.
        """
        if not batches:
            raise ValueError("batches=[]: allowed are one or more")
        self._guard.refuse_dropout()
        scan = Scan(self._layers)
        for closure, mask in batches:
            check_mask(mask)
            scan.look(lambda closure=closure: self._forward(closure), mask)
        scores = scan.scores()
        found = first_above(scores[self.detector], THRESHOLDS[self.detector])
        given = self.layer is not None
        if not given:
            if found is None:
                raise ValueError(self._nothing_found(scores))
            self.layer = found
            self._ready()
        about = "as given" if given else f"the first outlier layer by {self.detector}"
        about += f" (scores {_listed(scores[self.detector])})"
        self.calibrated = {
            "summary": f"tunes layer {self.layer} of {len(self._layers)}, {about}",
            "layer": self.layer,
            "layers": len(self._layers),
            "given": given,
            "detector": self.detector,
            "found": {n: first_above(scores[n], THRESHOLDS[n]) for n in DETECTORS},
            "thresholds": dict(THRESHOLDS),
            "scores": scores,
            "batches": len(batches),
        }

    def _nothing_found(self, scores: Scores) -> str:
        listed = _listed(scores[self.detector])
        others = {n: first_above(scores[n], THRESHOLDS[n]) for n in DETECTORS if n != self.detector}
        said = ", ".join(f"{n} {'none' if at is None else at}" for n, at in others.items())
        return (
            f"detector={self.detector}: no layer is an outlier, all scores are at most "
            f"{THRESHOLDS[self.detector]:g} (from layer 0 on: {listed}; the other detectors find: "
            f"{said}); allowed is another detector, or the layer itself, layer=0 to "
            f"{len(self._layers) - 1} (method.layer=... of a run)"
        )

    def _check(self, closure: Joint) -> None:
        """Check as ever, and that reuse gives the loss of a perturbed layer: three evaluations."""
        super()._check(closure)
        if not self.reuse_prefix or self.layer is None:
            return
        noise = Noise(self.seed, 0)
        directions = {each.parameter: Gaussian().sample(each, noise) for each in self.tuned}
        with self._prefix:
            self._forward(closure)
            reused = self._evaluate(closure, directions)
        whole = self._evaluate(closure, directions)
        if not torch.equal(torch.nan_to_num(whole), torch.nan_to_num(reused)):
            raise ValueError(
                f"reuse_prefix=True: the loss is {reused.item():.9g} with the layers before "
                f"{self._path} reused, {whole.item():.9g} without; allowed for "
                "this model is reuse_prefix=False"
            )

    def _evaluate(self, closure: Closure, directions: Directions) -> Tensor:
        return self._execution.evaluate(lambda: self._forward(closure), directions, self.eps)

    @property
    def _path(self) -> str:
        """Name the tuned layer as its parameters' names do."""
        return f"{self.layers_name}.{self.layer}".lstrip(".")

    @property
    def must_calibrate(self) -> bool:
        """Whether the layer is still to be found."""
        return self.layer is None

    def _enter(self) -> None:
        if self.must_calibrate:
            raise RuntimeError("layer=None: call calibrate(batches) before the first step")
        super()._enter()

    def _measure(self, batch: Joint, step: int) -> tuple[Measurement, Tensor]:
        with self._prefix:
            return super()._measure(batch, step)

    def _forward(self, closure: Closure) -> Tensor:
        self._prefix.begin()
        return super()._forward(closure)


def _arguments(method: type[ZeroOrderOptimizer]) -> set[str]:
    """Name what a method's constructor takes, with what it hands on to those it inherits from."""
    made = [base.__init__ for base in method.__mro__ if "__init__" in vars(base)]
    return {name for each in made for name in inspect.signature(each).parameters}


def _one_shot(base: str, word: str) -> None:
    """Return what the base calls one-shot bases, None; raise ValueError where it has none."""
    if word != ONE_SHOT or base != "agzo":
        also = f", {ONE_SHOT!r}" if base == "agzo" else ""
        raise ValueError(
            f"refresh_every={word}: allowed with base={base} are 1 or more{also}, or None, its own "
            "default"
        )


def _listed(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:.3g}" for score in scores)


class DominantMeZO(DominantLayer, MeZO):
    """MeZO on one decoder layer."""

    settings = (*MeZO.settings, "base", "layer")


class DominantLOZO(DominantLayer, LOZO):
    """LOZO on one decoder layer."""

    settings = (*LOZO.settings, "base", "layer")


class DominantLOZOM(DominantLayer, LOZOM):
    """LOZO-M on one decoder layer: momentum of that layer's left factors alone."""

    settings = (*LOZOM.settings, "base", "layer")


class DominantAGZO(DominantLayer, AGZO):
    """AGZO on one decoder layer: bases for that layer's inputs alone."""

    settings = (*AGZO.settings, "base", "layer")


BASE_METHODS: dict[str, type[ZeroOrderOptimizer]] = {
    "mezo": MeZO,
    "lozo": LOZO,
    "lozo_m": LOZOM,
    "agzo": AGZO,
}
BASES: dict[str, type[DominantLayer]] = {
    "mezo": DominantMeZO,
    "lozo": DominantLOZO,
    "lozo_m": DominantLOZOM,
    "agzo": DominantAGZO,
}
