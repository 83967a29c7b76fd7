"""The library as a package: torch alone, types, a version."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import agzo

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ALONE = """
import pkgutil, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in BLOCKED
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(each) for each in sys.meta_path if hasattr(each, "find_spec")]
import torch, agzo, baselines
for package in (agzo, baselines):
    for each in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if each.name not in NAMED and not each.name.startswith("agzo.kernels."):
            __import__(each.name)
"""
FEW_LINES = """
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).eval()
x = torch.randn(64, 8)
closure = lambda: (model(x) - x.sum(1, keepdim=True)).square().mean()
optimizer = agzo.AGZO(model, lr=1e-2, eps=agzo.find_eps(model, closure).eps)
before = optimizer.step(closure)
for _ in range(50):
    loss = optimizer.step(closure)
assert loss < before
print(optimizer.summary())
"""


def test_every_module_of_the_library_works_with_torch_alone():
    named = ("agzo.integrations.transformers",)  # named after the package that it needs
    code = f"BLOCKED = {blocked()!r}\nNAMED = {named!r}\n" + ALONE + FEW_LINES
    assert {"transformers", "numpy", "hydra", "pandas"} <= blocked()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "forwards a step" in done.stdout


def blocked() -> set[str]:
    """The modules of all that is installed, but of torch and what torch asks for."""
    kept, new = {"agzo"}, {"torch"}
    while new:
        kept |= new
        asked = [each for name in new for each in metadata.requires(name) or []]
        names = {plain(each) for each in asked if "extra ==" not in each}
        new = {name for name in names - kept if installed(name)}
    of = metadata.packages_distributions()
    return {m for m, owners in of.items() if not {plain(each) for each in owners} & kept}


def plain(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def test_the_package_asks_for_torch_alone_and_has_types_and_a_version():
    (torch_alone,) = PROJECT["project"]["dependencies"]
    assert torch_alone.startswith("torch>=")
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"experiments", "quant", "browser", "dev", "trainer"} <= extras.keys()
    for package in ("agzo", "baselines"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"][package]
    assert re.fullmatch(r"\d+\.\d+\.\d+", agzo.__version__)
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "agzo.__version__"}


def test_the_lock_has_every_dependency_of_the_experiments():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").lower().replace("_", "-")
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + extras["experiments"] + extras["trainer"]
    names = [re.split(r"[<>=]", each)[0].lower().replace("_", "-") for each in wanted]
    assert [name for name in names if f"\n{name}==" not in f"\n{lock}"] == []
