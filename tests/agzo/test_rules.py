"""The rules that make a zeroth-order method correct, over every method and both executions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo import AGZO, LowRank, ZeroOrderOptimizer
from agzo.rng import Noise
from agzo.tuned.select import roles
from tests.methods import (
    EXECUTIONS,
    METHODS,
    Method,
    chief_method_and_network,
    every_method,
    every_method_and_execution,
    every_method_network_and_execution,
)
from tests.networks import Network, qwen3, weights
from tests.quick import quick

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def seen_by_torch(model: nn.Module) -> dict[str, Tensor]:
    """Each weight as a forward sees it at this moment, read through the calls that use it."""
    role = roles(model)
    seen = {}
    for name, parameter in model.named_parameters():
        if role[parameter] == "linear":
            eye = torch.eye(parameter.shape[1], dtype=parameter.dtype)
            seen[name] = F.linear(eye, parameter).T
        elif role[parameter] == "embedding":
            by_rows = F.embedding(torch.arange(parameter.shape[0]), parameter)
            eye = torch.eye(parameter.shape[1], dtype=parameter.dtype)
            by_head = F.linear(eye, parameter).T  # the other use of a tied weight
            torch.testing.assert_close(by_rows, by_head)
            seen[name] = by_rows
        else:
            seen[name] = parameter * 1.0
    return seen


class Recorder:
    """A closure that also records the weights each evaluation sees."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self) -> Tensor:
        loss = self.network.closure()
        self.seen.append(seen_by_torch(self.network.model))
        return loss


def assert_weights(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.equal(wanted[name]), name


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.reshape(-1) for v in values.values()])


def perturbations(recorder: Recorder, before: Tensor) -> list[Tensor]:
    """What each evaluation of one step added to the weights, base forwards left out."""
    changes = [flat(seen) - before for seen in recorder.seen]
    return [change for change in changes if change.abs().max() > 0]


class WholeMoments:
    """Momentum or Adam of the whole estimates, in float64: what `agzo.moments` must amount to."""

    def __init__(self, optimizer: ZeroOrderOptimizer) -> None:
        self.optimizer = optimizer
        self.mean: Tensor | None = None
        self.square: Tensor | None = None
        self.v = 0.0

    def factors(self, slopes: Tensor, step: int) -> Tensor:
        """What the slopes are when they are applied: what `agzo.scaling` must amount to."""
        if self.optimizer.update == "spread":
            return slopes / (slopes * self.optimizer.eps_at(step)).std()
        if self.optimizer.update == "centred":
            return (slopes - slopes.mean()) * (len(slopes) / (len(slopes) - 1))
        if self.optimizer.update == "scalar":
            b2 = self.optimizer.beta2
            self.v = b2 * self.v + (1 - b2) * slopes.mean() ** 2
            return slopes / ((self.v / (1 - b2 ** (step + 1))) ** 0.5 + 1e-8)
        return slopes

    def take(self, estimate: Tensor, step: int) -> Tensor:
        update, b1, b2 = (getattr(self.optimizer, key) for key in ("update", "momentum", "beta2"))
        if update not in ("momentum", "adam"):
            return estimate
        kept = estimate if self.mean is None else self.in_span(self.mean, step)
        if update == "momentum":
            self.mean = b1 * kept + (1 - b1) * estimate
            return self.mean
        old = torch.zeros_like(estimate) if self.mean is None else kept
        self.mean = b1 * old + (1 - b1) * estimate
        self.square = (1 - b2) * estimate**2 + (0 if self.square is None else b2 * self.square)
        deviation = (self.square / (1 - b2 ** (step + 1))).sqrt()
        return self.mean / (1 - b1 ** (step + 1)) / (deviation + 1e-8)

    def in_span(self, values: Tensor, step: int) -> Tensor:
        """Project each low-rank parameter's part onto the row span of this step's directions."""
        noise = Noise(self.optimizer.seed, step)
        tuned = {each.parameter: each for each in self.optimizer.tuned}
        every = list(self.optimizer.model.parameters())
        parts = []
        for parameter, part in zip(every, values.split([p.numel() for p in every]), strict=True):
            if parameter in tuned:  # the rest holds zeros
                direction = self.optimizer._sampler.sample(tuned[parameter], noise)
                if isinstance(direction, LowRank):
                    assert self.optimizer.update == "momentum"  # Adam is not linear in these
                    right = direction.right.double()
                    part = part.view(direction.shape) @ right @ torch.linalg.pinv(right)
            parts.append(part.reshape(-1))
        return torch.cat(parts)


@every_method_network_and_execution
def test_applied_direction_is_the_evaluated_direction(method: Method, execution, network):
    """W moves by -lr times the estimate sum g Delta / q, scaled, or times its moments.

    Momentum is compared with that of the whole estimate, of which a change of basis keeps what lies
    in the span of the evaluated directions.
    """
    net = method.network(network, torch.float64)
    recorder = Recorder(net)
    eps = 1e-3
    optimizer = method.make(net, lr=1e-2, eps=eps, execution=execution)
    lr = optimizer.param_groups[0]["lr"]
    reference = WholeMoments(optimizer)
    for step in range(5):  # every refresh interval in METHODS is crossed
        before = flat(weights(net.model))
        recorder.seen.clear()
        optimizer.step(recorder, net.token_mask)
        applied = flat(weights(net.model)) - before
        calls = optimizer.forwards_of_step(step) * method.pieces
        del recorder.seen[:-calls]  # those of the first step's check
        evaluated = perturbations(recorder, before)
        if optimizer.estimator != "one_sided":
            torch.testing.assert_close(evaluated[0::2], [-e for e in evaluated[1::2]])
            evaluated = evaluated[0::2]
        assert len(evaluated) == optimizer.queries * method.pieces
        grads = reference.factors(optimizer.projected_grad, step)
        size = optimizer.eps_at(step)
        estimate = sum(g * e / size for g, e in zip(grads, evaluated, strict=True))
        estimate = estimate / len(evaluated)
        if method.becomes is not None:
            every = list(net.model.parameters())
            parts = zip(every, estimate.split([p.numel() for p in every]), strict=True)
            estimate = torch.cat([method.becomes(part.view_as(p)).view(-1) for p, part in parts])
        wanted = -lr * reference.take(estimate, step)
        assert F.cosine_similarity(applied, wanted, dim=0).item() == pytest.approx(1.0, abs=1e-9)
        # noise is float32: products of factors differ by its rounding
        allowed = method.rounding * wanted.abs().max().item()
        torch.testing.assert_close(applied, wanted, rtol=0, atol=allowed)


@every_method_and_execution
@pytest.mark.parametrize("dtype", quick(DTYPES, "torch.float32", "torch.bfloat16"))
def test_measuring_leaves_weights_bit_identical(method: Method, execution, dtype, monkeypatch):
    net = qwen3(dtype)
    optimizer = method.make(net, execution=execution, rounding="nearest")
    monkeypatch.setattr(optimizer, "_move", lambda *args: None)
    before = weights(net.model)
    for _ in range(3):
        optimizer.step(net.closure, net.token_mask)
    for name, parameter in net.model.named_parameters():
        assert parameter.detach().view(torch.uint8).equal(before[name].view(torch.uint8)), name


@every_method_and_execution
def test_a_closure_that_raises_leaves_weights_bit_identical(method: Method, execution):
    net = qwen3()
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        if calls == 2 * method.pieces + 2:  # after the check: while weights are perturbed
            raise KeyboardInterrupt
        return net.closure()

    optimizer = method.make(net, execution=execution)
    before = weights(net.model)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure, net.token_mask)
    assert_weights(net.model, before)


@every_method_and_execution
def test_resume_is_bit_exact(method: Method, execution):
    straight = qwen3()
    optimizer = method.make(straight, execution=execution)
    losses = [optimizer.step(straight.closure, straight.token_mask) for _ in range(10)]

    first = qwen3()
    optimizer_1 = method.make(first, execution=execution)
    resumed = [optimizer_1.step(first.closure, first.token_mask) for _ in range(5)]
    saved = copy.deepcopy((first.model.state_dict(), optimizer_1.state_dict()))
    second = qwen3()
    optimizer_2 = method.make(second, execution=execution, seed=99)  # the saved seed counts
    second.model.load_state_dict(saved[0])
    optimizer_2.load_state_dict(saved[1])
    resumed += [optimizer_2.step(second.closure, second.token_mask) for _ in range(5)]

    assert torch.stack(losses).equal(torch.stack(resumed))
    assert_weights(second.model, weights(straight.model))
    assert optimizer_2.forwards == optimizer.forwards


KEPT_AND_SEEN = Method("agzo-seen-every3", AGZO, {"embeddings": "seen", "refresh_every": 3})


@pytest.mark.parametrize("method", [*METHODS, KEPT_AND_SEEN], ids=str)
def test_looks_change_no_later_step(method: Method):
    """A look at another batch, at the next step or at the first, before and in training."""

    def trained(looks: bool) -> Network:
        net = qwen3()
        optimizer = method.make(net)

        def other() -> Tensor:
            ids = torch.arange(8).view(2, 4) + 3
            return net.model(input_ids=ids, labels=ids).loss

        for _ in range(3):
            if looks:
                optimizer.estimate(other)
                optimizer.estimate(other, step=0)
                optimizer.directions(other)
            optimizer.step(net.closure, net.token_mask)
        return net

    assert_weights(trained(looks=True).model, weights(trained(looks=False).model))


@every_method
def test_what_does_not_become_a_step_changes_no_later_one(method: Method):
    """A closure that raises in its second evaluation; a state saved while a step is staged."""

    def trained(disturbed: bool) -> Network:
        net = qwen3()
        optimizer = method.make(net)
        evaluations = iter((net.closure, lambda: 1 / 0))
        ids = torch.arange(8).view(2, 4) + 3
        for step in range(4):
            if disturbed and step == 2:
                with pytest.raises(ZeroDivisionError):
                    optimizer.step(lambda: next(evaluations)(), net.token_mask)
            if disturbed and step == 3:
                before = optimizer.forwards
                optimizer.stage(lambda: net.model(input_ids=ids, labels=ids).loss)
                optimizer.load_state_dict(optimizer.state_dict())
                assert optimizer.forwards == before
            optimizer.step(net.closure, net.token_mask)
        return net

    assert_weights(trained(disturbed=True).model, weights(trained(disturbed=False).model))


@every_method_network_and_execution
def test_finite_difference_is_gradient_times_direction(method: Method, execution, network):
    net = method.network(network, torch.float64)
    eps = 1e-8
    optimizer = method.make(net, lr=0.0, eps=eps, execution=execution)
    recorder = Recorder(net)
    optimizer.step(net.closure, net.token_mask)  # the first step's check may perturb too
    optimizer.step(recorder, net.token_mask)
    before = flat(weights(net.model))
    changes = perturbations(recorder, before)
    if optimizer.estimator != "one_sided":
        changes = changes[0::2]
    changes = changes[-len(optimizer.projected_grad) :]  # the recorder's lookups are measured anew
    net.model.zero_grad()
    net.closure().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.model.parameters()]
    gradient = torch.cat([grad.reshape(-1) for grad in grads])
    size = optimizer.eps_at(1)
    expected = torch.stack([gradient @ change / size for change in changes])
    # one-sided differences keep a curvature term of order eps; the rest is float64 round-off
    torch.testing.assert_close(optimizer.projected_grad, expected, rtol=1e-5, atol=1e-5)


@chief_method_and_network
def test_side_branch_equals_in_place_over_many_steps(method: Method, network):
    results = []
    for execution in EXECUTIONS:
        net = method.network(network, torch.float64)
        optimizer, begun = method.make(net, lr=1e-4, execution=execution), flat(weights(net.model))
        losses = [optimizer.step(net.closure, net.token_mask) for _ in range(12)]
        results.append((torch.stack(losses), flat(weights(net.model))))
    # noise and bases are float32 even for a float64 model: a step is right to that, long or short
    moved = (results[0][1] - begun).abs().max().item()
    atol = max(1e-8, 1e-5 * moved)
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=atol)


@every_method
def test_side_branch_equals_in_place_in_float32(method: Method):
    results = []
    for execution in EXECUTIONS:
        net = qwen3()
        optimizer = method.make(net, eps=1e-2, lr=1e-4, execution=execution)
        losses = [optimizer.step(net.closure, net.token_mask) for _ in range(12)]
        results.append((torch.stack(losses), flat(weights(net.model))))
    # a loss has an error of about 1e-7, so projected_grad one of 1e-5 and a step one of 1e-9
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@every_method
def test_global_generator_is_neither_read_nor_moved(method: Method):
    ends = []
    for seed in (3, 4):
        net = method.network("mlp")
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        optimizer = method.make(net)
        for _ in range(3):
            optimizer.step(net.closure)
        assert torch.get_rng_state().equal(state)
        ends.append(flat(weights(net.model)))
    assert ends[0].equal(ends[1])


@every_method
def test_seeds_and_steps_give_different_directions(method: Method):
    directions = []
    for seed in (0, 1):
        net = method.network("mlp", torch.float64)
        optimizer = method.make(net, seed=seed)
        for _ in range(2):
            queries = optimizer.estimate(net.closure).queries
            every = [each.dense().reshape(-1) for drawn, _ in queries for each in drawn.values()]
            directions.append(torch.cat(every))
            optimizer.step(net.closure)
    for i in range(4):
        for j in range(i):
            assert abs(F.cosine_similarity(directions[i], directions[j], dim=0)) < 0.9


@every_method
def test_forwards_are_counted(method: Method):
    plain = method.network("mlp")
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        return plain.closure()

    net = Network(plain.model, closure, None)
    optimizer: ZeroOrderOptimizer = method.make(net)
    optimizer.step(closure)
    assert calls == optimizer.forwards * method.pieces
    assert optimizer.forwards == optimizer.forwards_once + optimizer.forwards_per_step
    for _ in range(5):
        optimizer.step(closure)
    assert calls == optimizer.forwards * method.pieces


@every_method
def test_frozen_embeddings_do_not_move(method: Method):
    for tied in (True, False):
        net = qwen3(tied=tied)
        frozen = {} if method.one_layer else {"embeddings": "frozen"}  # its only choice
        optimizer = method.make(net, **frozen)
        before = weights(net.model)
        for _ in range(2):
            optimizer.step(net.closure, net.token_mask)
        after = weights(net.model)
        moved = {name for name in before if not before[name].equal(after[name])}
        wanted = {name for name in before if "embed" not in name and method.tunes(name)}
        assert moved == wanted or (method.some and moved < wanted)
        assert moved
