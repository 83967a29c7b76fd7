"""Noise is a pure function of its address, and it is Gaussian."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agzo import rng
from agzo.kernels import reference
from agzo.rng import STREAM, Noise, rows_per_chunk

CPU = torch.device("cpu")


def test_the_key_is_the_hashed_address():
    """Pinned: a change of the mapping is a change of every number, and needs a new `STREAM`."""
    address = "\x1f".join([STREAM, "1", "2", "3", "w", "dense"]).encode()
    digest = hashlib.shake_128(address).digest(8)
    words = tuple(int.from_bytes(digest[i : i + 4], "little") for i in (0, 4))
    assert Noise(seed=1, step=2, query=3).key("w", "dense") == words
    assert STREAM == "2"
    values = Noise(1, 2, 3).tensor((3,), CPU, "w", "dense")
    assert values.equal(reference.normal(words, 0, 3, CPU))


@given(rows=st.integers(1, 300), width=st.integers(1, 40), chunk=st.integers(1, 5000))
@settings(max_examples=40, deadline=None)
def test_blocks_of_rows_put_together_are_the_tensor(rows, width, chunk):
    noise = Noise(0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rng, "CHUNK", chunk)
        blocks = [(start, stop, v) for start, stop, v in noise.rows((rows, width), CPU, "w", "x")]
        assert rows_per_chunk(width) * width <= max(chunk, width)
    assert [start for start, _, _ in blocks] == [0, *(stop for _, stop, _ in blocks[:-1])]
    whole = noise.tensor((rows, width), CPU, "w", "x")
    assert torch.cat([values for _, _, values in blocks]).equal(whole)


@pytest.mark.parametrize(
    "other",
    [
        (Noise(1, 0, 0), "a", "dense"),
        (Noise(0, 1, 0), "a", "dense"),
        (Noise(0, 0, 1), "a", "dense"),
        (Noise(0, 0, 0), "b", "dense"),
        (Noise(0, 0, 0), "a", "left"),
    ],
)
def test_each_part_of_the_address_changes_the_numbers(other):
    here = Noise(0, 0, 0).tensor((1000,), CPU, "a", "dense")
    noise, name, role = other
    there = noise.tensor((1000,), CPU, name, role)
    assert abs(torch.corrcoef(torch.stack([here, there]))[0, 1]) < 5 / 1000**0.5


def moments(z: torch.Tensor) -> None:
    """First four moments within five standard errors."""
    n = z.numel()
    z = z.double().flatten()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5


def test_moments():
    moments(Noise(0, 0).tensor((200_000,), CPU, "w", "dense"))
    moments(Noise(0, 0).table(100, 500, 4, CPU, "w"))


def test_table_is_addressed_by_example_position_and_column():
    noise = Noise(3, 4)
    whole = noise.table(6, 9, 4, CPU, "layer")
    assert whole[:2, :5, :3].equal(noise.table(2, 5, 3, CPU, "layer"))
    assert not whole.equal(noise.table(6, 9, 4, CPU, "other"))
    rows = whole.permute(0, 2, 1).reshape(24, 9)
    assert len({tuple(row.tolist()) for row in rows}) == 24


def test_scalar_parameters_have_noise():
    start, stop, value = next(Noise(0, 0).rows((), CPU, "scale", "dense"))
    assert (start, stop, value.shape) == (0, 1, torch.Size(()))
