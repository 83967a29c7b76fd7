"""DeepZero (arXiv 2310.02025, ICLR 2024): one difference for each of a few coordinates of W.

    once, on a batch:  z_j ~ N(0, 1), j = 1 .. q;  g(V) = 1 / q sum (f(V + mu z_j) - f(V)) / mu z_j
    ZO-GraSP scores |W o (g(W + mu g(W)) - g(W)) / mu|;  kept: the largest `density` of all
    p_l, the density of a parameter: the part of its coordinates that is kept
    every `refresh_every` steps:  S, n coordinates at random, in each parameter by its p_l
    g_c = (f(W + mu e_c) - f(W)) / mu,  c in S;  W <- W - lr sum over S of g_c e_c

n + 1 forwards a step, and 2 (q + 1) once. Memory beside inference: n numbers, and for the scores a
histogram of each parameter and 4 MiB chunks of noise. As in the paper the scores choose how many
coordinates a parameter has, and chance chooses which. The threshold is found to 1/16 of an octave.

The paper trains small networks and measures each coordinate of S in each step, some tens of
thousands. On a language model n is small, so that W moves in n coordinates until S is drawn anew:
that is what the number of forwards pays for, and no claim of the paper. Its code draws new z_j for
the second g; here they are the same, so that their difference is the curvature's and not that of
the draws. Its code scores weights of linear and convolutional layers; here all that is tuned. Its
reuse of what the layers before a coordinate gave saves time and no counted forward: it is not here.

In bfloat16 and float16 a loss seldom shows what one weight does: float32 is meant.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.check import check_choice, check_count, check_number
from agzo.directions.direction import Dense, Direction, Sum
from agzo.directions.sampler import Sampled
from agzo.directions.sparse import Sparse
from agzo.execution.perturb import Directions
from agzo.moments import Combination, Estimates
from agzo.optimizer import ZeroOrderOptimizer
from agzo.rng import Noise
from agzo.torch_calls.surroundings import Closure, apart
from agzo.tuned.select import Tuned

OCTAVES = (-160, 96)  # in which scores are told apart
BINS = 16  # of an octave


@dataclass(frozen=True)
class Together(Combination):
    """Adds up the estimates of a parameter, which are of different coordinates."""

    def direction(
        self,
        queries: Estimates,
        state: MutableMapping[str, Any],
        step: int,
        refreshed: bool,
        alive: Tensor,
    ) -> Direction:
        """Return sum g_c e_c over the coordinates that lie in this parameter."""
        parts = [(d, g) for d, g in queries if isinstance(d, Sparse)]
        index = torch.cat([d.index for d, _ in parts])
        values = torch.cat([torch.where(alive, g, 0.0).float() * d.values for d, g in parts])
        return Sparse(parts[0][0].shape, index, values)


class DeepZero(ZeroOrderOptimizer):
    """Measure n = `queries` coordinates one by one; `calibrate` must come before the first step.

    Args:
        model, lr, eps, shared: see `ZeroOrderOptimizer`; mu is eps, and lr is of each coordinate.
        queries: n; not above the number of coordinates that are kept.
        density: part of all coordinates that the scores keep, in (0, 1].
        refresh_every: steps between new S.
        score_queries: q.
        embeddings: "tuned" or "frozen".
        update: "sum".
    """

    about = About(
        needs_data="how many coordinates each parameter has follows from the scores of a batch",
        settings=("density", "refresh_every", "score_queries"),
        updates=("sum",),
    )

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        queries: int = 64,
        density: float = 0.01,
        refresh_every: int = 1,
        score_queries: int = 8,
        estimator: str = "one_sided",
        embeddings: str = "tuned",
        update: str = "sum",
        **shared: Any,
    ) -> None:
        self.density = check_number("density", density, above=0.0, maximum=1.0)
        self.refresh_every = check_count("refresh_every", refresh_every)
        self.score_queries = check_count("score_queries", score_queries)
        check_choice("embeddings", embeddings, ("tuned", "frozen"))
        if shared.get("stream") is not None or getattr(shared.get("group"), "size", 1) > 1:
            raise ValueError(
                "stream, group: DeepZero scores coordinates on one device; allowed are resident "
                "weights and one process"
            )
        own = {"queries": queries, "estimator": estimator}
        own |= {"embeddings": embeddings, "update": update}
        super().__init__(model, lr=lr, eps=eps, **own, **shared)
        self.forwards_once += 2 * (self.score_queries + 1)
        self._drawn: tuple[Any, list[tuple[Tuned, int]]] = (None, [])

    @property
    def _moments(self) -> Together:
        return Together()

    @property
    def wants_batches(self) -> int:
        """Batches that `calibrate` is shown: one, or what the scope wants if it is more."""
        return max(1, super().wants_batches)

    @property
    def missing(self) -> str | None:
        """The scores, where there are none yet."""
        call = "no scores yet; call calibrate(batches) before the first step"
        return super().missing if "kept" in self._zo else call

    @property
    def calibrated(self) -> dict[str, Any] | None:
        """What the scores keep of each parameter, with what the scope has found."""
        scope, kept = super().calibrated or {}, self._zo.get("kept")
        if kept is None:
            return scope or None
        most = max(kept, key=lambda name: kept[name])
        summary = f"keeps {sum(kept.values()):,} coordinates, {kept[most]:,} of them in {most}"
        both = [each for each in (scope.get("summary"), summary) if each]
        return {**scope, "summary": "; ".join(both), "kept": kept}

    @apart
    def calibrate(self, batches: Sequence[tuple[Closure, Tensor | None]]) -> None:
        """Score all coordinates on the first batch, and keep the largest ones of each parameter.

        Raises:
            ValueError: scores that are not finite, or fewer coordinates kept than `queries`.
        """
        if not batches:
            raise ValueError("batches=[]: allowed are one or more")
        closure, _ = batches[0]
        super().calibrate(batches)
        counts = self._histograms(self._curved(closure))
        total = torch.stack(list(counts.values())).sum(0)
        wanted = self.density * total.sum()
        least = int((total.flip(0).cumsum(0) < wanted).sum())  # bins above the threshold's
        kept = {name: int(each.flip(0)[: least + 1].sum()) for name, each in counts.items()}
        if sum(kept.values()) < self.queries:
            raise ValueError(
                f"queries={self.queries}: allowed with density={self.density} are up to "
                f"{sum(kept.values())}, the coordinates that are kept"
            )
        self._zo["kept"] = kept

    def _curved(self, closure: Closure) -> Directions:
        """Return (g(W + mu g(W)) - g(W)) / mu."""
        q, mu = self.score_queries, self.eps
        address = [Noise(self.seed, 0, query) for query in range(q)]

        def along(factors: list[Tensor], each: Tuned) -> Direction:
            shape = each.parameter.shape
            drawn = [Dense(at, f"{each.name}, score", shape, each.device) for at in address]
            return Sum([(z, c.to(each.device)) for z, c in zip(drawn, factors, strict=True)])

        def at(factors: list[Tensor]) -> Tensor:
            directions = Sampled(self.tuned, partial(along, factors))
            loss = self._execution.evaluate(lambda: self._forward(closure), directions, mu)
            return loss.double()

        zero = torch.zeros((), dtype=torch.float32, device=self.finite.device)
        one = torch.ones_like(zero)
        base = [zero] * q
        found: list[list[Tensor]] = []
        for _ in range(2):
            start = at(base)
            ends = [at([*base[:j], base[j] + one, *base[j + 1 :]]) for j in range(q)]
            found.append([((end - start) / (mu * q)).float() for end in ends])
            base = found[0]
        bends = [(after - before) / mu for before, after in zip(*found, strict=True)]
        if not torch.stack(bends).isfinite().all():
            raise ValueError(
                f"eps={mu:g}: the losses beside W, of which coordinates are scored, are not all "
                "finite; allowed is an eps, and weights, with finite ones"
            )
        return Sampled(self.tuned, partial(along, bends))

    def _histograms(self, curved: Directions) -> dict[str, Tensor]:
        """Count the scores |W o direction| of each parameter by their size."""
        low, high = OCTAVES
        bins = (high - low) * BINS
        found: dict[str, Tensor] = {}
        for each in self.tuned:
            counts = torch.zeros(bins, dtype=torch.int64, device="cpu")
            for start, stop, values in curved[each.parameter].rows():
                w = each.parameter.detach()
                score = (values * (w[start:stop] if w.dim() else w)).abs().log2()
                place = ((score - low) * BINS).nan_to_num(0.0).clamp(0, bins - 1)
                counts += torch.bincount(place.long().view(-1), minlength=bins).cpu()
            found[each.name] = counts
        return found

    def _directions(self, noise: Noise) -> Directions:
        chosen = self.coordinates(noise.step)
        tuned, index = chosen[noise.query % len(chosen)]  # `directions` may be asked for more

        def unit(each: Tuned) -> Direction:
            own = [index] if each is tuned else []
            at = torch.tensor(own, dtype=torch.int64, device=each.device)
            one = torch.ones(len(own), dtype=torch.float32, device=each.device)
            return Sparse(each.parameter.shape, at, one)

        return Sampled(self._active, unit)

    def coordinates(self, step: int) -> list[tuple[Tuned, int]]:
        """Return S of a step: n pairs of a parameter and a coordinate of it, none twice."""
        noise = Noise(self.seed, step - step % self.refresh_every)
        kept: dict[str, int] = self._zo["kept"]
        address = noise, [(each.name, kept[each.name]) for each in self._active]
        if self._drawn[0] != address:
            self._drawn = address, self._draw(noise, self._active)
        return self._drawn[1]

    def _draw(self, noise: Noise, active: list[Tuned]) -> list[tuple[Tuned, int]]:
        """Draw n coordinates: equally spaced in all that is kept, so each parameter has its part.

        A parameter of m coordinates in S has one in each of m equal parts of it.
        """
        kept: dict[str, int] = self._zo["kept"]
        bounds = list(accumulate(kept[each.name] for each in active))
        if bounds[-1] < self.queries:
            raise ValueError(
                f"queries={self.queries}: the parameters that take part now, "
                f"{len(active)} of {len(self.tuned)}, have {bounds[-1]} of the coordinates that "
                "are kept; allowed are parameters with as many as queries"
            )
        n, start = self.queries, _whole(noise, "", "offset")
        places = [((q << 64) + start) * bounds[-1] // (n << 64) for q in range(n)]
        found: list[tuple[Tuned, int]] = []
        before = 0
        for each, bound in zip(active, bounds, strict=True):
            m, values = sum(before <= place < bound for place in places), each.parameter.numel()
            for i in range(m):
                first, last = i * values // m, (i + 1) * values // m
                drawn = _whole(noise, each.name, f"coordinate {i}")
                found.append((each, first + (drawn * (last - first) >> 64)))
            before = bound
        return found


def _whole(noise: Noise, name: str, role: str) -> int:
    """Return a whole number below 2^64, of an address."""
    high, low = noise.key(name, role)
    return high << 32 | low
