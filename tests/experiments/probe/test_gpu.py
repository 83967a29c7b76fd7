"""What only a CUDA device can show: executions agree there, and a step never waits for it."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from agzo import AGZO
from agzo.activations.spectrum import gradients
from experiments.probe.alignment import Moment, whole_rows
from experiments.probe.structure import cosine_rows, linear_layers, spectra_of
from tests.methods import EXECUTIONS, METHODS, Method
from tests.networks import Network, qwen3, weights

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def on_cuda(dtype: torch.dtype) -> Network:
    net = qwen3(dtype)
    net.model.cuda()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 40, (3, 7), generator=generator).cuda()
    mask = torch.ones(3, 7, dtype=torch.bool, device="cuda")
    keep = torch.tensor([6], device="cuda")

    def closure() -> torch.Tensor:
        output = net.model(
            input_ids=ids, attention_mask=mask.long(), logits_to_keep=keep, use_cache=False
        )
        return output.logits.float().logsumexp(-1).mean()

    return Network(net.model, closure, mask)


@contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_executions_agree_on_cuda(method: Method):
    ends = []
    for execution in EXECUTIONS:
        net = on_cuda(torch.float32)
        optimizer = method.make(net, eps=1e-2, lr=1e-4, execution=execution)
        for _ in range(8):
            optimizer.step(net.closure, net.token_mask)
        ends.append(torch.cat([w.flatten() for w in weights(net.model).values()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "master"])
def test_a_step_never_waits_for_the_device(method: Method, rounding):
    net = on_cuda(torch.bfloat16)
    optimizer = method.make(net, rounding=rounding)
    optimizer.step(net.closure, net.token_mask)  # the one-off check does wait
    with torch.no_grad(), waiting_is_an_error():
        for _ in range(4):
            optimizer.step(net.closure, net.token_mask)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_resume_on_cuda_is_bit_exact(method: Method):
    straight = on_cuda(torch.float32)
    optimizer = method.make(straight)
    for _ in range(6):
        optimizer.step(straight.closure, straight.token_mask)
    first = on_cuda(torch.float32)
    half = method.make(first)
    for _ in range(3):
        half.step(first.closure, first.token_mask)
    second = on_cuda(torch.float32)
    rest = method.make(second)
    second.model.load_state_dict(first.model.state_dict())
    rest.load_state_dict(half.state_dict())
    for _ in range(3):
        rest.step(second.closure, second.token_mask)
    for a, b in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert a.equal(b)


def test_probes_measure_on_cuda():
    net = on_cuda(torch.float32)
    layers = linear_layers(net.model)
    rows = SimpleNamespace(token_mask=net.token_mask)
    spectra = spectra_of(net.closure, rows, layers)  # pyright: ignore[reportArgumentType]
    gradient = gradients(net.closure, layers)
    found = cosine_rows(0, layers, gradient, {"same": spectra})
    full = [row["cosine"] for row in found if row["rank"] == "full"]
    assert full == pytest.approx([1.0] * len(layers), abs=1e-5)

    def make(seed: int, params: list, queries: int = 1) -> AGZO:
        return AGZO(net.model, lr=0.0, eps=1e-3, seed=seed, params=params, queries=queries)

    assert net.token_mask is not None
    moment = Moment(0, net.closure, net.token_mask, gradient)
    whole, _, _ = whole_rows(moment, "linear", {"agzo": make}, groups=30, budgets=[9])
    cosines = torch.tensor([row["cosine"] for row in whole])
    expected = sum(row["expected"] for row in whole) / 30
    assert abs(cosines.mean() - expected) < 5 * cosines.std() / 30**0.5 + 0.02 * expected


def test_triton_kernels_equal_the_reference():
    from tests.interpreted_kernels import main  # imports triton

    main()
