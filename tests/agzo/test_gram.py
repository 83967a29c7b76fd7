"""The product of a power iteration in one pass: equal to two products, whatever the threads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agzo.activations.subspace import subspace_extract
from agzo.kernels import gram as kernels_gram
from agzo.kernels import native
from agzo.kernels.gram import DIRECTIONS, gram_product

needs_kernel = pytest.mark.skipif(native.library is None, reason="needs the compiled kernels")


def problem(tokens: int, width: int, rank: int, masked: bool):
    generator = torch.Generator().manual_seed(tokens * 1000 + width * 10 + rank)
    x = torch.randn(tokens, width, generator=generator)
    q = torch.randn(rank, width, generator=generator)
    keep = torch.rand(tokens, generator=generator) < 0.7 if masked else None
    return x, q, keep


def in_float64(x, q, keep):
    x, q = x.double(), q.double()
    rows = x if keep is None else x[keep]
    return q @ rows.T @ rows


def assert_close(found, x, q, keep):
    wanted = in_float64(x, q, keep)
    error = (found.double() - wanted).norm()
    assert error <= 2e-6 * x.double().norm() ** 2 * q.double().norm()


@needs_kernel
@given(st.integers(0, 700), st.integers(1, 70), st.integers(0, DIRECTIONS), st.booleans())
def test_it_is_two_products(tokens, width, rank, masked):  # 700 tokens: several parts, not whole
    x, q, keep = problem(tokens, width, rank, masked)
    assert_close(gram_product(x, q, keep), x, q, keep)


@needs_kernel
def test_its_bits_do_not_depend_on_the_threads():
    x, q, keep = problem(20_000, 33, 3, masked=True)  # parts larger than the least
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gram_product(x, q, keep))
    finally:
        torch.set_num_threads(before)
    assert_close(found[0], x, q, keep)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_it_is_the_same_without_the_kernel_and_where_the_kernel_is_not_for(monkeypatch):
    x, q, keep = problem(300, 40, DIRECTIONS + 1, masked=True)
    assert_close(gram_product(x, q, keep), x, q, keep)  # more directions than one pass is for
    wide = torch.cat([x, x], dim=1)[:, ::2]  # no rows in one piece
    assert_close(gram_product(wide, q[:2], keep), wide, q[:2], keep)
    monkeypatch.setattr(native, "library", None)
    assert_close(gram_product(x, q[:2], keep), x, q[:2], keep)


@needs_kernel
@pytest.mark.parametrize("masked", [False, True])
def test_bases_span_the_same_with_the_kernel_and_without(monkeypatch, masked):
    x, _, keep = problem(200, 48, 1, masked)
    x[:, :6] *= 5.0
    omega = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    calls = []
    real = kernels_gram.compiled_gram
    monkeypatch.setattr(
        kernels_gram, "compiled_gram", lambda *given: (calls.append(1), real(*given))
    )
    found = subspace_extract(x, omega, 3, keep)
    assert len(calls) == 3  # once an iteration
    monkeypatch.setattr(native, "library", None)
    wanted = subspace_extract(x, omega, 3, keep)
    assert len(calls) == 3
    assert torch.linalg.matrix_norm(found @ found.T - wanted @ wanted.T, 2) < 1e-5


@needs_kernel
def test_what_is_not_finite_is_seen():
    for keep in (None, torch.arange(9) != 4):  # a token that does not count as well, as in products
        x = torch.ones(9, 5)
        x[4, 2] = torch.nan
        assert not gram_product(x, torch.ones(1, 5), keep).isfinite().all()


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(("tokens", "width"), [(1, 5), (3, 40), (300, 96)])
def test_one_direction_in_one_call_is_that_of_separate_products(
    tokens, width, steps, dtype, monkeypatch
):
    draw = torch.Generator().manual_seed(tokens + steps)
    x = torch.randn(tokens, width, generator=draw).to(dtype)
    omega, keep = torch.randn(tokens, 1, generator=draw), torch.arange(tokens) % 3 != 1
    start = torch.randn(width, 1, generator=draw)
    found = []
    for library in (native.library, None):
        monkeypatch.setattr(native, "library", library)
        found.append([subspace_extract(x, omega, steps, mask) for mask in (None, keep)])
        found[-1].append(subspace_extract(x, None, steps, start=start))
    for own, twin in zip(*found, strict=True):
        torch.testing.assert_close(own, twin, rtol=0, atol=2e-6)  # signs as well


@pytest.mark.parametrize("library", [native.library, None])
def test_one_direction_of_nothing_and_of_what_is_not_finite(library, monkeypatch):
    monkeypatch.setattr(native, "library", library)
    axis = torch.eye(6)[:, :1]
    assert subspace_extract(torch.zeros(4, 6), torch.ones(4, 1), 3).equal(axis)
    assert subspace_extract(axis.T * -2, torch.ones(1, 1), 3).equal(axis)
    assert subspace_extract(torch.full((4, 6), torch.nan), torch.ones(4, 1), 3).isnan().all()
