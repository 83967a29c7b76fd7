"""What an optimizer tells: its summary, and to hooks what each step measured."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from agzo import AGZO, Measured
from baselines import LOZO, MeZO
from tests.methods import Method, every_method
from tests.networks import llama, mlp, qwen3


def held(node: Any, known: set[int]) -> int:
    """Bytes of the tensors in a state dict, each once."""
    if isinstance(node, Tensor):
        new = id(node) not in known
        known.add(id(node))
        return new * node.numel() * node.element_size()
    if isinstance(node, dict):
        return sum(held(each, known) for each in node.values())
    return sum(held(each, known) for each in node) if isinstance(node, list | tuple) else 0


@every_method
def test_its_state_is_at_most_the_expected_one_and_its_forwards_are(method: Method):
    net = method.network(method.networks[-1])
    optimizer = method.make(net)
    expected = optimizer.summary()
    optimizer.step(net.closure, net.token_mask)
    before = optimizer.forwards
    optimizer.step(net.closure, net.token_mask)
    assert optimizer.forwards - before == optimizer.forwards_of_step(1)
    assert expected.forwards_per_step == optimizer.forwards_of_step(0)
    actual = held(optimizer.state_dict(), set()) - 1  # of the flag that all is finite
    assert actual <= expected.state_bytes <= 4 * actual + 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_shared_inputs_the_expected_state_is_exact(dtype):
    for make in (
        lambda m: AGZO(m, 1e-3, 1e-3, rank=2),
        lambda m: AGZO(m, 1e-3, 1e-3, rounding="master"),
        lambda m: AGZO(m, 1e-3, 1e-3, update="adam", large_state=True),
        lambda m: MeZO(m, 1e-3, 1e-3, rounding="master", update="momentum", large_state=True),
        lambda m: LOZO(m, 1e-3, 1e-3, update="momentum", large_state=True),
    ):
        net = mlp(dtype)
        optimizer = make(net.model)
        expected = optimizer.summary().state_bytes
        optimizer.step(net.closure)
        assert held(optimizer.state_dict(), set()) - 1 == expected


def test_a_summary_says_what_gets_what():
    net = qwen3()
    seen = AGZO(net.model, 1e-3, 1e-3, embeddings="seen", params=lambda name, _: "norm" not in name)
    found = seen.summary()
    assert found.tensors == {"basis": 14, "dense": 0, "seen": 1, "frozen": 9}
    assert found.coordinates["seen"] == 40 * 16
    total = sum(p.numel() for p in net.model.parameters())
    assert sum(found.coordinates.values()) == total
    assert str(found).startswith("AGZO: 3,840 in a basis (14 tensors), 640 rows seen (1 tensors), ")
    assert "\n" not in str(found)
    assert found.about()["forwards_per_step"] == 2
    frozen = MeZO(llama().model, 1e-3, 1e-3, embeddings="frozen").summary()
    assert frozen.tensors["seen"] == frozen.tensors["basis"] == 0
    assert frozen.coordinates["frozen"] == 640
    assert frozen.state_bytes == 0


def test_a_hook_has_each_step_once_until_it_is_removed():
    net = mlp()
    optimizer = MeZO(net.model, 1e-3, 1e-3, queries=2)
    told: list[Measured] = []
    handle = optimizer.register_measure_hook(told.append)
    optimizer.step(net.closure)
    optimizer.estimate(net.closure)  # no step
    optimizer.stage(net.closure)
    assert len(told) == 1
    optimizer.step()
    assert [each.step for each in told] == [0, 1]
    assert [each.forwards for each in told] == [2 + 4, 2 + 8]
    last = told[-1]
    slopes = (last.losses[:, 0] - last.losses[:, 1]) / 2e-3
    torch.testing.assert_close(slopes, last.projected_grad)
    torch.testing.assert_close(last.loss, last.losses.mean())
    assert last.projected_grad.equal(optimizer.projected_grad)  # pyright: ignore
    copy.deepcopy(optimizer)
    handle.remove()
    optimizer.step(net.closure)
    assert len(told) == 2


def test_a_one_sided_steps_hook_and_a_copy_without_hooks():
    net = mlp()
    optimizer = AGZO(net.model, 1e-3, 1e-3, queries=3)
    told: list[Measured] = []
    optimizer.register_measure_hook(told.append)
    model, twin = copy.deepcopy((net.model, optimizer))
    optimizer.step(net.closure)
    (found,) = told
    assert found.losses.shape == (3, 1)
    torch.testing.assert_close((found.losses[:, 0] - found.loss) / 1e-3, found.projected_grad)
    assert not twin._measure_hooks
    with pytest.raises(ValueError, match="hook: a int; allowed is a function"):
        optimizer.register_measure_hook(3)  # pyright: ignore
    assert model is not net.model
