"""What is measured, and what is found: a case and its row."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One method at one shape, precision and batch of `batch` rows of `length` tokens.

    With a `mix` the rows are as long as its prompts, `length` the longest, see
    `experiments.bench.prompts`.
    """

    shape: str
    dtype: str
    batch: int
    length: int
    method: str
    rank: int | None  # None: the method has no rank
    mix: str | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        """Name it within a benchmark."""
        rank = "" if self.rank is None else f"-r{self.rank}"
        rows = self.mix or f"{self.batch}x{self.length}"
        return f"{self.shape}-{self.dtype}-{rows}-{self.method}{rank}"

    @property
    def place(self) -> tuple[str, str, int, int, str | None]:
        """Return what the methods of one table have in common."""
        return self.shape, self.dtype, self.batch, self.length, self.mix


@dataclass(frozen=True)
class Row(Case):
    """What was found. Times in seconds, memory in GiB; the rest are ratios to two plain forwards.

    What could not be measured (out of memory), or cannot be told apart (the split of textbook
    steps, of backpropagation, and of steps that put updates off or reuse a prefix of the forward),
    is None.
    """

    family: str
    textbook: str | None  # the method that is its yardstick
    target_ratio: float | None  # ratio at most
    target_speedup: float | None  # steps per second at least so many times the textbook's
    status: str = "ok"  # or "out_of_memory"
    message: str = ""
    parameters: int | None = None
    rounds: int = 0
    ratio: float | None = None  # median over rounds of step / two forwards; least and largest:
    ratio_least: float | None = None
    ratio_largest: float | None = None
    steps_per_second: float | None = None
    two_forwards: float | None = None  # seconds, median
    forwards: float | None = None
    basis: float | None = None
    perturb: float | None = None
    update: float | None = None
    peak_gib: float | None = None  # of a step, the weights included
    peak_of_forward: float | None = None  # peak of a step / peak of a plain forward
    profile: dict[str, float] | None = None  # medians, see `experiments.bench.profile`
