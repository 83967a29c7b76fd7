"""Noise is a pure function of its address, and it is Gaussian."""

import hashlib
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agzo import rng
from agzo.rng import Noise, rows_per_chunk, stream_version

CPU = torch.device("cpu")


def test_cpu_generator_gets_the_whole_hashed_state():
    """The state written into torch's generator is the Mersenne Twister state it stands for."""
    noise = Noise(seed=1, step=2, query=3)
    generator = noise._generator(CPU, "w", "dense", 0)
    ours = torch.randint(0, 2**31, (700,), generator=generator, dtype=torch.int64)
    key = "\x1f".join([stream_version(CPU), "1", "2", "3", "w", "dense", "0"]).encode()
    words = hashlib.shake_128(key).digest(4 * 624)
    table = [int.from_bytes(words[i : i + 4], "little") for i in range(0, len(words), 4)]
    reference = random.Random()
    # manual_seed leaves one number to draw before the next twist, like position 624 in Python
    reference.setstate((3, (*table, 624), None))
    # torch takes two words for an int64 number; below 2^32 the second one decides
    words_drawn = [reference.getrandbits(32) for _ in range(1400)]
    expected = [word % 2**31 for word in words_drawn[1::2]]
    assert ours.tolist() == expected


def test_a_chunk_alone_equals_its_part_of_the_tensor(monkeypatch):
    monkeypatch.setattr(rng, "CHUNK", 64)
    noise = Noise(5, 7)
    whole = noise.tensor((23, 10), CPU, "w", "dense")
    for chunk in range(noise.chunks((23, 10))):
        start, stop, values = noise.chunk((23, 10), CPU, "w", "dense", chunk)
        assert stop - start <= 6
        assert values.equal(whole[start:stop])


@given(rows=st.integers(1, 300), width=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_chunks_cover_every_row_once(rows, width):
    noise = Noise(0, 0)
    covered = [0] * rows
    for start, stop, values in noise.rows((rows, width), CPU, "w", "dense"):
        assert values.shape == (stop - start, width)
        for row in range(start, stop):
            covered[row] += 1
    assert covered == [1] * rows
    assert rows_per_chunk(width) * width <= rng.CHUNK


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


def test_chunks_of_one_tensor_do_not_repeat(monkeypatch):
    monkeypatch.setattr(rng, "CHUNK", 1000)
    blocks = Noise(0, 0).tensor((50, 1000), CPU, "w", "dense")
    correlation = torch.corrcoef(blocks) - torch.eye(50)
    assert correlation.abs().max() < 6 / 1000**0.5


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


def test_chunk_out_of_range_names_what_is_allowed():
    with pytest.raises(IndexError, match="chunk=3: allowed are 0 to 0"):
        Noise(0, 0).chunk((4, 4), CPU, "w", "dense", 3)
