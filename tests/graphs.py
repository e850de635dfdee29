"""Random graph models, and what a shrunk model must compute, found without any help from `shrink` itself."""

import keras
import numpy as np
from keras import layers as L

EXACT = 5e-6                                               # of the largest output
ACTIVATIONS = ["linear", "relu", "silu", "tanh", "gelu", "relu6", "leaky_relu", "sigmoid", "softplus"]


def random_model(seed):
    """A convolutional graph of a dozen random pieces: branches, sums, joins, gates, shared and nested parts."""
    return Maker(seed).model()


class Maker:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.pool = []

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def chance(self, share):
        return bool(self.rng.random() < share)

    def activation(self):
        return self.pick(*ACTIVATIONS) if self.chance(0.7) else "relu"

    def model(self):
        inputs = [keras.Input((8, 8, 3)) for _ in range(self.pick(1, 1, 2))]
        stem = L.Conv2D(self.pick(8, 12, 16), 3, padding="same", activation="relu")
        self.pool = [stem(x) for x in inputs]                              # siamese when there are two inputs
        pieces = [self.conv, self.conv, self.norm, self.norm, self.depthwise, self.separable, self.transpose,
                  self.grouped, self.activate, self.add, self.add, self.join, self.join_and_add, self.gate,
                  self.attention, self.shared, self.nested, self.hourglass, self.tokens, self.shuffle, self.layer_norm,
                  self.op, self.repeat, self.prelu]
        for _ in range(self.rng.integers(6, 14)):
            x = self.pool[self.rng.integers(len(self.pool))] if self.chance(0.3) else self.pool[-1]
            self.pool.append(pieces[self.rng.integers(len(pieces))](x))
        outputs = [self.head(self.pool[-1])]
        if self.chance(0.3):
            outputs.append(self.head(self.pool[self.rng.integers(len(self.pool))]))
        model = keras.Model(inputs, outputs)
        randomize(model, self.rng)
        return model

    def width(self):
        return self.pick(8, 12, 16, 24)

    def conv(self, x):
        return L.Conv2D(self.width(), self.pick(1, 3), padding="same", use_bias=self.chance(0.5),
                        activation=self.activation())(x)

    def norm(self, x):
        return L.BatchNormalization(scale=self.chance(0.7), center=self.chance(0.7))(x)

    def depthwise(self, x):
        return L.DepthwiseConv2D(3, padding="same", depth_multiplier=self.pick(1, 2) if x.shape[-1] < 32 else 1,
                                 activation=self.activation())(x)

    def separable(self, x):
        return L.SeparableConv2D(self.width(), 3, padding="same", depth_multiplier=self.pick(1, 2))(x)

    def transpose(self, x):
        return L.Conv2DTranspose(self.width(), 3, padding="same", activation=self.activation())(x)

    def grouped(self, x):
        channels = x.shape[-1]
        groups = self.pick(2, 4, channels)
        filters = channels * self.pick(1, 2) if groups == channels else self.width()
        if channels % groups or filters % groups:
            return self.conv(x)
        return L.Conv2D(filters, 3, padding="same", groups=groups, activation="relu")(x)

    def activate(self, x):
        return L.Activation(self.activation())(x)

    def other(self, x):
        return self.pool[self.rng.integers(len(self.pool))]

    def add(self, x):
        other = self.other(x)
        if other.shape != x.shape:
            other = L.Conv2D(x.shape[-1], 1)(other)
        return self.pick(L.Add(), L.Average(), L.Maximum(), L.Subtract(), lambda pair: pair[0] * pair[1])([x, other])

    def join(self, x):
        if x.shape[-1] > 40:
            return self.conv(x)
        return self.pick(L.Concatenate(), lambda pair: keras.ops.concatenate(pair, -1))([x, self.other(x)])

    def join_and_add(self, x):
        parts = [self.conv(x), self.conv(x)]
        joined = L.Concatenate()(parts)
        return L.Add()([joined, L.Conv2D(joined.shape[-1], 1)(x)])

    def gate(self, x):
        squeezed = L.GlobalAveragePooling2D(keepdims=self.chance(0.5))(x)
        excited = L.Dense(x.shape[-1], activation="sigmoid")(L.Dense(8, activation="relu")(squeezed))
        return L.Multiply()([x, L.Reshape((1, 1, x.shape[-1]))(excited)])

    def attention(self, x):
        return x * L.Conv2D(1, 3, padding="same", activation="sigmoid")(x)

    def shared(self, x):
        layer, norm = L.Conv2D(x.shape[-1], 3, padding="same", activation="relu"), L.BatchNormalization()
        return L.Add()([norm(layer(x)), norm(layer(norm(layer(x))))])

    def nested(self, x):
        inputs = keras.Input(x.shape[1:])
        y = L.BatchNormalization()(L.Conv2D(self.width(), 3, padding="same", activation="relu")(inputs))
        block = keras.Model(inputs, L.Add()([inputs, L.Conv2D(x.shape[-1], 1)(y)]) if self.chance(0.6) else y)
        return block(block(x)) if block.output_shape == block.input_shape else block(x)

    def hourglass(self, x):
        y = self.pick(L.MaxPooling2D(2), L.AveragePooling2D(2))(x)
        y = L.UpSampling2D(2)(L.Conv2D(self.width(), 3, padding="same", activation="relu")(y))
        return L.Concatenate()([y, x]) if x.shape[-1] < 40 else y

    def tokens(self, x):
        y = L.Dense(self.width(), activation=self.activation())(L.Reshape((64, x.shape[-1]))(x))
        y = L.Conv1D(self.width(), 3, padding="same")(y)
        return L.Reshape((8, 8, -1))(y)

    def shuffle(self, x):
        channels = x.shape[-1]
        if channels % 2:
            return self.conv(x)
        y = L.Permute((1, 2, 4, 3))(L.Reshape((8, 8, 2, channels // 2))(x))
        return L.Reshape((8, 8, channels))(y)

    def layer_norm(self, x):
        return L.LayerNormalization()(x) if self.chance(0.3) else self.norm(x)

    def op(self, x):
        return self.pick(lambda x: x * 0.5, lambda x: x + 1.0, keras.ops.relu, lambda x: keras.ops.softmax(x, -1),
                         L.Lambda(lambda x: x * keras.ops.tanh(x)), L.Dropout(0.3), L.SpatialDropout2D(0.3),
                         lambda x: keras.ops.split(x, 2, axis=-1)[0] if x.shape[-1] % 2 == 0 else x,
                         lambda x: keras.ops.flip(x, 1), lambda x: keras.ops.flip(x, -1))(x)

    def repeat(self, x):
        return L.Concatenate()([x, x]) if x.shape[-1] <= 24 else self.conv(x)

    def prelu(self, x):
        return L.PReLU(shared_axes=self.pick(None, [1, 2]))(x)

    def head(self, x):
        x = self.pick(L.Flatten(), L.GlobalAveragePooling2D(), L.GlobalMaxPooling2D())(x)
        if self.chance(0.5):
            x = L.Dense(self.pick(16, 24), activation=self.activation())(x)
        return L.Dense(5)(x)


def randomize(model, rng):
    """Random weights of a healthy scale, all different: batch-norm statistics too."""
    for variable in model.weights:
        name, shape = variable.path.rsplit("/", 1)[-1], variable.shape
        if name in ("mean", "variance", "count"):               # Normalization computes with a copy made of these
            continue
        value = rng.normal(size=shape)
        if "kernel" in name:
            value *= 1.4 / np.sqrt(max(np.prod(shape[:-1]), 1))
        elif "variance" in name:
            value = 0.5 + rng.random(shape)
        elif name == "gamma":
            value = 1 + 0.2 * value
        else:
            value = 0.2 * value
        variable.assign(value)


def leaves(model, prefix=""):
    """{path: layer} of a model and the models nested in it."""
    found = {}
    for layer in model.layers:
        found |= leaves(layer, f"{prefix}{layer.name}/") if hasattr(layer, "layers") else {prefix + layer.name: layer}
    return found


def survivors(pairs):
    """Which channels of a layer are found in its small version, told by the numbers in (old, new, axis) themselves.

    All weights have a vote: two equal numbers in a long vector are no rarity.
    """
    votes = sum(np.moveaxis(np.isin(old, new), axis, 0).reshape(old.shape[axis], -1).mean(1)
                for old, new, axis in pairs)
    _, new, axis = pairs[0]
    return np.sort(np.argsort(-votes, kind="stable")[:new.shape[axis]])


def output_axis(layer, path):
    """The axis of a weight along which lie the channels that the layer puts out: of attention, its heads too."""
    *_, part, name = path.split("/")
    if isinstance(layer, L.MultiHeadAttention):
        axes = {"value": {"kernel": 1, "bias": 0}, "attention_output": {"kernel": -1, "bias": 0}}
        return axes.get(part, {}).get(name)
    if isinstance(layer, L.RNN | L.Bidirectional):          # columns of all gates
        return -1
    if name in ("bias", "gamma", "beta", "moving_mean"):
        return 0
    if isinstance(layer, L.Conv2DTranspose | L.Conv1DTranspose | L.DepthwiseConv2D) and name == "kernel":
        return -2
    return -1 if name in ("kernel", "pointwise_kernel", "embeddings") else None


def silenced(model, small, swap=None):
    """The original with the channels that `small` lacks at zero, where they are made and nowhere else.

    `swap` names a layer in which up to eight of the removed channels take the places of kept ones: the negative
    control. One would not do, ReLU may have silenced it anyway.
    """
    quiet = keras.models.clone_model(model, recursive=True, clone_function=lambda layer: (
        layer if isinstance(layer, L.Lambda) else type(layer).from_config(layer.get_config())))
    quiet.set_weights(model.get_weights())
    others = leaves(small)
    for path, layer in leaves(quiet).items():
        if not layer.weights:
            continue
        made = [(old.numpy(), new.numpy(), axis, old)
                for old, new in zip(layer.weights, others[path].weights, strict=True)
                if (axis := output_axis(layer, old.path)) is not None]
        for value, new, axis, variable in made:
            if value.shape[axis] == new.shape[axis]:
                continue
            kept = survivors([pair[:3] for pair in made if pair[0].shape[pair[2]] == value.shape[axis]])
            gone = np.setdiff1d(np.arange(value.shape[axis]), kept)
            if path == swap and value.ndim > 1:
                count = min(len(gone), len(kept), 8)
                gone[:count] = kept[:count]
            silent = value.copy()
            np.moveaxis(silent, axis, 0)[gone] = 0
            variable.assign(silent)
    return quiet


def batch(model, rng, size=4):
    x = [rng.normal(size=(size, *(n or 32 for n in x.shape[1:]))).astype("float32") for x in model.inputs]
    return x if len(x) > 1 else x[0]


def gap(model, other, x):
    """Largest difference of the outputs, relative to the largest output."""
    pairs = zip(keras.tree.flatten(model(x)), keras.tree.flatten(other(x)), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def classifier(seed=0):
    inputs = keras.Input((12, 12, 3))
    x = L.BatchNormalization()(L.Conv2D(32, 3, padding="same", use_bias=False, name="stem")(inputs))
    y = L.Conv2D(32, 3, padding="same", activation="relu", name="branch")(x)
    x = L.Add()([x, y])
    x = L.MaxPooling2D()(L.Conv2D(48, 3, padding="same", activation="relu", name="wide")(x))
    x = L.Dense(64, activation="relu", name="hidden")(L.Flatten()(x))
    model = keras.Model(inputs, L.Dense(4, name="out")(x))
    randomize(model, np.random.default_rng(seed))
    return model
