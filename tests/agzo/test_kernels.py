"""The kernels: one formula, the same bits from each implementation, and normal numbers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agzo import kernels
from agzo.directions.low_rank import LowRank
from agzo.kernels import native, reference, thin
from agzo.kernels.orthonormal import cholesky_qr

CPU = torch.device("cpu")
KEY = (0x9E3779B9, 0xFFFFFFFE)
compiled = pytest.mark.skipif(
    native.library is None, reason="the compiled kernel is not built: no C++ compiler at install"
)
words = st.integers(0, 2**32 - 1)


@pytest.fixture
def plain(monkeypatch):
    """Without the compiled kernel."""
    monkeypatch.setattr(native, "library", None)


def z(start: int, count: int, key: tuple[int, int] = KEY) -> torch.Tensor:
    return reference.normal(key, start, count, CPU)


# --- the formula


def test_philox_gives_the_published_numbers():
    """The known answers of Random123 (Salmon et al. 2011) for philox4x32 with 7 rounds."""
    zeros = [int(word[0]) for word in reference.philox((0, 0), 0, 1, CPU)]
    assert zeros == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


def exact_pair(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Box-Muller in float64, from the float32 u that the formula takes."""
    u = ((a.float() + 0.5) * 2.0**-32).double()
    radius, angle = torch.sqrt(-2.0 * torch.log(u)), b.double() * (2 * torch.pi / 2**32)
    return radius, radius * angle.cos(), radius * angle.sin()


@pytest.mark.parametrize("bound", [0, 1, 2**31, 2**32 - 1])
def test_box_muller_at_the_ends_of_its_words(bound):
    ends = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    other = torch.full_like(ends, bound)
    for a, b in ((ends, other), (other, ends)):
        _, *exact = exact_pair(a, b)
        for found, expected in zip(reference.pair(a, b), exact, strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
            assert found.abs().max() < 6.8


def test_box_muller_is_precise():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(2**32, (2, 1_000_000), generator=generator)
    radius, *exact = exact_pair(a, b)
    for found, expected in zip(reference.pair(a, b), exact, strict=True):
        assert ((found.double() - expected).abs() <= 4e-7 * radius).all()


@given(st.integers(0, 2**40), st.integers(1, 300), st.integers(0, 200), words, words)
@settings(max_examples=50, deadline=None)
def test_a_part_alone_is_the_part_of_the_whole(start, count, skip, k0, k1):
    whole = z(start, skip + count, (k0, k1))
    assert whole[skip:].equal(z(start + skip, count, (k0, k1)))


# --- the compiled twin


@compiled
@given(st.integers(0, 2**40), st.integers(1, 700), words, words, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_compiled_numbers_are_the_references_bit_for_bit(start, count, k0, k1, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = kernels.normal_(torch.empty(count), (k0, k1), start)
        assert out.equal(z(start, count, (k0, k1)))
        base = torch.linspace(-1, 1, count)
        moved = kernels.normal_(base.clone(), (k0, k1), start, base, 0.9, 1e-3)
        assert moved.equal(base * 0.9 + z(start, count, (k0, k1)) * 1e-3)
        bits = kernels.sixteen_bits((k0, k1), start, torch.Size((count,)), CPU)
        assert bits.equal(reference.sixteen_bits((k0, k1), start, count, CPU))
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow  # compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler is here")
def test_the_code_for_no_processor_in_particular_makes_the_same_bits(tmp_path, monkeypatch):
    """Elsewhere the kernel has chosen what this processor is fastest with."""
    source, built = Path(native.__file__).parent, tmp_path / "native_normal.so"
    sources = [str(source / f"{name}.cpp") for name in ("branch", "gram", "normal", "thin")]
    flags = ["-O1", "-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-U__linux__"]
    subprocess.run(["g++", *flags, *sources, "-o", str(built)], check=True)
    monkeypatch.setattr(native, "library", native.load(built))
    assert kernels.normal_(torch.empty(1000), KEY, 3).equal(z(3, 1000))
    bits = kernels.sixteen_bits(KEY, 5, torch.Size((1000,)), CPU)
    assert bits.equal(reference.sixteen_bits(KEY, 5, 1000, CPU))
    signs = kernels.normal_(torch.empty(5000), KEY, 7, signs=True)
    assert signs.equal(reference.signs(reference.sixteen_bits(KEY, 0, 400, CPU), 7, 5000))


@compiled
def test_a_million_compiled_numbers_are_the_references():
    count = 1 << 20
    assert kernels.normal_(torch.empty(count), KEY, 5).equal(z(5, count))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stochastic", [None, (1, 2)])
def test_every_dtype_is_computed_alike_with_and_without_the_compiled_kernel(
    dtype, stochastic, monkeypatch
):
    if stochastic and dtype.itemsize > 2:
        pytest.skip("only half precision is rounded stochastically")
    weight = torch.randn(30, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows = torch.tensor([3, 0, 29, 3])

    def all_ways():
        return (
            kernels.normal_(weight.clone(), KEY, 7, weight, 0.99, torch.tensor(0.01), stochastic),
            kernels.normal_rows(KEY, rows, 70, weight, 0.01),
            kernels.normal_rows(KEY, rows, 70),
            kernels.normal_table(KEY, 3, 5, 2, CPU),
        )

    fast = all_ways()
    monkeypatch.setattr(native, "library", None)
    for one, other in zip(fast, all_ways(), strict=True):
        assert one.dtype == other.dtype
        assert one.equal(other)
    exact = weight.double() * 0.99 + z(7, 2100).view(30, 70).double() * 0.01
    step = {torch.bfloat16: 2**-7, torch.float16: 2**-10}.get(dtype, 1e-6)
    assert ((fast[0].double() - exact).abs() <= step * exact.abs() + 1e-7).all()


@compiled
@pytest.mark.parametrize("stochastic", [None, (1, 2)])
def test_a_bfloat16_weight_is_changed_in_place_whatever_it_holds(stochastic, monkeypatch):
    special = torch.tensor([0.0, -0.0, 1e-39, 3e38, -3e38, torch.inf, -torch.inf, torch.nan])
    weight = special.repeat(23)[:180].bfloat16()
    found = []
    for library in (native.library, None):
        monkeypatch.setattr(native, "library", library)
        found.append(kernels.normal_(w := weight.clone(), KEY, 61, w, 1.5, 1e37, stochastic))
    assert found[0].isnan().equal(found[1].isnan())
    assert found[0].nan_to_num(1.0).equal(found[1].nan_to_num(1.0))


@compiled
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 90), words)
def test_a_thin_product_is_added_to_bfloat16_with_one_rounding(rank, height, width, seed):
    draw = torch.Generator().manual_seed(seed)
    left, right, y = (
        torch.randn(shape, generator=draw)
        for shape in ((rank, height), (rank, width), (height, width))
    )
    y = y.bfloat16()
    exact = y.double() * 0.75 + (left.double().T @ right.double()) * -0.5
    native.add_thin_bfloat16(y, left, right, 0.75, -0.5)
    spacing = 2.0 ** (exact.abs().clamp(min=2.0**-100).log2().floor() - 7)
    assert ((y.double() - exact).abs() <= 0.5 * spacing + 1e-6).all()


@compiled
@pytest.mark.parametrize("rounding", [None, (1, 2)])
@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_a_low_rank_update_of_bfloat16_is_that_without_the_compiled_kernel(
    rank, rounding, monkeypatch
):
    draw = torch.Generator().manual_seed(rank)
    left, right, weight = (
        torch.randn(shape, generator=draw) for shape in ((70, rank), (33, rank), (70, 33))
    )
    found = []
    for library in (native.library, None):
        monkeypatch.setattr(native, "library", library)
        moved = weight.bfloat16()
        LowRank(left, right).add_to(moved, torch.tensor(0.99), torch.tensor(-0.01), rounding)
        found.append(moved.float())
    spacing = 2.0**-7 * found[1].abs()
    assert ((found[0] - found[1]).abs() <= (spacing if rank > 1 else 0.0 * spacing)).all()
    assert (found[0] != found[1]).double().mean() < 0.01


@pytest.mark.usefixtures("plain")
def test_without_a_compiler_the_reference_answers():
    assert kernels.kind(CPU) == "torch"
    assert kernels.normal_(torch.empty(100), KEY, 3).equal(z(3, 100))


def test_rows_are_those_of_the_tensor():
    whole = kernels.normal_(torch.empty(20, 33), KEY)
    rows = torch.tensor([[4, 19], [0, 4]]).view(-1)
    assert kernels.normal_rows(KEY, rows, 33).equal(whole[rows])


@pytest.mark.parametrize("width", [1, 15, 16, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rows_of_signs_are_those_of_the_tensor_and_the_host_waits_for_none(
    width, dtype, monkeypatch
):
    base, rows = torch.randn(40, width, dtype=dtype), torch.tensor([39, 0, 7, 7])
    whole = kernels.normal_(torch.empty_like(base), (3, 4), 0, base, scale=0.3, signs=True)
    alone = kernels.normal_(torch.empty(40, width), (3, 4), signs=True)
    monkeypatch.setattr(native, "library", None)  # as on CUDA
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    assert kernels.normal_rows((3, 4), rows, width, base, 0.3, True).equal(whole[rows])
    assert kernels.normal_rows((3, 4), rows, width, signs=True).equal(alone[rows])


def test_the_meta_device_has_shapes_alone():
    meta = torch.device("meta")
    assert kernels.normal_(torch.empty(3, 4, device=meta), KEY).shape == (3, 4)
    assert kernels.normal_table(KEY, 2, 5, 3, meta).shape == (2, 5, 3)
    assert kernels.normal_rows(KEY, torch.empty(6, dtype=torch.int64, device=meta), 4).is_meta
    assert kernels.sixteen_bits(KEY, 0, torch.Size((4,)), meta).is_meta


# --- are they normal and independent?  Each bound is five standard errors or more: about 1e-6.


@pytest.fixture(scope="module")
def sample() -> torch.Tensor:
    return kernels.normal_(torch.empty(1 << 22), KEY).double()


def test_moments(sample):
    n = sample.numel()
    for power, mean, variance in (
        (1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)
    ):  # fmt: skip
        assert abs((sample**power).mean() - mean) < 5 * (variance / n) ** 0.5, power


def test_distribution(sample):
    """Kolmogorov and Smirnov's distance, and the number of values in each tail."""
    n = sample.numel()
    uniform = torch.special.ndtr(sample.sort().values)
    steps = torch.arange(n, dtype=torch.float64) / n
    distance = torch.maximum((uniform - steps).abs(), (uniform - steps - 1 / n).abs()).max()
    assert distance < 2.7 / n**0.5  # probability 2 exp(-2 * 2.7^2) = 1e-6
    for bound in (1.0, 2.0, 3.0, 4.0):
        share = 2 * torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64))
        error = (share * (1 - share) / n) ** 0.5
        assert abs((sample.abs() > bound).double().mean() - share) < 5 * error, bound


def test_no_correlation_at_any_short_lag_nor_of_the_squares(sample):
    """Neighbours, the four words of a counter (16 apart), blocks (64), rows of usual widths."""
    square = sample.square() - 1
    n = sample.numel()
    for lag in (*range(1, 70), 96, 128, 512, 1024, 4096):
        assert abs((sample[lag:] * sample[:-lag]).mean()) < 5.5 / n**0.5, lag
        assert abs((square[lag:] * square[:-lag]).mean()) < 5.5 * 2 / n**0.5, lag


def test_keys_that_differ_in_one_bit_give_unrelated_numbers():
    n = 1 << 16
    here = kernels.normal_(torch.empty(n), KEY).double()
    for bit in range(64):
        key = (KEY[0] ^ (1 << bit if bit < 32 else 0), KEY[1] ^ (1 << bit - 32 if bit >= 32 else 0))
        there = kernels.normal_(torch.empty(n), key).double()
        assert abs((here * there).mean()) < 5.5 / n**0.5
        assert abs(((here**2 - 1) * (there**2 - 1)).mean()) < 5.5 * 2 / n**0.5


def test_numbers_do_not_come_back(sample):
    """Pairs of neighbours are 64 bits each: in a million none is there twice."""
    pairs = sample[: 1 << 21].float().view(torch.int32).view(-1, 2).long()
    codes = (pairs[:, 0] << 32) ^ (pairs[:, 1] & 0xFFFFFFFF)
    assert codes.unique().numel() == codes.numel()


# --- orthonormal columns


@given(st.integers(1, 16), st.integers(0, 60), st.integers(0, 6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_cholesky_qr_spans_what_qr_does(rank, more, digits, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(rank + more, rank, generator=generator)
    y = (y * 10.0 ** -torch.linspace(0, digits, rank)) @ torch.linalg.qr(
        torch.randn(rank, rank, generator=generator)
    ).Q
    q, exact = cholesky_qr(y).double(), torch.linalg.qr(y.double()).Q
    torch.testing.assert_close(q.T @ q, torch.eye(rank).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(q @ q.T, exact @ exact.T, rtol=0, atol=1e-5)


def test_cholesky_qr_of_dependent_columns_is_finite():
    y = torch.randn(50, 4)
    y[:, 2], y[:, 3] = y[:, 0], 0.0
    assert cholesky_qr(y).isfinite().all()
    assert cholesky_qr(torch.full((5, 2), torch.nan)).isnan().any()


# --- Triton's code, run by its interpreter on the CPU; on a GPU see test_gpu.py

INTERPRETED = Path(__file__).parents[1] / "interpreted_kernels.py"


def test_triton_kernels_equal_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(INTERPRETED)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all equal" in done.stdout


# --- thin products


@compiled
@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, thin.PASSES), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_thin_product_in_one_pass_has_the_bits_of_a_pass_for_each_row(m, n, rank, threads):
    generator = torch.Generator().manual_seed(m * n)
    y, left, right = (
        torch.randn(*shape, generator=generator) for shape in ((m, n), (rank, m), (rank, n))
    )
    wanted, found, before = y.clone(), y.clone(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "library", None)
        thin.add_product(wanted, left, right)
    torch.set_num_threads(threads)
    thin.add_product(found, left, right)
    torch.set_num_threads(before)
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # addcmul_ is fused there
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, y + left.T @ right)


@compiled
@given(st.integers(1, 20), st.integers(1, 90), st.integers(1, 70), st.integers(1, 4), words)
@settings(max_examples=25, deadline=None)
def test_a_branch_in_one_pass_is_the_sum_of_its_products(tokens, width, height, rank, seed):
    draw = torch.Generator().manual_seed(seed)
    y, x, right, left = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((tokens, height), (tokens, width), (rank, width), (rank, height))
    )
    factors, both = (right.float(), left.float()), torch.get_num_threads()
    for dtype, digits in ((torch.float32, 2e-6), (torch.bfloat16, 2.0**-8)):
        low, of = y.to(dtype), x.to(dtype)
        change = 0.3 * (of.double() @ factors[0].double().T) @ factors[1].double()
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(low.clone())
            thin.add_branch(found[-1], of, *factors, 0.3)
        torch.set_num_threads(both)
        wanted, scale = low.double() + change, width * rank * (1 + change.abs().max())
        assert found[0].equal(found[1])
        error = (found[0].double() - wanted).abs()
        assert (error <= digits * wanted.abs() + 1e-6 * scale).all()


def test_a_thin_product_goes_to_tensors_of_any_layout_and_dtype():
    left, right = torch.randn(2, 5), torch.randn(2, 7)
    for y in (torch.randn(7, 5).T, torch.randn(5, 7).double(), torch.randn(5, 14)[:, ::2]):
        wanted = y + (left.T @ right).to(y.dtype)
        thin.add_product(y, left.to(y.dtype), right.to(y.dtype))
        torch.testing.assert_close(y, wanted)
