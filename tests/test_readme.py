"""What the README shows runs as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config.composed import compose

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_library_example_runs_and_learns():
    (example,) = blocks("python")
    first = example.replace("range(100)", "range(1)")
    losses = [
        float(subprocess.run([sys.executable, "-c", "import torch; torch.manual_seed(0)\n" + code],
                             capture_output=True, text=True, check=True).stdout)
        for code in (first, example)
    ]  # fmt: skip
    assert losses[1] < losses[0]


COMMANDS = [
    line for block in blocks("bash") for line in block.splitlines() if "experiments." in line
]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "experiments.run" in line])
def test_run_commands_compose(line):
    words = shlex.split(line.partition("#")[0])
    given = words[words.index("experiments.run") + 1 :]
    overrides = [word.replace("<root>", "root") for word in given if word != "-m"]
    compose([re.sub(r"(=[^,]*),.*", r"\1", word) for word in overrides])  # of a sweep, the first


def test_every_make_target_named_exists():
    makefile = (Path(__file__).resolve().parents[1] / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z0-9-]+)", README)) <= targets
