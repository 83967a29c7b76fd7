"""What the READMEs show is there and runs as written: commands, examples, links, names of files."""

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from experiments.config.composed import compose

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("agzo", "baselines", "experiments", "conf", "analysis", "notebooks", "tests")
READMES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *(p for r in ROOMS for p in (ROOT / r).rglob("README.md"))]
}
LINES = 150
MODULE = r"-m ((?:agzo|baselines|experiments|analysis)[\w.]*)"
every_readme = pytest.mark.parametrize("name", READMES)


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return what a link may name behind #: headings, as a hub writes them."""
    headings = re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_every_folder_has_a_readme():
    assert {f"{room}/README.md" for room in ROOMS} <= READMES.keys()


@every_readme
def test_a_readme_is_short(name):
    assert len(READMES[name].splitlines()) <= LINES


@every_readme
def test_every_link_leads_somewhere(name):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)]+)\)", prose(READMES[name])):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (folder / path).resolve() if path else ROOT / name
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(found.read_text()), target


@every_readme
def test_every_file_and_folder_named_is_there(name):
    folder = (ROOT / name).parent
    for word in re.findall(r"`([\w./-]+(?:\.(?:py|yaml|ipynb|html|js)|/))`", READMES[name]):
        places = (folder / word, ROOT / word)
        assert any(place.exists() for place in places) or word.startswith("runs/"), word


ELSEWHERE = {"agzo/integrations/README.md"}  # its examples are tests/agzo/test_integrations.py's
EXAMPLES = [
    pytest.param(code, id=name)
    for name in READMES
    if name not in ELSEWHERE
    for code in blocks("python", READMES[name])
]


def test_the_first_page_and_the_library_show_an_example():
    assert {example.id for example in EXAMPLES} >= {"README.md", "agzo/README.md"}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_and_learns(example):
    first = example.replace("range(100)", "range(1)")
    assert first != example
    losses = []
    for code in (first, example):
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(code, {})
        losses.append(float(said.getvalue()))
    assert losses[1] < losses[0]


COMMANDS = [
    pytest.param(line, id=f"{name}: {line[:60]}")
    for name, text in READMES.items()
    for block in blocks("bash", text)
    for line in block.replace("\\\n", " ").splitlines()
    if "experiments.run" in line
]


@pytest.mark.parametrize("line", COMMANDS)
def test_run_commands_compose(line):
    words = shlex.split(line.partition("#")[0])
    given = words[words.index("experiments.run") + 1 :]
    if "--cfg" in given:
        del given[given.index("--cfg") : given.index("--cfg") + 2]
    overrides = [word for word in given if word != "-m" and not word.startswith("hydra")]
    compose([re.sub(r"(=[^,[]*),.*", r"\1", word) for word in overrides])  # of a sweep, the first


@every_readme
def test_every_module_named_exists(name):
    for module in re.findall(MODULE, READMES[name]):
        spec = importlib.util.find_spec(module)
        assert spec, module
        packages = spec.submodule_search_locations or ()
        assert all((Path(folder) / "__main__.py").exists() for folder in packages), module
        if not packages:
            assert "__main__" in Path(str(spec.origin)).read_text(), module


MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = {
    target
    for line in re.findall(r"^([a-z][a-z0-9 -]*):(?!=)", MAKEFILE, flags=re.MULTILINE)
    for target in line.split()
}


@every_readme
def test_every_make_target_named_exists(name):
    commands = [line for block in blocks("bash", READMES[name]) for line in block.splitlines()]
    commands += re.findall(r"`(make [^`]*)`", prose(READMES[name]))
    for line in commands:
        if not line.startswith("make "):
            continue
        for word in shlex.split(line.partition("#")[0])[1:]:
            key, gives, _ = word.partition("=")
            assert (f"$({key}" in MAKEFILE) if gives else (word in TARGETS), line


def test_make_help_lists_every_target_under_a_heading():
    said = subprocess.run(
        ["make", "--no-print-directory", "help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    parts = [part.splitlines() for part in said.stdout.strip().split("\n\n")]
    listed = [line.split()[1] for _, *lines in parts for line in lines]
    assert all(not heading.startswith(" ") and lines for heading, *lines in parts)
    assert sorted(listed) == sorted(TARGETS - {"help"})
