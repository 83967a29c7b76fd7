"""The libraries that draw and sort, as text that stands in the page itself.

Plotly (MIT) draws: SVG, so that style sheets reach it, and hover, zoom and a legend that hides and
shows lines without a line of ours. DataTables (MIT) sorts, filters and pages what is a plain HTML
table, so that the page says the same without it; the Python package itables carries its files.
"""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import itables.options
from plotly.offline import get_plotlyjs

from analysis.reading.load import ResultError

EXPORT = re.compile(r"export\{[^{}]*?([\w$]+) as default[^{}]*\};?")  # of the module, at its end


def plotly() -> str:
    """Return Plotly as a script, which defines `Plotly`."""
    return get_plotlyjs().replace("\r\n", "\n")  # as a browser reads it, for the checksum


def datatables() -> str:
    """Return DataTables as a script, which defines `DataTable`: the module's export, assigned."""
    bundle = Path(itables.options.dt_bundle)
    source = bundle.read_text(encoding="utf-8")
    names = EXPORT.findall(source)
    if len(names) != 1:
        raise ResultError(
            f"{bundle}: {len(names)} default exports; expected one, as in itables 2.9"
        )
    return EXPORT.sub(lambda _: f"window.DataTable={names[0]};", source)


def datatables_style() -> str:
    """Return the style sheet of DataTables."""
    return Path(itables.options.dt_bundle).with_suffix(".css").read_text(encoding="utf-8")


def checksum(script: str) -> str:
    """Return how a content security policy names a script that may run."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode('ascii')}'"
