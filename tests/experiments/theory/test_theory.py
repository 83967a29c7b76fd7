"""The theory: samplers within five standard errors, every claim of experiments.theory at a coarse
precision, and wrong code on purpose, which the claims must catch.
"""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from agzo import AGZO, ZeroOrderOptimizer
from agzo.alignment import beta
from agzo.directions.activation_subspace import ActivationSubspace
from agzo.directions.direction import Direction
from agzo.directions.low_rank import LowRank
from agzo.directions.random_subspace import RandomSubspace
from agzo.directions.sampler import Gaussian
from agzo.rng import Noise
from agzo.tuned.select import Tuned
from baselines import MeZO
from experiments.theory import __main__ as command
from experiments.theory import activations, batches, bias, cosine, page
from experiments.theory.claims import CLAIMS
from experiments.theory.evidence import Claim, Context, Row, collect, level

D_OUT, D_IN, SAMPLES = 6, 8, 4000


def gradient_and_basis(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(D_OUT, D_IN, generator=generator)
    basis = torch.linalg.qr(torch.randn(D_IN, rank, generator=generator)).Q
    return gradient, basis


def tuned() -> Tuned:
    return Tuned("w", nn.Parameter(torch.zeros(D_OUT, D_IN)), "linear")


def directions(sampler: Gaussian) -> list[Direction]:
    return [sampler.sample(tuned(), Noise(0, step)) for step in range(SAMPLES)]


def mean_estimate(gradient: Tensor, drawn: list[Direction]) -> tuple[Tensor, Tensor]:
    """Mean of <G, Delta> Delta and its standard error, elementwise."""
    estimates = torch.stack([d.inner(gradient) * d.dense() for d in drawn])
    return estimates.mean(0), estimates.std(0) / len(drawn) ** 0.5


def agzo_sampler(basis: Tensor) -> ActivationSubspace:
    sampler = ActivationSubspace([tuned()], basis.shape[1], 3, 1, False)
    sampler.bases = {"w": basis}
    return sampler


@pytest.mark.parametrize("rank", [1, 3])
def test_agzo_estimate_is_the_projected_gradient(rank):
    """Prop. 5.1: the estimate has mean G A A^T."""
    gradient, basis = gradient_and_basis(rank)
    mean, error = mean_estimate(gradient, directions(agzo_sampler(basis)))
    assert ((mean - gradient @ basis @ basis.T).abs() < 5 * error + 1e-6).all()


@pytest.mark.parametrize("rank", [1, 3])
def test_agzo_expected_cosine(rank):
    """Thm 5.4: E cos = beta_{mr} |G A| / |G| with m = d_out."""
    gradient, basis = gradient_and_basis(rank)
    cosines = torch.stack(
        [
            d.inner(gradient).abs() / (d.norm() * gradient.norm())
            for d in directions(agzo_sampler(basis))
        ]
    )
    expected = beta(D_OUT * rank) * (gradient @ basis).norm() / gradient.norm()
    assert abs(cosines.mean() - expected) < 5 * cosines.std() / SAMPLES**0.5


def test_mezo_estimate_is_the_gradient_and_its_cosine_beta():
    """Isotropic case: mean G (Thm A.4), E cos = beta_{mn} (Cor. 5.5)."""
    gradient, _ = gradient_and_basis(1)
    drawn = directions(Gaussian())
    mean, error = mean_estimate(gradient, drawn)
    assert ((mean - gradient).abs() < 5 * error).all()
    cosines = torch.stack([d.inner(gradient).abs() / (d.norm() * gradient.norm()) for d in drawn])
    assert abs(cosines.mean() - beta(D_OUT * D_IN)) < 5 * cosines.std() / SAMPLES**0.5


def test_lozo_estimate_is_rank_times_the_gradient():
    """E <G, U V^T> U V^T = r G when V is fresh: the published code leaves 1/r to the lr."""
    gradient, _ = gradient_and_basis(1)
    rank = 2
    mean, error = mean_estimate(gradient, directions(RandomSubspace([tuned()], rank, 1)))
    assert ((mean - rank * gradient).abs() < 5 * error).all()
    assert mean.norm().item() == pytest.approx(rank * gradient.norm().item(), rel=0.2)


def test_lozo_keeps_v_within_an_interval():
    sampler = RandomSubspace([tuned()], 2, 5)
    rights = [sampler.sample(tuned(), Noise(0, step)).right for step in range(10)]
    assert all(right.equal(rights[0]) for right in rights[:5])
    assert all(right.equal(rights[5]) for right in rights[5:])
    assert not rights[0].equal(rights[5])


def test_agzo_direction_has_norm_of_its_left_factor():
    """|R A^T| = |R|: E|Delta|^2 = d_out r, against d_out d_in for MeZO."""
    _, basis = gradient_and_basis(2)
    squares = torch.stack([d.norm() ** 2 for d in directions(agzo_sampler(basis))])
    assert abs(squares.mean() - D_OUT * 2) < 5 * squares.std() / SAMPLES**0.5


def coarse(**changes) -> Context:
    return Context(level(0.999, CLAIMS), **{"precision": 0.07, **changes})


LONG = (  # a second and more each
    *("lipschitz_bound", "smooth", "whole_network", "one_layer_cosines"),
    *("helps", "quadratic", "lozo"),
)


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(claim, id=name, marks=pytest.mark.slow if name in LONG else [])
        for claim in CLAIMS
        for name in [claim.measure.__name__]
    ],
)
def test_claim(claim: Claim):
    rows = collect(claim, coarse())
    assert rows
    assert [f"{row.says}: {row.verdict}" for row in rows if not row.good] == []


# --- wrong code, which a check worth its name catches


class ScaledSampler(ActivationSubspace):
    """R a fifth too large: the mean estimate is 1.44 times what it should be."""

    def sample(self, tuned, noise):
        direction = super().sample(tuned, noise)
        if isinstance(direction, LowRank):
            return LowRank(1.2 * direction.left, direction.right)
        return direction


class Scaled(AGZO):
    def _make_sampler(self):
        super()._make_sampler()
        linear = [each for each in self.tuned if each.role == "linear"]
        self._subspace = ScaledSampler(
            linear, self.rank, self.power_steps, self.refresh_every, self.include_padding
        )
        return self._subspace


class OtherDirection(AGZO):
    """Reports another direction than the one it evaluated."""

    def estimate(self, closure, token_mask=None, step=None):
        found = super().estimate(closure, token_mask, step)
        directions = [d for d, _ in found.queries]
        turned = directions[1:] + directions[:1]
        queries = [(d, g) for d, (_, g) in zip(turned, found.queries, strict=True)]
        return replace(found, queries=queries)


class SameSign(ZeroOrderOptimizer):
    """Loses the sign of the measured difference."""

    def estimate(self, closure, token_mask=None, step=None):
        found = super().estimate(closure, token_mask, step)
        return replace(found, queries=[(d, g.abs()) for d, g in found.queries])


class SameSignAGZO(SameSign, AGZO):
    pass


class SameSignMeZO(SameSign, MeZO):
    pass


def wider(model, rank, **options):
    return AGZO(model, rank=rank + 1, **options)


def larger_eps(model, eps, **options):
    return AGZO(model, eps=3 * eps, **options)


def as_mezo(model, rank, **options):
    return MeZO(model, estimator="one_sided", **options)


@pytest.mark.parametrize(
    ("measure", "methods"),
    [
        (batches.given_the_batch, {"agzo": Scaled}),
        (batches.given_the_batch, {"agzo": OtherDirection}),
        (batches.given_the_batch, {"agzo": SameSignAGZO}),
        (cosine.one_layer_cosines, {"agzo": wider}),
        (cosine.mezo, {"mezo": SameSignMeZO}),
        (bias.kink, {"agzo": larger_eps}),
        (activations.leading, {"agzo": as_mezo, "mezo": partial(AGZO, rank=2)}),
        (activations.power_iteration, {"agzo": partial(AGZO, power_steps=0)}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(map(str, value)),
)
@pytest.mark.slow
def test_wrong_code_fails(measure, methods):
    rows = measure(coarse(cap=5000, **methods))
    assert "FAILS" in {row.verdict for row in rows}


def test_the_log_gamma_formula_alone_breaks_the_lemma(monkeypatch):
    """Large log-gammas lose digits: why agzo.alignment.beta uses a series."""

    def by_log_gamma(dimension: int) -> float:
        log = math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)
        return math.exp(log) / math.sqrt(math.pi)

    monkeypatch.setattr(cosine, "beta", by_log_gamma)
    assert [row.verdict for row in cosine.beta_bounds(coarse())[:2]] == ["FAILS", "FAILS"]


def test_a_wrong_beta_fails(monkeypatch):
    monkeypatch.setattr(cosine, "beta", lambda dimension: 1.2 * beta(dimension))
    assert cosine.mezo(coarse())[0].verdict == "FAILS"


# --- the evidence itself


def verdict(**fields) -> str:
    return Row("name", "says", "setting", **{"claimed": 1.0, "measured": 1.0, **fields}).verdict


def test_verdicts():
    assert verdict(low=0.9, high=1.1) == "holds"
    assert verdict(low=1.1, high=1.2) == "FAILS"
    assert verdict(low=1.1, high=1.2, expected=False) == "fails as expected"
    assert verdict(low=0.9, high=1.1, expected=False) == "HOLDS, should fail"
    assert verdict(low=0.5, high=1.5, half_width=0.1) == "UNDECIDED"
    assert verdict(low=0.5, high=0.9, relation="<=") == "holds"
    assert verdict(low=0.5, high=1.1, relation="<=") == "UNDECIDED"
    assert verdict(low=1.1, high=1.2, relation="<=") == "FAILS"
    assert verdict(low=1.1, high=1.2, relation=">=") == "holds"
    assert verdict(low=0.9, high=1.2, relation=">") == "UNDECIDED"
    assert verdict(low=0.8, high=0.9, relation=">") == "FAILS"
    assert verdict(relation=">", tolerance=1e-12) == "FAILS"
    assert verdict(measured=1.0 + 1e-9, tolerance=1e-6) == "holds"
    assert verdict(measured=1.1, tolerance=1e-6) == "FAILS"
    assert verdict(measured=float("nan")) == "FAILS"
    assert verdict(measured=float("nan"), low=float("nan"), high=float("nan")) == "FAILS"


def test_intervals_cover_as_often_as_they_say():
    """Of 400 intervals at level 0.1 about 360 hold the truth; those of lengths are wider."""
    context = Context(0.1)
    generator = torch.Generator().manual_seed(0)
    means = lengths = 0
    for _ in range(400):
        x = torch.randn(300, 6, dtype=torch.float64, generator=generator) ** 2  # skewed, mean 1
        found = context.mean(x[:, 0])
        means += found["low"] <= 1.0 <= found["high"]
        found = context.length(x, 1.0)
        lengths += found["low"] <= 6**0.5 <= found["high"]
    assert 335 <= means <= 380
    assert lengths >= 360


def test_sample_size_gives_the_wanted_half_width():
    context = Context(1e-4)
    pilot = torch.randn(600, dtype=torch.float64)
    n = context.size(pilot, 0.05)
    found = context.mean(torch.randn(n, dtype=torch.float64), 0.05)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(0.05, rel=0.1)
    assert context.size(pilot, 1e-6) == context.cap
    assert "cap" in context.sized(1e-6, context.cap)


def test_undeclared_intervals_are_an_error():
    with pytest.raises(RuntimeError, match="it made 1 intervals and declares 2"):
        collect(Claim(cosine.mezo, 2), coarse())


def test_the_page_has_every_claim_once():
    named = [name for section in page.SECTIONS for name in section.claims]
    assert sorted(named) == sorted(claim.measure.__name__ for claim in CLAIMS)


def test_command_writes_the_page_and_tells_by_its_status(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "CLAIMS", [Claim(activations.edges, 1)])
    assert command.main(["--out", str(tmp_path / "theory"), "--precision", "0.06"]) == 0
    found = json.loads((tmp_path / "theory" / "theory.json").read_text())
    assert {row["verdict"] for row in found["rows"]} == {"holds", "fails as expected"}
    assert found["about"]["confidence"] == 0.999
    text = (tmp_path / "theory" / "theory.md").read_text()
    assert "AGZO is worse than MeZO" in text
    assert "none is otherwise" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "theory").iterdir()) == ["theory.json", "theory.md"]

    wrong = Row("name", "says", "setting", 1.0, 2.0)
    monkeypatch.setattr(command, "measure", lambda context, say: {"edges": [wrong]})
    assert command.main([]) == 1
    assert "1 are not as they should be" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["--confidence=1", "--precision=0.5"])
def test_command_refuses_bad_arguments(argument, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([argument])
    assert stopped.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err
