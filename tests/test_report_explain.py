"""Saliency maps of models whose maps are known in closed form, and of the same model written in several ways."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from programs import Stateful
from scipy import ndimage, stats

from tfopt import quantize, report
from tfopt._keras import randomness

SIZE = (8, 10, 3)


def run(models, x, method, **arguments):
    return report.explain(models, x, method=method, verbose=0, **arguments)


def linear(rng, activation=None, size=SIZE, classes=3):
    model = keras.Sequential([keras.Input(size), L.Flatten(), L.Dense(classes, activation)], name="linear")
    model.layers[-1].set_weights([rng.normal(size=(np.prod(size), classes)) / 10, rng.normal(size=classes)])
    return model


def network(seed=0, size=SIZE, classes=3, activation=None):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input(size), L.Conv2D(6, 3, activation="relu", padding="same"), L.BatchNormalization(), L.MaxPooling2D(),
        L.Conv2D(8, 3, activation="relu", name="last"), L.GlobalAveragePooling2D(), L.Dropout(0.5),
        L.Dense(classes, activation)], name=f"network_{seed}")


def kernel_of(model, target):
    return model.layers[-1].get_weights()[0][:, target].reshape(SIZE)


# ---- closed forms

@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
def test_integrated_gradients_of_a_linear_model(rng, activation):
    """(x - b) times the weights, also before a softmax or sigmoid, which would bend it."""
    x, model = rng.normal(size=(4, *SIZE)).astype("float32"), linear(rng, activation)
    found = run([model], x, "integrated", target=[0, 1, 2, 0], baseline=0.5)
    for image, values, target in zip(x, found.maps["linear"], [0, 1, 2, 0], strict=True):
        np.testing.assert_allclose(values, ((image - 0.5) * kernel_of(model, target)).sum(-1), atol=1e-5)
        other = ((image - 0.5) * kernel_of(model, (target + 1) % 3)).sum(-1)
        assert np.abs(values - other).max() > 0.1, "negative control: another class"


@pytest.mark.parametrize(("window", "baseline"), [(None, 0.), (1, 0.), (3, 0.25), (8, 0.)])
def test_occlusion_of_a_linear_model(rng, window, baseline):
    """The fall by a window is the sum of (x - b) times the weights in it; by loops over all windows."""
    x, model = rng.normal(size=(2, *SIZE)).astype("float32"), linear(rng)
    found = run([model], x, "occlusion", target=1, window=window, baseline=baseline).maps["linear"]
    window = window or 1
    step = max(1, window // 2)
    for image, values in zip(x, found, strict=True):
        single = ((image - baseline) * kernel_of(model, 1)).sum(-1)
        total, times = np.zeros(SIZE[:2]), np.zeros(SIZE[:2])
        for top in {*range(0, SIZE[0] - window + 1, step), SIZE[0] - window}:
            for left in {*range(0, SIZE[1] - window + 1, step), SIZE[1] - window}:
                rows, columns = slice(top, top + window), slice(left, left + window)
                total[rows, columns] += single[rows, columns].sum()
                times[rows, columns] += 1
        assert times.min() >= 1
        np.testing.assert_allclose(values, total / times, atol=1e-4)


def test_gradcam_of_a_convolution_and_a_mean(rng):
    """relu(sum of the class' weights times the features) / positions; the features by SciPy."""
    model = keras.Sequential([keras.Input((12, 9, 1)), L.Conv2D(4, 3, padding="same", use_bias=False),
                              L.GlobalAveragePooling2D(), L.Dense(3)], name="cam")
    x = rng.normal(size=(3, 12, 9, 1)).astype("float32")
    (kernel,), weights = model.layers[0].get_weights(), model.layers[-1].get_weights()[0]
    found = run([model], x, "gradcam", target=2).maps["cam"]
    for image, values in zip(x, found, strict=True):
        features = [ndimage.correlate(image[..., 0], kernel[:, :, 0, k], mode="constant") for k in range(4)]
        np.testing.assert_allclose(values, np.maximum(0, np.tensordot(weights[:, 2], features, 1)) / 108, atol=1e-6)
    assert found.max() > 0


class Squares(keras.Model):
    """Subclassed: the outputs are sums of squares, weighted."""

    def call(self, x):
        total = keras.ops.sum(x * x, axis=(1, 2, 3))
        return keras.ops.stack([total, -total], axis=-1)


def test_integrated_gradients_of_squares(rng):
    """x^2 - b^2; a subclassed model."""
    x, model = rng.normal(size=(3, *SIZE)).astype("float32"), Squares(name="squares")
    model(x)
    found = run([model], x, "integrated", baseline=-0.5)
    np.testing.assert_allclose(found.maps["squares"], (x * x - 0.25).sum(-1), atol=1e-4)
    assert (found.images["target"] == 0).all()
    occluded = run([model], x, "occlusion", window=1).maps["squares"]
    np.testing.assert_allclose(occluded, (x * x).sum(-1), atol=1e-3)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_completeness(rng, activation):
    """The maps add up to score(image) - score(baseline), to 1%: an axiom of the method."""
    x, model = 3 * rng.normal(size=(4, *SIZE)).astype("float32"), network(activation=activation)
    logits = network()
    logits.set_weights(model.get_weights())
    found = run([model], x, "integrated", target=1, baseline=0.1)
    sums, expected = found.maps["network_0"].sum((1, 2)), logits(x)[:, 1] - logits(np.full_like(x, 0.1))[:, 1]
    np.testing.assert_allclose(sums, expected, rtol=0.0101, atol=1e-6)
    np.testing.assert_allclose(found.images["lacking"], expected - sums, atol=1e-5)


def test_gradcam_equals_a_model_cut_in_two(rng):
    """By Keras alone: features and head as two models, and a resize."""
    x, model = rng.normal(size=(3, *SIZE)).astype("float32"), network()
    body = keras.Model(model.inputs[0], model.get_layer("last").output)
    head = keras.Sequential([keras.Input(body.output.shape[1:]), *model.layers[-3:]])
    features = tf.convert_to_tensor(body(x))
    with tf.GradientTape() as tape:
        tape.watch(features)
        score = tf.reduce_sum(head(features) * tf.eye(3))
    weights = tf.reduce_mean(tape.gradient(score, features), (1, 2), keepdims=True)
    expected = tf.image.resize(tf.nn.relu(tf.reduce_sum(weights * features, -1, keepdims=True)), SIZE[:2])[..., 0]
    assert tf.reduce_max(expected) > 1e-3
    first = model.layers[0].name
    for layer in (None, "last", first):
        found = run([model], x, "gradcam", target=[0, 1, 2], layer=layer).maps["network_0"]
        assert np.allclose(found, expected, atol=1e-6) == (layer != first)


# ---- the same model, written in other ways

def rewritten():
    """{name: (model, arguments)} that all compute the same logits or a function of them."""
    plain = network()
    inputs, layers = keras.Input(SIZE), plain.layers
    features = keras.Sequential([keras.Input(SIZE), *layers[:4]], name="body")
    pooled = L.GlobalAveragePooling2D()
    nested = keras.Model(inputs, layers[-1](layers[-2](pooled(features(inputs)))))
    inside = keras.Sequential([keras.Input(SIZE), L.Identity(), plain])
    activated = keras.Model(inputs, L.Activation("softmax")(plain(inputs)))
    softened = keras.Sequential([keras.Input(SIZE), plain, L.Softmax()])
    last = L.Dense(3, "softmax")
    fused = keras.Sequential([keras.Input(SIZE), keras.Sequential([keras.Input(SIZE), *layers[:-1], last])])
    last.set_weights(layers[-1].get_weights())
    two = keras.Model(inputs, {"other": L.Flatten()(inputs), "wanted": plain(inputs)})
    listed = keras.Model(inputs, [plain(inputs), L.Dense(2, name="other")(L.Flatten()(inputs))])
    frozen = network()
    frozen.trainable = False
    return plain, {"nested": (nested, {}), "inside": (inside, {}), "activated": (activated, {}),
                   "softened": (softened, {}), "fused": (fused, {}), "two": (two, {"output": "wanted"}),
                   "listed": (listed, {"output": listed.output_names[0]}), "frozen": (frozen, {})}


@pytest.mark.parametrize("method", ["gradcam", pytest.param("integrated", marks=pytest.mark.slow)])
def test_the_same_model_in_other_ways(rng, method):
    x = rng.normal(size=(3, *SIZE)).astype("float32")
    plain, others = rewritten()
    expected = run([plain], x, method, target=[0, 1, 2]).maps["network_0"]
    assert expected.max() > 1e-3
    for name, (model, arguments) in others.items():
        found = run({name: model}, x, method, target=[0, 1, 2], **arguments).maps[name]
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_a_layer_of_a_nested_model_by_its_path(rng):
    x = rng.normal(size=(2, *SIZE)).astype("float32")
    _, others = rewritten()
    model = others["nested"][0]
    found = [run([model], x, "gradcam", layer=layer).maps for layer in (None, "last", "body/last", "body")]
    assert all(np.array_equal(*(next(iter(maps.values())) for maps in (found[0], other))) for other in found)
    with pytest.raises(ValueError, match=r"report.explain: `layer` must be .* There are body/.*body/last, body"):
        run([model], x, "gradcam", layer="lust")


def test_gray_images_may_lack_their_last_axis(rng):
    x, model = rng.normal(size=(2, 8, 8)).astype("float32"), network(size=(8, 8, 1))
    flat = keras.Sequential([keras.Input((8, 8)), L.Reshape((8, 8, 1)), model], name="network_0")
    for method in ("gradcam", "integrated", "occlusion"):
        np.testing.assert_allclose(run([flat], x, method).maps["network_0"],
                                   run([model], x[..., None], method).maps["network_0"], atol=1e-5)


def test_segmentation_is_the_mean_over_positions(rng):
    x = rng.normal(size=(2, *SIZE)).astype("float32")
    inputs = keras.Input(SIZE)
    model = keras.Model(inputs, L.Conv2D(3, 1, use_bias=False)(inputs), name="pixels")
    kernel = model.layers[-1].get_weights()[0][0, 0]
    found = run([model], x, "integrated", target=1).maps["pixels"]
    np.testing.assert_allclose(found, x @ kernel[:, 1] / 80, atol=1e-6)


# ---- agreement

def test_agreement_equals_scipys(rng):
    x = rng.normal(size=(3, *SIZE)).astype("float32")
    models = {"one": network(), "two": network(1)}
    for method in ("integrated", "occlusion"):
        found = run(models, x, method)
        assert found.images.loc["one", ["correlation", "iou", "pointing"]].eq(1).all().all()
        for i, (one, two) in enumerate(zip(*found.maps.values(), strict=True)):
            row = found.images.loc[("two", i)]
            assert row["correlation"] == pytest.approx(stats.spearmanr(one.ravel(), two.ravel()).statistic)
            tops = [{j for j in np.argsort(-part.ravel())[:8] if part.ravel()[j] > 0} for part in (one, two)]
            assert row["iou"] == pytest.approx(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
            assert row["pointing"] == (two.argmax() in tops[0])
        np.testing.assert_allclose(found.frame.loc["two", "correlation"], found.images.loc["two"]["correlation"].mean())
        assert (found.images.loc["two"]["target"] == found.images.loc["one"]["predicted"]).all()


def quadrants(rng, count):
    """Images of noise with one bright spot; the class is the quadrant it lies in."""
    y = rng.integers(0, 4, count)
    x = rng.random((count, 12, 12, 1)).astype("float32")
    at = rng.integers(0, 4, (2, count))
    for image, label, top, left in zip(x, y, *at, strict=True):
        image[6 * (label // 2) + top:, 6 * (label % 2) + left:][:3, :3] += 1
    return x, y


@pytest.mark.slow
def test_a_randomized_model_agrees_less_and_maps_find_the_spot(rng):
    """The sanity check of Adebayo et al. 2018, on a net that is trained to see a spot."""
    x, y = quadrants(rng, 1500)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((12, 12, 1)), L.Conv2D(8, 3, activation="relu"), L.Flatten(), L.Dense(4)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                  metrics=["accuracy"])
    model.fit(x, y, epochs=4, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] > 0.95
    close = keras.models.clone_model(model)
    close.set_weights([w + 0.02 * rng.normal(size=w.shape) for w in model.get_weights()])
    models = {"trained": model, "nearly the same": close, "random": keras.models.clone_model(model)}
    for method in ("integrated", "occlusion"):
        found = run(models, x[:12], method)
        frame = found.frame
        assert frame.loc["nearly the same", "correlation"] > 0.8 > 0.5 > frame.loc["random", "correlation"]
        assert frame.loc["nearly the same", "iou"] > 2 * frame.loc["random", "iou"]
        inside = [label == 2 * (at // 12 // 6) + at % 12 // 6                # or on the edge of the quadrant
                  for label, at in zip(y, (part.argmax() for part in found.maps["trained"]), strict=False)]
        assert np.mean(inside) > 0.6


def test_files_stand_beside_models(rng):
    x, model = rng.normal(size=(4, *SIZE)).astype("float32"), network()
    files = {mode: quantize.convert(model, mode, calibration=rng.normal(size=(50, *SIZE)).astype("float32"))
             for mode in ("float32", "int8")}
    found = run({"model": model, **files}, x, "occlusion", window=3)
    np.testing.assert_allclose(found.maps["float32"], found.maps["model"], atol=1e-5)
    assert 0.5 < found.frame.loc["int8", "correlation"] < 1
    for method in ("gradcam", "integrated"):
        with pytest.raises(ValueError, match=r"report.explain: a LiteRT file has no gradients.*\['int8'\].*occlusion"):
            run({"model": model, "int8": files["int8"]}, x, method)


def test_constant_maps_agree_with_nothing(rng):
    x, dead = rng.normal(size=(2, *SIZE)).astype("float32"), network(1)
    dead.layers[-1].set_weights([0 * w for w in dead.layers[-1].get_weights()])
    for method in ("gradcam", "occlusion"):
        frame = run({"alive": network(), "dead": dead}, x, method, target=0).frame
        assert frame.loc["dead", ["maps", "constant"]].tolist() == [2, 2]
        assert frame.loc["dead", ["correlation", "iou", "pointing"]].isna().all()


# ---- nothing changes; refusals; looks

def test_models_and_random_states_are_left_as_they_were(rng):
    x, models = rng.normal(size=(2, *SIZE)).astype("float32"), [network(activation="softmax"), Stateful()]
    models[1](x)
    models[0].layers[0].trainable = False
    models[0].compile("adam", "mse")

    def values():
        return [(np.asarray(v).tolist(), v.trainable) for model in models for v in model.variables]

    def configs():
        return [[layer.get_config() for layer in model.layers] for model in models[:1]], models[0](x).numpy().tolist()

    kept, told, images, states = values(), configs(), x.copy(), str(randomness())
    for method in ("gradcam", "integrated", "occlusion"):
        run(models[:1] if method == "gradcam" else models, x, method)
    assert str(randomness()) == states
    assert values() == kept
    assert configs() == told
    assert (x == images).all()


def two_inputs():
    a, b = keras.Input(SIZE), keras.Input((2,))
    return keras.Model([a, b], L.Dense(2)(L.Concatenate()([L.Flatten()(a), b])))


REFUSED = {
    "flat": (dict(models=lambda: [keras.Sequential([keras.Input(SIZE), L.Flatten(), L.Dense(2)])]),
             'method="gradcam" needs a layer .* Use method="integrated" or "occlusion"'),
    "subclassed": (dict(models=lambda: [Stateful()]), 'method="gradcam" needs a functional or Sequential model'),
    "class": (dict(target=3), "`target` must be a class"),
    "classes": (dict(target=[0, 1]), "`target` must be a class, or one for each image"),
    "not the same classes": (dict(models=lambda: [network(), network(classes=2)], target=2), "have the same classes"),
    "method": (dict(method="grad_cam"), "Did you mean `gradcam`"),
    "window": (dict(method="occlusion", window=9), "`window` must fit into the images"),
    "output": (dict(output="no"), "`output` must name one of the outputs"),
    "table": (dict(x=np.zeros((2, 4)), models=lambda: [keras.Sequential([keras.Input((4,)), L.Dense(2)])]),
              "x must be images"),
    "inputs": (dict(x=[np.zeros((3, *SIZE)), np.zeros((3, 2))], models=lambda: [two_inputs()]), "must have one input"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    changed = {"models": lambda: [network()], "x": np.ones((3, *SIZE), "float32"), "method": "gradcam"}
    changed |= REFUSED[case][0]
    models = changed.pop("models")()
    if case == "subclassed":
        models[0](changed["x"])
    with pytest.raises(ValueError, match=REFUSED[case][1]) as caught:
        run(models, **changed)
    assert str(caught.value).startswith("report.explain: ")


def test_looks(rng, tmp_path, capsys):
    x = rng.integers(0, 256, (3, *SIZE)).astype("uint8")
    found = report.explain({"a net": network(), "other": network(1)}, x, method="occlusion", window=4)
    assert "2/2" in capsys.readouterr().out
    assert "agreement with a net" in repr(found)
    assert "<th>same_class</th>" in found._repr_html_()
    figure = found.plot(tmp_path / "a.png", images=2)
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == ["image", "a net", "other"]
    assert len(figure.axes) == 6
    assert figure.axes[2].get_xlabel().startswith("class ")
    assert "\N{GREEK SMALL LETTER RHO}" in figure.axes[2].get_xlabel()
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"report.Explanation.plot: `images` must be a whole number >= 1"):
        found.plot(images=0)
    run([network()], x, "gradcam")
    assert not capsys.readouterr().out
