"""Numbers that are not finite or do not fit, and figures that once came out wrong without a word."""

import contextlib
import io

import keras
import numpy as np
import scipy.special
import test_distill_cache as cached
from keras import layers
from sklearn.datasets import load_iris

from tfopt import average, cluster, distill, quantize, report, schedules, tune

from . import fault, said

X = np.random.default_rng(0).normal(size=(320, 8)).astype("float32")


def network(**compiled):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(16, "relu", name="hidden"), layers.Dense(1, name="out")])
    model.compile(**{"optimizer": "sgd", "loss": "mse", **compiled})
    return model


def spoilt(value):
    """X with one number that is not finite."""
    x = X.copy()
    x[5, 3] = value
    return x


def refused(calls):
    """Each (model, call) must be refused and leave its model as it was."""
    for model, call in calls:
        before = model.get_weights()
        text, found = said(call)
        yield text, {"a false result": found is None, "the model": all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(model.get_weights(), before, strict=True))}


@fault("figures", "cluster", "NaN or infinite weights in cluster.wrap, which once did not end")
def cluster_of_nan(folder):
    models = [network() for _ in range(4)]
    for model, value, name in zip(models, (np.nan, np.inf, -np.inf, np.nan), ("hidden", "hidden", "out", "out"),
                                  strict=True):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.where(np.arange(kernel.shape[0])[:, None] == 0, value, kernel.numpy()))
    yield from refused((model, lambda model=model: cluster.wrap(model, 4)) for model in models)


@fault("figures", "quantize", "an inf or a NaN in the calibration of quantize.convert, which once ended the process")
def convert_with_inf(folder):
    model = network()
    yield from refused((model, lambda value=value, mode=mode: quantize.convert(model, mode, calibration=spoilt(value)))
                       for value in (np.inf, -np.inf, np.nan) for mode in ("int8", "int16x8", "dynamic", "float16"))


@fault("figures", "quantize", "weights that are NaN in quantize.convert, of which it once made a file")
def convert_of_nan(folder):
    model = network()
    model.get_layer("out").bias.assign([np.nan])
    yield from refused((model, lambda mode=mode: quantize.convert(model, mode, calibration=X))
                       for mode in ("float32", "int8", "dynamic"))


@fault("figures", "schedules", "one NaN row in schedules.find, which once changed the rate from 10.0 to 5e-4")
def find_with_nan(folder):
    model = network()
    yield from refused((model, lambda data=data: schedules.find(model, data, steps=30, verbose=0)) for data in (
        (spoilt(np.nan), X[:, :1]), (spoilt(np.inf), X[:, :1]), (X, spoilt(np.nan)[:, 3:4])))
    found = schedules.find(model, (X, X[:, :1]), steps=30, verbose=0)
    yield "(without it a rate is found)", {"the rate": found.rate > 0}


@fault("figures", "quantize", "one NaN row in quantize.calibrate, which once made the model NaN")
def calibrate_with_nan(folder):
    model = quantize.wrap(network())
    yield from refused((model, lambda value=value: quantize.calibrate(model, spoilt(value)))
                       for value in (np.nan, np.inf, -np.inf))


@fault("figures", "average", "a short last batch in update_batch_norm: 64 zeros and one 9")
def short_batch(folder):
    for full in (64, 128, 100):
        x = np.r_[np.zeros((full, 1)), np.full((1, 1), 9.)].astype("float32")
        model = keras.Sequential([keras.Input((1,)), layers.BatchNormalization()])
        found = average.update_batch_norm(model, x).layers[-1]
        mean, variance = float(found.moving_mean[0]), float(found.moving_variance[0])
        yield f"(mean {mean:.4f}, right {x.mean():.4f})", {
            "the mean": abs(mean - x.mean()) < 1e-5, "the variance": abs(variance - x.var()) < 1e-4}


@fault("figures", "report", "logits of Dense(1) that all lie in 0..1, compiled with from_logits=True")
def logits_in_unit(folder):
    x, y = np.array([[.1], [.2], [.3], [.4], [.05]], "float32"), np.array([1, 1, 1, 1, 0])
    for loss, right in ((keras.losses.BinaryCrossentropy(from_logits=True), .8), ("binary_crossentropy", .2)):
        model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False)])
        model.set_weights([np.ones((1, 1))])
        model.compile("adam", loss)
        found = float(report.compare({"model": model}, (x, y), runs=1).frame.accuracy.iloc[0])
        yield f"(accuracy {found:.1f}, right {right})", {"the accuracy": abs(found - right) < 1e-6}


@fault("figures", "distill", "logits that share a large offset, cached in float16")
def shared_offset(folder):
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    for offset in (0., 300., 8000., -8000., 60000.):
        teacher = cached.dense(16)
        teacher.layers[-1].bias.assign(np.full(12, offset))
        outputs = cached.everything(distill.cache_teacher(teacher, x, batch_size=10, verbose=0))
        right = scipy.special.softmax(teacher.predict(outputs[0], verbose=0), -1)
        off = np.abs(scipy.special.softmax(cached.logits_in(outputs[1]), -1) - right).max()
        yield f"(offset {offset:g}: probabilities differ by at most {off:.0e})", {"the probabilities": off < 1e-3}


@fault("figures", "cluster", "kernels that preserve_sparsity skips, after training: do their zeros stay")
def zeros_of_skipped(folder):
    for per_channel in (False, True):
        model = network()
        for name in ("hidden", "out"):
            kernel = model.get_layer(name).kernel
            kernel.assign(np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0., kernel))
        zero = {name: model.get_layer(name).kernel.numpy() == 0 for name in ("hidden", "out")}
        wrapped = cluster.wrap(model, 4, preserve_sparsity=True, per_channel=per_channel, where="hidden")
        wrapped.compile("sgd", "mse")
        wrapped.fit(X, X[:, :1], epochs=3, verbose=0)
        plain = cluster.strip(wrapped)
        kept = {name: bool((plain.get_layer(name).kernel.numpy()[mask] == 0).all()) for name, mask in zero.items()}
        yield "(all zeros stay)", {"zeros of what is clustered": kept["hidden"], "zeros of what is not": kept["out"]}


@fault("figures", "tune", "x and y of different lengths in cross_validate")
def lengths(folder):
    model = network()
    yield from refused((model, lambda rows=rows: tune.cross_validate(lambda: model, X, X[:rows, :1], folds=2, epochs=1,
                                                                     verbose=0)) for rows in (1, 200, 319))


@fault("figures", "tune", "the line of a trial in a resumed search of two objectives: which one does it print as best")
def two_objectives(folder):
    x, y = load_iris(return_X_y=True)

    def build(hp):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(hp.Int("units", 2, 40)), layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
        return model

    for objectives in (["val_loss", "params"], ["params", "val_loss"]):
        place = folder / objectives[0]
        for trials in (1, 2):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                search = tune.Search(build, objectives, algorithm="random", max_trials=trials, directory=place)
                search.run((x, y), (x, y), epochs=1, verbose=1)
        first = search.frame[objectives[0]]
        best = first.loc[search.pareto().index].idxmin()
        line = printed.getvalue().strip()
        yield f"({' '.join(line.split())})", {
            "the objective": line.endswith(f"best: trial {best}, {objectives[0]} {first[best]:.4g}")}


@fault("figures", "tune", "targets that the model cannot train on in a search: beyond the classes, negative, NaN")
def targets(folder):
    x, y = load_iris(return_X_y=True)

    def build(hp):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(hp.Int("units", 2, 4)), layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
        return model

    for wrong in (y + 3, y - 1, y * np.nan):
        search = tune.Search(build, "loss", algorithm="random", max_trials=2, directory=folder)
        text, found = said(search.run, (x, wrong), epochs=1, verbose=0)
        yield text, {"a trial": found is None and search.frame.empty}
