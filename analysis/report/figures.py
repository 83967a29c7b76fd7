"""The images beside the results that have a caption: each `name.png` with its `name.txt`."""

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """An image as text that stands in the page itself, and its caption."""

    name: str
    source: str
    caption: str


def find_figures(root: Path) -> list[Picture]:
    """Read the images below a folder; one without a caption is none of ours."""
    pictures = []
    for image in sorted(root.rglob("*.png")):
        words = image.with_suffix(".txt")
        if words.is_file():
            source = f"data:image/png;base64,{b64encode(image.read_bytes()).decode('ascii')}"
            name = image.relative_to(root).with_suffix("").as_posix()
            pictures.append(Picture(name, source, words.read_text(encoding="utf-8")))
    return pictures
