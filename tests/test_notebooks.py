"""The notebooks run from the first cell to the last, and are kept without what they printed."""

import pathlib

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_they_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["compress", "robustness", "search", "train_better"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    assert all(len(line) <= 120 for cell in book.cells for line in cell.source.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=900, kernel_name="python3",
                            resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    kinds = {kind for output in shown for kind in output.get("data", ())}
    assert {"text/html", "image/png"} <= kinds, "a table and a picture"
    assert not [output for output in shown if output.output_type == "error"]
    drawn = [cell for cell in book.cells if ".plot(" in cell.source.splitlines()[-1]]
    assert drawn
    assert all(sum("image/png" in output.get("data", ()) for output in cell.outputs) == 1 for cell in drawn), "once"
