r"""A table as LaTeX: a plain `tabular` in a `table`, without any package.

Everything that TeX would read as a command is escaped, `**cell**` becomes \textbf, and the signs
beyond ASCII that the tables use become commands; other letters stay, as TeX reads UTF-8.
"""

import re
from collections.abc import Sequence

from analysis.tables.tabular import Table

COMMANDS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "†": r"$\dagger$", "√": r"$\surd$",
}  # fmt: skip


def latex(table: Table) -> str:
    """Write the table as a LaTeX float, notes in small type under it."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\hline",
        _line(table.header),
        r"\hline",
        *(_line(row) for row in table.rows),
        r"\hline",
        r"\end{tabular}",
    ]
    if table.notes:
        lines += ["", r"\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += ["\n\n".join(escape(note) for note in table.notes), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escape(text: str) -> str:
    """Escape a piece of text for LaTeX; what cannot be printed becomes a space."""
    return "".join(COMMANDS.get(sign, sign if sign.isprintable() else " ") for sign in text)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(_cell(cell) for cell in cells) + r" \\"


def _cell(cell: str) -> str:
    bold = re.fullmatch(r"\*\*(.*)\*\*", cell)
    return rf"\textbf{{{escape(bold[1])}}}" if bold else escape(cell)
