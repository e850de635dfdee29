"""`prune.xnnpack_layers` decides as TFMOT's policy does on the same graph, built by hand in tf_keras."""

import re

import keras
import numpy as np
import pytest
import tf_keras

from tfopt import prune
from tfopt._toolkit import tfmot


def stem(k, x, padding=1, **changes):
    arguments = {"filters": 8, "kernel_size": 3, "strides": 2, "name": "stem", **changes}
    return k.Conv2D(**arguments)(x if padding is None else k.ZeroPadding2D(padding)(x))


def head(k, x, name="head", **options):
    return k.Dense(2, name=name)(k.Flatten()(k.GlobalAveragePooling2D(**options)(x)))


def chain(*between, shape=(32, 32, 3), front=stem, **options):
    """`library -> model`: the usual beginning and end, and between them what `layer(k)` makes."""
    def build(library):
        k = library.layers
        x = inputs = library.Input(shape)
        x = front(k, x)
        for layer in between:
            x = layer(k)(x)
        return library.Model(inputs, head(k, x, **options))
    return build


def branches(library):
    """A residual, a squeeze-and-excitation, operators, a shared convolution, an upsampling."""
    k = library.layers
    inputs = library.Input((32, 32, 3))
    x = k.ReLU(6.0)(k.BatchNormalization()(stem(k, k.Rescaling(1 / 255)(inputs))))
    shared = k.Conv2D(8, 1, use_bias=False, name="shared")
    x = k.Add()([shared(x), k.Dropout(0.1)(shared(k.LeakyReLU()(x)))])
    gate = k.Conv2D(8, 1, activation="sigmoid", name="gate")(k.GlobalAveragePooling2D(keepdims=True)(x))
    x = k.Multiply()([x, gate]) + x * x - x
    x = k.UpSampling2D(interpolation="bilinear")(k.DepthwiseConv2D(5, strides=2, name="wide")(k.ZeroPadding2D(2)(x)))
    x = k.Conv2D(4, 1, strides=1, name="last")(k.ELU()(x))
    y = k.Conv2D(2, 1, name="behind")(k.GlobalAveragePooling2D(keepdims=True)(x))
    return library.Model(inputs, [head(k, x), y])


def two_inputs(library):
    k = library.layers
    a, b = library.Input((32, 32, 3)), library.Input((32, 32, 3))
    x = k.Add()([stem(k, a), stem(k, b, name="other")])
    return library.Model([a, b], head(k, k.Conv2D(4, 1, name="point")(x)))


def one_input_goes_past(library):
    k = library.layers
    a, b = library.Input((32, 32, 3)), library.Input((16, 16, 8))
    return library.Model([a, b], head(k, k.Add()([stem(k, a), b])))


def one_output_has_no_pooling(library):
    k = library.layers
    inputs = library.Input((32, 32, 3))
    x = k.Conv2D(4, 1)(stem(k, inputs))
    return library.Model(inputs, [head(k, x), k.Flatten()(x)])


_FUNCTIONS = ("relu", "relu6", "leaky_relu", "elu", "sigmoid")
ACCEPTED = {
    "plain": chain(lambda k: k.DepthwiseConv2D(3, padding="same"), lambda k: k.Conv2D(8, 1, name="point")),
    "nothing to prune": chain(),
    "keeps its dimensions": chain(lambda k: k.Conv2D(8, 1, padding="same"), keepdims=True),
    "padded depthwise": chain(lambda k: k.ZeroPadding2D(1), lambda k: k.DepthwiseConv2D(3, strides=2),
                              lambda k: k.Conv2D(8, 1), lambda k: k.DepthwiseConv2D(5, padding="same")),
    "activations": chain(*[lambda k, name=name: k.Activation(name) for name in _FUNCTIONS],
                         lambda k: k.Conv2D(8, 1, activation="tanh"), lambda k: k.BatchNormalization(axis=3)),
    "branches": branches, "two inputs": two_inputs,
}
NO_BEGINNING, NO_END = "must begin with", "a GlobalAveragePooling2D before every output"
REFUSED = {                                                # (builder, layer that is named, or part of the sentence)
    "not padded": (chain(front=lambda k, x: stem(k, x, None)), NO_BEGINNING),
    "padded by two": (chain(front=lambda k, x: stem(k, x, 2)), NO_BEGINNING),
    "one channel": (chain(shape=(32, 32, 1)), NO_BEGINNING),
    "stride 1": (chain(front=lambda k, x: stem(k, x, strides=1)), NO_BEGINNING),
    "5x5": (chain(front=lambda k, x: stem(k, x, kernel_size=5)), NO_BEGINNING),
    "one input goes past": (one_input_goes_past, NO_BEGINNING),
    "one output has no pooling": (one_output_has_no_pooling, NO_END),
    "3x3": (chain(lambda k: k.Conv2D(8, 3, name="odd")), "odd"),
    "strided": (chain(lambda k: k.Conv2D(8, 1, strides=2, name="odd")), "odd"),
    "groups": (chain(lambda k: k.Conv2D(8, 1, groups=2, name="odd")), "odd"),
    "multiplier": (chain(lambda k: k.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="odd")), "odd"),
    "dilated": (chain(lambda k: k.DepthwiseConv2D(3, padding="same", dilation_rate=2, name="odd")), "odd"),
    "depthwise stride": (chain(lambda k: k.DepthwiseConv2D(3, padding="same", strides=2, name="odd")), "odd"),
    "depthwise valid": (chain(lambda k: k.DepthwiseConv2D(3, name="odd")), "odd"),
    "padding of the other": (chain(lambda k: k.ZeroPadding2D(1), lambda k: k.DepthwiseConv2D(5, name="odd")), "odd"),
    "depthwise 7x7": (chain(lambda k: k.DepthwiseConv2D(7, padding="same", name="odd")), "odd"),
    "norm": (chain(lambda k: k.BatchNormalization(axis=1, name="odd")), "odd"),
    "nearest": (chain(lambda k: k.UpSampling2D(name="odd")), "odd"),
    "swish": (chain(lambda k: k.Activation("swish", name="odd")), "odd"),
    "softmax": (chain(lambda k: k.Softmax(name="odd")), "odd"),
    "pooling": (chain(lambda k: k.MaxPooling2D(name="odd")), "odd"),
    "identity": (chain(lambda k: k.Identity(name="odd")), "odd"),
    "separable": (chain(lambda k: k.SeparableConv2D(8, 1, name="odd")), "odd"),
}


def policy_of_tfmot(model):
    policy = tfmot.sparsity.keras.PruneForLatencyOnXNNPack()
    policy.ensure_model_supports_pruning(model)
    return [layer.name for layer in model.layers if policy.allow_pruning(layer)]


def named_alike(library, build):
    library.backend.clear_session()                        # both libraries count names from here
    return build(library)


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_layers_are_those_of_tfmot(name):
    model = named_alike(keras, ACCEPTED[name])
    assert sorted(prune.xnnpack_layers(model)) == sorted(policy_of_tfmot(named_alike(tf_keras, ACCEPTED[name])))


def test_the_layers_of_the_larger_graph():
    assert prune.xnnpack_layers(branches(keras)) == ["shared", "gate", "last", "behind"]


@pytest.mark.parametrize("name", REFUSED)
def test_tfmot_refuses_what_is_refused(name):
    build, told = REFUSED[name]
    with pytest.raises(ValueError) as theirs:                                           # noqa: PT011
        policy_of_tfmot(build(tf_keras))
    kind = re.search("^Layer (\\w+) is", str(theirs.value))
    with pytest.raises(ValueError, match=rf"^prune\.xnnpack_layers: .*(every|no) {kind[1]}\b.*layer='odd'"
                       if kind else told):
        prune.xnnpack_layers(build(keras))
    assert bool(kind) == (told == "odd")


def test_nested_models_count_as_what_is_in_them(rng):
    k = keras.layers
    block = keras.Sequential([keras.Input((16, 16, 8)), k.DepthwiseConv2D(3, padding="same"), k.Conv2D(8, 1, name="in"),
                              k.ReLU()], name="block")
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, head(k, k.Conv2D(4, 1, name="out")(block(block(stem(k, inputs))))))
    assert prune.xnnpack_layers(model) == ["block/in", "out"]
    wrapped = prune.wrap(model, 0.5, where=prune.xnnpack_layers(model))
    assert list(prune.sparsities(wrapped)) == ["block/in", "out"]
    odd = keras.Sequential([keras.Input((16, 16, 8)), k.Softmax(name="odd")], name="block")
    with pytest.raises(ValueError, match=r"there must be no Softmax.*layer='block/odd'"):
        prune.xnnpack_layers(keras.Model(inputs, head(k, odd(stem(k, inputs)))))


def test_operations_count_as_their_layers():
    inputs = keras.Input((32, 32, 3))
    x = stem(keras.layers, inputs)
    y = keras.layers.Conv2D(8, 1, name="point")(keras.ops.relu(x) + keras.ops.sigmoid(x) * 2.0)
    assert prune.xnnpack_layers(keras.Model(inputs, head(keras.layers, y))) == ["point"]
    with pytest.raises(ValueError, match="there must be no Tanh"):
        prune.xnnpack_layers(keras.Model(inputs, head(keras.layers, keras.ops.tanh(y))))


def test_the_model_is_only_read():
    model = branches(keras)
    before, config = [np.array(w) for w in model.get_weights()], model.get_config()
    prune.xnnpack_layers(model)
    assert model.get_config() == config
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    model = Own()
    model(np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"^prune\.xnnpack_layers needs a built functional or Sequential model"):
        prune.xnnpack_layers(model)
