"""Random Keras 3 graphs with branches, joins, shared and nested parts, operations and masks."""

import contextlib

import keras
import numpy as np
from keras import layers as L

ACTIVATIONS = ["relu", "silu", "tanh", "gelu", "hard_silu", "hard_sigmoid", "leaky_relu", "relu6", "mish", "softmax"]
WORDS, STEPS, SIDE = 6, 5, 6


def random_graph(seed):
    """A built Functional or Sequential model with random weights; `seed` says it all."""
    keras.utils.set_random_seed(seed)
    rng, model = np.random.default_rng(seed), None
    while model is None:
        with contextlib.suppress(ValueError):               # some draws Keras itself cannot build, e.g. of open shape
            model = (Images if rng.random() < 0.6 else Tokens)(rng).model()
    for v in model.weights:
        if "float" in v.dtype and "moving_variance" not in v.name:
            v.assign(v + 0.2 * rng.normal(size=v.shape))
    if rng.random() < 0.3:
        layers = [layer for layer in model.layers if layer.weights]
        layers[rng.integers(len(layers))].trainable = False
    return model


def random_batch(model, seed, rows=3):
    rng = np.random.default_rng(seed)

    def values(x):
        shape = (rows, *x.shape[1:])
        return rng.integers(WORDS, size=shape) if "int" in x.dtype else rng.normal(size=shape).astype("float32")

    return keras.tree.map_structure(values, struct_of(model))


def struct_of(model):
    return model.input if not isinstance(model, keras.Sequential) else model.inputs[0]


class Maker:
    """Keeps a pool of tensors of one shape but for the channels, and puts random pieces on it."""

    def __init__(self, rng, depth=0):
        self.rng, self.depth, self.shared, self.pool = rng, depth, {}, []

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def tensor(self):
        return self.pool[self.rng.integers(len(self.pool))]

    def width(self, x, channels):
        """`x` with so many channels."""
        return x if x.shape[-1] == channels else self.project(channels)(x)

    def activation(self, x):
        return self.pick(L.Activation(self.pick(*ACTIVATIONS)), L.LeakyReLU(0.2), L.ELU(), L.PReLU(),
                         L.ReLU(max_value=2.0, negative_slope=0.1), L.Rescaling(0.5, 0.1), L.Dropout(0.3),
                         L.Lambda(lambda x: keras.ops.sin(x)), L.GaussianNoise(0.1), L.Identity())(x)

    def normalize(self, x):
        return self.pick(L.BatchNormalization(), L.LayerNormalization(), L.UnitNormalization(),
                         L.BatchNormalization(center=False, gamma_constraint="non_neg"), L.RMSNormalization())(x)

    def dense(self, x):
        return L.Dense(self.pick(2, 3, 4), activation=self.pick(None, *ACTIVATIONS), use_bias=self.pick(True, False),
                       kernel_regularizer=self.pick(None, "l2", keras.regularizers.L1L2(0.01, 0.02)),
                       activity_regularizer=self.pick(None, None, "l1"))(x)

    def join(self, x):
        y = self.width(self.tensor(), x.shape[-1])
        return self.pick(L.Add(), L.Multiply(), L.Maximum(), L.Concatenate(), L.Average(), L.Subtract())([x, y])

    def join_by_operation(self, x):
        y = self.width(self.tensor(), x.shape[-1])
        return self.pick(lambda: x + y, lambda: x * y, lambda: keras.ops.concatenate([x, y], axis=-1),
                         lambda: keras.ops.where(x > y, x, 0.5 * y), lambda: keras.ops.maximum(x, y) - y)()

    def operation(self, x):
        return self.pick(lambda: x * 1.5 - 0.25, lambda: 1.0 - x, lambda: keras.ops.tanh(x) / 2.0, lambda: -x,
                         lambda: x[..., ::-1], lambda: keras.ops.clip(x, -1.0, 1.0), lambda: keras.ops.relu(x),
                         lambda: x - keras.ops.mean(x, axis=-1, keepdims=True),
                         lambda: keras.ops.concatenate([x[:, 1:], x[:, :1]], axis=1),
                         lambda: x * np.linspace(0.5, 1.5, x.shape[-1], dtype="float32"),
                         lambda: keras.ops.add(*keras.ops.split(keras.ops.concatenate([x, x], -1), 2, axis=-1)))()

    def again(self, x):
        """A layer used before is used again, on another tensor."""
        channels = x.shape[-1]
        if channels not in self.shared:
            self.shared[channels] = self.project(3)
        return self.shared[channels](x)

    def nest(self, x):
        """A model within the model, perhaps used twice, perhaps with two outputs."""
        if self.depth > 1:
            return self.operation(x)
        inner = type(self)(self.rng, self.depth + 1).nested(x.shape[1:])
        y = keras.tree.flatten(inner(x))[-1]
        return inner(y)[0] if isinstance(inner.output, list) and y.shape == x.shape else y

    def nested(self, shape):
        i = keras.Input(shape)
        self.pool = [i]
        self.grow(self.pick(1, 2, 3))
        one, other = self.tensor(), self.pool[-1]
        if self.rng.random() < 0.3:
            return keras.Sequential([keras.Input(shape), self.project(shape[-1]), L.Activation("tanh")])
        return keras.Model(i, [self.width(other, shape[-1]), one * 1.0] if self.rng.random() < 0.5 else other)

    def grow(self, pieces):
        for _ in range(pieces):
            piece = self.pick(self.activation, self.normalize, self.dense, self.join, self.join_by_operation,
                              self.operation, self.again, self.nest, self.own, self.own, self.own)
            self.pool.append(piece(self.tensor() if self.rng.random() < 0.4 else self.pool[-1]))

    def model(self):
        inputs = self.inputs()
        self.grow(int(self.rng.integers(4, 10)))
        ends = [self.pool[-1]] + [self.tensor() for _ in range(self.rng.integers(3))]
        outputs = [self.pick(L.Dense(2), L.Dense(3, activation="softmax"))(self.flat(x)) for x in ends]
        if self.rng.random() < 0.3:
            outputs.append(self.pool[-1])
        if self.rng.random() < 0.2:
            outputs.append(inputs[0] if isinstance(inputs, list) else keras.tree.flatten(inputs)[0])
        named = {f"out {i}": y for i, y in enumerate(outputs)}
        return keras.Model(inputs, self.pick(outputs, named, outputs[0]))


class Images(Maker):
    def inputs(self):
        a = keras.Input((SIDE, SIDE, 3), name="a")
        if self.rng.random() < 0.6:
            self.pool = [L.Conv2D(4, 3, padding="same", activation="relu")(a)]
            return a
        b = keras.Input((SIDE, SIDE, 2), name="b")
        self.pool = [a, b]
        self.pool.append(self.join(a))
        return self.pick([a, b], {"a": a, "b": b})

    def project(self, channels):
        return L.Conv2D(channels, 1)

    def own(self, x):
        same = {"padding": "same"}
        return self.pick(L.Conv2D(self.pick(2, 4), 3, activation=self.pick(None, *ACTIVATIONS), **same), L.Softmax(),
                         L.DepthwiseConv2D(3, depth_multiplier=self.pick(1, 2), **same), self.excite, self.resize,
                         L.Conv2DTranspose(3, 3, **same), L.Conv2D(4, 3, dilation_rate=2, use_bias=False, **same),
                         L.MaxPooling2D(3, 1, **same), L.AveragePooling2D(2, 1, **same), L.SpatialDropout2D(0.2),
                         L.SeparableConv2D(3, 3, **same))(x)

    def excite(self, x):
        gate = L.Dense(x.shape[-1], activation="sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))
        return x * gate if self.rng.random() < 0.5 else L.Multiply()([x, gate])

    def resize(self, x):
        x = L.ZeroPadding2D(1)(L.UpSampling2D(2)(x))
        return self.pick(L.Cropping2D(((4, 4), (1, 7)))(x), x[:, 2:-2, ::2][:, 2:4 + SIDE - 2, 1:1 + SIDE]) \
            if x.shape[1] == 2 * SIDE + 2 and self.rng.random() < 0.5 else L.Cropping2D(4)(x)

    def flat(self, x):
        return self.pick(L.Flatten(), L.GlobalAveragePooling2D(), L.GlobalMaxPooling2D())(x)


class Tokens(Maker):
    def inputs(self):
        a = keras.Input((STEPS,), dtype="int32", name="a")
        self.pool = [L.Embedding(WORDS, 4, mask_zero=self.pick(True, False))(a)]
        if self.rng.random() < 0.6:
            return a
        b = keras.Input((STEPS, 3), name="b")
        self.pool += [L.Masking(0.0)(keras.ops.relu(b)), b, L.Embedding(WORDS, 3, mask_zero=True)(a)]
        return self.pick([a, b], {"a": a, "b": b})

    def project(self, channels):
        return L.Dense(channels)

    def own(self, x):
        return self.pick(L.LSTM(3, return_sequences=True), L.GRU(3, return_sequences=True), self.attend, self.attend,
                         L.Bidirectional(L.SimpleRNN(2, return_sequences=True), merge_mode=self.pick("concat", "mul")),
                         L.TimeDistributed(L.Dense(3, activation="tanh")), L.Conv1D(3, 3, padding="causal"),
                         L.SpatialDropout1D(0.2), L.SimpleRNN(3, return_sequences=True, go_backwards=True),
                         L.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d"))(x)

    def attend(self, x):
        """On tensors nothing else sees: Keras' attention takes the masks off its inputs for all that come after."""
        x, y = L.Dense(x.shape[-1])(x), L.Dense(3)(self.tensor())
        return self.pick(lambda: L.MultiHeadAttention(2, 3)(x, y, use_causal_mask=self.pick(True, False)),
                         lambda: L.MultiHeadAttention(1, 2)(x, x, attention_mask=keras.ops.mean(x, -1)[:, None] > 0),
                         lambda: L.Attention()([x, self.width(y, x.shape[-1])]))()

    def flat(self, x):
        return self.pick(L.Flatten(), L.GlobalAveragePooling1D(), L.LSTM(3), L.GRU(2))(x)
