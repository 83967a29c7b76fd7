"""Normal numbers from a counter: the readable reference of `normal.cpp` and `cuda.py`.

Element e of a tensor with a 64-bit key is a function of (key, row, column, e) alone:

    e = 64 b + 16 k + l              block b, word k of 4, lane l of 16
    x_0 .. x_3 = Philox-4x32-7(counter = (16 b + l, row, column), key)     (Salmon et al. 2011)
    z_0, z_1 = sqrt(-2 ln u) (cos, sin)(2 pi v),   u = (x_0 + 1/2) / 2^32,  v = x_1 / 2^32
    z_2, z_3 the same of x_2, x_3;   the element is z_k

Seven rounds are the fewest that pass BigCrush. ln, cos and sin are polynomials (those of Cephes),
made of single float32 additions and multiplications, each rounded. So every device, compiler and
vector width that keeps IEEE arithmetic gives the same bits, and a run may go on elsewhere.

|z| is at most 6.8. Memory here: about ten int64 tensors of the number of elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 16
BLOCK = 4 * LANES
ROUNDS = 7

_MASK = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROOT_HALF = 0x3F3504F3  # bits of sqrt(1/2)
_TURN = 1.4629180792671596e-9  # 2 pi 2^-32
_LOG = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def normal(
    key: tuple[int, int],
    start: int,
    count: int,
    device: torch.device,
    row: int = 0,
    column: int = 0,
) -> Tensor:
    """Return elements start .. start + count - 1 of a key's stream, float32 (count,)."""
    x = philox(key, start, count, device, row, column)
    return _elements([*pair(x[0], x[1]), *pair(x[2], x[3])], start, count)


def sixteen_bits(key: tuple[int, int], start: int, count: int, device: torch.device) -> Tensor:
    """Return the upper halves of the words of elements start .. start + count - 1, int32."""
    x = philox(key, start, count, device)
    return _elements([word >> 16 for word in x], start, count).int()


def philox(
    key: tuple[int, int],
    start: int,
    count: int,
    device: torch.device,
    row: int = 0,
    column: int = 0,
) -> list[Tensor]:
    """Return x_0 .. x_3 of the lanes of every block that the elements lie in, int64 (lanes,)."""
    first, last = start // BLOCK, (start + count - 1) // BLOCK
    counter = torch.arange(first * LANES, (last + 1) * LANES, dtype=torch.int64, device=device)
    return _words(key, counter, row, column)


def sixteen_bits_at(key: tuple[int, int], elements: Tensor) -> Tensor:
    """Return the upper halves of the words of these elements, int64 of any shape, as int32."""
    place = elements % BLOCK
    x = torch.stack(_words(key, elements // BLOCK * LANES + place % LANES))
    return (x.gather(0, (place // LANES)[None])[0] >> 16).int()


def sign_rows(key: tuple[int, int], rows: Tensor, width: int) -> Tensor:
    """Return these rows of a tensor of signs, (n, width) float32: the host waits for nothing."""
    element = rows[:, None] * width  # the first of each row
    count = width // 16 + 2  # of the words that a row can lie in
    words = torch.arange(count, dtype=torch.int64, device=rows.device)
    sixteen = sixteen_bits_at(key, element // 16 + words)  # (n, words)
    place = element % 16 + torch.arange(width, dtype=torch.int64, device=rows.device)
    return _as_signs(sixteen.gather(1, place // 16) >> (place % 16).int())


def signs(sixteen: Tensor, first: int, count: int) -> Tensor:
    """Return the signs first .. first + count - 1 of words' sixteen bits, int32 (n,): (count,).

    Sign e of a stream is bit e % 16 of the sixteen of its element e // 16.
    """
    each = sixteen[:, None] >> torch.arange(16, dtype=torch.int32, device=sixteen.device)
    return _as_signs(each).view(-1)[first:][:count]


def _as_signs(words: Tensor) -> Tensor:
    """Return -1 where the last bit is set and 1 where it is not, float32; overwrites the words."""
    return words.bitwise_and_(1).mul_(-2).add_(1).float()


def _words(key: tuple[int, int], counter: Tensor, row: int = 0, column: int = 0) -> list[Tensor]:
    c0, c1 = counter & _MASK, counter >> 32
    c2, c3 = torch.full_like(counter, row), torch.full_like(counter, column)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]  # 64 bits; that the sign wraps is no matter
        c0, c1 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK
        c2, c3 = (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = k0 + _WEYL[0] & _MASK, k1 + _WEYL[1] & _MASK
    return [c0, c1, c2, c3]


def pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two independent normal numbers (float32) from two 32-bit words held in int64."""
    u = (a.float() + 0.5) * 2.0**-32
    i = u.view(torch.int32) - _ROOT_HALF  # u = m 2^e with m in [sqrt(1/2), sqrt(2))
    e = (i >> 23).float()
    x = ((i & 0x7FFFFF) + _ROOT_HALF).view(torch.float32) - 1.0
    xx = x * x
    y = _polynomial(_LOG, x) * x * xx - xx * 0.5
    squared = ((x + y) + e * 0.6931471805599453) * -2.0
    radius = squared.double().sqrt().float()  # torch's own sqrt of float32 is not always rounded
    quarter = (b + (1 << 29) & _MASK) >> 30
    t = (b - (quarter << 30)).int().float() * _TURN  # in [-pi/4, pi/4]
    tt = t * t
    s = _polynomial(_SIN, tt) * tt * t + t
    c = _polynomial(_COS, tt) * tt * tt - tt * 0.5 + 1.0
    odd = (quarter & 1).bool()
    cos = torch.where(odd, s, c) * (1 - (quarter + 1 & 2))
    sin = torch.where(odd, c, s) * (1 - (quarter & 2))
    return radius * cos, radius * sin


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    y = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        y = y * x + coefficient
    return y


def _elements(by_word: list[Tensor], start: int, count: int) -> Tensor:
    """Put each lane's four values in the order of the elements, and cut out those asked for."""
    blocks = torch.stack(by_word).view(4, -1, LANES).transpose(0, 1).reshape(-1)
    return blocks[start % BLOCK : start % BLOCK + count]
