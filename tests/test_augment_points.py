"""Perspective and Elastic against scipy and numpy; boxes, keypoints and masks move as the pixels under them do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tfopt import augment
from tfopt.augment import _points, _random

SIZE = (40, 52)
SCIPY = {"reflect": "reflect", "constant": "grid-constant", "nearest": "nearest", "wrap": "grid-wrap"}


def view(ops, images, epoch=0, **settings):
    pipeline = augment.Pipeline(ops, **{"jit_compile": False, **settings})
    return tf.nest.map_structure(lambda part: part.numpy(),
                                 pipeline.apply(images, epoch=epoch, index=range(len(tf.nest.flatten(images)[0]))))


def numbers(op, count, seed=0, place=0):
    """(keys, u) that an operation at that place of a pipeline draws in epoch 0."""
    keys = _random.example_keys(seed, tf.zeros(count, tf.int64), tf.range(count, dtype=tf.int64))
    return keys, _random.uniform(keys, {place: op.draws})[place]


def read(image, rows, columns, mode):
    return np.stack([ndimage.map_coordinates(image[..., channel].astype(float), [rows, columns], order=1,
                                             mode=SCIPY[mode]) for channel in range(image.shape[2])], axis=-1)


def solved(corners, size):
    """The 3x3 matrix that brings four corners to those of an image: eight linear equations."""
    height, width = size
    targets = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]
    equations, values = [], []
    for (x, y), (to_x, to_y) in zip(corners, targets, strict=True):
        equations += [[x, y, 1, 0, 0, 0, -to_x * x, -to_x * y], [0, 0, 0, x, y, 1, -to_y * x, -to_y * y]]
        values += [to_x, to_y]
    return np.append(np.linalg.solve(equations, values), 1).reshape(3, 3)


@pytest.mark.parametrize("mode", SCIPY)
def test_perspective_brings_corners_inwards(rng, mode):
    images = rng.integers(0, 256, (3, *SIZE, 2)).astype("float32")
    op = augment.Perspective(0.25)
    inwards = numbers(op, 3)[1][:, 1:].numpy().reshape(3, 4, 2) * 0.25
    half = np.array([SIZE[1], SIZE[0]]) / 2
    sides = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    found = view([op], images, fill_mode=mode)
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
    x, y = columns - (SIZE[1] - 1) / 2, rows - (SIZE[0] - 1) / 2
    for image, seen, moved in zip(images, found, inwards, strict=True):
        matrix = solved(sides * (1 - 2 * moved) * half, SIZE)
        places = np.einsum("ij,jyx->iyx", matrix, np.stack([x, y, np.ones_like(x)]))
        assert places[2].min() > 0.05
        column, row = places[:2] / places[2] + (np.array([SIZE[1], SIZE[0]]) - 1)[:, None, None] / 2
        np.testing.assert_allclose(seen, read(image, row, column, mode), atol=0.05)


def test_perspective_joins_the_resample_of_its_neighbors(rng):
    """Against one after the other on a smooth image, and exactly where its neighbors are flips."""
    noise = ndimage.gaussian_filter(rng.random((2, *SIZE, 1)), (0, 5, 5, 0))
    smooth = (255 * (noise - noise.min()) / np.ptp(noise)).astype("float32")
    op, turn = augment.Perspective(0.2), augment.Rotate((0.05, 0.05))
    both = view([op, turn], smooth, fill_mode="nearest")
    apart = view([turn], view([op], smooth, fill_mode="nearest"), fill_mode="nearest")
    assert np.abs(both - apart)[:, 8:-8, 8:-8].max() < 2
    assert np.abs(both - view([turn], smooth))[:, 8:-8, 8:-8].max() > 10
    mirrored = view([op, augment.Flip(probability=1)], smooth)
    np.testing.assert_allclose(mirrored, view([op], smooth)[:, :, ::-1], atol=1e-2)


@pytest.mark.parametrize("mode", SCIPY)
def test_elastic_reads_where_its_shifts_say(rng, mode):
    images = rng.integers(0, 256, (3, *SIZE, 2)).astype("float32")
    op, turn = augment.Elastic((0.05, 0.05)), augment.Rotate((0.06, 0.06))
    keys, u = numbers(op, 3, place=1)
    shifts = op.shifts(u, lambda shape: _random.pixel_noise(keys, shape, 1), SIZE).numpy()
    found = view([turn, op], images, fill_mode=mode)
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]]
    cos, sin = np.cos(0.12 * np.pi), np.sin(0.12 * np.pi)
    for image, seen, shift in zip(images, found, shifts, strict=True):
        x, y = columns - (SIZE[1] - 1) / 2 + shift[..., 0], rows - (SIZE[0] - 1) / 2 + shift[..., 1]
        expected = read(image, sin * x + cos * y + (SIZE[0] - 1) / 2, cos * x - sin * y + (SIZE[1] - 1) / 2, mode)
        np.testing.assert_allclose(seen, expected, atol=0.05)


def test_the_field_is_smoothed_white_noise():
    """Variance and correlation are those of white noise after a Gaussian filter: exp(-(distance / 2 sigma)^2)."""
    op = augment.Elastic((0.05, 0.05), scale=0.1)
    keys, u = numbers(op, 400)
    field = op.shifts(u, lambda shape: _random.pixel_noise(keys, shape, 0), SIZE).numpy()
    assert abs(field.std() - 0.05 * SIZE[0]) < 0.02 * 0.05 * SIZE[0]
    assert np.abs(field.std(axis=(0, 3)) / field.std() - 1).max() < 0.2             # at every pixel, edges too
    for lag in (2, 4, 8):
        found = np.corrcoef(field[:, :, :-lag].ravel(), field[:, :, lag:].ravel())[0, 1]
        assert abs(found - np.exp(-(lag / (2 * 0.1 * SIZE[0]))**2)) < 0.02, lag
    assert abs(np.corrcoef(field[..., 0].ravel(), field[..., 1].ravel())[0, 1]) < 0.03


def test_a_field_begins_a_new_resample(rng):
    images = rng.integers(0, 256, (2, *SIZE, 1)).astype("float32")
    bend = augment.Elastic((0.03, 0.03))
    both = view([bend, augment.Flip(probability=1)], images)
    np.testing.assert_allclose(both, view([bend], images)[:, :, ::-1], atol=1e-2)
    np.testing.assert_array_equal(view([augment.Elastic(probability=0)], images), images)


# ------------------------------------------------------------------------------------------------------ points

GEOMETRY = {
    "affine": [augment.Flip("horizontal_and_vertical"), augment.Rotate(0.08), augment.Translate(0.1)],
    "perspective": [augment.Flip(), augment.Perspective(0.2)],
    "elastic": [augment.Rotate(0.05), augment.Elastic((0.04, 0.04), scale=0.15)],
    "crop": [augment.Elastic(), augment.Crop(30, 36), augment.Perspective(0.1), augment.Resize(50, 44)]}


@pytest.mark.parametrize("ops", GEOMETRY.values(), ids=GEOMETRY)
def test_keypoints_stay_on_their_pixels(ops):
    """A blob at each keypoint: its center of mass in the view."""
    points = np.array([[26.0, 20.0, 2], [20.0, 17.0, 1], [31.0, 24.0, 0]], "float32")
    rows, columns = np.mgrid[:SIZE[0], :SIZE[1]] + 0.5
    blobs = np.stack([np.exp(-((columns - x)**2 + (rows - y)**2) / 2) for x, y, _ in points], -1)
    count = 12
    images = np.repeat((200 * blobs)[None], count, 0).astype("float32")
    batch = {"images": images, "keypoints": np.repeat(points[None], count, 0)}
    views = view(ops, batch, fill_mode="constant")
    rows, columns = np.mgrid[:views["images"].shape[1], :views["images"].shape[2]] + 0.5
    mass = views["images"].sum((1, 2))
    centers = np.stack([(views["images"] * place[..., None]).sum((1, 2)) / mass for place in (columns, rows)], -1)
    seen = mass > 0.9 * np.median(mass)                                            # not cut by an edge
    assert seen.mean() > 0.6
    np.testing.assert_allclose(views["keypoints"][..., :2][seen], centers[seen], atol=0.6)
    np.testing.assert_array_equal(views["keypoints"][..., 2], batch["keypoints"][..., 2])
    assert np.abs(views["keypoints"][..., :2] - points[:, :2]).max() > 3           # negative control


@pytest.mark.parametrize("ops", GEOMETRY.values(), ids=GEOMETRY)
def test_boxes_hold_their_masks(ops):
    count = 16
    images, masks = np.zeros((count, *SIZE, 1), "uint8"), np.zeros((count, *SIZE), "int32")
    masks[:, 12:26, 18:34] = 1
    boxes = np.tile(np.array([[18, 12, 34, 26], [-1, -1, -1, -1]], "float32"), (count, 1, 1))
    _, targets = view(ops, (images, {"boxes": boxes, "labels": np.zeros((count, 2)), "mask": masks}),
                          fill_mode="constant")
    for mask, box in zip(targets["mask"], targets["boxes"][:, 0], strict=True):
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, tight, atol=2)
    np.testing.assert_array_equal(targets["boxes"][:, 1], boxes[:, 1])             # padding


def test_boxes_equal_those_of_keras():
    """Keras' own affine transform of boxes, about its center, with their sign of the angle."""
    boxes = np.array([[[4.0, 6.0, 20.0, 18.0], [25.0, 11.0, 40.0, 30.0]]], "float32")
    batch = {"images": np.zeros((1, *SIZE, 1), "uint8"), "boxes": boxes}
    found = view([augment.Rotate((-0.05, -0.05))], batch)["boxes"]
    none = np.zeros(1, "float32")
    expected = keras.utils.bounding_boxes.affine_transform(
        boxes, angle=keras.ops.convert_to_tensor([-18.0]), translate_x=none, translate_y=none, scale=none + 1,
        shear_x=none, shear_y=none, height=SIZE[0], width=SIZE[1])
    np.testing.assert_allclose(found, np.clip(expected, 0, [SIZE[1], SIZE[0]] * 2), atol=0.6)
    assert np.abs(found - boxes).max() > 2


@pytest.mark.parametrize("form", _points.FORMATS)
def test_formats_are_those_of_keras(rng, form):
    corners = np.sort(rng.uniform(0, 40, (5, 7, 2, 2)), axis=2).reshape(5, 7, 4).astype("float32")
    convert = keras.utils.bounding_boxes.convert_format
    boxes = np.asarray(convert(corners, source="xyxy", target=form, height=SIZE[0], width=SIZE[1]))
    np.testing.assert_allclose(_points.to_corners(tf.constant(boxes), form, SIZE), corners, atol=1e-4)
    np.testing.assert_allclose(_points.from_corners(tf.constant(corners), form, SIZE), boxes, atol=1e-4)
    ops, images = [augment.Rotate(0.1), augment.Crop(20, 30)], np.zeros((5, *SIZE, 1), "uint8")
    plain = view(ops, {"images": images, "boxes": corners})["boxes"]
    other = view(ops, {"images": images, "boxes": boxes}, bounding_box_format=form)["boxes"]
    expected = convert(plain, source="xyxy", target=form, height=20, width=30)
    np.testing.assert_allclose(other, expected, atol=1e-3)


def test_forms_of_elements(rng):
    """Keras' nested dict, targets of a detector, boxes beside the images, ragged boxes."""
    images = rng.integers(0, 256, (6, *SIZE, 3)).astype("uint8")
    corners = np.sort(rng.uniform(0, 40, (6, 3, 2, 2)), axis=2).reshape(6, 3, 4).astype("float32")
    kinds = np.arange(18).reshape(6, 3)
    pipeline = augment.Pipeline([augment.Flip(), augment.Translate(0.1)], jit_compile=False)
    wanted = pipeline.apply({"images": images, "boxes": corners}, epoch=0, index=range(6))["boxes"].numpy()
    assert (wanted != corners).any()
    nested = {"images": images, "bounding_boxes": {"boxes": corners, "labels": kinds}}
    targets = images, {"boxes": corners, "labels": kinds}
    named = {"image": images, "boxes": corners}, kinds
    for element, boxes_of in ((nested, lambda one: one["bounding_boxes"]), (targets, lambda one: one[1]),
                              (named, lambda one: {**one[0], "labels": one[1]})):
        parts = element if isinstance(element, tuple) else (element,)
        found = boxes_of(pipeline.apply(*parts, epoch=0, index=range(6)))
        np.testing.assert_allclose(found["boxes"], wanted, atol=1e-4)
        np.testing.assert_array_equal(found["labels"], kinds)
    ragged = tf.RaggedTensor.from_tensor(corners, lengths=[3, 1, 0, 2, 3, 2])
    _, found = pipeline.apply(images, {"boxes": ragged, "labels": kinds}, epoch=0, index=range(6))
    assert found["boxes"].row_lengths().numpy().tolist() == [3, 1, 0, 2, 3, 2]
    np.testing.assert_allclose(found["boxes"][3], wanted[3, :2], atol=1e-4)


def test_a_layer_takes_nested_boxes():
    layer = augment.Pipeline([augment.Crop(20, 30)], jit_compile=False)
    inputs = {"images": keras.Input((*SIZE, 3), dtype="uint8"), "bounding_boxes": {"boxes": keras.Input((3, 4)),
                                                                                 "labels": keras.Input((3,))}}
    outputs = layer(inputs)
    assert outputs["images"].shape == (None, 20, 30, 3)
    assert outputs["bounding_boxes"]["boxes"].shape == (None, 3, 4)


def test_shapes_of_points_are_refused():
    images, pipeline = np.zeros((2, 8, 8, 1), "uint8"), augment.Pipeline([augment.Flip()], jit_compile=False)
    for name, shape, message in (("boxes", (2, 3, 5), "boxes are"), ("keypoints", (2, 2), "keypoints are")):
        with pytest.raises(ValueError, match=message):
            pipeline.apply(images, {name: np.zeros(shape)}, epoch=0, index=[0, 1])
    mixed = augment.Pipeline([augment.MixUp()], jit_compile=False)
    with pytest.raises(ValueError, match="no masks, no boxes"):
        mixed.apply(images, {"boxes": np.zeros((2, 3, 4))}, epoch=0, index=[0, 1])


@pytest.mark.slow
def test_through_a_data_set():
    images, boxes = np.zeros((6, *SIZE, 3), "uint8"), np.tile(np.array([[18, 12, 34, 26]], "float32"), (6, 1, 1))
    element = {"images": images, "bounding_boxes": {"boxes": boxes, "labels": np.zeros((6, 1))},
               "keypoints": boxes[..., 2:]}
    pipeline = augment.Pipeline([augment.Flip(), augment.Perspective(), augment.Elastic()], jit_compile=False)
    wanted = pipeline.apply(element, epoch=0, index=range(6))
    dataset = tf.data.Dataset.from_tensor_slices(element).enumerate().batch(4).map(pipeline.map).unbatch().batch(6)
    for one, other in zip(tf.nest.flatten(next(iter(dataset))), tf.nest.flatten(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.slow
def test_xla_and_single_kernels_agree(rng):
    images = rng.integers(0, 256, (6, *SIZE, 3)).astype("uint8")
    boxes = np.tile(np.array([[18, 12, 34, 26]], "float32"), (6, 1, 1))
    for ops in ([augment.Rotate(), augment.Perspective(), augment.Brightness()], [augment.Flip(), augment.Elastic()]):
        batch = {"images": images, "boxes": boxes, "masks": images[..., 0] > 127}
        fast, plain = (view(ops, batch, jit_compile=jit, seed=5) for jit in (True, False))
        assert np.abs(fast["images"].astype(int) - plain["images"]).max() <= 1
        np.testing.assert_allclose(fast["boxes"], plain["boxes"], atol=1e-3)
        assert (fast["masks"] != plain["masks"]).mean() < 1e-3
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(
            augment.Pipeline(ops, seed=5, bounding_box_format="xywh")))
        assert again.bounding_box_format == "xywh"
        assert again.ops == ops
