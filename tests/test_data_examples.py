"""The examples of image folders and tables run, and say what data they saw."""

import numpy as np
import pytest
from test_examples import example


@pytest.mark.slow
def test_image_folder(tmp_path, capsys):
    table = example("image_folder").main(quick=True, save=tmp_path)
    assert table.frame["accuracy"].min() > 0.6
    printed = capsys.readouterr().out
    assert "patches of scikit-learn's two photographs" in printed
    assert "0 of 390 images are bad." in printed
    for name in ("curves", "with", "without"):
        assert (tmp_path / f"image_folder_{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_csv_table(tmp_path, capsys):
    accuracies = example("csv_table").main(quick=True, save=tmp_path)
    assert min(accuracies.values()) > 0.85
    assert np.isfinite(list(accuracies.values())).all()
    assert "of 114 test rows right" in capsys.readouterr().out
    assert (tmp_path / "csv_table_curves.png").stat().st_size > 10_000
    assert (tmp_path / "cancer with holes.keras").exists()
