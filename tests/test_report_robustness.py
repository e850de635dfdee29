"""Corruptions against NumPy, SciPy and Pillow; accuracies against models whose behavior is known in closed form."""

import io
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from PIL import Image
from programs import Stateful
from scipy import ndimage

from tfopt import quantize, report
from tfopt._keras import randomness
from tfopt.report import _corruptions, _robustness

SIZE = (16, 20)


def photos(rng, count=6, channels=3, size=SIZE):
    """Smooth images, as photographs are, uint8."""
    smooth = min(size) / 8
    noise = ndimage.gaussian_filter(rng.normal(size=(count, *size, channels)), (0, smooth, smooth, 0))
    return np.uint8(np.clip(128 + 60 * noise / noise.std(), 0, 255).round())


def corrupted(name, severity, x, *, value_range=(0, 255), seed=0):
    pipeline = _corruptions.pipeline(name, severity, x.shape[1:3], value_range=value_range, seed=seed)
    return pipeline.apply(x, epoch=0, index=np.arange(len(x))).numpy()


def linear(*weights, bias=None, size=(8, 8, 1)):
    """Flattened images times given weights, a column each; the outputs are logits."""
    kernel = np.stack([w.ravel() for w in weights], 1).astype("float32")
    model = keras.Sequential([keras.Input(size), L.Flatten(), L.Dense(len(weights))], name="linear")
    model.layers[-1].set_weights([kernel, np.zeros(len(weights)) if bias is None else np.asarray(bias)])
    return model


def network(seed=0, size=(8, 8, 1), classes=3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input(size), L.Rescaling(1 / 255), L.Conv2D(8, 3, activation="relu"), L.Flatten(),
                             L.Dropout(0.5), L.Dense(classes)], name=f"network_{seed}")


def run(models, data, **arguments):
    return report.robustness(models, data, verbose=0, **arguments)


# ---- corruptions, each against another implementation

def box(image, size):
    """Averages of pixels weighted by their share of the larger ones."""
    def weights(old, new):
        low, high = np.arange(new)[:, None] * old / new, np.arange(1, new + 1)[:, None] * old / new
        return np.clip(np.minimum(high, np.arange(1, old + 1)) - np.maximum(low, np.arange(old)), 0, 1) * new / old
    return np.einsum("ih,jw,hwc->ijc", weights(image.shape[0], size[0]), weights(image.shape[1], size[1]), image,
                     optimize=True)


def pixelated(x, scale):
    small = [int(side * scale) for side in x.shape[1:3]]
    back = [(2 * np.arange(side) + 1) * part // (2 * side) for side, part in zip(x.shape[1:3], small, strict=True)]
    return np.stack([box(image, small)[back[0]][:, back[1]] for image in x])


def as_jpeg(x, quality):
    files = [io.BytesIO() for _ in x]
    for image, file in zip(x, files, strict=True):
        Image.fromarray(image[..., 0] if x.shape[3] == 1 else image).save(file, "JPEG", quality=quality)
    return np.stack([np.asarray(Image.open(file)).reshape(x.shape[1:]) for file in files])


def blurred(x, sigma):
    return ndimage.gaussian_filter(x.astype(float), (0, sigma, sigma, 0), mode="reflect",
                                   truncate=math.ceil(3 * sigma) / sigma)


REFERENCES = {                                             # strengths of CIFAR-10-C, Tiny ImageNet-C and ImageNet-C
    ("blur", 16, 1): lambda x: blurred(x, 0.4), ("blur", 16, 5): lambda x: blurred(x, 1),
    ("blur", 64, 3): lambda x: blurred(x, 1), ("blur", 128, 3): lambda x: blurred(x, 3),
    ("brightness", 16, 1): lambda x: x + .05 * 255, ("brightness", 64, 3): lambda x: x + .3 * 255,
    ("contrast", 16, 2): lambda x: .5 * x + .5 * x.mean((1, 2), keepdims=True),
    ("contrast", 64, 5): lambda x: .05 * x + .95 * x.mean((1, 2), keepdims=True),
    ("pixelate", 16, 5): lambda x: pixelated(x, .65), ("pixelate", 64, 5): lambda x: pixelated(x, .5),
    ("pixelate", 128, 1): lambda x: pixelated(x, .6),
}


@pytest.mark.parametrize(("name", "side", "severity"), REFERENCES)
def test_corruptions_equal_a_reference(rng, name, side, severity):
    x = photos(rng, 2, size=(side, side + 4)).astype("float32")
    expected = REFERENCES[name, side, severity](x).clip(0, 255)
    np.testing.assert_allclose(corrupted(name, severity, x), expected, atol=0.01)
    other = 1 + severity % 5
    assert np.abs(corrupted(name, other, x) - expected).mean() > 0.1, "negative control: another severity"


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(rng, channels):
    x = photos(rng, channels=channels, size=(32, 32))
    np.testing.assert_array_equal(corrupted("jpeg", 5, x), as_jpeg(x, 40))
    assert (corrupted("jpeg", 4, x) != as_jpeg(x, 40)).mean() > 0.3     # negative control


def test_noise_is_gaussian_and_of_the_published_strength(rng):
    x = np.full((40, 64, 64, 3), 0.5, "float32")
    for severity, strength in ((1, 0.04), (5, 0.18)):
        noise = corrupted("noise", severity, x, value_range=(0, 1)) - 0.5
        assert noise.std() == pytest.approx(strength, rel=0.01)
        assert (np.abs(noise) < strength).mean() == pytest.approx(0.6827, abs=0.005)
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (40, 65)])
def test_fog_adds_clouds_and_scales_back(rng, size):
    x = photos(rng, 3, size=size).astype("float32") / 255
    foggy, lightest = corrupted("fog", 4, x, value_range=(0, 1)), x.max((1, 2, 3), keepdims=True)
    clouds = foggy * (lightest + 1) / lightest - x                      # its density is 1 at this severity and size
    np.testing.assert_allclose(clouds, clouds[..., :1] * np.ones(3), atol=1e-5)
    np.testing.assert_allclose([clouds.min((1, 2, 3)), clouds.max((1, 2, 3))], [[0] * 3, [1] * 3], atol=1e-5)
    assert np.abs(np.diff(clouds, axis=1)).max() < 0.5, "smooth"
    assert np.abs(clouds[0] - clouds[1]).mean() > 0.05, "of each image"


def moved(image, angle=0., down=0., right=0.):
    """The image turned about its center and shifted, by SciPy."""
    rows, columns = np.indices(image.shape[:2]) - (np.array(image.shape[:2]) - 1)[:, None, None] / 2
    cos, sin = math.cos(angle), math.sin(angle)
    old = [sin * columns + cos * rows - down + (image.shape[0] - 1) / 2,
           cos * columns - sin * rows - right + (image.shape[1] - 1) / 2]
    return np.stack([ndimage.map_coordinates(image[..., c], old, order=1, mode="reflect")
                     for c in range(image.shape[2])], axis=-1)


MOVES = {"rotation": [{"angle": sign * 0.3} for sign in (-1, 1)],
         "translation": [{"down": i * SIZE[0] * 3 / 28, "right": j * SIZE[1] * 3 / 28}
                         for i in (-1, 1) for j in (-1, 1)]}


@pytest.mark.parametrize("name", MOVES)
def test_images_move_to_all_sides(rng, name):
    x = photos(rng, 30).astype("float32")
    found = corrupted(name, 3, x)
    ways = [min(range(len(MOVES[name])), key=lambda i: np.abs(moved(image, **MOVES[name][i]) - view).max())
            for image, view in zip(x, found, strict=True)]
    for image, view, way in zip(x, found, ways, strict=True):
        np.testing.assert_allclose(view, moved(image, **MOVES[name][way]), atol=0.05)
    assert set(ways) == set(range(len(MOVES[name])))


def test_occlusion_is_a_gray_square(rng):
    x = np.full((50, 20, 20, 1), 10, "float32")
    covered = corrupted("occlusion", 5, x) != 10
    assert (corrupted("occlusion", 5, x)[covered] == 127.5).all()
    assert (covered.sum((1, 2, 3)) == 100).all()                        # a quarter of the area
    assert covered.any(0).mean() > 0.9, "everywhere"


@pytest.mark.parametrize("name", _corruptions.NAMES)
def test_any_value_range_and_every_call_alike(rng, name):
    x = photos(rng).astype("float32")
    found = corrupted(name, 3, x)
    np.testing.assert_array_equal(corrupted(name, 3, x), found)
    np.testing.assert_allclose(corrupted(name, 3, x / 255, value_range=(0, 1)) * 255, found, atol=1.01)
    np.testing.assert_allclose(corrupted(name, 3, x / 127.5 - 1, value_range=(-1, 1)) * 127.5 + 127.5, found, atol=1.01)
    random = {"noise", "fog", "rotation", "translation", "occlusion"}
    assert (corrupted(name, 3, x, seed=1) != found).any() == (name in random)


@pytest.mark.parametrize("name", _corruptions.NAMES)
def test_severities_go_up(rng, name):
    """By the squared change of the images, but for fog of equal density and pixels that fit the image."""
    for size, channels in (((32, 32), 1), ((64, 64), 3), ((130, 130), 1)):
        x = photos(rng, 2 if size[0] == 130 else 6, channels, size)
        change = [np.square(corrupted(name, severity, x) - x.astype("float32")).mean() for severity in range(1, 6)]
        assert change[0] > 0
        assert all(np.diff({"fog": change[:3:2], "pixelate": change[::2]}.get(name, change)) > 0), change


# ---- accuracies

def test_clean_accuracy_is_keras(rng):
    x, y = photos(rng, 100, 1, (8, 8)), rng.integers(0, 3, 100)
    model = network()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    found = run([model], (x, y), corruptions=["blur"], severities=[2])
    assert found.frame.loc[("clean", 0), "network_0"] == pytest.approx(model.evaluate(x, y, verbose=0)[1])
    assert (found.measure, found.summary.examples.tolist()) == ("accuracy", [100])


def test_accuracies_and_summary_equal_numpys(rng):
    """Two linear models; what is expected is computed from the corrupted images by matrix products."""
    x, y = photos(rng, 300, 1, (8, 8)), rng.integers(0, 2, 300)
    weights = {"one": rng.normal(size=(2, 64)), "two": rng.normal(size=(2, 64))}
    cells = [(name, severity) for name in ("noise", "occlusion") for severity in (1, 5)]
    hits = {name: {cell: (corrupted(*cell, x).reshape(300, 64).astype("float32") @ w.T.astype("float32")).argmax(1) == y
                   for cell in cells} for name, w in weights.items()}
    found = run({name: linear(*w) for name, w in weights.items()}, (x, y), corruptions=["noise", "occlusion"],
                severities=[5, 1])
    assert found.frame.index.tolist() == [("clean", 0), *cells]
    for name in weights:
        np.testing.assert_allclose(found.frame[name].iloc[1:], [hits[name][cell].mean() for cell in cells])
        every = np.mean([hits[name][cell] for cell in cells], 0)
        row = found.summary.loc[name]
        assert row["mean"] == pytest.approx(every.mean())
        assert row["relative"] == pytest.approx(every.mean() / found.frame.loc[("clean", 0), name])
        worst = min(("noise", "occlusion"), key=lambda n: np.mean([hits[name][n, s] for s in (1, 5)]))
        assert row["worst"] == worst
    gap = np.mean([hits["two"][cell] * 1. - hits["one"][cell] for cell in cells], 0)
    row = found.summary.loc["two"]
    assert row["difference"] == pytest.approx(gap.mean())
    assert row["high"] - row["low"] == pytest.approx(2 * 1.959964 * gap.std() / math.sqrt(300))
    assert np.isnan(found.summary.loc["one", "difference"])
    np.testing.assert_allclose(found.by_corruption.loc["noise"], found.frame.loc["noise"].mean())


def test_more_noise_is_never_better(rng):
    """Each example's margin falls with the same noise, only stronger: so does the accuracy, strictly."""
    y = rng.integers(0, 2, 2000)
    x = np.float32(np.where(y, 0.51, 0.49)[:, None, None, None] * np.ones((8, 8, 1)))
    found = run({"mean": linear(-np.ones(64), np.ones(64), bias=[32, -32])}, (x, y), corruptions=["noise"],
                severities=[1, 2, 3, 4, 5], value_range=(0, 1)).frame["mean"].to_numpy()
    assert found[0] == 1
    assert all(np.diff(found) < 0), found
    expected = [0.5 * (1 + math.erf(0.01 / (s / 8) / math.sqrt(2))) for s in (.04, .06, .08, .09, .10)]
    np.testing.assert_allclose(found[1:], expected, atol=0.03)


def test_a_model_that_does_not_see_a_corruption_keeps_its_accuracy(rng):
    y = rng.integers(0, 2, 50)
    x = np.uint8(100 + 20 * rng.random((50, 8, 8, 1)))
    x[:, 0] += np.uint8(60 * y)[:, None, None]
    contrast = np.zeros((8, 8))
    contrast[0], contrast[7] = 1, -1
    found = run({"contrast": linear(np.zeros(64), contrast, bias=[0, -8 * 30]),
                 "level": linear(np.zeros(64), np.ones((8, 8)), bias=[0, -64 * 113.8])}, (x, y),
                corruptions=["brightness"])
    assert (found.frame["contrast"] == 1).all()
    assert found.frame["level"].iloc[0] > 0.9
    assert found.frame["level"].iloc[-1] == (y == 1).mean()             # negative control: all are called bright


def test_batches_do_not_matter_and_models_see_the_same(rng, monkeypatch):
    x, y = photos(rng, 50, 1, (8, 8)), rng.integers(0, 3, 50)
    models = {"one": network(), "again": network(), "other": network(1)}
    some = {"corruptions": ["noise", "fog", "rotation", "occlusion"], "severities": [5]}
    found = run(models, (x, y), **some)
    assert (found.frame["one"] == found.frame["again"]).all()
    assert (found.summary.loc["again", ["difference", "low", "high"]] == 0).all()
    assert (found.frame["one"] != found.frame["other"]).any()           # negative control
    monkeypatch.setattr(_robustness, "BATCH", 7)
    monkeypatch.setattr(_robustness, "CHUNK", 64 * 30)
    assert run(models, tf.data.Dataset.from_tensor_slices((x, y)).batch(20), **some).frame.equals(found.frame)
    assert not run(models, (x, y), seed=1, **some).frame.equals(found.frame)


def test_files_stand_beside_models(rng):
    x, y = photos(rng, 60, 3, (8, 8)), rng.integers(0, 3, 60)
    model = network(size=(8, 8, 3))
    files = {mode: quantize.convert(model, mode, calibration=x[:30].astype("float32")) for mode in ("float32", "int8")}
    found = run({"model": model, **files}, (x, y), corruptions=["noise", "jpeg"]).frame
    assert (found["float32"] == found["model"]).all()
    assert np.abs(found["int8"] - found["model"]).max() < 0.1


def test_gray_images_may_lack_their_last_axis(rng):
    x, y = photos(rng, 20, 1, (8, 8)), rng.integers(0, 3, 20)
    model = network()
    flat = keras.Sequential([keras.Input((8, 8)), L.Reshape((8, 8, 1)), model], name=model.name)
    some = {"corruptions": ["fog", "rotation"]}
    assert run([flat], (x[..., 0], y), **some).frame.equals(run([model], (x, y), **some).frame)


def test_one_of_two_outputs(rng):
    x = photos(rng, 30, 1, (8, 8))
    inputs = keras.Input((8, 8, 1))
    features = L.Flatten()(inputs)
    two = keras.Model(inputs, {"a": L.Dense(3, name="a")(features), "b": L.Dense(2, name="b")(features)})
    y = {"a": rng.integers(0, 3, 30), "b": rng.integers(0, 2, 30)}
    alone = keras.Model(inputs, two.output["b"])
    found = run({"two": two}, (x, y), output="b", corruptions=["fog"]).frame["two"]
    assert (found == run({"one": alone}, (x, y["b"]), corruptions=["fog"]).frame["one"]).all()
    with pytest.raises(ValueError, match=r"report.robustness: `output` must say which .*outputs=\['a', 'b'\]"):
        run([two], (x, y))
    with pytest.raises(ValueError, match="`output` must name one of the outputs"):
        run([two], (x, y), output="c")


@pytest.mark.parametrize("kind", ["int64", "float32"])
def test_labels_of_the_images_size_move_with_them(rng, kind):
    """A model that is right in every pixel stays so up to the edges of the areas."""
    x = photos(rng, 20, 1, (32, 32))
    y = (x > 127).astype(kind)
    inputs = keras.Input((32, 32, 1))
    model = keras.Model(inputs, inputs - 127.5, name="threshold")
    found = run([model], (x, y), corruptions=["rotation", "translation"], severities=[1, 5]).frame["threshold"]
    assert found.iloc[0] == 1
    assert found.min() > 0.93
    view = corrupted("rotation", 5, x.astype("float32"))
    assert ((view > 127.5) == y).mean() < 0.9, "negative control: labels that stay"


def test_logits_are_told_by_the_clean_outputs(rng):
    """Under strong corruption all outputs of this model may lie within 0 .. 1; they are logits nevertheless."""
    y = np.arange(40) % 2
    x = np.uint8(np.where(y, 140, 116)[:, None, None, None] * np.ones((8, 8, 1)))
    model = linear(np.full(64, 1 / 64 / 300), bias=[-128 / 300])
    found = run([model], (x, y), corruptions=["brightness"], severities=[1]).frame["linear"]
    assert found.tolist() == [1, 0.5]                                   # 116 + 13 > 128: all called 1


def test_numbers_get_an_error(rng):
    x = photos(rng, 30, 1, (8, 8))
    y = x.astype("float32").mean((1, 2)) + 0.25
    found = run({"mean": linear(np.full(64, 1 / 64)), "double": linear(np.full(64, 1 / 32))}, (x, y),
                corruptions=["blur", "brightness"])
    assert found.measure == "mae"
    assert found.frame.loc[("clean", 0), "mean"] == pytest.approx(0.25, abs=1e-4)
    assert found.frame.loc[("brightness", 1), "mean"] == pytest.approx(13 - 0.25, abs=1)
    assert found.summary.loc["mean", "worst"] == "brightness"
    assert found.plot().get_supylabel() == "mean absolute error"


# ---- nothing changes; refusals; looks

def test_models_and_random_states_are_left_as_they_were(rng):
    x, y = photos(rng, 20, 1, (8, 8)), rng.integers(0, 3, 20)
    models = [network(), Stateful()]
    models[1](x.astype("float32"))

    def values():
        return [(np.asarray(v).tolist(), v.trainable) for model in models for v in model.variables]

    kept, images, states = values(), x.copy(), str(randomness())
    run(models, (x, y), corruptions=["noise", "rotation"])
    assert values() == kept
    assert (x == images).all()
    assert str(randomness()) == states


REFUSED = {
    "range": (dict(value_range=(0, 1)), r"must be of the `value_range`.*Say what they are"),
    "fractions": (dict(x=np.random.default_rng(0).random((4, 8, 8, 1))), "must be of the `value_range`"),
    "channels": (dict(x=np.zeros((4, 8, 8, 2))), "1 or 3 channels"),
    "small": (dict(x=np.zeros((4, 7, 8, 1))), "8 pixels or more"),
    "table": (dict(x=np.zeros((4, 8))), "x must be images"),
    "not finite": (dict(x=np.full((4, 8, 8, 1), np.nan)), "must be finite"),
    "severity": (dict(severities=[6]), "`severities` must be a list"),
    "corruption": (dict(corruptions=["haze"]), "`corruptions` must be None or a list"),
    "two ends": (dict(value_range=(1, 1)), "`value_range` must be a pair"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    changed, message = REFUSED[case]
    x = changed.pop("x", np.full((4, 8, 8, 1), 9.)) if "x" in changed else np.full((4, 8, 8, 1), 9.)
    model = keras.Sequential([keras.Input(x.shape[1:]), L.Flatten(), L.Dense(2)])
    with pytest.raises(ValueError, match=message) as caught:
        run([model], (x, np.array([0, 1, 0, 1])), **changed)
    assert str(caught.value).startswith("report.robustness: ")


def test_several_inputs_are_refused(rng):
    a, b = keras.Input((8, 8, 1)), keras.Input((2,))
    model = keras.Model([a, b], L.Dense(2)(L.Concatenate()([L.Flatten()(a), b])))
    with pytest.raises(ValueError, match=r"report.robustness: the models must have one input: images"):
        run([model], ([photos(rng, 4, 1, (8, 8)), np.zeros((4, 2))], np.zeros(4)))


def test_looks(rng, tmp_path, capsys):
    x, y = photos(rng, 20, 3, (8, 8)), rng.integers(0, 3, 20)
    models = {"a float": network(size=(8, 8, 3)), "other": network(1, (8, 8, 3))}
    names = ["noise", "fog", "blur", "jpeg"]
    found = report.robustness(models, (x, y), severities=[5], corruptions=names)
    assert "5/5" in capsys.readouterr().out
    for name in (*names, "relative", "a float"):
        assert name in repr(found)
        assert f"<th>{name}</th>" in found._repr_html_()
    panels = [axes.get_title(loc="left") for axes in found.plot(tmp_path / "a.png").axes if axes.axison]
    assert panels == ["mean", *names]
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert len(found.preview(tmp_path / "b.svg").axes) == 8
    np.testing.assert_allclose(found.images["clean", 0], x[0] / 255, atol=1e-6)
    run(models, (x, y), severities=[1], corruptions=["fog"])
    assert not capsys.readouterr().out
