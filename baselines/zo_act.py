"""ZO-Act (arXiv 2607.01125): coefficients of a frozen activation basis, tuned by forwards alone.

    once    V = the r leading right singular vectors of what enters a layer, over a few batches
    step    g = (f(C + eps Z) - f(C - eps Z)) / (2 eps);  C <- Adam(C, g Z),  Z ~ N(0, 1)

with W + C V^T in the place of W, C = 0 at first, in every linear layer but the head. W, embeddings,
norms and biases are frozen, and W may be quantised. The rows of a layer's gradient G = sum_t d_t
x_t^T lie in the span of its inputs: V of full width gives plain ZO on W, a narrow V keeps G V V^T.

From the paper's abstract and third parties' accounts (its full text was not at hand): which
difference it takes, how many batches it shows, and its learning rate are not known.

Memory beside inference: C, its two moments and V, r (3 d_out + d_in) float32 a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from agzo.about import About
from agzo.activations.calibration import Batches, leading_inputs
from agzo.check import check_count
from agzo.directions.low_rank import LowRank
from agzo.directions.sampler import check_rank
from agzo.execution.perturb import Directions
from agzo.execution.weights import Weights
from agzo.optimizer import ZeroOrderOptimizer
from agzo.rng import Noise
from agzo.torch_calls.surroundings import apart
from agzo.tuned.coordinates import Moved
from agzo.tuned.linears import body_linears, held, is_quantised, sizes
from agzo.tuned.select import ParameterFilter, check_model
from baselines.branch import NAME, Branch, refuse_merge


class ZOAct(ZeroOrderOptimizer):
    """Attach C V^T to the linear layers of a model, freeze the rest, and tune C.

    `calibrate` finds the bases and must be called before the first step.

    Args:
        model, lr, eps, estimator, update, shared: see `ZeroOrderOptimizer`.
        rank: r, columns of each basis; a narrower layer has as many as its width.
        calibration_batches: training batches that `calibrate` is shown.
        calibration_passes: times it reads them, see `agzo.activations.calibration`.
        embeddings: "frozen" is all there is.
        params: None (every linear layer but the head), or a filter ``(name, weight) -> bool``.

    Raises:
        ValueError: also for a model that an adapter of PEFT or of another ZO-Act is on.
    """

    about = About(
        alters=True,
        adds=True,
        needs_data="its bases are of the activations of training batches",
        settings=("rank", "calibration_batches", "calibration_passes"),
    )

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        rank: int = 1,
        calibration_batches: int = 4,
        calibration_passes: int = 3,
        estimator: str = "two_sided",
        update: str = "adam",
        embeddings: str = "frozen",
        params: ParameterFilter | None = None,
        stream: Weights | None = None,
        **shared: Any,
    ) -> None:
        rank = check_count("rank", rank)
        calibration_batches = check_count("calibration_batches", calibration_batches)
        if embeddings != "frozen":
            raise ValueError(
                f"embeddings={embeddings!r}: allowed is 'frozen'; ZO-Act tunes linear layers alone"
            )
        self.rank = rank
        self.calibration_batches = calibration_batches
        self.calibration_passes = check_count("calibration_passes", calibration_passes)
        self._layers = _layers(model, rank, params)
        device = None if stream is None else stream.device
        self._branches = {name: Branch(layer, rank, device) for name, layer in self._layers.items()}
        tuned = [branch.coefficients for branch in self._branches.values()]
        own = {id(parameter) for parameter in tuned}
        self._frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
        try:
            super().__init__(
                model,
                lr=lr,
                eps=eps,
                estimator=estimator,
                update=update,
                embeddings=embeddings,
                params=tuned,
                stream=stream,
                **shared,
            )
        except Exception:
            self.remove()
            raise
        self.forwards_once += self.calibration_batches * self.calibration_passes
        self._unreached: list[str] = []
        self._zo["studied"] = False
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def moved(self) -> list[Moved]:
        """List the weights that move by their branches, see `agzo.tuned.coordinates`."""
        found = []
        for name, branch in self._branches.items():
            (d_out, rank), d_in = branch.coefficients.shape, branch.basis.shape[0]
            found.append(Moved(f"{name}.weight", d_out * d_in, True, rank, self.rank))
        return found

    @apart
    def calibrate(self, batches: Batches) -> None:
        """Find the basis of each layer from batches, (closure, token mask) each.

        A layer that no batch reaches, or whose weight the model reads without calling it, is left
        as it is.
        """
        bases = leading_inputs(
            self._layers,
            batches,
            self.rank,
            self.calibration_passes,
            Noise(self.seed, 0),
            self._forward,
        )
        unreached = self._unreached = sorted(self._branches.keys() - bases.keys())
        for name in unreached:
            self._branches.pop(name).remove(self._layers.pop(name))
        if unreached:
            left = {id(branch.coefficients) for branch in self._branches.values()}
            self.tuned = [each for each in self.tuned if id(each.parameter) in left]
            for group in self.param_groups:
                group["params"] = [p for p in group["params"] if id(p) in left]
            self._guard.follow(self.tuned)
        self.use(bases)

    @property
    def wants_batches(self) -> int:
        """Batches that `calibrate` is shown."""
        return self.calibration_batches

    @property
    def calibrated(self) -> dict[str, Any] | None:
        """The layers that no batch of `calibrate` calls, if there are any."""
        found = self._unreached
        listed = ", ".join(found[:3])
        summary = f"leaves {len(found)} layers frozen that no batch calls ({listed})"
        return {"summary": summary, "unreached": found} if found else None

    @property
    def bases(self) -> dict[str, Tensor]:
        """The basis of each layer, V (d_in, r), by the layer's name."""
        return {name: branch.basis for name, branch in self._branches.items()}

    def use(self, bases: Mapping[str, Tensor]) -> None:
        """Take bases that were found before, as `bases` has them, in the place of `calibrate`."""
        shared: dict[int, Tensor] = {}  # layers with one input hold one tensor
        for name, branch in self._branches.items():
            basis = shared.setdefault(id(bases[name]), bases[name].to(branch.basis))
            branch.basis = basis
        self._zo["studied"] = True

    @property
    def missing(self) -> str | None:
        """The bases, where there are none yet."""
        call = "no bases yet; call calibrate(batches) before the first step"
        return None if self._zo["studied"] else call

    def _enter(self) -> None:
        if not self._branches:
            raise RuntimeError("the branches were removed or merged; allowed is a new optimizer")
        super()._enter()

    def adapter(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (A, B) for each layer, W + B A: a LoRA adapter of alpha = r.

        A = V^T is (r, d_in), B = C is (d_out, r).
        """
        return {
            name: (branch.basis.T, branch.coefficients.detach())
            for name, branch in self._branches.items()
        }

    def on_weights(self, directions: Directions) -> Directions:
        """Return directions of C as those of W that they are: Z V^T or V Z^T, by weight.

        Raises:
            ValueError: a weight that two layers share, each with a C of its own.
        """
        self._refuse_shared("on_weights")
        return {
            held(layer): LowRank.of(
                directions[self._branches[name].coefficients].dense(),
                self._branches[name].basis.float(),
                self._branches[name].inputs,
            )
            for name, layer in self._layers.items()
        }  # pyright: ignore[reportReturnType]

    @apart
    def merge(self) -> None:
        """Set W to W + C V^T in its own dtype and take the branches away; no step may follow.

        Raises:
            ValueError: a quantised weight, or one that two layers share; nothing has changed then.
        """
        for name, layer in self._layers.items():
            refuse_merge(name, layer)
        self._refuse_shared("merge")
        for name, layer in self._layers.items():
            self._branches[name].merge(layer)
        self.remove()

    def _refuse_shared(self, what: str) -> None:
        weights = [id(held(layer)) for layer in self._layers.values()]
        for name, layer in self._layers.items():
            if weights.count(id(held(layer))) > 1:
                raise ValueError(
                    f"{what}: layer {name} shares its weight with another one; allowed are weights "
                    "of one layer"
                )

    def remove(self) -> None:
        """Take the branches away and leave the model as it was; no step may follow."""
        for name, layer in self._layers.items():
            self._branches[name].remove(layer)
        self._branches = {}
        for parameter in self._frozen:
            parameter.requires_grad_(True)


def _free(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Leave out layers that are frozen where others are not.

    Of a model that is frozen altogether all are taken, and quantised ones always: their quantiser
    froze them, which is no choice of the caller's.
    """
    if not any(p.requires_grad for p in model.parameters() if not is_quantised(p)):
        return layers
    weights = {name: held(layer) for name, layer in layers.items()}
    return {n: layers[n] for n, w in weights.items() if w.requires_grad or is_quantised(w)}


def _layers(model: nn.Module, rank: int, params: ParameterFilter | None) -> dict[str, nn.Module]:
    """Choose the layers that get a branch; raise ValueError where that cannot be done."""
    check_model(model)
    if params is not None and not callable(params):
        raise ValueError("params: allowed is None or a filter (name, weight) -> bool")
    if any(hasattr(module, "peft_config") for module in model.modules()):
        raise ValueError(
            "model: it holds an adapter of PEFT (peft_config), and ZO-Act attaches one of its own; "
            "allowed is a model without: merge_and_unload() it, or tune it by another method"
        )
    layers = body_linears(model)
    for name, layer in layers.items():
        if hasattr(layer, NAME):
            raise ValueError(
                f"model: layer {name} has a branch of ZO-Act already; allowed is one optimizer, or "
                "merge() before the next"
            )
    layers = _free(model, layers)
    if params is not None:
        layers = {
            name: layer
            for name, layer in layers.items()
            if params(f"{name}.weight", held(layer))  # pyright: ignore[reportArgumentType]
        }
    if not layers:
        raise ValueError(
            "no linear layer beside the head is tuned, and ZO-Act tunes these alone; needed is at "
            "least one"
        )
    check_rank(rank, {n: sizes(layer)[0] for n, layer in layers.items()}, "input of a linear layer")
    return layers
