"""The trajectory of a zeroth-order run: of each step the numbers it cannot be made again without.

    trajectory.jsonl   {"format": 1, "stream_version": "2", "dtype": "float32", "layer": null}
                       {"step": 1, "seed": 0, "projected_grad": [-0.25], "lr": [0.001]}
                       ...

One projected_grad for each query, one lr for each parameter group; about 80 bytes a step. With the
start weights this is the whole run of a method whose directions need no data (see replay.py).

The file is only appended to, and flushed before a checkpoint is written, so it reaches at least as
far as every checkpoint. A kill may tear its last line: what follows the last whole line is no part
of it, and a run that goes on cuts the file at the step of its checkpoint.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TRAJECTORY = "trajectory.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Head:
    """What all steps share: noise stream, dtype of projected_grad, the layer a scan chose."""

    stream_version: str
    dtype: str
    layer: int | None = None
    format: int = FORMAT


@dataclass(frozen=True)
class Step:
    """One step, counted from 1."""

    step: int
    seed: int
    projected_grad: list[float]
    lr: list[float]


class Trajectory:
    """The file of a run that is at `step`; what it held of later steps is cut off."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / TRAJECTORY
        self._empty = True
        if step == 0:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            _, steps, ends = read(self.path)
            kept = [end for each, end in zip(steps, ends[1:], strict=True) if each.step <= step]
            end = (ends[:1] + kept)[-1] if ends else 0
            os.truncate(self.path, end)
            self._empty = end == 0

    def append(self, head: Head, steps: Sequence[Step]) -> None:
        """Append steps and flush them to disk."""
        lines = [*([asdict(head)] if self._empty else []), *map(asdict, steps)]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        self._empty = False


def read(path: Path) -> tuple[Head | None, list[Step], list[int]]:
    """Read the head, the steps up to the first line that is not whole, and where each line ends.

    The head is None, and all is empty, where not even the first line is whole.
    """
    lines: list[Any] = []
    ends: list[int] = []
    at = 0
    for line in path.read_bytes().splitlines(keepends=True):
        at += len(line)
        try:
            if not line.endswith(b"\n"):
                break
            made = json.loads(line)
            lines.append(Step(**made) if lines else Head(**made))
        except (ValueError, TypeError):
            break
        ends.append(at)
    return (lines[0], lines[1:], ends) if lines else (None, [], [])
