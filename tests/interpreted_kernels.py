"""Compares the Triton kernels with the reference, by Triton's interpreter on the CPU.

TRITON_INTERPRET=1 python tests/interpreted_kernels.py: a program of its own because the interpreter
is chosen when the kernels are imported. With a GPU, and without the variable, it compares what is
compiled.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from agzo.kernels import cuda, reference
from agzo.kernels.rounding import round_stochastically

KEY, OTHER = (1, 4_000_000_000), (5, 6)
INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def z(start: int, count: int) -> torch.Tensor:
    """Return the reference's numbers."""
    return reference.normal(KEY, start, count, DEVICE)


def equal(what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Stop unless both are the same bits."""
    assert found.dtype == expected.dtype, what
    assert torch.equal(found, expected), f"{what}: {(found - expected).abs().max()}"


def main() -> None:
    """Compare them all."""
    scale, keep = torch.tensor(1e-2, device=DEVICE), torch.tensor(0.9, device=DEVICE)
    for start, count in ((0, 64), (3, 200), (2**33 + 17, 3000), (5, 1), (1, 128)):
        out = torch.empty(count, device=DEVICE)
        cuda.normal(out, KEY, start, None, 1.0, 1.0)
        equal(f"normal {start} {count}", out, z(start, count))
    base = torch.linspace(-1, 1, 1000, device=DEVICE)
    moved = base.clone()
    cuda.normal(moved, KEY, 7, moved, keep, scale)
    equal("in place", moved, base * keep + z(7, 1000) * scale)
    rows = torch.tensor([3, 0, 3, 9], device=DEVICE)
    out, table = torch.empty(4, 70, device=DEVICE), base[:700].view(10, 70)
    cuda.normal_rows(out, KEY, rows, table, 0.1)
    equal("rows", out, (table + z(0, 700).view(10, 70) * 0.1)[rows])
    out = torch.empty(3, 2, 70, device=DEVICE)
    cuda.normal_table(out, KEY)
    for example in range(3):
        for column in range(2):
            expected = reference.normal(KEY, 0, 70, DEVICE, example, column)
            equal("table", out[example, column], expected)
    bits = torch.empty(3500, dtype=torch.int32, device=DEVICE)
    cuda.sixteen_bits(bits, OTHER, 9)
    equal("bits", bits, reference.sixteen_bits(OTHER, 9, 3500, DEVICE))
    cuda.sixteen_bits(bits, OTHER, 0)
    left = z(0, 100).view(50, 2)
    right = z(100, 140).view(2, 70).T
    change = (left[:, :1] * scale) * right[:, 0] + (left[:, 1:] * scale) * right[:, 1]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = z(500, 3500).view(50, 70).to(dtype)
        sums = {
            "dense": weight.float() * keep + z(0, 3500).view(50, 70) * scale,
            "low rank": weight.float() * keep + change,
        }
        for stochastic in (None,) if dtype == torch.float32 else (None, OTHER):
            if INTERPRETED and dtype == torch.bfloat16 and stochastic is None:
                continue  # the interpreter cuts bfloat16 off instead of rounding
            dense, low = weight.clone(), weight.clone()
            cuda.normal(dense, KEY, 0, dense, keep, scale, stochastic)
            cuda.add_low_rank(low, left, right, keep, scale, stochastic)
            for name, found in (("dense", dense), ("low rank", low)):
                expected = sums[name].to(dtype)
                if stochastic is not None:
                    shaped = bits.view(50, 70)
                    expected = round_stochastically(sums[name], shaped, dtype)
                equal(f"{name} {dtype} {stochastic}", found, expected)
    print("all equal")


if __name__ == "__main__":
    main()
