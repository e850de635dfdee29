"""What input costs, in CPU time, against what tutorials show, side by side in one run.

Only the last lines are of wall time: whoever drops an iterator waits for tf.data's tuner, which may oversleep.

Images: real 256 x 256 crops of scikit-learn's two photographs in a folder of JPEG files, read at 224 pixels, flipped,
zoomed and sheared; the cost of a pass over the folder once everything is compiled and caches are full.
"""

import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from tfopt import augment, data

IMAGES, SIDE, BATCH, ROUNDS = 1024, 224, 32, 3
ROWS, COLUMNS, ROW_BATCH = 1_000_000, 8, 1024
PASSES = 20


def write_images(folder):
    rng = np.random.default_rng(0)
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir()
        for i in range(IMAGES // 2):
            top, left = (rng.integers(0, length - 256 + 1) for length in photograph.shape[:2])
            Image.fromarray(photograph[top:top + 256, left:left + 256]).save(folder / name / f"{i}.jpg", quality=90)


def write_rows(path):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype("float32"),
                         columns=[f"c{i}" for i in range(COLUMNS)])
    frame.assign(y=np.arange(ROWS) % 2).to_csv(path, index=False)


def consume(dataset):
    """Everything in the dataset; returns how many examples that were."""
    return sum(len(keras.tree.flatten(element)[-1]) for element in dataset)


def costs(candidates):
    """Median CPU microseconds for an example of each candidate, a function that returns how many it handled."""
    for name, run in candidates.items():
        start = time.process_time()
        run()
        print(f"input: first pass of {name} took {time.process_time() - start:.1f} CPU s", flush=True)
    spent = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, run in candidates.items():
            start = time.process_time()
            examples = run()
            spent[name].append((time.process_time() - start) / examples * 1e6)
    return {name: statistics.median(values) for name, values in spent.items()}


def tell(cost, ours, theirs):
    print(f"input: {theirs} / {ours} = {cost[theirs] / cost[ours]:.1f}   ({cost[theirs]:.3g} / {cost[ours]:.3g} us)",
          flush=True)


def images(folder):
    def ours(cache):
        views = augment.Pipeline([augment.Flip(), augment.Zoom(0.2), augment.Shear(0.2)], output_range=(0, 255))
        dataset = data.image_folder(folder, SIDE, BATCH, augment=views, cache=cache)
        return lambda: consume(dataset)

    layers = keras.Sequential([keras.layers.RandomFlip("horizontal"), keras.layers.RandomZoom(0.2),
                               keras.layers.RandomShear(0.2)])
    theirs = keras.utils.image_dataset_from_directory(folder, image_size=(SIDE, SIDE), batch_size=BATCH, verbose=False)
    theirs = theirs.cache().shuffle(IMAGES // BATCH).map(lambda x, y: (layers(x, training=True), y),
                                                         num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    flow = tf.keras.preprocessing.image.ImageDataGenerator(horizontal_flip=True, zoom_range=0.2, shear_range=11)
    flow = flow.flow_from_directory(folder, (SIDE, SIDE), batch_size=BATCH, class_mode="sparse",
                                    interpolation="bilinear")                # as the others; its default is nearest
    cost = costs({"image_folder, cached": ours("memory"), "image_folder, uncached": ours(None),
                  "image_dataset_from_directory, cached": lambda: consume(theirs),
                  "ImageDataGenerator": lambda: consume(flow[i] for i in range(len(flow)))})
    tell(cost, "image_folder, cached", "image_dataset_from_directory, cached")
    tell(cost, "image_folder, cached", "ImageDataGenerator")
    tell(cost, "image_folder, uncached", "ImageDataGenerator")


def rows(path):
    def ours():
        train, _, _ = data.table(path, "y", ROW_BATCH, validation_split=0)
        return consume(train)

    def theirs():
        dataset = tf.data.experimental.make_csv_dataset(str(path), ROW_BATCH, label_name="y", num_epochs=1)
        return consume(dataset.take(ROWS // 5 // ROW_BATCH))

    cost = costs({"table, read and scaled": ours, "make_csv_dataset": theirs})
    tell(cost, "table, read and scaled", "make_csv_dataset")

    frame = pd.read_csv(path).astype("float32")
    x, y = frame.drop(columns="y").to_numpy(), frame["y"].to_numpy()
    batches = data.arrays(x, y, ROW_BATCH)
    slices = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(ROWS).batch(ROW_BATCH).prefetch(tf.data.AUTOTUNE)
    cost = costs({"arrays": lambda: consume(batches), "from_tensor_slices.shuffle.batch": lambda: consume(slices)})
    tell(cost, "arrays", "from_tensor_slices.shuffle.batch")


def waits():
    """How long the end of a pass takes: to drop the iterator, or what lies between the batches of two epochs."""
    x, y = np.zeros((100_000, 8), "float32"), np.zeros(100_000, "float32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    waited = {"a tf.data pipeline with AUTOTUNE": []}
    batches = tf.data.Dataset.range(10**9).batch(64).map(lambda i: tf.cast(i, "float32"), tf.data.AUTOTUNE)
    for _ in range(PASSES):
        iterator, end = iter(batches.prefetch(tf.data.AUTOTUNE)), time.perf_counter() + 1.5
        while time.perf_counter() < end:
            next(iterator)
        start = time.perf_counter()
        del iterator
        waited["a tf.data pipeline with AUTOTUNE"].append(time.perf_counter() - start)
    for name, given in {"fit on arrays": {"x": x, "y": y, "batch_size": 64},
                        "fit on data.arrays": {"x": data.arrays(x, y, 64)}}.items():
        watch = Watch()
        model.fit(**given, epochs=PASSES + 1, verbose=0, callbacks=[watch])
        waited[name] = watch.waited[1:]
    for name, times in waited.items():
        print(f"input: {name}: {sum(t > 0.1 for t in times)} of {PASSES} passes end with a wait above 0.1 s, "
              f"the longest {max(times):.2f} s", flush=True)


class Watch(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.waited, self.last = [], time.perf_counter()

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.waited.append(time.perf_counter() - self.last)

    def on_train_batch_end(self, batch, logs=None):
        self.last = time.perf_counter()


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "images").mkdir()
        write_images(folder / "images")
        images(folder / "images")
        write_rows(folder / "rows.csv")
        rows(folder / "rows.csv")
    waits()


if __name__ == "__main__":
    main()
