"""The notebooks run from top to bottom, and are committed with their outputs, small and clean.

After editing a notebook, run it and store its outputs anew:

    .venv/bin/python tests/test_notebooks.py [notebooks/subspace.ipynb ...]
"""

import ast
import copy
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
LARGEST = 250_000  # bytes
SECONDS = 120  # for one cell: far beyond what any takes, so that a slow machine is no failure
PROJECT = {"agzo", "baselines", "experiments", "analysis", "tests"}
ALLOWED = {
    "explore_results": {"analysis"},
    "subspace": PROJECT - {"tests"},
    "your_model": {"agzo", "experiments"},  # the latter for rows to show it on
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
PRIVATE = re.compile(r"/(home|root|work|tmp|Users|usr|opt|mnt|private)/|[A-Z]:\\")


def read(path):
    return nbformat.read(path, as_version=4)


def execute(notebook, cwd):
    """Run all cells in a fresh kernel; the first error ends it with its cell and traceback."""
    clean = copy.deepcopy(notebook)
    client = NotebookClient(clean, timeout=SECONDS, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(cwd))
    clean.metadata = nbformat.from_dict(METADATA)
    return clean


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def imported(notebook):
    """Return the top-level packages that the cells import."""
    found = set()
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return found


def complaints(notebook):
    """List what is not clean in a notebook's stored outputs."""
    found = []
    if notebook.metadata != METADATA:
        found.append(f"metadata {dict(notebook.metadata)}")
    counts = [cell.execution_count for cell in code(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        found.append(f"execution counts {counts}: not run once from top to bottom")
    if not any(cell.outputs for cell in code(notebook)):
        found.append("no outputs")
    for cell in notebook.cells:
        if cell.metadata:
            found.append(f"cell {cell.id}: metadata {dict(cell.metadata)}")
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                found.append(f"cell {cell.id}: {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"cell {cell.id}: stderr {output.text[:200]!r}")
            words = output.get("text", "") + "".join(
                str(text) for kind, text in output.get("data", {}).items() if "image" not in kind
            )
            if match := PRIVATE.search(words):
                found.append(f"cell {cell.id}: a path of some machine, {match.group()}")
    return found


def test_all_are_here():
    assert set(NAMES) == set(ALLOWED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_committed_outputs_are_small_and_clean(path):
    assert path.stat().st_size < LARGEST
    assert complaints(read(path)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_imports_only_what_the_design_allows(path):
    assert imported(read(path)) & PROJECT <= ALLOWED[path.stem]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=[] if path.stem == "explore_results" else pytest.mark.slow
        )
        for path in NOTEBOOKS
    ],
)
def test_runs_in_a_fresh_kernel(path, tmp_path, monkeypatch):
    _own_folders(tmp_path, monkeypatch.setenv)
    try:
        fresh = execute(read(path), cwd=FOLDER)
    except CellExecutionError as error:
        pytest.fail(f"{path.name}: {error}", pytrace=False)
    assert complaints(fresh) == []


@pytest.mark.slow
def test_explore_results_opens_on_the_folder_that_is_named_first(tmp_path, monkeypatch):
    _own_folders(tmp_path, monkeypatch.setenv)
    for named, opened in (
        ("analysis/results/table1-pocket-steps", "pocket-steps"),
        ("no", "local"),
    ):
        notebook = read(FOLDER / "explore_results.ipynb")
        for cell in code(notebook):
            cell.source = cell.source.replace("../runs/mine", str(ROOT / named))
        said = code(execute(notebook, cwd=FOLDER))[0].outputs[0].text
        assert f"These are the results of table1-{opened}" in said
        assert ("There is no suite.json in" in said) == (named == "no")


def test_an_error_names_its_cell(tmp_path, monkeypatch):
    _own_folders(tmp_path, monkeypatch.setenv)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("eps = 0\n1 / eps")])
    with pytest.raises(CellExecutionError, match=r"1 / eps[\s\S]*ZeroDivisionError"):
        execute(notebook, cwd=tmp_path)


def test_what_is_not_clean_is_seen():
    notebook = nbformat.from_dict(copy.deepcopy(read(NOTEBOOKS[0])))
    first, second = code(notebook)[:2]
    first.outputs = [nbformat.v4.new_output("stream", name="stderr", text="/home/me/x: warning")]
    second.outputs = [nbformat.v4.new_output("error", ename="KeyError", evalue="x", traceback=[])]
    second.execution_count = 7
    second.metadata["execution"] = {}
    found = " ".join(complaints(notebook))
    for word in ("stderr", "a path of some machine", "KeyError", "execution counts", "metadata"):
        assert word in found


def _own_folders(folder, set_variable):
    """Keep Jupyter and IPython out of the user's folders, and numbers on one thread."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        set_variable(name, str(folder / name))
    set_variable("OMP_NUM_THREADS", "1")


if __name__ == "__main__":
    for each in [Path(name).resolve() for name in sys.argv[1:]] or NOTEBOOKS:
        os.environ["OMP_NUM_THREADS"] = "1"
        nbformat.write(execute(read(each), cwd=each.parent), each)
        print(each.name, complaints(read(each)) or "clean", f"{each.stat().st_size:,} bytes")
