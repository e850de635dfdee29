"""Each operation against an independent slow reference, and the pipeline's manners."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from tfopt import augment

HEIGHT, WIDTH = 13, 18
SCIPY = {"reflect": "reflect", "constant": "grid-constant", "nearest": "nearest", "wrap": "grid-wrap"}


def pictures(rng, count=3, channels=3, size=(HEIGHT, WIDTH)):
    return rng.integers(0, 256, (count, *size, channels)).astype("uint8")


def view(ops, images, *, epoch=0, index=None, **settings):
    """Views as numpy, without the cost of XLA; that both agree is a test of its own."""
    pipeline = augment.Pipeline(ops, **{"jit_compile": False, **settings})
    return pipeline.apply(images, epoch=epoch, index=range(len(images)) if index is None else index).numpy()


def moved(image, forward, mode="reflect", size=None):
    """An image whose content moves by the affine map `forward` (2x3, in x and y about the centers), slowly."""
    old, new = np.array(image.shape[:2]), np.array(size or image.shape[:2])
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    result = np.zeros((*new, image.shape[2]))
    for row in range(new[0]):
        for column in range(new[1]):
            x, y, _ = inverse @ [column - (new[1] - 1) / 2, row - (new[0] - 1) / 2, 1]
            place = np.array([[y + (old[0] - 1) / 2], [x + (old[1] - 1) / 2]])
            for channel in range(image.shape[2]):
                result[row, column, channel] = ndimage.map_coordinates(
                    image[..., channel].astype(float), place, order=1, mode=SCIPY[mode])[0]
    return result


def turn(fraction):
    angle = 2 * np.pi * fraction                     # counter-clockwise with y pointing down
    return [[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0]]


GEOMETRY = [
    ("flip", augment.Flip("horizontal", probability=1), [[-1, 0, 0], [0, 1, 0]]),
    ("flip both", augment.Flip("horizontal_and_vertical", probability=1), [[-1, 0, 0], [0, -1, 0]]),
    ("rotate", augment.Rotate((0.08, 0.08)), turn(0.08)),
    ("zoom out", augment.Zoom((0.3, 0.3)), [[1 / 1.3, 0, 0], [0, 1 / 1.3, 0]]),
    ("zoom in", augment.Zoom((-0.4, -0.4), (0.1, 0.1)), [[1 / 1.1, 0, 0], [0, 1 / 0.6, 0]]),
    ("translate", augment.Translate((0.3, 0.3), (-0.25, -0.25)), [[1, 0, -0.25 * WIDTH], [0, 1, 0.3 * HEIGHT]]),
    ("shear", augment.Shear((0.3, 0.3), (-0.2, -0.2)),
     (np.array([[1, 0, 0], [-0.2, 1, 0], [0, 0, 1]]) @ [[1, 0.3, 0], [0, 1, 0], [0, 0, 1]])[:2])]


@pytest.mark.parametrize("mode", SCIPY)
@pytest.mark.parametrize(("op", "forward"), [case[1:] for case in GEOMETRY], ids=[case[0] for case in GEOMETRY])
def test_geometry_equals_scipy(rng, op, forward, mode):
    images = pictures(rng, 2)
    expected = np.stack([moved(image, forward, mode) for image in images])
    views = view([op], images.astype("float32"), fill_mode=mode)
    np.testing.assert_allclose(views, expected, atol=2e-2)
    if mode == "reflect":
        np.testing.assert_allclose(view([op], images), expected, atol=0.5 + 2e-2)


@pytest.mark.parametrize("mode", SCIPY)
def test_a_run_is_one_resample_of_the_product(rng, mode):
    images = pictures(rng, 2).astype("float32")
    ops = [op for _, op, _ in GEOMETRY]
    whole = np.eye(3)
    for _, _, forward in GEOMETRY:
        whole = np.vstack([forward, [0, 0, 1]]) @ whole
    expected = np.stack([moved(image, whole[:2], mode) for image in images])
    np.testing.assert_allclose(view(ops, images, fill_mode=mode), expected, atol=5e-2)
    assert np.abs(view(ops[::-1], images, fill_mode=mode) - expected).max() > 10          # negative control: the order


def test_resize_and_crop_equal_scipy(rng):
    images = pictures(rng, 2).astype("float32")
    scale = [[24 / WIDTH, 0, 0], [0, 11 / HEIGHT, 0]]
    expected = np.stack([moved(image, scale, size=(11, 24)) for image in images])
    np.testing.assert_allclose(view([augment.Resize(11, 24)], images), expected, atol=2e-2)
    np.testing.assert_allclose(expected, tf.image.resize(images, (11, 24)), atol=2e-2)     # half-pixel centers
    crops = view([augment.Crop(6, 9)], np.repeat(images[:1], 64, 0))
    windows = np.lib.stride_tricks.sliding_window_view(images[0], (6, 9), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    places = {tuple(np.argwhere((windows == crop).all((2, 3, 4)))[0]) for crop in crops}
    assert len(places) > 20
    assert {0, 7} <= {row for row, _ in places}                           # the first and the last place do occur
    resized = view([augment.Crop(8, 8, scale=(0.2, 0.5))], np.repeat(images[:1], 64, 0))
    assert resized.shape == (64, 8, 8, 3)
    assert resized.std(axis=0).mean() > 10


def test_without_training_crop_takes_the_middle(rng):
    images = pictures(rng)
    pipeline = augment.Pipeline([augment.Flip(probability=1), augment.Crop(5, 8)])
    np.testing.assert_array_equal(pipeline(images), images[:, 4:9, 5:13])
    square = augment.Pipeline([augment.Crop(13, 13, scale=(0.1, 1))])(images.astype("float32"))       # the largest one
    np.testing.assert_allclose(square, (images[:, :, 2:15] + images[:, :, 3:16].astype("float32")) / 2, atol=1e-3)


def luma(images):
    return images @ np.array([0.299, 0.587, 0.114])


def test_linear_colors_equal_numpy(rng):
    x = pictures(rng).astype(float)
    mean = x.mean((1, 2), keepdims=True)
    gray = luma(x)[..., None]

    def close(op, expected):
        np.testing.assert_allclose(view([op], x.astype("float32")), np.clip(expected, 0, 255), atol=1e-2)
        np.testing.assert_allclose(view([op], x.astype("uint8")), np.clip(expected, 0, 255), atol=0.51)

    close(augment.Brightness((0.3, 0.3)), x + 0.3 * 255)
    close(augment.Brightness((-0.4, -0.4)), x - 0.4 * 255)
    close(augment.Brightness((-0.4, -0.4), multiply=True), 0.6 * x)
    pil = [np.asarray(ImageEnhance.Brightness(Image.fromarray(image.astype("uint8"))).enhance(1.3)) for image in x]
    np.testing.assert_allclose(view([augment.Brightness((0.3, 0.3), multiply=True)], x.astype("uint8")), pil, atol=1)
    shifted = view([augment.Brightness((0.3, 0.3), multiply=True)], (x / 127.5 - 1).astype("float32"),
                   value_range=(-1, 1))
    np.testing.assert_allclose((shifted + 1) * 127.5, np.clip(1.3 * x, 0, 255), atol=1e-2)
    close(augment.Contrast((0.7, 0.7)), mean + 1.7 * (x - mean))
    close(augment.Saturation((-0.6, -0.6)), gray + 0.4 * (x - gray))
    close(augment.Saturation((1.2, 1.2)), gray + 2.2 * (x - gray))
    pil = [np.asarray(ImageEnhance.Color(Image.fromarray(image.astype("uint8"))).enhance(0.4)) for image in x]
    np.testing.assert_allclose(view([augment.Saturation((-0.6, -0.6))], x.astype("uint8")), pil, atol=2)


def test_hue_equals_a_turn_in_yiq(rng):
    x = rng.uniform(0.35, 0.65, (2, 4, 5, 3))
    expected = np.empty_like(x)
    for place in np.ndindex(x.shape[:3]):
        to_rgb = np.linalg.inv([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
        y, i, q = np.linalg.inv(to_rgb) @ x[place]
        z = complex(i, q) * np.exp(2j * np.pi * 0.1)
        expected[place] = to_rgb @ [y, z.real, z.imag]
    views = view([augment.Hue((0.1, 0.1))], x.astype("float32"), value_range=(0, 1))
    np.testing.assert_allclose(views, expected, atol=1e-5)
    np.testing.assert_allclose(luma(views), luma(x), atol=1e-5)
    assert np.abs(views - x).max() > 0.02


def test_a_run_of_colors_is_clipped_once(rng):
    x = pictures(rng).astype(float)
    ops = [augment.Brightness((0.2, 0.2)), augment.Contrast((0.5, 0.5)), augment.Saturation((-0.5, -0.5)),
           augment.Contrast((-0.3, -0.3)), augment.Brightness((-0.1, -0.1))]
    y = x + 51
    y = y.mean((1, 2), keepdims=True) + 1.5 * (y - y.mean((1, 2), keepdims=True))
    y = luma(y)[..., None] + 0.5 * (y - luma(y)[..., None])
    y = y.mean((1, 2), keepdims=True) + 0.7 * (y - y.mean((1, 2), keepdims=True)) - 25.5
    np.testing.assert_allclose(view(ops, x.astype("float32")), np.clip(y, 0, 255), atol=2e-2)


PILLOW = [
    ("posterize", augment.Posterize(3), lambda image: ImageOps.posterize(image, 3), 0),
    ("solarize", augment.Solarize(100 / 255), lambda image: ImageOps.solarize(image, 100), 0),
    ("autocontrast", augment.AutoContrast(), ImageOps.autocontrast, 1),
    ("equalize", augment.Equalize(), ImageOps.equalize, 0),
    ("sharpen", augment.Sharpness((1.5, 1.5)), lambda image: ImageEnhance.Sharpness(image).enhance(2.5), 2),
    ("smooth", augment.Sharpness((-0.7, -0.7)), lambda image: ImageEnhance.Sharpness(image).enhance(0.3), 1)]


@pytest.mark.parametrize(("op", "reference", "within"), [case[1:] for case in PILLOW], ids=[case[0] for case in PILLOW])
def test_other_colors_equal_pillow(rng, op, reference, within):
    images = np.concatenate([pictures(rng), (pictures(rng, 1) // 3 + 40).astype("uint8"),
                             np.full((1, HEIGHT, WIDTH, 3), 77, "uint8")])
    expected = np.stack([np.asarray(reference(Image.fromarray(image))) for image in images]).astype(int)
    assert np.abs(view([op], images).astype(int) - expected).max() <= within
    scaled = view([op], (images / 255).astype("float32"), value_range=(0, 1))
    np.testing.assert_allclose(scaled * 255, expected, atol=within + 0.51)


def test_blur_equals_scipy(rng):
    images = pictures(rng).astype("float32")
    expected = [ndimage.gaussian_filter(image.astype(float), (1.7, 1.7, 0), mode="reflect", radius=6)
                for image in images]
    np.testing.assert_allclose(view([augment.Blur((1.7, 1.7))], images), expected, atol=1e-2)
    np.testing.assert_array_equal(view([augment.Blur((0, 0))], images), images)


def test_noise_is_gaussian():
    flat = np.full((4, 64, 64, 3), 0.5, "float32")
    noise = (view([augment.Noise((0.1, 0.1))], flat, value_range=(0, 1)) - 0.5) / 0.1
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs((np.abs(noise) < 1).mean() - 0.6827) < 0.01
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(noise.ravel()[1:], noise.ravel()[:-1])[0, 1]) < 0.02


def test_erase_covers_one_rectangle_of_the_asked_size():
    flat = np.full((64, 20, 30, 3), 9, "uint8")
    views = view([augment.Erase((0.1, 0.3), ratio=(0.5, 2), fill_value=200)], flat)
    tops = set()
    for image in views:
        rows, columns = np.nonzero(image[..., 0] == 200)
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert tall * wide == len(rows) == (image == 200).sum() / 3
        assert 0.08 < len(rows) / 600 < 0.33
        assert 0.4 < tall / wide < 2.5
        tops.add(rows.min())
    assert len(tops) > 8
    noisy = view([augment.Erase((0.5, 0.5), ratio=(1, 1))], flat)
    assert 40 < noisy[0].std() < 120


@pytest.mark.parametrize("op", [
    augment.Flip(probability=0), augment.Rotate(0), augment.Rotate(0.5, probability=0), augment.Zoom(0),
    augment.Translate(0), augment.Shear(0), augment.Brightness(0), augment.Contrast(0), augment.Saturation(0),
    augment.Hue(0), augment.Hue(1, probability=0), augment.Posterize(8), augment.Equalize(probability=0),
    augment.Sharpness(1, probability=0), augment.Blur(0), augment.Noise(0), augment.Erase(probability=0),
    augment.RandAugment(2, 0)], ids=str)
@pytest.mark.parametrize("mode", ["reflect", "wrap"])
def test_what_is_left_alone_stays_bit_for_bit(rng, op, mode):
    policy = isinstance(op, augment.RandAugment)       # its autocontrast and equalize leave only flat images alone
    images = np.full((3, 8, 8, 3), 77, "uint8") if policy else pictures(rng)
    np.testing.assert_array_equal(view([op], images, fill_mode=mode), images)
    scaled = np.full((3, 8, 8, 3), 77 / 255, "float32") if policy else rng.uniform(0, 1, images.shape).astype("float32")
    np.testing.assert_array_equal(view([op], scaled, value_range=(0, 1), fill_mode=mode), scaled)


def test_probability_is_the_share_of_changed_images(rng):
    images = np.repeat(pictures(rng, 1), 400, 0)
    for op in (augment.Flip(probability=0.3), augment.Brightness((0.2, 0.2), probability=0.3),
               augment.Posterize(2, probability=0.3), augment.Sharpness((1, 1), probability=0.3)):
        changed = (view([op], images) != images).any((1, 2, 3)).mean()
        assert 0.22 < changed < 0.38, op


def test_draws_fill_their_range():
    dots = np.zeros((300, 1, 101, 1), "uint8")
    dots[:, 0, 50] = 255
    shifted = view([augment.Translate(0, (-0.2, 0.3))], dots, fill_mode="constant").astype(float)[:, 0, :, 0]
    places = (shifted * np.arange(101)).sum(1) / shifted.sum(1) - 50
    assert -20.3 < places.min() < -17
    assert 27 < places.max() < 30.4
    assert abs(places.mean() - 0.05 * 101) < 2


def quality(image, reference):
    return 10 * np.log10(255**2 / np.mean((image.astype(float) - reference)[16:-16, 16:-16] ** 2))


def test_one_resample_is_five_decibel_better_than_six():
    """Both against the same moves made on the image at four times its size."""
    from sklearn.datasets import load_sample_image

    size = 96
    photograph = load_sample_image("china.jpg")[:4 * size, 100:100 + 4 * size].astype("float32")
    small = photograph.reshape(size, 4, size, 4, 3).mean((1, 3))[None]
    ops = [augment.Rotate((0.03, 0.03)), augment.Zoom((-0.1, -0.1)), augment.Shear((0.08, 0.08)),
           augment.Translate((0.033, 0.033)), augment.Rotate((-0.05, -0.05)), augment.Zoom((0.06, 0.06))]
    reference = view(ops, photograph[None])[0].reshape(size, 4, size, 4, 3).mean((1, 3))
    once = view(ops, small)[0]
    chain = small
    for op in ops:
        chain = view([op], chain)
    gain = quality(once, reference) - quality(chain[0], reference)
    print(f"\nPSNR: one resample {quality(once, reference):.1f} dB, six {quality(chain[0], reference):.1f} dB")
    assert gain >= 5


def test_each_image_draws_its_own_operations():
    ramp = np.repeat(np.tile(np.arange(16, dtype="uint8") * 15, (16, 1))[None, ..., None], 64, 0).repeat(3, -1)
    for op in (augment.TrivialAugment(), augment.RandAugment(1, 0.7)):
        views = view([op], ramp)
        assert len(np.unique(views.reshape(64, -1), axis=0)) > 8
    assert (view([augment.RandAugment(1, 0.5)], ramp) == ramp).all((1, 2, 3)).mean() > 1 / 30       # identity


@pytest.mark.parametrize(("dtype", "value_range", "within"), [
    ("uint8", (0, 255), 0), ("float32", (0, 1), 0.51 / 255), ("float32", (0, 255), 0.51),
    ("float32", (-1, 1), 1.02 / 255), ("float16", (0, 255), 0.6), ("bfloat16", (0, 1), 0.01),
    ("float64", (-1, 1), 1.02 / 255)])
@pytest.mark.parametrize("channels", [1, 3])
def test_ranges_and_dtypes(rng, dtype, value_range, within, channels):
    """The same views in every range and dtype, and none leaves its range."""
    ops = [augment.Flip(), augment.Rotate(0.1), augment.Brightness(0.5), augment.Contrast(0.9), augment.Saturation(0.9),
           augment.Hue(0.2), augment.Noise(0.1), augment.Erase()]
    images = pictures(rng, 8, channels, (16, 16))
    expected = view(ops, images)
    low, high = value_range
    scaled = tf.cast(images if dtype == "uint8" else low + images / 255 * (high - low), dtype)
    views = augment.Pipeline(ops, value_range=value_range, jit_compile=False).apply(scaled, epoch=0, index=range(8))
    assert views.dtype == dtype
    views = tf.cast(views, tf.float64).numpy()
    assert views.min() >= low
    assert views.max() <= high
    if dtype in ("float16", "bfloat16"):
        assert np.mean(np.abs((views - low) / (high - low) * 255 - expected)) < 1
    else:
        np.testing.assert_allclose((views - low) / (high - low) * 255, expected, atol=within / (high - low) * 255)


def test_output_range_and_normalize_hold_without_training_too(rng):
    images = pictures(rng)
    for training in (True, False):
        views = augment.Pipeline([augment.Flip()], output_range=(-1, 1), jit_compile=False)(images, training=training)
        assert views.dtype == "float32"
        assert -1 <= views.numpy().min() < -0.9
        assert 0.9 < views.numpy().max() <= 1
    plain = augment.Pipeline([augment.Normalize([100, 110, 120], [50, 60, 70])], jit_compile=False)(images)
    np.testing.assert_allclose(plain, (images - np.array([100., 110, 120])) / [50, 60, 70], atol=1e-5)


def test_masks_and_boxes_move_with_the_images():
    images, masks = np.zeros((16, 40, 50, 1), "uint8"), np.zeros((16, 40, 50), "int32")
    images[:, 12:20, 15:30], masks[:, 12:20, 15:30] = 255, 7
    boxes = np.tile(np.array([[15, 12, 30, 20], [0, 0, 1, 1]], "float32"), (16, 1, 1))
    ops = [augment.Flip(), augment.Translate(0.1), augment.Zoom(0.2), augment.Flip("vertical"), augment.Crop(36, 44)]
    batch = {"images": images, "masks": masks, "boxes": boxes, "labels": np.arange(16)}
    pipeline = augment.Pipeline(ops, fill_mode="constant", jit_compile=False)
    views = {key: value.numpy() if hasattr(value, "numpy") else value
             for key, value in pipeline.apply(batch, epoch=0, index=range(16)).items()}
    assert views["masks"].dtype == "int32"
    assert set(np.unique(views["masks"])) == {0, 7}
    assert ((views["images"][..., 0] > 127) != (views["masks"] == 7)).mean() < 0.005
    for mask, box in zip(views["masks"], views["boxes"][:, 0], strict=True):
        rows, columns = np.nonzero(mask)
        np.testing.assert_allclose([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], box, atol=1)
    assert views["boxes"].min() >= 0
    assert (views["boxes"].max((0, 1)) <= [44, 36, 44, 36]).all()
    keras_names = {"images": images, "segmentation_masks": masks[..., None], "bounding_boxes": boxes}
    again = pipeline.apply(keras_names, epoch=0, index=range(16))
    np.testing.assert_array_equal(again["segmentation_masks"][..., 0], views["masks"])
    np.testing.assert_array_equal(again["bounding_boxes"], views["boxes"])


def test_rotated_boxes_hold_their_corners():
    boxes = np.array([[[10.0, 10.0, 20.0, 14.0]]], "float32")
    batch = {"images": np.zeros((1, 30, 30, 1), "uint8"), "boxes": boxes}
    turned = augment.Pipeline([augment.Rotate((0.25, 0.25))], jit_compile=False).apply(batch, epoch=0, index=[0])
    np.testing.assert_allclose(turned["boxes"][0, 0], [10, 10, 14, 20], atol=1e-4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: augment.Pipeline([keras.layers.RandomFlip()]), "an operation of tfopt.augment"),
    (lambda: augment.Pipeline([augment.MixUp(), augment.Flip()]), "Move them to the end"),
    (lambda: augment.Pipeline([augment.Normalize(0, 1), augment.Flip()]), "Move them to the end"),
    (lambda: augment.Pipeline([augment.Normalize(0, 1)], output_range=(0, 1)), "Normalize decides on the range"),
    (lambda: augment.Pipeline([], fill_mode="mirror"), "`fill_mode` must be 'reflect', 'constant', 'nearest' or"),
    (lambda: augment.Pipeline([], value_range=(1, 0)), "`value_range` must be a pair"),
    (lambda: augment.Pipeline([], value_range=255), "`value_range` must be a pair"),
    (lambda: augment.Pipeline([], output_range=(0, float("nan"))), "`output_range` must be None or a pair"),
    (lambda: augment.Pipeline([], seed=0.5), "`seed` must be a whole number"),
    (lambda: augment.Pipeline([], seed=None), "`seed` must be a whole number"),
    (lambda: augment.Pipeline([], fill_value=None), "`fill_value` must be a number"),
    (lambda: augment.Flip("sideways"), "augment.Flip: `mode` must be 'horizontal'"),
    (lambda: augment.Flip(p=0.5), "augment.Flip has no argument `p`. Did you mean `probability`"),
    (lambda: augment.Flip(probability=2), "`probability` must be"),
    (lambda: augment.Rotate(15), "fraction of a full turn"),
    (lambda: augment.Zoom((-1, 0)), "`height_factor` must be a number or a pair"),
    (lambda: augment.Zoom((0.8, 1.2)), r"added to 1: write \(-0.2, 0.2\) for 0.8 to 1.2 times"),
    (lambda: augment.Contrast((0.5, 1.5)), "It is added to 1"),
    (lambda: augment.Zoom((0.8, 1.0)), r"added to 1: write \(-0.2, 0\) for 0.8 to 1 times"),
    (lambda: augment.Speed((1, 1.2)), r"added to 1: write \(0, 0.2\) for 1 to 1.2 times"),
    (lambda: augment.Brightness((0.8, 1.2)), r"For 0.8 to 1.2 times write \(0.2, multiply=True\)"),
    (lambda: augment.Brightness(0.2, multiply=1), "`multiply` must be True or False"),
    (lambda: augment.Pipeline([augment.Op()]), "must have one of the methods"),
    (lambda: augment.Translate("far"), "`height_factor` must be a number or a pair"),
    (lambda: augment.Shear((0.2, 0.1)), "`x_factor` must be a number or a pair"),
    (lambda: augment.Crop(0, 5), "`height` must be a whole number >= 1"),
    (lambda: augment.Crop(5, 5, scale=(0, 1)), "`scale` must be (None, )?a number or a pair"),
    (lambda: augment.Resize(5, 0.5), "`width` must be a whole number >= 1"),
    (lambda: augment.Brightness(2), "`factor` must be a number or a pair"),
    (lambda: augment.Contrast((-2, 0)), "`factor` must be a number or a pair"),
    (lambda: augment.Saturation(True), "`factor` must be a number or a pair"),
    (lambda: augment.Hue(30), "fraction of a full turn"),
    (lambda: augment.Normalize(0, 0), "`std` must be"),
    (lambda: augment.Posterize(0), "`bits` must be"),
    (lambda: augment.Solarize(2), "`threshold` must be"),
    (lambda: augment.Sharpness((0, 11)), "`factor` must be"),
    (lambda: augment.Blur(-1), "`sigma` must be"),
    (lambda: augment.Noise(2), "`stddev` must be"),
    (lambda: augment.Erase((0, 2)), "`scale` must be"),
    (lambda: augment.Erase(ratio=(0, 1)), "`ratio` must be"),
    (lambda: augment.Equalize(-1), "`probability` must be"),
    (lambda: augment.RandAugment(0), "`num_ops` must be"),
    (lambda: augment.RandAugment(2, 9), "`factor` must be"),
    (lambda: augment.MixUp(0), "`alpha` must be"),
    (lambda: augment.CutMix(num_classes=1), "`num_classes` must be")])
def test_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def images_of(shape=(2, 8, 8, 3), dtype="uint8", high=255):
    return (np.random.default_rng(0).uniform(0, high, shape)).astype(dtype)


@pytest.mark.parametrize(("ops", "settings", "images", "message"), [
    ([], {}, images_of((8, 8, 3)), "takes batches of images"),
    ([], {}, images_of((2, 3, 8, 8, 3)), "takes batches of images"),
    ([], {}, images_of(dtype="int32"), "takes uint8 or floating images"),
    ([], {"value_range": (0, 1)}, images_of(), r"uint8 images have the value range \(0, 255\)"),
    ([], {}, images_of(dtype="float32", high=1), "look like 0 .. 1"),
    ([], {"value_range": (0, 1)}, images_of(dtype="float32"), "must lie within `value_range`"),
    ([], {}, images_of(dtype="float32") - 128, "must lie within `value_range`"),
    ([augment.Crop(9, 9)], {}, images_of(), "the window must fit"),
    ([augment.Saturation()], {}, images_of((2, 8, 8, 4)), "needs images of 3 channels"),
    ([augment.Hue()], {}, images_of((2, 8, 8, 2)), "needs images of 3 channels"),
    ([augment.Normalize([1, 2], 1)], {}, images_of(), "one number, or one for each channel"),
    ([augment.Blur(5)], {}, images_of(), "must fit into the images"),
    ([augment.MixUp(num_classes=2)], {}, images_of(), "MixUp needs labels"),
    ([augment.CutMix(num_classes=2)], {}, images_of(), "CutMix needs labels"),
    ([], {}, {"images": images_of(), "mask": images_of()}, "a dict with `images` has the keys"),
    ([], {}, {"left": images_of(), "right": images_of()}, "exactly one input that is images"),
    ([], {}, {"image": images_of(), "bbox": np.zeros((2, 3, 4))}, "boxes are moved under the names"),
    ([], {}, images_of((2, 3, 16, 16)), "takes channels last"),
    ([], {}, {"images": images_of(), "masks": np.zeros(2)}, "masks are"),
    ([], {}, {"images": images_of(), "boxes": np.zeros((2, 4))}, "boxes are"),
    ([augment.MixUp()], {}, {"images": images_of(), "masks": images_of(), "labels": np.eye(2)}, "no masks, no boxes")])
def test_images_are_refused(ops, settings, images, message):
    with pytest.raises(ValueError, match=message):
        augment.Pipeline(ops, jit_compile=False, **settings).apply(images, epoch=0, index=[0, 1])


@pytest.mark.slow
def test_more_refusals():
    pipeline = augment.Pipeline([augment.Flip()], jit_compile=False)
    with pytest.raises(ValueError, match="one number per image"):
        pipeline.apply(images_of(), epoch=0, index=[0])
    with pytest.raises(ValueError, match="labels go into the dict"):
        pipeline.apply({"images": images_of()}, [0, 1], epoch=0, index=[0, 1])
    with pytest.raises(ValueError, match="images of one known size"):
        tf.data.Dataset.from_generator(lambda: iter([images_of()]), output_signature=tf.TensorSpec(
            (None, None, None, 3), tf.uint8)).map(pipeline.map)
    with pytest.raises(ValueError, match="it takes images"):
        pipeline.map(images_of(), [0], [0], [0])
    dataset = tf.data.Dataset.from_tensor_slices(images_of(dtype="float32", high=1)).batch(2).map(pipeline.map)
    with pytest.raises(tf.errors.InvalidArgumentError, match="these images look like 0"):
        list(dataset)
    black = np.zeros((2, 8, 8, 3), "float32")
    np.testing.assert_array_equal(pipeline.apply(black, epoch=0, index=[0, 1]), black)     # black is no mistake
