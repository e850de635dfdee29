"""Every piece of tfopt on one device, on 2 and 4 logical devices, and on 2 worker processes: the largest difference.

    python benchmarks/verify/distribute.py [--topologies 2 4 workers] [--pieces NAME ...]

Each topology trains all pieces in a process of its own, on the same global batches. The rows go to
docs/measured/distribute.csv. A run that was interrupted goes on where it stopped: what was trained is in --folder.
Below the pieces stand known exceptions and negative controls, which must differ, or fail.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from tfopt import augment, average, cluster, data, distill, distribute, prune, quantize, regularizers, schedules

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "distribute.csv"
TOPOLOGIES = {"one": "one", "2": "mirrored", "4": "mirrored", "workers": "multi_worker"}
BATCH, EPOCHS, SIZE = 16, 3, 32
EQUAL, HALF = 1e-5, 1e-3                                      # the largest difference that is allowed
PIECES = {}
LAYERS = keras.layers


def piece(expected=EQUAL, name=None, **variants):
    """Registers what follows; `expected`: a limit, "differs" or "raises". Variants: name=argument."""

    def register(function):
        called = name or function.__name__.replace("_", " ")
        for variant, argument in (variants or {"": None}).items():
            train = functools.partial(function, argument) if variants else function
            PIECES[f"{called}: {variant}" if variant else called] = train, expected
        return function

    return register


# What is trained

def table(size=SIZE):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(size, 8)).astype("float32")
    return x, (x[:, :3] @ rng.normal(size=(3, 4))).argmax(axis=1)


def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(SIZE, 8, 8, 3)).astype("uint8"), np.arange(SIZE) % 4


def dense(*middle, dtype=None, penalty=None, outputs=4):
    return keras.Sequential([
        keras.Input((8,)), LAYERS.Dense(16, "relu", kernel_regularizer=penalty, dtype=dtype, name="first"), *middle,
        LAYERS.Dense(outputs, dtype=dtype, name="last")])


def convolutional():
    return keras.Sequential([
        keras.Input((8, 8, 3)), LAYERS.Rescaling(1 / 255), LAYERS.Conv2D(8, 3, padding="same", activation="relu"),
        LAYERS.MaxPooling2D(), LAYERS.Flatten(), LAYERS.Dense(4)])


def cross_entropy(**settings):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **settings)


def seen(model, history, *samples):
    """What is compared: weights, history, evaluation, predictions."""
    found = {f"weight {place}": weight for place, weight in enumerate(model.get_weights())}
    found |= {f"history {key}": values for key, values in history.history.items()}
    if samples:
        found["evaluate"] = model.evaluate(*samples, batch_size=BATCH, verbose=0)
        found["predict"] = model.predict(samples[0][:-3], batch_size=BATCH, verbose=0)
    return {key: np.asarray(values, "float64") for key, values in found.items()}


def fitted(model, samples=None, optimizer=None, loss=None, *, check=None, compiled=None, **fit):
    """Compiled, trained on `samples` (arrays, or a data set), and seen."""
    samples = table() if samples is None else samples
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, loss or cross_entropy(), **{"metrics": ["accuracy"], **(compiled or {})})
    arrays = samples if isinstance(samples, tuple) else (samples,)
    settings = {"batch_size": BATCH} if isinstance(samples, tuple) else {}
    history = model.fit(*arrays, epochs=EPOCHS, verbose=0, **settings, **fit)
    return seen(model, history, *(check or (samples if isinstance(samples, tuple) else ())))


# Keras under tfopt's strategy

@piece(SGD=lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), Adam=lambda: keras.optimizers.Adam(0.01),
       AdamW=lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1))
def L2(optimizer):  # noqa: N802
    return fitted(dense(penalty="l2"), optimizer=optimizer())


@piece()
def validation_and_early_stopping():
    return fitted(dense(), validation_data=table(20), callbacks=[keras.callbacks.EarlyStopping(patience=1)])


@piece()
def sample_weights():
    return fitted(dense(), sample_weight=np.linspace(0, 1, SIZE).astype("float32"))


@piece()
def summed_loss():
    return fitted(dense(), optimizer=keras.optimizers.SGD(0.001), loss=cross_entropy(reduction="sum"))


@piece()
def two_outputs_and_a_constraint():
    inputs = keras.Input((8,))
    body = LAYERS.Dense(8, "tanh", kernel_constraint=keras.constraints.MaxNorm(0.5))(inputs)
    model = keras.Model(inputs, {"a": LAYERS.Dense(4, name="a")(body), "b": LAYERS.Dense(1, name="b")(body)})
    x, y = table()
    model.compile(keras.optimizers.Adam(0.01), {"a": cross_entropy(), "b": "mse"}, loss_weights={"a": 1., "b": 0.5})
    return seen(model, model.fit(x, {"a": y, "b": x[:, :1]}, batch_size=BATCH, epochs=EPOCHS, verbose=0))


@piece(HALF)
def mixed_bfloat16():
    return fitted(dense(dtype="mixed_bfloat16"), optimizer=keras.optimizers.Adam(0.001))


@piece(HALF)
def mixed_float16():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.001))
    return fitted(dense(dtype="mixed_float16"), optimizer=optimizer)


# distribute

@piece(name="sync_batch_norm")
def synchronized():
    return fitted(distribute.sync_batch_norm(dense(LAYERS.BatchNormalization(momentum=0.5))))


@piece(global_clipnorm={"global_clipnorm": 0.1}, clipnorm={"clipnorm": 0.1}, clipvalue={"clipvalue": 0.01},
       accumulate={"gradient_accumulation_steps": 2})
def GlobalBatchOptimizer(settings):  # noqa: N802
    optimizer = keras.optimizers.Adam(schedules.Linear(0.05, 6), **settings)
    return fitted(dense(), optimizer=distribute.GlobalBatchOptimizer(optimizer))


@piece(name="equal_batches")
def even():
    """35 examples in batches of 16: the last one has 3."""
    x, y = table(35)
    full = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    return fitted(dense(), distribute.equal_batches(full, replicas=4), check=(x, y))


# schedules, regularizers

@piece(Linear=lambda: schedules.Linear(0.1, 6), Step=lambda: schedules.Step(0.1, factor=0.5, every=2),
       OneCycle=lambda: schedules.OneCycle(0.1, 6), Knee=lambda: schedules.Knee(0.1, 6, warmup=1, explore=3),
       InverseSqrt=lambda: schedules.InverseSqrt(0.1, warmup=2), Cyclic=lambda: schedules.Cyclic(0.01, 0.1, every=2),
       Join=lambda: schedules.Join([schedules.Constant(0.1), schedules.Linear(0.1, 4)], [2]),
       Warmup=lambda: schedules.Warmup(schedules.CosineDecay(0.1, 4), 2), Scaled=lambda: schedules.Scaled(
           schedules.Linear(0.1, 6), 0.5))
def schedule(make):
    return fitted(dense(), optimizer=keras.optimizers.SGD(make()))


@piece()
def Plateau():  # noqa: N802
    callback = schedules.Plateau("loss", factor=0.5, patience=1, min_delta=10.)
    return fitted(dense(), optimizer=keras.optimizers.SGD(schedules.Linear(0.1, 6)), callbacks=[callback])


@piece(Hoyer=lambda: regularizers.Hoyer(1e-2), GroupLasso=lambda: regularizers.GroupLasso(1e-2),
       Kurtosis=lambda: regularizers.Kurtosis(1e-2),
       Sum=lambda: regularizers.Sum([regularizers.L1(1e-3), regularizers.L2(1e-2)]))
def penalty(make):
    return fitted(regularizers.add(dense(), make()))


# distill

@piece(Logits=lambda: distill.Logits(), DecoupledKD=lambda: distill.DecoupledKD(), DIST=lambda: distill.DIST(),
       Features=lambda: distill.Features({"first": "first"}),
       AttentionTransfer=lambda: distill.AttentionTransfer({"c": "c"}),
       RelationalKD=lambda: distill.RelationalKD({"first": "first"}))
def Distiller(loss):  # noqa: N802
    loss = loss()
    build = tapped if isinstance(loss, distill.AttentionTransfer) else functools.partial(dense, penalty="l2")
    teacher, student = build(), build()
    for weight in teacher.weights:                                # the same on any device, whoever drew it
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    samples = images() if isinstance(loss, distill.AttentionTransfer) else table()
    samples = samples[0].astype("float32"), samples[1]
    return fitted(distill.Distiller(teacher, student, loss), samples, keras.optimizers.Adam(0.01))


def tapped():
    return keras.Sequential([keras.Input((8, 8, 3)), LAYERS.Rescaling(1 / 255), LAYERS.Conv2D(4, 3, name="c"),
                             LAYERS.Flatten(), LAYERS.Dense(4)])


@piece(name="cache_teacher")
def cached_teacher():
    x, y = table()
    cached = distill.cache_teacher(dense(), data.arrays(x, y, BATCH, shuffle=False))
    return fitted(distill.Distiller(None, dense(), distill.Logits()), cached)


# prune, cluster, quantize

@piece(name="prune.wrap", gradual={"end": 4, "every": 1}, pattern={"pattern": (2, 4)})
def pruned(settings):
    return fitted(prune.wrap(dense(penalty="l2"), 0.5, **settings), optimizer=keras.optimizers.Adam(0.01))


@piece()
def Distiller_with_a_pruned_student():  # noqa: N802
    return fitted(distill.Distiller(dense(), prune.wrap(dense(), 0.5, end=4), distill.Logits()))


@piece(name="cluster.wrap", plain={}, preserve_sparsity={"preserve_sparsity": True})
def clustered(settings):
    return fitted(cluster.wrap(dense(), 4, init="linear", **settings))


# augment, data, average

def turned():
    return augment.Pipeline([augment.Flip(), augment.Rotate(0.1), augment.Brightness(0.2)], jit_compile=False)


@piece(name="augment: apply")
def augment_apply():
    x, y = images()
    pipeline, numbered = turned(), tf.data.Dataset.from_tensor_slices((x, y)).enumerate().batch(BATCH)
    return fitted(convolutional(), numbered.map(lambda index, pair: (
        pipeline.apply(pair[0], epoch=0, index=index), pair[1])))


@piece(name="data.table")
def data_table():
    x, y = table()
    frame = pd.DataFrame(x, columns=list("abcdefgh")).assign(y=y)
    train, _, _ = data.table(frame, "y", BATCH, validation_split=0.5)
    return fitted(dense(), train)


@piece(mean=None, momentum=0.5)
def SWA(momentum):  # noqa: N802
    callback = average.SWA(2, 1, data=table()[0], momentum=momentum)
    return fitted(dense(LAYERS.BatchNormalization(synchronized=True)), callbacks=[callback])


@piece(name="average.outputs")
def average_outputs():
    return fitted(average.outputs([dense(), dense()]))


# Known exceptions: they differ from one device, and docs/distribute.md says why

@piece("differs", name="quantize.wrap")
def quantized():
    return fitted(quantize.wrap(dense()))


@piece("differs", Dropout=lambda: LAYERS.Dropout(0.5), DropPath=lambda: regularizers.DropPath(0.5))
def random(layer):
    return fitted(dense(layer()))


@piece("differs", name="augment: layer")
def augment_layer():
    return fitted(keras.Sequential([keras.Input((8, 8, 3)), turned(), *convolutional().layers]), images())


@piece("differs", name="data.arrays shuffled anew")
def data_arrays_shuffled_anew():
    return fitted(dense(), data.arrays(*table(), BATCH))


# Negative controls: what distribute.diagnose names

@piece("differs", global_clipnorm={"global_clipnorm": 0.1}, clipnorm={"clipnorm": 0.1}, clipvalue={"clipvalue": 0.01})
def Keras_clips(settings):  # noqa: N802
    return fitted(dense(), optimizer=keras.optimizers.SGD(0.1, **settings))


@piece("differs")
def unsynchronized_BatchNormalization():  # noqa: N802
    return fitted(dense(LAYERS.BatchNormalization(momentum=0.5)))


@piece("differs")
def uneven_last_batch():
    return fitted(dense(), table(33))


@piece("differs")
def masked_loss():
    words = np.random.default_rng(0).integers(0, 6, size=(SIZE, 5))
    model = keras.Sequential([keras.Input((5,)), LAYERS.Embedding(6, 4, mask_zero=True), LAYERS.Dense(6)])
    return fitted(model, (words, words))


class Undivided(keras.Model):
    """Adds a term to the loss, and forgets how many replicas will add theirs."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight, training) + tf.reduce_mean(y_pred ** 2)


@piece("differs")
def custom_loss_undivided():
    inner = dense()
    return fitted(Undivided(inner.inputs, inner.outputs))


@piece("differs")
def Keras_Distiller():  # noqa: N802
    loss = keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence(), temperature=4.)
    return fitted(keras.distillation.Distiller(dense(), dense(), loss, student_loss_weight=0.5))


@piece("raises", gradient_accumulation={"gradient_accumulation_steps": 2},
       ema={"use_ema": True, "ema_overwrite_frequency": 2})
def Keras_optimizer(settings):  # noqa: N802
    return fitted(dense(), optimizer=keras.optimizers.SGD(0.1, **settings))


@piece("raises", steps_per_execution={"steps_per_execution": 2}, jit_compile={"jit_compile": True})
def Keras_compile(settings):  # noqa: N802
    return fitted(dense(), compiled=settings)


# One topology

def train(topology, names, folder):
    """Trains the named pieces on this process' devices; a file for each piece and worker."""
    if topology in "24":
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                                   [tf.config.LogicalDeviceConfiguration()] * int(topology))
    strategy = distribute.strategy(TOPOLOGIES[topology])
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"] if topology == "workers" else 0
    for name in names:
        keras.backend.clear_session()
        keras.utils.set_random_seed(1)
        try:
            with strategy.scope():
                found = PIECES[name][0]()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(topology, name, found.get("error", ""), flush=True)
        np.savez(place(folder, topology, name, index), **found)


def place(folder, topology, name, index):
    return pathlib.Path(folder) / f"{topology} {name} {index}.npz".replace(" ", "_").replace(":", "")


def results(topology, names, folder):
    """{piece: what each process of the topology saw}; trains those whose files are not there yet."""
    files = {name: [place(folder, topology, name, index) for index in range(1 + (topology == "workers"))]
             for name in names}
    missing = [name for name in names if not all(file.exists() for file in files[name])]
    launch = ["-m", "tfopt.distribute", "--workers", "2"] if topology == "workers" else []
    if missing:
        subprocess.run([sys.executable, "-P", *launch, __file__, "--train", topology, "--folder", str(folder),
                        "--pieces", *missing], check=True)
    return {name: [dict(np.load(file)) for file in files[name]] for name in names}


# The table

def row(topology, name, one, others):
    """`one`: what the piece gave on one device; `others`: what it gave in each process of the topology."""
    expected, difference = PIECES[name][1], np.nan
    faults = [str(found["error"]) for found in others if "error" in found]
    if not faults and "error" not in one:
        difference = max(float(np.max(np.abs(values - found[key]), initial=0))
                         for found in others for key, values in one.items())
    if "error" in one:
        good, faults = False, [str(one["error"])]
    elif expected == "raises":
        good = bool(faults)
    elif expected == "differs":
        good = difference > EQUAL
    else:
        good = difference <= expected
    return {"topology": topology, "piece": name, "difference": difference, "expected": expected,
            "as expected": "yes" if good else "NO", "error": faults[0] if faults else ""}


def write(rows):
    old = pd.read_csv(TABLE, dtype=str, keep_default_na=False) if TABLE.exists() else pd.DataFrame()
    new = pd.DataFrame([{**one, "difference": f"{one['difference']:.1e}"} for one in rows]).astype(str)
    both = pd.concat([old, new]).drop_duplicates(["topology", "piece"], keep="last")
    order = {name: place for place, name in enumerate(PIECES)}
    both = both[both.piece.isin(order)]
    both = both.sort_values(["topology", "piece"], key=lambda column: column.map(order) if column.name == "piece"
                            else column, kind="stable")
    both.to_csv(TABLE, index=False)


def main(topologies=("2", "4", "workers"), pieces=tuple(PIECES), folder="results/verify/distribute", keep=True):
    """Returns the rows; `keep` writes them into the table."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    one, rows = results("one", pieces, folder), []
    for topology in topologies:
        others = results(topology, pieces, folder)
        rows += [row(topology, name, one[name][0], others[name]) for name in pieces]
    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False, float_format="{:.1e}".format))
    if keep:
        write(rows)
    return frame


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["2", "4", "workers"], choices=["2", "4", "workers"])
    parser.add_argument("--pieces", nargs="+", default=list(PIECES), choices=list(PIECES), metavar="NAME")
    parser.add_argument("--folder", default="results/verify/distribute", help="what is in it is not trained again")
    parser.add_argument("--no-table", dest="keep", action="store_false", help="print only")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    topology = options.pop("train")
    if topology:
        train(topology, options["pieces"], options["folder"])
    else:
        sys.exit(int("NO" in set(main(**options)["as expected"])))
