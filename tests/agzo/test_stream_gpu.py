"""Streamed layers on a CUDA device: the resident run's bits, no waiting, a model larger than it.

The order of copies and kernels is shown without a device in test_slots.py; what is left for one is
that CUDA does as it is told, and how much memory it takes.
"""

import gc

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from agzo import AGZO, ZeroOrderOptimizer
from agzo.execution.stream import StreamedLayers
from agzo.tuned.layers import decoder_layers
from baselines import LOZO, MeZO
from tests.agzo.test_stream import CASES
from tests.experiments.probe.test_gpu import on_cuda, waiting_is_an_error
from tests.networks import Network

pytestmark = pytest.mark.gpu
GIB = 2**30


@pytest.fixture(autouse=True)
def _cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def large(layers: int) -> Network:
    """A Llama on the host: 64 MiB a layer, 32 MiB around them."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 4096, (2, 32), generator=torch.Generator().manual_seed(1)).cuda()

    def closure() -> Tensor:
        output = model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return output.logits.float().logsumexp(-1).mean()

    return Network(model, closure, None)


def host_weights(net: Network) -> list[Tensor]:
    return [p.detach().cpu().clone() for p in net.model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_streamed_run_is_the_resident_run_on_cuda(case, dtype):
    method, options = CASES[case]
    rounding = {"rounding": "stochastic"} if dtype == torch.bfloat16 else {}
    ends = []
    for streamed in (False, True):
        net = on_cuda(dtype)
        stream = StreamedLayers(net.model, "cuda") if streamed else None
        given = {"stream": stream} if stream else {}
        optimizer = method(net.model, lr=1e-2, eps=1e-3, **options, **rounding, **given)
        losses = torch.stack([optimizer.step(net.closure, net.token_mask) for _ in range(8)])
        optimizer.state_dict()  # flushes
        ends.append([losses.cpu(), *host_weights(net)])
    assert all(a.equal(b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("method", [MeZO, LOZO, AGZO])
def test_large_layers_overlap_and_give_the_same_bits(method: type[ZeroOrderOptimizer]):
    """Layers whose copies take long enough to be late if anything did not wait for them."""
    ends = []
    for streamed in (False, True):
        net = large(6)
        stream = StreamedLayers(net.model, "cuda") if streamed else None
        if stream is None:
            net.model.cuda()
        optimizer = method(net.model, lr=1e-4, eps=1e-3, **({"stream": stream} if stream else {}))  # pyright: ignore
        for _ in range(4):
            optimizer.step(net.closure)
        optimizer.state_dict()
        ends.append(host_weights(net))
    assert all(a.equal(b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("method", [MeZO, LOZO, AGZO])
def test_a_streamed_step_never_waits_for_the_device(method: type[ZeroOrderOptimizer]):
    net = on_cuda(torch.bfloat16)
    stream = StreamedLayers(net.model, "cuda")
    optimizer = method(net.model, lr=1e-3, eps=1e-3, stream=stream)  # pyright: ignore
    optimizer.step(net.closure, net.token_mask)  # the one-off check does wait
    with waiting_is_an_error():
        for _ in range(4):
            optimizer.step(net.closure, net.token_mask)


@pytest.mark.parametrize("method", [MeZO, LOZO, AGZO])
def test_a_model_larger_than_the_card_trains(method: type[ZeroOrderOptimizer]):
    """1.5 GiB of layers where 3/4 GiB may be allocated; the peak is the formula's."""
    net = large(24)
    own = sum(p.numel() * p.element_size() for p in net.model.parameters())
    layer = sum(p.numel() * p.element_size() for p in decoder_layers(net.model)[1][0].parameters())
    before = host_weights(net)
    gc.collect()
    torch.cuda.empty_cache()
    limit = 0.75 * GIB + torch.cuda.memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(own, dtype=torch.uint8, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        stream = StreamedLayers(net.model, "cuda")
        optimizer = method(net.model, lr=1e-4, eps=1e-3, stream=stream)  # pyright: ignore
        losses = [optimizer.step(net.closure) for _ in range(3)]
        optimizer.state_dict()
        assert torch.stack(losses).isfinite().all()
        assert all(not a.equal(b) for a, b in zip(before, host_weights(net), strict=True))
        outside = own - 24 * layer
        assert torch.cuda.max_memory_allocated() - base < outside + 2 * layer + 0.25 * GIB
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_an_error_in_a_streamed_step_leaves_the_stream_usable():
    net = on_cuda(torch.float32)
    stream = StreamedLayers(net.model, "cuda")
    optimizer = AGZO(net.model, lr=1e-3, eps=1e-3, stream=stream)
    optimizer.step(net.closure, net.token_mask)
    norm = net.model.get_submodule("model.norm")

    def fail(*_: object) -> None:
        raise KeyError("broken")

    hook = norm.register_forward_pre_hook(fail)
    with pytest.raises(KeyError, match="broken"):
        optimizer.step(net.closure, net.token_mask)
    hook.remove()
    optimizer.step(net.closure, net.token_mask)
    assert bool(optimizer.finite)
