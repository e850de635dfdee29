"""Which layers and which networks work with what: `plan` of every technique, asked about all of them.

    python benchmarks/verify/coverage.py [networks] [layers]

Writes docs/measured/layers.csv, a row for every layer class of Keras that computes inside a model, and appends to
docs/measured/networks.csv a row for every network of keras.applications, which may be interrupted and goes on.
"""

import multiprocessing
import os
import pathlib
import re
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pandas as pd

from tfopt import cluster, prune, quantize, shrink

MEASURED = pathlib.Path(__file__).parents[2] / "docs" / "measured"
SIZES = (32, 71, 75, 96, 128, 224, 299, 331)
L = keras.layers

# What is no step inside a network: text, sound, cells, other frameworks, boxes, what only holds others.
# Augmentation (keras.src.layers.preprocessing.image_preprocessing) passes its input on once the model is trained.
OUTSIDE = {"Layer", "InputLayer", "Wrapper", "FlaxLayer", "JaxLayer", "TorchModuleWrapper", "TFSMLayer", "Pipeline",
           "GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells", "TextVectorization", "StringLookup", "Hashing",
           "HashedCrossing", "IntegerLookup", "CategoryEncoding", "Discretization", "MelSpectrogram", "STFTSpectrogram"}
SHAPES = {0: (16,), 1: (12, 16), 2: (12, 12, 16), 3: (6, 6, 6, 16)}
ARGUMENTS = [                                                   # (name, as a pattern: arguments), the first that fits
    ("ConvLSTM", lambda: (4, 3)), ("DepthwiseConv", lambda: (3,)), (".*Conv", lambda: (16, 3)),
    ("Adaptive", lambda: (2,)), ("(Average|Max)Pooling", lambda: (2,)), ("LSTM|GRU|SimpleRNN", lambda: (4,)),
    (".*(Dropout|Noise)", lambda: (0.1,)), ("Bidirectional", lambda: (L.LSTM(4),)), ("RNN", lambda: (L.LSTMCell(4),)),
    ("TimeDistributed|SpectralNorm", lambda: (L.Dense(4),)), ("Activation", lambda: ("relu",)),
    ("EinsumDense", lambda: ("ab,bc->ac", 16)), ("Dense", lambda: (16,)), (".*Embedding", lambda: (9, 4)),
    ("Reshape", lambda: ((-1,),)), ("RepeatVector", lambda: (3,)),
    ("Rescaling", lambda: (0.5,)), ("Permute", lambda: ((2, 1, 3),)), ("MultiHead", lambda: (2, 4)),
    ("GroupQuery", lambda: (4, 2, 1)), ("Lambda", lambda: (keras.ops.relu,)), ("GroupNorm", lambda: (4,)),
    ("Dot", lambda: (1,)), ("", lambda: ())]
SEQUENCES = "LSTM|GRU|SimpleRNN|RNN|Bidirectional|TimeDistributed|Masking|.*Attention"
VECTORS = "Dense|EinsumDense|RepeatVector|SpectralNorm|.*Embedding"
MERGING = ("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract")


def layer_of(name):
    """The layer and the rank of the places its input has."""
    rank = 0 if re.match(VECTORS, name) else 1 if re.match(SEQUENCES, name) else 2
    if re.search("[123]D", name):
        rank = int(re.search("([123])D", name)[1]) + name.startswith("ConvLSTM")
    arguments = next(make for pattern, make in ARGUMENTS if re.match(pattern, name))
    return getattr(L, name)(*arguments()), rank


def model_of(name):
    """A small network with the layer between one that makes 16 channels and one that reads what comes out."""
    layer, rank = layer_of(name)
    if "Embedding" in name:
        inputs = keras.Input((5,), dtype="int32")
        x = layer(inputs)
    else:
        shape = SHAPES[rank] if rank < 4 else (2, *SHAPES[3])
        inputs = keras.Input(shape)
        x = L.Dense(16, name="before")(inputs)
        if name in MERGING:
            x = layer([x, L.Dense(16, name="beside")(inputs)])
        elif "Attention" in name:
            x = layer([x, x]) if name in ("Attention", "AdditiveAttention") else layer(x, x)
        else:
            x = layer(x)
    x = L.Dense(4, name="after")(L.Flatten()(x))
    return keras.Model(inputs, x), layer.name


def status(technique, model, name):
    """What `plan` says of one layer, or why the whole model is refused."""
    try:
        table = technique.plan(model)
    except (ValueError, TypeError, NotImplementedError) as reason:
        return f"refused: {str(reason).splitlines()[0][:80]}"
    rows = table[table.layer.str.split("/").str[0] == name]
    return rows.status.iloc[0] if len(rows) else "no weights"


def through(model):
    """May channels that are made before the layer go?"""
    table = shrink.plan(model)
    rows = table[table.layer == "before"]
    return "selected" if "selected" in set(rows.status) else "skipped"


def layers():
    rows, classes = [], {}
    for name in sorted(dir(L)):
        made = getattr(L, name)
        if (isinstance(made, type) and issubclass(made, L.Layer) and name not in OUTSIDE
                and ".image_preprocessing." not in made.__module__):
            classes[made] = made.__name__ if hasattr(L, made.__name__) else name     # one name of several
    for name in sorted(classes.values()):
        keras.backend.clear_session()
        model, layer = model_of(name)
        rows.append({"layer": name, "prune": status(prune, model, layer), "cluster": status(cluster, model, layer),
                     "quantize": status(quantize, model, layer),
                     "channels before it": through(model) if "Embedding" not in name else "none"})
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(MEASURED / "layers.csv", index=False)


def networks():
    path = MEASURED / "networks.csv"
    known = set(pd.read_csv(path).network) if path.exists() else ()
    for name in sorted(dir(keras.applications)):
        if name[0].isupper() and name not in known:
            process = multiprocessing.get_context("fork").Process(target=network, args=(name,))
            process.start()                                     # which gives all its memory back
            process.join()


def network(name):
    """Of the layers with weights: how many each technique works on; of the channels: how many may go."""
    for size in SIZES:
        try:
            model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
        except ValueError:
            continue
        break
    row = {"network": name, "layers": len(model.layers)}
    for technique in (prune, cluster, quantize):
        table = technique.plan(model)
        row[technique.__name__.split(".")[1]] = f"{(table.status == 'selected').sum()} of {len(table)}"
    table = shrink.plan(model)
    row["shrink"] = f"{table.channels[table.status == 'selected'].sum()} of {table.channels.sum()} channels"
    path = MEASURED / "networks.csv"
    pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)
    print(row, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for part in sys.argv[1:] or ("networks", "layers"):         # TensorFlow must not have computed before a fork
        {"layers": layers, "networks": networks}[part]()
