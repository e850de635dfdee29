"""The same seed, epoch and index give the same view, whatever is around it; and the pipeline inside models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import augment
from tfopt.augment import _random

COUNT = 70
OPS = [augment.Flip(), augment.Rotate(0.1), augment.Zoom(0.2), augment.Brightness(0.2), augment.Contrast(0.5),
       augment.Hue(0.1), augment.Equalize(0.3), augment.Noise(0.05), augment.Erase()]


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (COUNT, 16, 16, 3)).astype("uint8")


@pytest.fixture(scope="module")
def pipeline():
    return augment.Pipeline(OPS, seed=3)


def passes(dataset, count=1):
    """What the data set yields in each pass, as one array per pass."""
    return [np.concatenate([np.asarray(batch) for batch in dataset]) for _ in range(count)]


def test_threefry_equals_the_published_vectors():
    def words(*values):
        return tuple(tf.constant(value, tf.uint32) for value in values)

    for key, counter, expected in [
            ((0, 0), (0, 0), (0x6b200159, 0x99ba4efe)), ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1cb996fc, 0xbb002be7)),
            ((0x13198a2e, 0x03707344), (0x243f6a88, 0x85a308d3), (0xc4923a9c, 0x483df7a0))]:
        assert tuple(int(word) for word in _random.threefry(words(*key), words(*counter))) == expected


def test_numbers_are_uniform_and_independent():
    index = tf.range(20000, dtype=tf.int64)
    streams = _random.uniform(_random.example_keys(5, tf.zeros_like(index), index), {0: 3, 7: 3})
    u = np.concatenate([streams[0], streams[7]], 1)
    other = [_random.uniform(_random.example_keys(seed, tf.zeros_like(index) + epoch, index), {0: 1})[0].numpy()[:, 0]
             for seed, epoch in ((6, 0), (5, 1), (5 + 2**32, 0), (5, 2**32))]
    everything = np.stack([*u.T, *other])
    assert 0 <= everything.min() < everything.max() < 1
    for row in everything:
        assert np.abs(np.histogram(row, 20)[0] - 1000).max() < 150
    assert np.abs(np.corrcoef(everything) - np.eye(len(everything))).max() < 0.03
    assert abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 0.03


def assert_same_views(views, wanted):
    apart = np.abs(views.astype("int32") - wanted)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("batch", [16, 64])
@pytest.mark.parametrize("parallel", [1, 8])
def test_views_depend_on_neither_parallelism_nor_batch_size(images, pipeline, batch, parallel):
    """XLA compiles each batch size by itself: on some CPUs a few values round to the next gray level."""
    expected = [pipeline.apply(images, epoch=epoch, index=range(COUNT)).numpy() for epoch in (0, 1)]
    assert (expected[0] != expected[1]).any((1, 2, 3)).all()
    source = tf.data.Dataset.from_tensor_slices(images)
    given = source.enumerate().batch(batch).map(pipeline.map, num_parallel_calls=parallel)
    for views, wanted in zip(passes(given, 2), expected, strict=True):
        assert_same_views(views, wanted)
    first, second = passes(source.batch(batch).map(pipeline.map, num_parallel_calls=parallel), 2)
    alone, _ = passes(source.batch(batch).map(pipeline.map), 2)
    np.testing.assert_array_equal(first, alone)                         # one batch size: bit for bit
    again, _ = passes(source.batch(7).map(pipeline.map, num_parallel_calls=2), 2)
    assert_same_views(first, again)
    assert (first != second).any((1, 2, 3)).all()


@pytest.mark.slow
def test_bits_do_not_depend_on_the_order(images, pipeline):
    order = np.random.default_rng(2).permutation(COUNT)
    expected = pipeline.apply(images, epoch=4, index=range(COUNT)).numpy()
    np.testing.assert_array_equal(pipeline.apply(images[order], epoch=4, index=order), expected[order])
    plain, = passes(tf.data.Dataset.from_tensor_slices(images).batch(64).map(pipeline.map))
    shuffled, = passes(tf.data.Dataset.from_tensor_slices(images[order]).batch(32).map(pipeline.map))
    np.testing.assert_array_equal(shuffled, plain[order])
    each = np.concatenate([pipeline.apply(images[i:i + 1], epoch=[4], index=[i]) for i in range(4)])
    np.testing.assert_array_equal(each, expected[:4])


@pytest.mark.slow
def test_seed_epoch_and_index_each_change_the_view(images, pipeline):
    one = np.repeat(images[:1], 3, 0)
    views = pipeline.apply(one, epoch=np.array([0, 1, 0]), index=[0, 0, 1]).numpy()
    other = augment.Pipeline(OPS, seed=4, jit_compile=False).apply(one[:1], epoch=0, index=[0]).numpy()
    assert len(np.unique(np.concatenate([views, other]).reshape(4, -1), axis=0)) == 4


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(images, pipeline, run_python, tmp_path):
    keras.Sequential([keras.Input((16, 16, 3)), pipeline]).save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    run_python("import numpy as np, keras\n"
               "from tfopt import augment\n"
               "pipeline = keras.models.load_model('model.keras').layers[-1]\n"
               "images = np.load('images.npy')\n"
               "np.save('views.npy', pipeline.apply(images, epoch=2, index=range(len(images))))\n")
    np.testing.assert_array_equal(np.load(tmp_path / "views.npy"),
                                  pipeline.apply(images, epoch=2, index=range(COUNT)))


@pytest.mark.slow
@pytest.mark.parametrize(("ops", "fill_mode"), [
    *((OPS, mode) for mode in augment._geometry.FILL_MODES),
    ([augment.RandAugment(3, 0.6)], "reflect"), ([augment.TrivialAugment()], "reflect"),
    ([augment.Crop(12, 12, scale=(0.3, 1)), augment.Sharpness(1), augment.Blur(1), augment.AutoContrast()], "reflect")],
    ids=[*augment._geometry.FILL_MODES, "RandAugment", "TrivialAugment", "more"])
def test_xla_and_single_kernels_agree(ops, fill_mode):
    small = np.random.default_rng(0).uniform(0, 255, (16, 5, 5, 3)).astype("float32")
    smooth = tf.image.resize(small, (16, 16)).numpy()
    if ops is OPS:                                    # equalizing rounds: a hair's breadth becomes a level there
        ops = [op for op in OPS if not isinstance(op, augment.Equalize)]
    views = [augment.Pipeline(ops, fill_mode=fill_mode, jit_compile=jit).apply(smooth, epoch=0, index=range(16)).numpy()
             for jit in (True, False)]
    off = np.abs(views[0] - views[1])
    if any(isinstance(op, augment.RandAugment | augment.TrivialAugment) for op in ops):
        assert (off > 0.01).mean() < 0.01             # posterize, solarize and equalize jump
    else:
        assert off.max() < 0.01
    assert np.abs(views[0] - smooth[:, :views[0].shape[1], :views[0].shape[2]]).max() > 10


def test_a_short_last_batch_is_neither_traced_nor_compiled_again(images):
    pipeline = augment.Pipeline([augment.Flip(), augment.Rotate()])
    traced = []
    program = pipeline._program(tf.constant(images), True, tf.uint8)
    original = program._finish

    def finish(views):
        traced.append(views.shape)
        return original(views)

    program._finish = finish
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(32).map(pipeline.map)          # 32, 32, 6
    assert [len(batch) for batch in dataset] == [32, 32, 6]
    passes(dataset, 2)
    assert len(traced) == 1


@pytest.mark.slow
def test_identical_images_share_a_view_and_distinct_ones_do_not(images, pipeline):
    same = np.repeat(images[:1], 4, 0)
    views, = passes(tf.data.Dataset.from_tensor_slices(same).batch(4).map(pipeline.map))
    assert len(np.unique(views.reshape(4, -1), axis=0)) == 1
    changed = same.copy()
    changed[1, 3, 3, 1] ^= 1
    assert len(set(_random.fingerprint(tf.constant(changed)).numpy())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("form", ["alone", "labels", "weights", "dict", "nested index"])
def test_map_takes_what_data_sets_hold(images, pipeline, form):
    labels = np.arange(COUNT)
    element = {"alone": images, "labels": (images, labels), "weights": (images, labels, labels / 2),
               "dict": {"images": images, "labels": labels}, "nested index": (images, labels)}[form]
    dataset = tf.data.Dataset.from_tensor_slices(element)
    dataset = dataset.enumerate() if form == "nested index" else dataset
    mapped = dataset.batch(COUNT).map(pipeline.map)
    result = next(iter(mapped))
    views = {"alone": lambda: result, "dict": lambda: result["images"]}.get(form, lambda: result[0])()
    assert views.shape == images.shape
    assert views.dtype == "uint8"
    if form != "alone":
        np.testing.assert_array_equal(result["labels"] if form == "dict" else result[1], labels)
    if form == "weights":
        np.testing.assert_array_equal(result[2], labels / 2)
    if form == "nested index":
        np.testing.assert_array_equal(views, pipeline.apply(images, epoch=0, index=range(COUNT)))


def small_model(pipeline):
    return keras.Sequential([keras.Input((16, 16, 3)), pipeline, keras.layers.Rescaling(1 / 255),
                             keras.layers.Conv2D(4, 3, strides=2), keras.layers.GlobalAveragePooling2D(),
                             keras.layers.Dense(2)])


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_inside_a_model_it_acts_in_training_only(images, jit):
    pipeline = augment.Pipeline([augment.Flip(), augment.Rotate(), augment.Contrast(), augment.Sharpness()], seed=1)
    model = small_model(pipeline)
    np.testing.assert_array_equal(pipeline(images), images)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=jit)
    model.fit(images, np.arange(COUNT) % 2, batch_size=32, epochs=2, verbose=0)
    assert int(pipeline.seen) == 2 * COUNT
    first, second = (pipeline(images, training=True).numpy() for _ in range(2))
    assert (first != second).any((1, 2, 3)).mean() > 0.9
    pipeline.seen.assign(2 * COUNT)
    np.testing.assert_array_equal(pipeline(images, training=True), first)           # the counter is all its state
    np.testing.assert_array_equal(model.predict(images, verbose=0), model.predict(images, verbose=0))


def test_a_model_goes_on_where_it_was_saved(images, tmp_path):
    model = small_model(augment.Pipeline([augment.Flip(), augment.Rotate()], jit_compile=False))
    model.layers[0](images, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[0].get_config() == model.layers[0].get_config()
    np.testing.assert_array_equal(again.layers[0](images, training=True), model.layers[0](images, training=True))


def test_it_passes_through_json():
    everything = [
        augment.Flip("vertical"), augment.Rotate(), augment.Zoom(0.1, 0.2), augment.Translate(), augment.Shear(),
        augment.Resize(20, 20), augment.Crop(16, 16, scale=(0.5, 1)), augment.Brightness(), augment.Contrast(),
        augment.Saturation(), augment.Hue(), augment.Posterize((3, 5)), augment.Solarize(), augment.Blur(),
        augment.AutoContrast(), augment.Equalize(), augment.Sharpness(), augment.Noise(), augment.Erase(),
        augment.RandAugment(), augment.TrivialAugment(), augment.Normalize([1, 2, 3], 4),
        augment.MixUp(num_classes=3), augment.CutMix()]
    pipeline = augment.Pipeline(everything, seed=9, fill_mode="wrap", value_range=(-1, 1), fill_value=0.5)
    again = keras.layers.deserialize(keras.layers.serialize(pipeline))
    assert again.get_config() == pipeline.get_config()
    assert again.ops == everything


@pytest.mark.slow
def test_the_model_learns_from_a_mapped_data_set(images, pipeline):
    model = small_model(keras.layers.Identity())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(COUNT) % 2)).batch(32).map(
        pipeline.map, num_parallel_calls=2).prefetch(1)
    history = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(history).all()


def test_half_precision_policy(images):
    pipeline = augment.Pipeline([augment.Flip(), augment.Brightness()], output_range=(0, 1), dtype="mixed_float16",
                                jit_compile=False)
    views = pipeline(images, training=True)
    assert views.dtype == "float16"
    assert 0 <= float(tf.reduce_min(views)) <= float(tf.reduce_max(views)) <= 1


@pytest.mark.slow
def test_on_two_devices_each_replica_sees_views_of_its_own(run_python):
    run_python("""
import keras, numpy as np, tensorflow as tf
from tfopt import augment
strategy = tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices("CPU")])
with strategy.scope():
    pipeline = augment.Pipeline([augment.Rotate(0.5), augment.Brightness()])
    model = keras.Sequential([keras.Input((8, 8, 3)), pipeline, keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3))
x, y = np.repeat(image, 16, 0).astype("float32"), np.zeros((16, 1))
model.fit(x, y, batch_size=8, epochs=1, verbose=0)
assert int(pipeline.seen.numpy()) == 8                                  # examples of one replica
views = strategy.run(lambda: pipeline(tf.constant(x[:2]), training=True))
views = np.concatenate([v.numpy() for v in strategy.experimental_local_results(views)])
assert len(np.unique(views.reshape(4, -1), axis=0)) == 4
data = tf.data.Dataset.from_tensor_slices((x, y)).enumerate().batch(8).map(pipeline.map, num_parallel_calls=2)
expected = pipeline.apply(x, epoch=0, index=range(16)).numpy()
whole = [np.concatenate(strategy.experimental_local_results(part[0]))
         for part in strategy.experimental_distribute_dataset(data)]
np.testing.assert_array_equal(np.concatenate(whole), expected)
model.fit(data, epochs=1, verbose=0)
""", devices=2)
