"""One valid call of every public callable, all its arguments given: what tests of arguments change one value of.

    thing, arguments = calls(directory)["prune.wrap"]
    thing(**arguments)
"""

import decimal
import fractions
import functools
import importlib
import itertools
import pathlib
from unittest import mock

import keras
import keras_tuner
import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras

import tfopt
from tfopt import augment, cluster, data, distill, prune, quantize, regularizers, report, schedules

# What functions return and users hold, and the base of one's own operations: nobody calls these with arguments.
NOT_CALLED = {"augment.Op", "compress.Result", "data.AudioReport", "data.ImageReport", "data.TablePreprocessor",
              "report.ClassReport", "report.Explanation", "report.Robustness", "report.Row", "report.Table",
              "schedules.Finding", "tune.CrossValidation"}


def public():
    """{"module.name": object} of all that is the library's own; Keras' classes that it hands on are Keras'."""
    modules = [importlib.import_module(f"tfopt.{name}") for name in tfopt.__all__]
    things = {f"{module.__name__.split('.')[1]}.{name}": getattr(module, name)
              for module in modules for name in module.__all__}
    return {name: thing for name, thing in things.items()                  # by the module that a thing is at home in
            if callable(thing) and getattr(thing, "__module__", "").startswith(f"tfopt.{name.split('.')[0]}.")}


def network(seed=0, *, wide=4):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(wide, "relu", name="hidden"),
                              keras.layers.BatchNormalization(), keras.layers.Dense(3, name="head")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def pictures():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])


class Doubling(keras.layers.Layer):
    """A layer of one's own."""

    def call(self, x):
        return 2 * x


def doubling_rule(layer, rule):
    rule.pass_through()


def space():
    parameters = keras_tuner.HyperParameters()
    parameters.steps = lambda: 100
    return parameters


@functools.cache
def lite():
    return quantize.convert(network(), "float32", rounding="nearest")


def _pointwise():
    layers = keras.layers
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(1)(x))
    x = layers.Conv2D(8, 1)(layers.DepthwiseConv2D(3, padding="same")(x))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def _mostly_right(x):
    """Labels of which `network` has three in four."""
    y = np.asarray(network()(x)).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    return y


def _pruned(x, y):
    model = prune.wrap(network(), 0.5)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    return model


def _images(directory):
    folder = pathlib.Path(directory, "images")
    if not folder.exists():
        for name in ("cat", "dog"):
            (folder / name).mkdir(parents=True)
            for i in range(3):
                keras.utils.save_img(folder / name / f"{i}.png", np.full((8, 8, 3), 60 * i))
    return str(folder)


def _sounds(directory):
    folder = pathlib.Path(directory, "sounds")
    if not folder.exists():
        for name in ("cat", "dog"):
            (folder / name).mkdir(parents=True)
            for i in range(3):
                (folder / name / f"{i}.wav").write_bytes(tf.audio.encode_wav(np.full((64, 1), 0.1), 16000).numpy())
    return str(folder)


@functools.cache
def _preprocessor():
    return data.table(_frame(), "price", 4)[2].model


def _frame():
    return pd.DataFrame({"size": np.arange(12.), "kind": list("abc") * 4, "price": np.arange(12.) ** 2})


def calls(directory):
    """{"module.name": (callable, {argument: valid value})}; files are written in `directory`."""
    x, y = np.random.default_rng(0).normal(size=(16, 4)).astype("float32"), np.arange(16) % 3
    learnable = (x[:, 0] > 0) + 1 * (x[:, 1] > 0)
    images = np.zeros((4, 8, 8, 3), "float32")
    path, weight = str(pathlib.Path(directory, "made")), {"temperature": 2.0, "from_logits": True, "output": None}
    once, layers, plateau = {"probability": 1.0}, {"layers": {"hidden": "hidden"}}, {
        "monitor": "val_loss", "factor": 0.1, "patience": 10, "verbose": 0, "mode": "auto", "min_delta": 1e-4,
        "cooldown": 0, "min_lr": 0.0}
    swa = {"start": 1, "every": 2, "data": (x, y), "momentum": None}
    linear = schedules.Linear(0.1, 10)
    arguments = {
        "augment.AutoContrast": once, "augment.Equalize": once, "augment.TrivialAugment": {},
        "augment.AutoAugment": {"policy": "cifar10"},
        "augment.Blur": {"sigma": (0.0, 1.0), **once},
        "augment.Brightness": {"factor": (-0.2, 0.2), "multiply": False, **once},
        **{f"augment.{name}": {"factor": (-0.04, 0.04), **once}
           for name in ("Contrast", "Hue", "Rotate", "Saturation", "Sharpness")},
        "augment.AugMix": {"width": 2, "depth": 2, "factor": 0.3}, "augment.CenterCrop": {"height": 4, "width": 4},
        "augment.ColorJitter": {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.01, **once},
        "augment.Grayscale": once, "augment.Invert": once, "augment.JPEG": {"quality": (30, 60), **once},
        "augment.GridMask": {"size": (0.3, 0.5), "ratio": 0.5, "fill_value": 0.0, **once},
        "augment.MotionBlur": {"length": (1.0, 3.0), "angle": (-0.5, 0.5), **once},
        "augment.AddNoise": {"snr_db": (5.0, 40.0), **once}, "augment.Gain": {"gain_db": (-6.0, 6.0), **once},
        "augment.Speed": {"factor": (-0.1, 0.1), **once},
        "augment.TimeShift": {"factor": (-0.1, 0.1), "wrap": False, **once},
        **{f"augment.{name}": {"width": 3, "count": 2, "fraction": 0.5, "fill_value": 0.0, "axis": 1, **once}
           for name in ("FrequencyMask", "TimeMask")},
        **{f"augment.{name}": {"rate": 0.1, "padding_id": 0, "protected_ids": (1, 2), **once}
           for name in ("TokenDrop", "TokenSwap")},
        "augment.TokenMask": {"rate": 0.1, "padding_id": 0, "protected_ids": (1, 2), **once, "mask_id": 3},
        "augment.Crop": {"height": 4, "width": 4, "scale": None},
        **{f"augment.{name}": {"alpha": 0.2, "num_classes": 3, **once} for name in ("CutMix", "MixUp")},
        "augment.Elastic": {"factor": (0.0, 0.02), "scale": 0.2, **once},
        "augment.Perspective": {"factor": 0.1, **once},
        "augment.Erase": {"scale": (0.02, 0.33), "ratio": (0.3, 3.3), "fill_value": 0.0, **once},
        "augment.Flip": {"mode": "horizontal", "probability": 0.5},
        "augment.Noise": {"stddev": (0.0, 0.05), **once}, "augment.Normalize": {"mean": 0.5, "std": 0.5},
        "augment.Pipeline": {"ops": [augment.Flip()], "seed": 0, "fill_mode": "reflect", "value_range": (0, 255),
                             "output_range": None, "fill_value": 0.0, "jit_compile": False,
                             "bounding_box_format": "xyxy"},
        "augment.Posterize": {"bits": (4, 4), **once}, "augment.RandAugment": {"num_ops": 2, "factor": 0.3},
        "augment.Resize": {"height": 4, "width": 4},
        "augment.Shear": {"x_factor": (-0.1, 0.1), "y_factor": (0.0, 0.0), **once},
        "augment.Solarize": {"threshold": (0.0, 1.0), **once},
        **{f"augment.{name}": {"height_factor": (-0.1, 0.1), "width_factor": None, **once}
           for name in ("Translate", "Zoom")},
        "augment.preview": {"pipeline": augment.Pipeline([augment.Flip()], jit_compile=False), "images": images,
                            "path": None, "views": 1},
        "average.SWA": swa, "average.outputs": {"models": [network(), network(1)], "weights": [1.0, 2.0]},
        "average.update_batch_norm": {"model": network(), "data": x},
        "average.views": {"model": pictures(), "views": augment.Pipeline([augment.Flip()], jit_compile=False), "n": 2},
        "average.weights": {"models": [network(), network(1)], "score": None},
        "callbacks.GrowingBatch": {},
        "callbacks.Resume": {"directory": path, "every": 2, "max_to_keep": 2},
        "cluster.plan": {"model": network(), "clusters": 4, "preserve_sparsity": False, "per_channel": False,
                         "where": None},
        "cluster.wrap": {"model": network(), "clusters": 4, "init": "linear", "preserve_sparsity": False,
                         "per_channel": False, "where": ["hidden"]},
        "cluster.strip": {"model": cluster.wrap(network(), 2)},
        "compress.run": {"model": network(), "train": (x, y), "val": (x, y), "test": None, "max_drop": 0.005,
                         "measure": None, "stages": ("prune",), "epochs": 1, "directory": None, "seed": 0},
        "data.arrays": {"x": x, "y": y, "batch_size": 4, "sample_weight": None, "augment": None, "repeats": 1,
                        "shuffle": True, "seed": 0},
        "data.full_batches": {"dataset": tf.data.Dataset.from_tensor_slices(x).batch(3), "batch_size": 4},
        "data.audio_folder": {"directory": _sounds(directory), "batch_size": 2, "output_sequence_length": 32,
                              "spectrogram": None, "validation_split": 0, "augment": None, "shuffle": True, "seed": 0,
                              "on_error": "raise"},
        "data.image_folder": {"directory": _images(directory), "image_size": 8, "batch_size": 2,
                              "validation_split": 0, "augment": None, "cache": None, "shuffle": True, "seed": 0,
                              "on_error": "raise", "max_pixels": 1000, "root": None},
        "data.raw_features": {"path_or_frame": _frame(), "model": _preprocessor(), "batch_size": 4},
        "data.scan_images": {"directory": _images(directory), "root": None, "max_pixels": 1000},
        "data.table": {"path_or_frame": _frame(), "target": "price", "batch_size": 4, "missing": "median",
                       "outliers": None, "scale": "standard", "validation_split": 0.2, "shuffle": True, "seed": 0},
        "distill.AttentionTransfer": layers, "distill.Features": layers,
        "distill.DIST": {"between": 1.0, "within": 1.0, **weight},
        "distill.DecoupledKD": {"target": 1.0, "others": 8.0, **weight},
        "distill.Distiller": {"teacher": network(), "student": network(1), "losses": distill.Logits(),
                              "loss_weights": 1.0, "student_loss_weight": 0.5, "name": "distiller"},
        "distill.Logits": {"activation": "softmax", "standardize": True, **weight},
        "distill.MovingAverage": {"momentum": 0.9}, "distill.Values": {"delta": 1.0, "output": None},
        "distill.RelationalKD": {"distance": 25.0, "angle": 50.0, **layers},
        "distill.cache_teacher": {"teacher": network(), "data": (x, y), "directory": None, "top_k": 2, "augment": None,
                                  "views": 1, "batch_size": 8, "verbose": 0},
        "distribute.GlobalBatchOptimizer": {"optimizer": keras.optimizers.SGD(), "name": "global"},
        "distribute.diagnose": {"model": network(), "data": tf.data.Dataset.from_tensor_slices(x).batch(4)},
        "distribute.equal_batches": {"data": tf.data.Dataset.from_tensor_slices(x).batch(4), "replicas": 2},
        "distribute.precision": {"kind": "auto"}, "distribute.strategy": {"kind": "auto"},
        "distribute.sync_batch_norm": {"model": network()},
        "finetune.Unfreeze": {"every": 1, "until": "hidden"}, "finetune.plan": {"model": network()},
        "finetune.freeze": {"model": network(), "until": "hidden"},
        "finetune.rates": {"model": network(), "optimizer": "adam", "decay": 0.75},
        "prune.SparsitySummaries": {"directory": path},
        "prune.allocate": {"model": network(), "sparsity": 0.5, "where": None},
        "prune.plan": {"model": network(), "sparsity": 0.5, "block": None, "pattern": None, "where": None},
        "prune.wrap": {"model": network(), "sparsity": 0.5, "begin": 0, "end": 10, "every": 1, "block": None,
                       "pattern": None, "where": ["hidden"]},
        "prune.strip": {"model": _pruned(x, y)}, "prune.sparsities": {"model": _pruned(x, y)},
        "prune.xnnpack_layers": {"model": _pointwise()},
        "quantize.LiteModel": {"content": lite().content, "threads": 1},
        "quantize.calibrate": {"model": quantize.wrap(network()), "data": x},
        "quantize.convert": {"model": network(), "mode": "float32", "calibration": None, "rounding": "nearest"},
        "quantize.diagnose": {"model": network(), "lite": lite(), "data": x, "threshold_db": 20.0},
        "quantize.load": {"path": str(lite().save(str(pathlib.Path(directory, "model.tflite"))) or
                                      pathlib.Path(directory, "model.tflite"))},
        "quantize.plan": {"model": network(), "bits": 4, "where": None},
        "quantize.wrap": {"model": network(), "bits": 8, "preserve": None, "where": None},
        "regularizers.DropPath": {"rate": 0.1, "seed": 0},
        "regularizers.GroupLasso": {"strength": 1e-4, "axis": -1}, "regularizers.Hoyer": {"strength": 1e-4},
        "regularizers.Kurtosis": {"strength": 0.01, "target": 1.8},
        "regularizers.Sum": {"penalties": [regularizers.Hoyer(), "l2"]},
        "regularizers.add": {"model": network(), "penalty": "hoyer", "where": None},
        "regularizers.dropout": {"model": network(), "rate": 0.1, "where": None},
        "regularizers.get": {"identifier": "hoyer"},
        "regularizers.strip": {"model": regularizers.weight_noise(network(), 0.1)},
        "regularizers.weight_noise": {"model": network(), "stddev": 0.1, "relative_to": "max", "seed": 0,
                                      "where": None},
        "report.card": {"table": report.Table([report.Row("a", 1, 1, 1, 4, 9, accuracy=0.5, low=0.1, high=0.9,
                                                         examples=2)], "two rows"),
                        "path": str(pathlib.Path(directory, "card.md")), "task": "other", "dataset": "rows",
                        "license": "mit"},
        "report.classes": {"model": network(), "data": (x, y), "names": ["a", "b", "c"], "output": None},
        "report.compare": {"models": [network(), network(1)], "data": (x, y), "title": "", "runs": 1,
                           "measures": ("f1_macro",)},
        "report.curves": {"history": {"loss": [2.0, 1.0]}},
        "report.explain": {"models": [pictures()], "x": images, "method": "occlusion", "target": 1, "output": None,
                           "layer": None, "baseline": 0.0, "window": 4, "verbose": 0},
        "report.measure": {"model": network(), "data": (x, y), "name": "it", "runs": 1,
                           "measures": ("f1_macro",)},
        "report.robustness": {"models": [pictures()], "data": (images, np.arange(4) % 3), "severities": [1],
                              "corruptions": ["noise"], "output": None, "value_range": (0, 255), "seed": 0,
                              "verbose": 0},
        "report.temperature": {"model": network(), "val": (x, _mostly_right(x))},
        "schedules.Constant": {"learning_rate": 0.1}, "schedules.Cyclic": {"low": 0.01, "high": 0.1, "every": 5},
        "schedules.InverseSqrt": {"peak": 0.1, "warmup": 5},
        "schedules.Join": {"schedules": [linear, linear], "boundaries": [5]},
        "schedules.Knee": {"peak": 0.1, "total": 10, "warmup": 2, "explore": 2},
        "schedules.Linear": {"start": 0.1, "total": 10, "end": 0.0},
        "schedules.OneCycle": {"peak": 0.1, "total": 10, "warmup": 3, "start": 0.01, "end": 0.001},
        "schedules.Plateau": plateau, "schedules.Scaled": {"schedule": linear, "factor": 0.5},
        "schedules.Step": {"start": 0.1, "factor": 0.5, "every": 3},
        "schedules.Warmup": {"schedule": linear, "steps": 3},
        "schedules.find": {"model": network(), "data": (x, learnable), "low": 1e-4, "high": 1e3, "steps": 20,
                           "batch_size": 8, "verbose": 0},
        "schedules.get": {"identifier": "OneCycle", "learning_rate": 0.1, "total": 10},
        "shrink.channels": {"model": network(), "keep": 0.5, "macs": None, "latency": None, "importance": "l2",
                            "ranking": "layer", "round_to": 1, "where": None, "data": None},
        "shrink.plan": {"model": network(), "where": None}, "shrink.recalibrate": {"model": network(), "data": x},
        "shrink.register": {"layer_class": Doubling, "rule": doubling_rule},
        "tune.Search": {"build": network, "objective": "val_loss", "algorithm": "random", "max_trials": 1,
                        "directory": path, "limits": None, "folds": None, "seed": 0, "keep_weights": 1},
        "tune.augmentation": {"hp": space(), "flip": True, "seed": 0},
        "tune.cross_validate": {"build": network, "x": x, "y": y, "folds": 2, "groups": None, "epochs": 1,
                                "batch_size": 8, "class_weight": None, "seed": 0, "verbose": 0},
        "tune.distillation": {"hp": space()}, "tune.regularizer": {"hp": space(), "low": 1e-6, "high": 0.01},
        "tune.schedule": {"hp": space(), "total": 100, "low": 1e-4, "high": 0.1},
        "tune.shrink_ratio": {"hp": space(), "low": 0.2, "high": 0.9},
        "tune.sparsity": {"hp": space(), "low": 0.3, "high": 0.95},
    }
    return {name: (thing, arguments[name]) for name, thing in public().items() if name not in NOT_CALLED}


class Empty:
    """An object of no kind."""


def _wrong():
    """{what it is: value}: what no valid call has, or few; also what is typed by habit."""
    x, y, many = np.ones((16, 4), "float32"), np.arange(16) % 3, tf.data.Dataset.from_tensor_slices
    nan = float("nan")
    return {
        "None": None, "True": True, "np.True_": np.True_, "'yes'": "yes", "'0.5'": "0.5", "''": "", "' '": " ",
        "b'bytes'": b"bytes", "0": 0, "1": 1, "-1": -1, "2.0": 2.0, "2.5": 2.5, "-0.0": -0.0, "nan": nan,
        "inf": float("inf"), "1e30": 1e30, "10**30": 10**30, "-10**400": -10**400, "1j": 1j,
        "Fraction(1, 2)": fractions.Fraction(1, 2), "Decimal('0.5')": decimal.Decimal("0.5"),
        "[]": [], "()": (), "{}": {}, "set()": set(), "[None]": [None], "[-1]": [-1], "(nan, nan)": (nan, nan),
        "(1, 0)": (1, 0), "[0.1, 0.2]": [0.1, 0.2], "{0.1, 0.2}": {0.1, 0.2}, "range(3)": range(3),
        "('a', 'b', 'c')": ("a", "b", "c"), "['nowhere']": ["nowhere"], "{'a': 1}": {"a": 1}, "{1: 'a'}": {1: "a"},
        "an object": Empty(), "a class": Empty, "a layer class": keras.layers.Dense, "a function": lambda *_: None,
        "a path with NUL": "no\0where", "a folder that is none": "no/where", "a Path": pathlib.Path("no", "where"),
        "array(0.5)": np.array(0.5), "array(nan)": np.array(nan), "array('a')": np.array("a"),
        "ones(3)": np.ones(3, "float32"), "ones((16, 7))": np.ones((16, 7), "float32"), "True(16, 4)": x > 0,
        "no examples": x[:0], "one example": (x[:1], y[:1]), "no labeled examples": (x[:0], y[:0]),
        "NaN examples": nan * x, "NaN with targets": (nan * x, y), "NaN as targets": (x, nan * y),
        "words": np.array(["a", "b"]), "objects": np.array([None, {}]), "numbers as objects": x.astype(object),
        "numbers as words": x.astype(str), "complex numbers": x * 1j, "dates": x.astype("datetime64[s]"),
        "two lengths": (x, np.ones(3)), "ragged lists": [[1.0, 2.0], [3.0]],
        "ragged": tf.ragged.constant([[1.0, 2.0], [3.0]]),
        "a sparse tensor": tf.sparse.from_dense(x), "three targets": (x, (y, y, y)), "four parts": (x, y, y, y),
        "targets beyond the classes": (x, y + 7), "words as targets": (x, np.array(list("abcd" * 4))),
        "no targets": (x, None), "a tensor": tf.ones((2, 2)), "a variable": tf.Variable(1.0),
        "a symbolic tensor": keras.Input((4,)), "a table": pd.DataFrame({"a": ["x"]}),
        "a Series": pd.Series([0.1, 0.2]),
        "batches": many(x).batch(4), "labeled batches": many((x, y)).batch(4), "single examples": many((x, y)),
        "no batches": many((x, y)).batch(4).take(0), "batches without end": many((x, y)).batch(4).repeat(),
        "an unbuilt model": keras.Sequential([keras.layers.Dense(2)]), "a model of no layers": keras.Sequential(),
        "an uncompiled model": keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]),
        "a model of Keras 2": tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(4,))]),
        "a model class": keras.Sequential, "a PyDataset class": keras.utils.PyDataset,
    }


WRONG = _wrong()
FRESH = {"a generator": lambda: iter(()), "a generator of batches": lambda: (np.ones((4, 4), "float32") for _ in "ab"),
         "a generator without end": lambda: itertools.repeat((np.ones((4, 4), "float32"), np.zeros(4)))}
# Arguments that take a function of the user's, whose errors are the user's and come out as they are.
USERS_OWN = {"average.weights.score", "average.views.views", "shrink.channels.importance", "shrink.register.rule",
             "data.arrays.augment", "data.arrays.batch_size", "data.audio_folder.augment", "data.image_folder.augment",
             "compress.run.measure", "tune.Search.build", "tune.cross_validate.build"}
NEVER = {"b'bytes'", "an object", "1j", "complex numbers", "a generator without end", "a PyDataset class",
         "a model of Keras 2", "a sparse tensor"}          # no argument takes these


def scalars(value):
    """A valid value as NumPy has it."""
    if isinstance(value, bool):
        return {"np.bool_": np.bool_(value)}
    if isinstance(value, int):
        return {"np.int64": np.int64(value), "np.float64": np.float64(value)}
    return {"np.float32": np.float32(value)} if isinstance(value, float) else {}


def tried(name, thing, valid):
    """(argument, what it is given, a function that tries it) for every argument and every wrong value."""
    for argument in valid:
        for what, wrong in [*WRONG.items(), *((what, made()) for what, made in FRESH.items())]:
            if not (f"{name}.{argument}" in USERS_OWN and callable(wrong)):
                yield argument, what, lambda argument=argument, wrong=wrong: outcome(
                    name, thing, {**valid, argument: wrong})


def outcome(name, thing, arguments):
    """("works", "") or ("refused" or "raw", what was said) of one call."""
    try:
        with mock.patch("sys.stdout"):
            thing(**arguments)
    except Exception as error:
        text = str(error.args[0]) if error.args else ""
        sentence = text.startswith((f"{name}: ", f"{name} ")) and "\n" not in text and len(text) < 1500
        return "refused" if sentence else "raw", f"{type(error).__name__}: {text}"
    return "works", ""
