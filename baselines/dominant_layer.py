"""Dominant-layer ZO (Yu et al. 2026, arXiv 2606.05516): tune one decoder layer and no other.

    optimizer = MeZO(model, lr=1e-3, eps=1e-3, params=DominantLayer())
    optimizer.calibrate(batches)  # finds the layer

The layer is the first one with activation outliers, found by a scan of a few batches (inference
only) before the first step. The paper's own statistic is not public; `baselines.outliers` has three
that are, and `layer` overrides them. Inside the layer the method, MeZO in the paper, is as it is.

Held in float32, the layer has none of the rounding that low precision costs a zeroth-order method.
In a step the layers before it are run once: their result is the same in every evaluation. Memory
beside the method's: the layer in float32, and one hidden state.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.agzo import AGZO
from agzo.check import check_choice, check_count
from agzo.distributed.pieces import check_mask
from agzo.execution.prefix import Prefix
from agzo.optimizer import ZeroOrderOptimizer
from agzo.torch_calls.surroundings import Closure
from agzo.tuned.layers import check_layer, decoder_layers, hold_in_float32, own_parameters
from agzo.tuned.scope import Evaluate, Scope
from agzo.tuned.select import Params, Tuned
from baselines.lozo import LOZO
from baselines.lozo_m import LOZOM
from baselines.mezo import MeZO
from baselines.outliers import DETECTORS, THRESHOLDS, Scan, Scores, first_above

ONE_SHOT = "one_shot"  # word for refresh_every
BASES: dict[str, type[ZeroOrderOptimizer]] = {
    "mezo": MeZO,
    "lozo": LOZO,
    "lozo_m": LOZOM,
    "agzo": AGZO,
}


class DominantLayer(Scope):
    """The parameters with requires_grad inside one decoder layer; `params` of one method.

    Args:
        layer: index from 0; None takes the detector's, and the method's `calibrate` must come
            before the first step.
        detector: one of `baselines.outliers.DETECTORS`.
        scan_batches: training batches that `calibrate` scans, one forward each; 0 only with
            `layer`, whose scan is for the record.
        reuse_prefix: run the layers before the tuned one once a step; the same numbers, less time.
        params: which of the model's parameters it may be, as a method takes it; None is all.

    Raises:
        ValueError: here for an argument; by the method for a layer outside its model, one without
            parameters to tune, or one that shares weights with others.
    """

    _model: nn.Module
    _name: str
    _layers: Sequence[nn.Module]
    _prefix: Prefix

    def __init__(
        self,
        layer: int | None = None,
        detector: str = "massive_activations",
        scan_batches: int = 4,
        reuse_prefix: bool = True,
        params: Params = None,
    ) -> None:
        super().__init__(params)
        check_choice("detector", detector, DETECTORS)
        minimum = 1 if layer is None else 0
        self.wants_batches = check_count("scan_batches", scan_batches, minimum=minimum)
        if not isinstance(reuse_prefix, bool):
            raise ValueError(f"reuse_prefix={reuse_prefix!r}: allowed are True and False")
        self.layer, self.detector, self.reuse_prefix = layer, detector, reuse_prefix
        self.forwards = self.wants_batches + 3 * reuse_prefix  # see `check`

    @property
    def missing(self) -> str | None:
        """The layer, where a detector is still to find it."""
        call = (
            "layer=None: call calibrate(batches) before the first step, with a list of "
            f"{self.wants_batches} (closure, token mask), or name a layer, DominantLayer(layer=0)"
        )
        return call if self.layer is None else None

    @property
    def settings(self) -> dict[str, Any]:
        """The layer."""
        return {"layer": self.layer}

    def of(self, model: nn.Module, streamed: bool) -> DominantLayer:
        """Return a copy of this with the model's decoder layers."""
        if self.reuse_prefix and streamed:
            raise ValueError(
                "reuse_prefix=True: the evaluations of streamed layers run side by side, so none "
                "can use what another left; allowed is False"
            )
        own = copy.copy(self)
        own._model = model
        own._name, own._layers = decoder_layers(model)
        own._prefix = Prefix([])
        if self.layer is not None:
            check_layer(self.layer, len(own._layers))
        return own

    def narrow(self, tuned: list[Tuned]) -> list[Tuned]:
        """Return the layer's parameters, and hold the layer in float32."""
        assert self.layer is not None
        own = own_parameters(self._model, self._path)
        inside = [each for each in tuned if each.parameter in own]
        if not inside:
            raise ValueError(
                f"layer={self.layer}: {self._path} has no parameter to tune; "
                "allowed is a layer with parameters that require grad"
            )
        hold_in_float32(self._layers[self.layer])
        if self.reuse_prefix:
            self._prefix = Prefix(self._layers[: self.layer])
        return inside

    def look(
        self, batches: Sequence[tuple[Closure, Tensor | None]], evaluate: Callable[[Closure], Any]
    ) -> None:
        """Score every layer on these batches; choose the layer where none was given.

        Raises:
            ValueError: the detector finds no layer and none was given.
        """
        if not batches:
            raise ValueError("batches=[]: allowed are one or more")
        scan = Scan(self._layers)
        for closure, mask in batches:
            check_mask(mask)
            scan.look(lambda closure=closure: evaluate(closure), mask)
        scores = scan.scores()
        found = first_above(scores[self.detector], THRESHOLDS[self.detector])
        given = self.layer is not None
        if not given:
            if found is None:
                raise ValueError(self._nothing_found(scores))
            self.layer = found
        about = "as given" if given else f"the first outlier layer by {self.detector}"
        about += f" (scores {_listed(scores[self.detector])})"
        self.found = {
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

    def check(self, plain: Evaluate, perturbed: Evaluate) -> None:
        """Check that reuse gives the loss of a perturbed layer: three evaluations."""
        if not self.reuse_prefix:
            return
        with self._prefix:
            plain()
            reused = perturbed()
        whole = perturbed()
        if not torch.equal(torch.nan_to_num(whole), torch.nan_to_num(reused)):
            raise ValueError(
                f"reuse_prefix=True: the loss is {reused.item():.9g} with the layers before "
                f"{self._path} reused, {whole.item():.9g} without; allowed for "
                "this model is reuse_prefix=False"
            )

    def step(self) -> AbstractContextManager[object]:
        """Return what keeps the output of the layers before the tuned one for a step."""
        return self._prefix

    def begin(self) -> None:
        """Begin an evaluation."""
        self._prefix.begin()

    @property
    def _path(self) -> str:
        """Name the tuned layer as its parameters' names do."""
        return f"{self._name}.{self.layer}".lstrip(".")


def on_dominant_layer(
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
    params: Params = None,
    **shared: Any,
) -> ZeroOrderOptimizer:
    """Make a method that tunes the dominant layer, by the words of a run's configuration.

    Args:
        model, lr, eps, shared: see `ZeroOrderOptimizer`. Embeddings lie in no layer: frozen.
        layer, detector, scan_batches, reuse_prefix, params: see `DominantLayer`.
        base: "mezo", "lozo", "lozo_m" or "agzo".
        estimator, update, rank, power_steps, refresh_every, basis, warm_start: the base's own; None
            is its default. "one_shot" is the refresh_every=None of AGZO itself.

    Raises:
        ValueError: also for an argument that the base does not have.
    """
    check_choice("base", base, tuple(BASES))
    scope = DominantLayer(layer, detector, scan_batches, reuse_prefix, params)
    own = {"estimator": estimator, "update": update, "rank": rank, "power_steps": power_steps,
           "refresh_every": refresh_every, "basis": basis,
           "warm_start": warm_start}  # fmt: skip
    own = {key: value for key, value in own.items() if value is not None}
    for key, value in own.items():
        if key not in _arguments(BASES[base]):
            raise ValueError(f"{key}={value}: base={base} has no {key}; allowed is None")
    if isinstance(refresh_every, str):
        own["refresh_every"] = _one_shot(base, refresh_every)
    elif refresh_every is not None:
        check_count("refresh_every", refresh_every)
    return BASES[base](model, lr=lr, eps=eps, embeddings="frozen", params=scope, **own, **shared)


on_dominant_layer.about = About(alters=True, fixed=("embeddings",))  # pyright: ignore[reportFunctionMemberAccess]


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
