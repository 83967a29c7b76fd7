"""What a run shows on the screen: one progress line while it works, a short table at its end."""

import shutil
import sys
import time
from typing import Any, TextIO

POCKET_NOTE = "pocket model or data: a sanity check of the code, not evidence about a method"


class Line:
    """A line that is rewritten on a terminal; elsewhere (a file, a notebook) lines that stay."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self._width = 0

    @property
    def rewritten(self) -> bool:
        """Whether the line is rewritten in place."""
        return self.stream.isatty()

    def show(self, text: str) -> None:
        """Put a text in the place of the one before (terminal only)."""
        if self.rewritten:
            text = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line cannot go back
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
            self.stream.flush()

    def keep(self, text: str) -> None:
        """Write a text that stays, where the line was."""
        self.stream.write(("\r" + text.ljust(self._width) if self._width else text) + "\n")
        self._width = 0
        self.stream.flush()

    def close(self) -> None:
        """End the line."""
        if self._width:
            self.stream.write("\n")
            self._width = 0
            self.stream.flush()


class ProgressLine(Line):
    """How a run goes: one line on a terminal; elsewhere a line for each log point."""

    def __init__(self, label: str, steps: int, start: int, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.label, self.steps, self.start = label, steps, start
        self._begin = time.perf_counter()
        self._paused = 0.0  # seconds of evaluation, which are no steps

    def step(self, row: dict[str, Any], dev: dict[str, Any] | None, peak_gib: float) -> None:
        """Show the newest row of metrics.jsonl."""
        done = row["step"] - self.start
        seconds = time.perf_counter() - self._begin - self._paused
        rate = done / seconds if done and seconds > 0 else 0.0
        left = clock((self.steps - row["step"]) / rate) if rate else "?"
        parts = [f"{self.label} step {row['step']}/{self.steps}"]
        if row["loss"] is not None:
            parts.append(f"loss {row['loss']:.4f}")
        if row["projected_grad"] is not None:
            parts.append(f"projected_grad {row['projected_grad']:+.3g}")
        if dev:
            parts.append(f"dev {score(dev)}")
        parts += [f"{rate:.1f} steps/s", f"{row['forwards']} forwards", f"peak {peak_gib:.2f} GiB"]
        text = "  ".join([*parts, f"left {left}"])
        self.show(text) if self.rewritten else self.keep(text)

    def note(self, text: str) -> None:
        """Show what is going on between steps (terminal only)."""
        self.show(f"{self.label} {text}")

    def pause(self, seconds: float) -> None:
        """Leave evaluation out of steps/s and of the time left."""
        self._paused += seconds


def clock(seconds: float) -> str:
    """Format a duration: 42s, 3m05s, 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def score(evaluation: dict[str, Any]) -> str:
    """Format an evaluation: its metric and loss."""
    metric = metric_name(evaluation)
    return f"{metric} {evaluation[metric]:.3f} loss {evaluation['loss']:.4f}"


def metric_name(evaluation: dict[str, Any]) -> str:
    """Return which metric an evaluation holds."""
    return "accuracy" if "accuracy" in evaluation else "f1"


def _shares(shares: dict[str, Any]) -> str:
    """Say how a batch was divided, and what that sent."""
    said = f"{shares['processes']} process(es), {shares['accumulation']} micro-batch(es) each"
    if "basis" in shares:
        said += f", bases of {shares['basis']}"
    sent = shares["reduced_bytes_per_step"]
    return said + (f", {sent:,.0f} bytes summed up a step" if sent else "")


def table(result: dict[str, Any], path: str) -> str:
    """Return the few lines that end a run."""
    best = "untrained" if not result["steps"] else f"step {result['best_step']}"
    lines = {
        "run": f"{result['method']} on {result['task']}, {result['model']['name']}, "
        f"seed {result['seed']}",
        "evaluation": f"{score(result['eval'])}  (n={result['eval']['n']}, {best})",
        "dev": f"{score(result['dev'])}  (n={result['dev']['n']})",
        "forwards": f"{result['forwards']} in {result['steps']} steps, "
        f"{result['train_seconds']:.1f} s training",
        "peak memory": f"{result['peak_memory_gib']:.2f} GiB ({result['peak_memory_kind']})",
        "record": path,
    }
    if result.get("shares"):
        lines["shares"] = _shares(result["shares"])
    if result.get("study"):
        lines["study"] = result["study"]["summary"]
    if any(result["truncated"].values()):
        counts = ", ".join(f"{count} of {name}" for name, count in result["truncated"].items())
        lines["truncated"] = f"prompts cut from the left to fit train.max_length: {counts}"
    if result["pocket"]:
        lines["note"] = POCKET_NOTE
    return "\n".join(f"  {key:<12}{value}" for key, value in lines.items())
