"""What augmentation costs: CPU time per image against others' pipelines of the same operations, in one run.

    python benchmarks/augment.py [--size 32 64 224] [--rounds 9]

Every candidate is one running tf.data pipeline over the same batches of uint8 images, 256 up to 32 px, else 64 (Keras'
generator and albumentations: their own loops over these images). After a first pass, which compiles, they take turns,
and the medians are compared: CPU time of the whole process.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from tfopt import augment

layers = keras.layers


def batch_of(x):
    return 256 if x.shape[1] <= 32 else 64


def images(size, channels=3, count=256):
    small = np.random.default_rng(0).uniform(0, 255, (count, 8, 8, channels))
    return tf.cast(tf.image.resize(small, (size, size)), tf.uint8).numpy()


def through_data(function, x):
    """Batch after batch in the foreground: nothing is computed ahead, in somebody else's turn."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    data = x.reshape(-1, batch_of(x), *x.shape[1:])
    batches = iter(tf.data.Dataset.from_tensor_slices(data).repeat().map(function).with_options(options))

    def run():
        for _ in data:
            next(batches)
    return run


def keras_chain(chain, x):
    model = keras.Sequential(chain)
    return through_data(lambda batch: model(tf.cast(batch, tf.float32), training=True), x)


def ours(ops, x):
    return through_data(augment.Pipeline(ops).map, x)


def generator(x):
    maker = tf.keras.preprocessing.image.ImageDataGenerator(
        horizontal_flip=True, rotation_range=18, zoom_range=0.2, width_shift_range=0.1, height_shift_range=0.1,
        shear_range=6)
    flow = maker.flow(x.astype("float32"), batch_size=batch_of(x))

    def run():
        for step in range(len(flow)):
            flow[step]
    return run


def albumentations_five(x):
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    chain = A.Compose([A.HorizontalFlip(p=0.5), A.Rotate(18, p=1), A.Affine(scale=(0.8, 1.2), p=1),
                       A.Affine(translate_percent=(-0.1, 0.1), p=1), A.Affine(shear=(-6, 6), p=1)])

    def run():
        for start in range(0, len(x), batch_of(x)):
            np.stack([chain(image=image)["image"] for image in x[start:start + batch_of(x)]])
    return run


def compare(title, candidates, x, rounds):
    """Prints one line: the CPU time of the first candidate, and how many times more each other one takes."""
    first = []
    for run in candidates.values():
        start = time.process_time()
        run()
        first.append(time.process_time() - start)
    spent = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            spent[name].append((time.process_time() - start) / len(x) * 1e6)
    cost = {name: statistics.median(times) for name, times in spent.items()}
    (mine, base), *others = cost.items()
    print(f"{title}, batches of {batch_of(x)}: {mine} {base:.1f} us per image (first pass: {first[0]:.1f} s); "
          + "; ".join(f"{name} {value:.0f} us, x{value / base:.1f}" for name, value in others), flush=True)


def quality():
    """PSNR of six operations on a photograph, in one resample and in six, against the same at four times its size."""
    from sklearn.datasets import load_sample_image

    size = 96
    large = load_sample_image("china.jpg")[:4 * size, 100:100 + 4 * size].astype("float32")
    small = large.reshape(size, 4, size, 4, 3).mean((1, 3))
    ops = [augment.Rotate((0.03, 0.03)), augment.Zoom((-0.1, -0.1)), augment.Shear((0.08, 0.08)),
           augment.Translate((0.033, 0.033)), augment.Rotate((-0.05, -0.05)), augment.Zoom((0.06, 0.06))]

    def view(image, *chain):
        for part in chain:
            image = augment.Pipeline(part).apply(image[None], epoch=0, index=[0])[0].numpy()
        return image

    reference = view(large, ops).reshape(size, 4, size, 4, 3).mean((1, 3))
    once, one_by_one = (10 * np.log10(255**2 / np.mean((image - reference)[16:-16, 16:-16] ** 2))
                        for image in (view(small, ops), view(small, *([op] for op in ops))))
    print(f"quality of 6 operations: {once:.1f} dB PSNR in one resample, {one_by_one:.1f} dB in six", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, nargs="+", default=[32, 64, 224])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", default=["geometric", "ten", "gray", "policy", "single", "others",
                                                                 "quality"])
    arguments = parser.parse_args()
    geometric = [augment.Flip(), augment.Rotate(0.05), augment.Zoom(0.2), augment.Translate(0.1), augment.Shear(0.1)]
    colors = [augment.Brightness(0.2), augment.Contrast(0.2), augment.Saturation(0.3), augment.Hue(0.1)]

    def keras_geometric():
        return [layers.RandomFlip("horizontal"), layers.RandomRotation(0.05), layers.RandomZoom(0.2),
                layers.RandomTranslation(0.1, 0.1), layers.RandomShear(0.1, 0.0)]

    def keras_colors():
        return [layers.RandomBrightness(0.2), layers.RandomContrast(0.2), layers.RandomSaturation((0.35, 0.65)),
                layers.RandomHue(0.1)]

    if "geometric" in arguments.only:
        for size in arguments.size:
            x = images(size, count=256 if size < 200 else 64)
            compare(f"5 geometric operations, {size} px",
                    {"tfopt": ours(geometric, x), "keras.layers": keras_chain(keras_geometric(), x)}, x,
                    arguments.rounds)
    x = images(64)
    if "ten" in arguments.only:
        compare("10 operations, 64 px",
                {"tfopt": ours([*geometric, *colors, augment.Erase()], x),
                 "keras.layers": keras_chain([*keras_geometric(), *keras_colors(), layers.RandomErasing()], x)}, x,
                arguments.rounds)
    if "gray" in arguments.only:
        gray = images(28, channels=1)
        compare("8 operations, 28 px gray",
                {"tfopt": ours([*geometric, *colors[:2], augment.Erase()], gray),
                 "keras.layers": keras_chain([*keras_geometric(), *keras_colors()[:2], layers.RandomErasing()], gray)},
                gray, arguments.rounds)
    if "policy" in arguments.only:
        compare("RandAugment, 64 px", {"tfopt": ours([augment.RandAugment(2, 0.5)], x),
                                       "keras.layers": keras_chain([layers.RandAugment(num_ops=2, factor=0.5)], x)}, x,
                arguments.rounds)
    if "single" in arguments.only:
        compare("AugMix, 64 px", {"tfopt": ours([augment.AugMix()], x),
                                  "keras.layers": keras_chain([layers.AugMix()], x)}, x, arguments.rounds)
        compare("MotionBlur, 64 px", {"tfopt": ours([augment.MotionBlur()], x)}, x, arguments.rounds)
        compare("JPEG, 64 px", {"tfopt": ours([augment.JPEG()], x)}, x, arguments.rounds)
    if "others" in arguments.only:
        candidates = {"tfopt": ours(geometric, x), "ImageDataGenerator": generator(x)}
        try:
            candidates["albumentations"] = albumentations_five(x)
        except ImportError:
            print("albumentations is not installed: left out")
        compare("5 geometric operations, 64 px", candidates, x, arguments.rounds)
    if "quality" in arguments.only:
        quality()


if __name__ == "__main__":
    main()
