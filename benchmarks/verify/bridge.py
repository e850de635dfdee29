"""Every network of keras.applications and 200 random graphs, taken to tf_keras and back.

Appends a row each to docs/measured/bridge.csv, so an interrupted run goes on where it stopped. Every network runs in a
process of its own. Columns: `difference`, the largest between the logits of the model and its counterpart, when both
compute batch normalization step by step; `fused`, the same when the counterpart uses TensorFlow's fused kernel;
`spread`, how far the logits of different images lie apart (a difference is worth only as much as this); `returned`, the
largest difference after the weights came back, 0 when exact; `seconds`, of the processor, to make the counterpart and
check it.
"""

import argparse
import importlib
import multiprocessing
import pathlib
import sys
import time

import numpy as np
import pandas as pd

ROOT = pathlib.Path(__file__).parents[2]
TABLE = ROOT / "docs" / "measured" / "bridge.csv"
BRIDGE = "tfopt._bridge"                                    # it has no public name: what stands on it has
SIZES = (32, 71, 75, 96, 128, 224, 299, 331)
GRAPHS, PIECE = 200, 20


def network(name):
    """The network for the smallest images it takes, without the last softmax, which would hide differences."""
    import keras

    for size in SIZES:
        try:
            return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3),
                                                     classifier_activation=None)
        except ValueError as reason:
            problem = reason
    raise problem


def shake(model, rng):
    """Makes logits of different images lie about 1 apart.

    Weights that are all equal become unequal, and the statistics of the batch normalizations fit the images.
    """
    import keras

    for v in [v for layer in model.layers if type(layer).__name__ != "Normalization" for v in layer.weights]:
        w = v.numpy()
        if w.size > 1 and w.std() == 0 and "moving" not in v.name:
            v.assign(rng.uniform(0.1, 0.5, w.shape) if 0 < w.max() < 1e-3 else w + 0.1 * rng.normal(size=w.shape))
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images(model, rng, 32), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    last = [layer for layer in model.layers if layer.weights][-1]
    spread = np.ptp(model(images(model, rng, 8), training=False), axis=0).max()
    last.set_weights([w / spread for w in last.get_weights()])


def images(model, rng, rows):
    """Noise on a color of its own for each image, scaled as the network expects it: to 255 if it scales it itself."""
    own = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)
    x = rng.uniform(-1, 1, (rows, 1, 1, 3)) + rng.uniform(-1, 1, (rows, *model.input_shape[1:]))
    return (x * 64 + 128 if own else x / 2).astype("float32")


def there_and_back(model, x):
    """(layers carried, difference, the same with fused kernels, spread, difference after the way back, seconds)."""
    import keras

    bridge = importlib.import_module(BRIDGE)
    start = time.process_time()
    counterpart = bridge.to_legacy(model)
    seconds = time.process_time() - start
    expected = keras.tree.flatten(model(x, training=False))
    fused = gaps(expected, keras.tree.flatten(counterpart(x, training=False)))
    with importlib.import_module(f"{BRIDGE}.parity").unfused(counterpart):
        gap = gaps(expected, keras.tree.flatten(counterpart(x, training=False)))
    back = gaps(expected, keras.tree.flatten(bridge.copy_back(counterpart, model)(x, training=False)))
    spread = max(float(np.ptp(np.asarray(y, "float64"), axis=0).max()) for y in expected)
    return len(bridge.embedded(counterpart)), gap, fused, spread, back, seconds


def gaps(expected, got):
    return max(float(np.abs(np.asarray(a, "float64") - np.asarray(b, "float64")).max())
               for a, b in zip(expected, got, strict=True))


def one_network(name):
    import keras

    keras.utils.set_random_seed(0)
    rng, model = np.random.default_rng(1), network(name)
    shake(model, rng)
    carried, gap, fused, spread, back, seconds = there_and_back(model, images(model, rng, 4))
    return {"model": name, "image": model.input_shape[1], "layers": len(model.layers), "carried": carried,
            "parameters": model.count_params(), "difference": f"{gap:.1e}", "fused": f"{fused:.1e}",
            "spread": f"{spread:.2g}", "returned": f"{back:.1e}", "seconds": f"{seconds:.1f}"}


def random_piece(first):
    """One row for graphs `first` to `first + PIECE - 1`: the worst of each column, seconds on average."""
    sys.path.insert(0, str(ROOT / "tests"))
    graphs = importlib.import_module("random_graphs")
    done = []
    for seed in range(first, first + PIECE):
        model = graphs.random_graph(seed)
        batch = graphs.random_batch(model, seed)
        done.append((len(model.layers), *there_and_back(model, batch), model.count_params()))
    layers, carried, gap, fused, spread, back, seconds, parameters = np.array(done, "float64").T
    return {"model": f"random graphs {first} to {first + PIECE - 1}", "image": "", "layers": int(layers.sum()),
            "carried": int(carried.sum()), "parameters": int(parameters.sum()), "difference": f"{gap.max():.1e}",
            "fused": f"{fused.max():.1e}", "spread": f"{np.median(spread):.2g}",
            "returned": f"{back.max():.1e}", "seconds": f"{seconds.mean():.1f}"}


def jobs():
    import keras

    networks = [name for name in dir(keras.applications) if name[0].isupper()]
    big = [name for name in networks if name.endswith(("Large", "B5", "B6", "B7", "L", "M", "VGG16", "VGG19"))]
    small = [name for name in networks if name not in big]
    return [*small, *map(str, range(0, GRAPHS, PIECE)), *big]


def in_a_process(job):
    """The row of a job, or None. The process starts with the libraries loaded and gives all its memory back."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: writer.send(row_of(job)))
    process.start()
    writer.close()
    try:
        return reader.recv()
    except EOFError:
        return None
    finally:
        process.join()


def row_of(job):
    return random_piece(int(job)) if job.isdigit() else one_network(job)


def label(job):
    return f"random graphs {job} to {int(job) + PIECE - 1}" if job.isdigit() else job


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing after so long")
    options = parser.parse_args()
    importlib.import_module(BRIDGE)
    start = time.perf_counter()
    for job in jobs():
        known = set(pd.read_csv(TABLE)["model"]) if TABLE.exists() else set()
        if label(job) in known:
            continue
        if time.perf_counter() - start > 60 * options.minutes:
            print("to be continued")
            return
        row = in_a_process(job)
        if row is None:
            print(f"{job} failed", flush=True)
            continue
        print(*row.values(), sep="\t", flush=True)
        pd.DataFrame([row]).to_csv(TABLE, mode="a", header=not TABLE.exists(), index=False)
    table = pd.read_csv(TABLE)
    print(f"{len(table)} rows, largest difference {table['difference'].max()}, after the way back "
          f"{table['returned'].max()}")


if __name__ == "__main__":
    main()
