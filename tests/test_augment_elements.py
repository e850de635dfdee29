"""What else an element holds moves with the images or passes unchanged; own operations; the pipeline as a layer."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import augment

GEOMETRY = [augment.Flip(), augment.Rotate(0.1), augment.Translate(0.2)]


@pytest.fixture
def squares():
    """uint8 images of bright squares and their masks."""
    images = np.zeros((32, 24, 30, 3), "uint8")
    for number, image in enumerate(images):
        image[4 + number % 8:14 + number % 8, 3:15] = 255
    return images, (images[..., 0] > 127).astype("int32")


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["rank 3", "rank 4", "weights", "dict of targets", "dict of inputs", "bool"])
def test_a_mask_moves_with_its_image(squares, form):
    images, masks = squares
    element = {"rank 3": (images, masks), "rank 4": (images, masks[..., None]),
               "weights": (images, masks[:, 0, 0], masks),
               "dict of targets": (images, {"mask": masks, "label": masks[:, 0, 0]}),
               "dict of inputs": ({"image": images, "mask": masks},), "bool": (images, masks.astype(bool))}[form]
    pipeline = augment.Pipeline(GEOMETRY, fill_mode="constant", jit_compile=False)
    dataset = tf.data.Dataset.from_tensor_slices(element if len(element) > 1 else element[0]).batch(12)
    views = list(dataset.map(pipeline.map))
    read = {"rank 3": lambda v: v, "rank 4": lambda v: (v[0], v[1][..., 0]), "weights": lambda v: v[::2],
            "dict of targets": lambda v: (v[0], v[1]["mask"]), "dict of inputs": lambda v: (v["image"], v["mask"]),
            "bool": lambda v: v}[form]
    seen, moved = (np.concatenate(parts) for parts in zip(*(read(view) for view in views), strict=True))
    assert moved.dtype == (bool if form == "bool" else "int32")
    assert set(np.unique(moved)) == {0, 1}
    assert overlap(seen[..., 0] > 127, moved == 1) > 0.95
    assert overlap(seen[..., 0] > 127, masks == 1) < 0.6                   # negative control: the mask as it was


def test_a_floating_target_moves_bilinearly_and_colors_leave_it(squares):
    images = squares[0].astype("float32")
    pipeline = augment.Pipeline([*GEOMETRY, augment.Brightness(0.5)], jit_compile=False)
    geometry = augment.Pipeline(GEOMETRY, jit_compile=False)
    seen, target = pipeline.apply(images, images, epoch=0, index=range(32))
    np.testing.assert_allclose(target, geometry.apply(images, epoch=0, index=range(32)), atol=1e-2)
    assert np.abs(seen - target).max() > 10
    unmoved = augment.Pipeline([augment.Brightness(0.5)], jit_compile=False).apply(images, images, epoch=0,
                                                                                  index=range(32))[1]
    np.testing.assert_array_equal(unmoved, images)


def test_maps_follow_a_crop_outside_training_too(squares):
    images, masks = squares
    batch = augment.Pipeline([augment.Flip(), augment.Crop(8, 10)], jit_compile=False)({"images": images,
                                                                                       "masks": masks})
    np.testing.assert_array_equal(batch["masks"], masks[:, 8:16, 10:20])


@pytest.mark.slow
def test_other_inputs_pass_unchanged(squares):
    images = squares[0]
    meta, labels = np.arange(64.0).reshape(32, 2), np.arange(32)
    pipeline = augment.Pipeline(GEOMETRY, jit_compile=False)
    expected = pipeline.apply(images, epoch=0, index=range(32))
    given = tf.data.Dataset.from_tensor_slices(({"image": images, "meta": meta}, labels)).enumerate().batch(32)
    inputs, after = next(iter(given.map(pipeline.map)))
    np.testing.assert_array_equal(inputs["image"], expected)
    np.testing.assert_array_equal(inputs["meta"], meta)
    np.testing.assert_array_equal(after, labels)
    (first, second), _ = pipeline.apply((meta, images), labels, epoch=0, index=range(32))
    np.testing.assert_array_equal(first, meta)
    np.testing.assert_array_equal(second, expected)


@pytest.mark.parametrize("element", [lambda x, y: ({"image": x, "meta": y}, y), lambda x, y: (x, {"a": y, "b": y}),
                                     lambda x, y: (x, x[..., 0])])
def test_what_cannot_be_mixed_is_refused(squares, element):
    images, _ = squares
    mixed = augment.Pipeline([augment.MixUp(num_classes=2)], jit_compile=False)
    with pytest.raises(ValueError, match="mix one image and one label per example"):
        mixed.apply(*element(images, np.arange(32)), epoch=0, index=range(32))


def test_views_can_be_left_unrounded(squares):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype("uint8")
    for ops in ([augment.Rotate(0.1)], [augment.Rotate(0.1), augment.MixUp(0.5)]):
        pipeline = augment.Pipeline(ops, jit_compile=False)
        labels = np.eye(8)
        exact, rounded = (pipeline.apply(images, labels, epoch=0, index=range(8), dtype=dtype)[0]
                          for dtype in ("float32", None))
        assert (exact.dtype, rounded.dtype) == ("float32", "uint8")
        np.testing.assert_array_equal(tf.round(exact), tf.cast(rounded, tf.float32))        # rounded once, at the end
        assert (exact != tf.round(exact)).numpy().mean() > 0.5


# ------------------------------------------------------------------------------------------------- as a layer

@pytest.mark.slow
@pytest.mark.parametrize("ops", [[augment.Flip(), augment.Brightness()], [augment.Flip(), augment.Crop(8, 8)],
                                 [augment.Resize(8, 8), augment.Normalize(1, 2)]])
def test_a_model_of_any_size(squares, ops):
    inputs = keras.Input((None, None, 3))
    layer = augment.Pipeline(ops, jit_compile=False)
    outputs = layer(inputs)
    assert outputs.shape == (None, *((8, 8) if len(ops[-1:]) and not isinstance(ops[-1], augment.Brightness)
                                     else (None, None)), 3)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(outputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    images = squares[0].astype("float32")
    model.fit(images, np.zeros(32), epochs=1, verbose=0)
    assert layer(images, training=True).shape[1:] == layer(images).shape[1:]
    assert model.predict(images[:, :20], verbose=0).shape == (32, 1)


def test_an_unknown_size_in_training_is_refused():
    layer = augment.Pipeline([augment.Flip()])
    step = tf.function(lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((None, None, None, 3))])
    with pytest.raises(ValueError, match="images of one known size"):
        step.get_concrete_function()


def test_an_operation_is_not_a_layer():
    sentence = r"An operation of augment is not a layer. Received: Flip\(.*augment.Pipeline\(\[Flip\(...\)\]\)"
    with pytest.raises(TypeError, match=sentence):
        keras.Sequential([keras.Input((8, 8, 3)), augment.Flip()])
    with pytest.raises(TypeError, match=sentence):
        augment.Flip()(keras.Input((8, 8, 3)))


def test_repr_says_what_it_does():
    assert repr(augment.Pipeline([augment.Flip()], seed=4)) == (
        "<augment.Pipeline [Flip(mode='horizontal', probability=0.5)], seed=4, value_range=(0.0, 255.0)>")


# --------------------------------------------------------------------------------------------- own operations

@keras.saving.register_keras_serializable("mine")
@dataclasses.dataclass(frozen=True)
class Transpose(augment.Op):
    """Mirrors square images about their diagonal."""

    probability: float = 0.5

    def matrix(self, u, size):
        one, zero = tf.ones_like(u[:, 0]), tf.zeros_like(u[:, 0])
        return zero, one, zero, one, zero, zero


@keras.saving.register_keras_serializable("mine")
@dataclasses.dataclass(frozen=True)
class Tint(augment.Op):
    """Scales the first channel alone."""

    gain: float = 0.5

    def affine(self, u, channels, low, high):
        scale = tf.where(tf.range(channels) == 0, self.gain, 1.0) * tf.ones((tf.shape(u)[0], 1))
        return tf.linalg.diag(scale), tf.zeros((tf.shape(u)[0], channels, channels)), 0.0 * scale


@keras.saving.register_keras_serializable("mine")
@dataclasses.dataclass(frozen=True)
class Salt(augment.Op):
    """Sets a share of the values, drawn for each image, to the highest."""

    most: float = 0.5
    probability: float = 0.5
    draws = 3

    def parameters(self, u, shape):
        return (self.most * u[:, 1],)

    def change(self, images, parameters, *, noise, low, high):
        return tf.where(noise() < parameters[0][:, None, None, None], high + 1000.0, images)


def test_own_operations_join_the_others():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3)).astype("uint8")
    masks = images[..., 0] > 127
    turned, moved = augment.Pipeline([Transpose(1.0)], jit_compile=False).apply(images, masks, epoch=0, index=range(40))
    np.testing.assert_array_equal(turned, images.swapaxes(1, 2))
    np.testing.assert_array_equal(moved, masks.swapaxes(1, 2))
    tinted = augment.Pipeline([Tint(0.5), augment.Brightness((0.1, 0.1))], jit_compile=False)
    np.testing.assert_allclose(tinted.apply(images.astype("float32"), epoch=0, index=range(40)),
                               np.clip(images * [0.5, 1, 1] + 25.5, 0, 255), atol=1e-3)
    salted = augment.Pipeline([Salt()], jit_compile=False).apply(images, epoch=0, index=range(40)).numpy()
    shares = (salted == 255).mean((1, 2, 3)) - (images == 255).mean((1, 2, 3))
    assert 0.2 < (shares == 0).mean() < 0.8
    assert 0.3 < shares.max() < 0.52


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_own_operations_replay_save_and_load(tmp_path, jit):
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype("uint8")
    pipeline = augment.Pipeline([Transpose(), augment.Rotate(), Tint(), Salt()], seed=3, jit_compile=jit)
    views = pipeline.apply(images, epoch=2, index=range(12))
    np.testing.assert_array_equal(pipeline.apply(images[5:], epoch=2, index=range(5, 12)), views[5:])
    keras.Sequential([keras.Input((16, 16, 3)), pipeline]).save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").layers[0]
    assert again.ops == pipeline.ops
    np.testing.assert_array_equal(again.apply(images, epoch=2, index=range(12)), views)
    np.testing.assert_array_equal(pipeline(images), images)       # at rest outside training


def test_an_own_operation_that_changes_the_shape_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Half(augment.Op):
        def change(self, images, parameters, *, noise, low, high):
            return images[:, ::2]

    with pytest.raises(ValueError, match="change must keep the shape"):
        augment.Pipeline([Half()], jit_compile=False).apply(np.zeros((2, 8, 8, 1), "uint8"), epoch=0, index=[0, 1])
