"""A model that accelerate has spread: the same directions and numbers as in one place."""

import copy
from typing import Any

import pytest
import tiny_run
import torch
from accelerate import dispatch_model
from methods import METHODS, Method
from networks import Network, qwen3, weights

from experiments.models import loading
from experiments.training.session import run

SPREADABLE = [m for m in METHODS if m.options.get("execution") != "batched"]


def hooked(model: Any, devices: dict[str, Any]) -> Any:
    """Let accelerate take a model over, also where all of it is on the CPU."""
    return dispatch_model(model, devices, force_hooks=True)


@pytest.mark.parametrize("method", SPREADABLE, ids=str)
def test_hooks_of_accelerate_change_no_bit(method: Method):
    ends = []
    for spread in (False, True):
        net = qwen3()
        if spread:
            hooked(net.model, {"": "cpu"})
        optimizer = method.make(net)
        for _ in range(4):
            optimizer.step(net.closure, net.token_mask)
        ends.append(weights(net.model))
    assert all(torch.equal(ends[1][name], w) for name, w in ends[0].items())


@pytest.mark.parametrize("method", ["agzo", "mezo", "adamw"])
def test_a_run_of_a_dispatched_model_is_that_of_a_plain_one(tmp_path, monkeypatch, method):
    given = (f"method={method}", "train.packing=never")
    plain_config = tiny_run.config(tmp_path / "plain", *given)
    plain = run(plain_config)
    settle = loading.settle

    def dispatched(model, device, device_map):
        assert device_map == "auto"
        layers = {f"model.layers.{i}": "cpu" for i in range(2)}
        rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb"), "cpu")
        model = hooked(model, {**rest, **layers, "lm_head": "cpu"})
        model = settle(model, device, device_map)
        assert model._hf_hook.skip_keys[-1] == "logits_to_keep"
        return model

    monkeypatch.setattr(loading, "settle", dispatched)
    spread_config = tiny_run.config(
        tmp_path / "spread", f"method={method}", "model.device_map=auto"
    )
    spread = run(spread_config)
    assert "spreads it over devices" in spread["packing"]["why"]
    for result in (plain, spread):
        for key in ("packing", "config"):
            result.pop(key)
    tiny_run.assert_same(spread_config, spread, plain_config, plain)


def two_devices(dtype: torch.dtype) -> Network:
    """The small Qwen3 with its first layer on one GPU and its second on another."""
    net = qwen3(dtype, tied=False)
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0}
    places |= {"model.layers.1": 1, "model.norm": 1, "lm_head": 1}
    model = hooked(net.model, places)
    ids = torch.arange(4, 25).view(3, 7).cuda()
    mask = torch.ones(3, 7, dtype=torch.bool, device="cuda")
    mask[0, :3] = False

    def closure() -> torch.Tensor:
        out = model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return out.logits[:, -1].float().logsumexp(-1).mean()

    return Network(model, closure, mask)


@pytest.mark.gpu
@pytest.mark.parametrize("method", SPREADABLE, ids=str)
def test_two_gpus_take_the_steps_of_one(method: Method):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    ends = []
    for spread in (False, True):
        net = two_devices(torch.float32)
        if not spread:
            from accelerate.hooks import remove_hook_from_module

            remove_hook_from_module(net.model, recurse=True)
            net.model.to("cuda:0")
        optimizer = method.make(net, lr=1e-4, eps=1e-2)
        for _ in range(6):
            optimizer.step(net.closure, net.token_mask)
        drawn, _ = optimizer.estimate(net.closure, net.token_mask).queries[0]
        assert all(direction.dense().device == p.device for p, direction in drawn.items())
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(state)
        optimizer.step(net.closure, net.token_mask)
        ends.append({name: w.cpu() for name, w in weights(net.model).items()})
    for name, w in ends[0].items():
        torch.testing.assert_close(ends[1][name], w, rtol=1e-4, atol=1e-5)
