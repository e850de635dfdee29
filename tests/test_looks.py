"""How things look: no label lies over another, tables are printed whole, objects say what they are."""

import keras
import keras_tuner
import numpy as np
import pandas as pd
import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from tfopt import _plots, augment, data, distill, distribute, quantize, report, tune
from tfopt._tables import Frame
from tfopt.tune import _figures, _importance
from tfopt.tune._study import Trial

LONG = ["learning_rate_of_the_head", "activation_of_the_layer", "dropout_rate_of_the_encoder", "number of heads",
        "label_smoothing", "weight_decay_of_the_backbone", "schedule", "augmentation_policy", "units"]


def collisions(figure):
    """Pairs of texts that are drawn one over the other."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = {label for axis in figure.findobj(Axis) for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
              if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
              for label in (tick.label1, tick.label2)}              # of ticks beyond the axis, which are not drawn
    texts = [(text, text.get_window_extent(canvas.get_renderer())) for text in figure.findobj(Text)
             if text.get_visible() and text.get_text().strip() and text not in hidden]
    return [(one.get_text(), other.get_text()) for i, (one, a) in enumerate(texts) for other, b in texts[:i]
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1]


def space_of(names):
    hp = keras_tuner.HyperParameters()
    for name in names:
        hp.Float(name, 1e-3, 1.)
    return hp


def trials(names, count=12):
    draw = np.random.default_rng(0)
    return [Trial(n, {name: float(draw.uniform(1e-3, 1)) for name in names}, "completed",
                  {"val_expected_calibration_error": draw.uniform(), "latency_ms": draw.uniform()},
                  facts={"params": 12345, "latency_ms": .1}, seconds=1.5, message="") for n in range(count)]


def models(count=3):
    names = ["float32 of the long first stage", "pruned by half", "clustered to 16 values"]
    return {name: keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
            for name in names[:count]}


@pytest.mark.parametrize("names", [LONG[:3], LONG], ids=["few", "many"])
@pytest.mark.parametrize("objectives", [{"val_expected_calibration_error": "min"},
                                        {"val_expected_calibration_error": "min", "latency_ms": "min"}], ids=len)
def test_labels_of_a_search_do_not_collide(names, objectives):
    assert not collisions(_figures.draw(trials(names), space_of(names), objectives))


@pytest.mark.slow
def test_labels_of_reports_do_not_collide():
    draw = np.random.default_rng(0)
    images = draw.normal(size=(2, 8, 8, 1))
    assert not collisions(report.explain(models(), images, method="integrated", verbose=0).plot())
    x, y = draw.integers(0, 256, (30, 8, 8, 1)).astype("float32"), draw.integers(0, 3, 30)
    assert not collisions(report.compare(models(), (x, y), runs=1).plot())
    assert not collisions(report.robustness(models(), (x, y), severities=(1, 5), verbose=0).plot())
    assert not collisions(report.classes(models(1)[next(iter(models(1)))], (x, y)).plot())


def test_a_collision_is_found():
    """Negative control."""
    figure, axes = _plots.canvas(3, 2)
    axes[0, 0].text(.5, .5, "one")
    axes[0, 0].text(.5, .5, "other")
    assert collisions(figure) == [("other", "one")]


def tables():
    known = pd.DataFrame({"number of rooms in the building": np.arange(12.), "heating": list("abcdefghijkl"),
                          "price": np.arange(12.)})
    rows = [{"status": trial.status, **trial.scores, **trial.values, **trial.facts} for trial in trials(LONG)]
    model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    model.compile(keras.optimizers.SGD(.1, clipnorm=1.), "mse")
    scores = Frame({f"{name}_{part}": np.arange(3.) / 7 for name in LONG for part in ("loss", "accuracy")})
    return {"search": Frame(rows), "importance": _importance.importance_of(
                trials(LONG), space_of(LONG), {"val_expected_calibration_error": "min", "latency_ms": "min"}),
            "folds": tune.CrossValidation(scores, [], None, np.arange(3)), "distribute": distribute.diagnose(model),
            "table": data.table(known, "price", 4, validation_split=0)[2].frame}


@pytest.mark.parametrize("width", [80, 120])
def test_tables_are_printed_whole(width):
    with pd.option_context("display.width", width):
        for name, table in tables().items():
            frame = table.frame if isinstance(table, tune.CrossValidation) else table
            text = repr(table)
            assert "..." not in text, name
            cells = [cell for cell in [*frame.columns, *frame.to_numpy(object).ravel()] if isinstance(cell, str)]
            assert all(cell in text for cell in cells), name
            if max(map(len, cells)) < width / 2:                     # of a longer text no line can be short
                assert max(map(len, text.splitlines())) <= width, name
        plain = repr(pd.DataFrame(tables()["distribute"]))
    assert "..." in plain                                            # negative control


def test_objects_say_what_they_are(tmp_path):
    student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)], name="small")
    teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)], name="large")
    assert repr(distill.Distiller(teacher, student, distill.Logits(temperature=2.))).startswith(
        "<Distiller large -> small: distill.Logits(temperature=2.0")
    assert repr(distill.Distiller([teacher, student], keras.models.clone_model(student), distill.Logits())).startswith(
        "<Distiller large, small -> small: ")
    assert "a moving average -> small" in repr(distill.Distiller(distill.MovingAverage(), student, distill.Logits()))
    assert repr(tune.Search(lambda hp: student, "val_f1", max_trials=3, directory=tmp_path)).startswith(
        "Search(max val_f1, tpe, 0 of 3 trials completed")
    assert repr(augment.Pipeline([augment.Flip()])).startswith("<augment.Pipeline [Flip(")
    assert repr(quantize.convert(student, "float32")).startswith("<LiteModel float32, ")


def test_a_picture_makes_its_folder(tmp_path):
    figure = Figure()
    _plots.save(figure, tmp_path / "results" / "new" / "picture.png")
    assert (tmp_path / "results" / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="`path` must be a folder, and a file is in its place"):
        _plots.save(figure, tmp_path / "results" / "new" / "picture.png" / "another.png")
