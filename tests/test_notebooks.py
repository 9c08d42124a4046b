"""A notebook is two files with the same cells: .py to read and review, .ipynb with outputs, paired by jupytext."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
QUICK = ("03_topology_ablation",)  # seconds, without sentences
STUB = "Image = Markdown = lambda *given, **options: given; display = print"  # for IPython.display, which tests lack


def cells(path):
    """(is it words, its lines) of a notebook in percent form."""
    for part in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        mark, _, text = part.partition("\n")
        words = "markdown" in mark
        yield words, (re.sub(r"^# ?", "", text, flags=re.MULTILINE) if words else text).strip("\n")


@every_notebook
def test_both_files_of_a_notebook_hold_the_same_cells(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    found = [(cell["cell_type"] == "markdown", "".join(cell["source"])) for cell in notebook["cells"]]
    assert found == list(cells(path))


@every_notebook
def test_a_notebook_was_run_and_shows_no_error_and_no_path(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [each for cell in code for each in cell["outputs"] if each["output_type"] == "error"]
    assert tempfile.gettempdir() not in json.dumps(code)


def executed(path, scratch, changed=lambda code: code):
    """Runs a notebook from top to bottom, as a script; checks that it left nothing behind where it was started."""
    code = "\n".join(text for words, text in cells(path) if not words)
    code = changed(re.sub(r"^from IPython.display import .*$", STUB, code, flags=re.MULTILINE))
    done = subprocess.run([sys.executable, "-c", code], cwd=scratch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(scratch.iterdir())
    return done.stdout


def shortened(code):
    """A few rounds of one seed."""
    few = r"\g<0>\nROUNDS, SEEDS = type(ROUNDS)(4), SEEDS[:1]"
    shorter, found = re.subn(r"^ROUNDS, SEEDS = .*$", few, code, flags=re.MULTILINE)
    assert found == 1
    return shorter


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem in QUICK], ids=lambda path: path.stem)
def test_a_notebook_runs_with_few_rounds_and_names_the_device(path, tmp_path):
    said = executed(path, tmp_path, shortened)
    assert re.search(rf"^\d+ x {re.escape(jax.devices()[0].device_kind)}, jax ", said, flags=re.MULTILINE)


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs(path, tmp_path):
    executed(path, tmp_path)
