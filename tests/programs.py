"""Small programs in the shape of those that people copy and change: a compiled model and data that reach all of it.

Layers are written as they are in the wild: some take no `**kwargs`, some have no `get_config`, sequences are padded,
preprocessing is adapted, and some models train in a way of their own.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

PROGRAMS = {}
CLASSES = keras.losses.SparseCategoricalCrossentropy


@dataclasses.dataclass
class Program:
    """A compiled model and the data it is trained on.

    Attributes:
      model: compiled keras.Model, built.
      x, y: what `fit` takes; `y` is None where the model needs no targets.
      task: "classes", "numbers" or "own", what its outputs are.
      images: the model takes one batch of images.
    """

    model: keras.Model
    x: object
    y: object
    task: str = "classes"
    images: bool = False


class Stateful(keras.Model):
    """Subclassed, with a state that moves on every call and a random layer."""

    def __init__(self):
        super().__init__(name="stateful")
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.drop, self.flat, self.dense = layers.Dropout(0.5), layers.Flatten(), layers.Dense(3)

    def call(self, x, training=False):
        self.calls.assign_add(1.0)
        return self.dense(self.flat(self.drop(x, training=training)))


def program(make):
    PROGRAMS[make.__name__] = make
    return make


def make(name):
    """The program, the same each time."""
    keras.utils.set_random_seed(0)
    return PROGRAMS[name](np.random.default_rng(0))


def classifier(inputs, outputs, x, y, loss=None, **kind):
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(1e-3), loss or CLASSES(), metrics=["accuracy"])
    return Program(model, x, y, **kind)


def regressor(inputs, outputs, x, y, **kind):
    model = keras.Model(inputs, outputs)
    model.compile("adam", "mse", metrics=["mae"])
    return Program(model, x, y, "numbers", **kind)


def normal(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def pixels(rng, *shape):
    return rng.integers(0, 256, shape).astype("float32")


def padded(rng, rows, length, words):
    """Whole numbers from 1 on, every other row padded with zeros at its end."""
    x = rng.integers(1, words, (rows, length)).astype("int32")
    x[::2, length * 2 // 3:] = 0
    return x


def adapted(layer, data):
    layer.adapt(data)
    return layer


# Images


@program
def mnist_convnet(rng):
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.Dropout(0.5)(layers.Flatten()(layers.MaxPooling2D()(x)))
    return classifier(inputs, layers.Dense(10, activation="softmax")(x), normal(rng, 48, 28, 28, 1),
                      rng.integers(0, 10, 48), images=True)


@program
def image_classification_from_scratch(rng):
    inputs = keras.Input((32, 32, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = layers.Rescaling(1.0 / 255)(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(16, 3, strides=2, padding="same")(x)))
    previous = x
    for size in (24, 32):
        x = layers.Activation("relu")(x)
        x = layers.BatchNormalization()(layers.SeparableConv2D(size, 3, padding="same")(x))
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.add([x, layers.Conv2D(size, 1, strides=2, padding="same")(previous)])
        previous = x
    x = layers.Dropout(0.25)(layers.GlobalAveragePooling2D()(x))
    return classifier(inputs, layers.Dense(1, activation=None)(x), pixels(rng, 48, 32, 32, 3), rng.integers(0, 2, 48),
                      keras.losses.BinaryCrossentropy(from_logits=True), images=True)


class Patches(layers.Layer):
    def __init__(self, patch_size):
        super().__init__()
        self.patch_size = patch_size

    def call(self, images):
        batch, height, width, channels = ops.shape(images)
        size = self.patch_size
        patches = ops.image.extract_patches(images, size=size)
        return ops.reshape(patches, (batch, (height // size) * (width // size), size * size * channels))

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


class PatchEncoder(layers.Layer):
    def __init__(self, num_patches, projection_dim):
        super().__init__()
        self.num_patches = num_patches
        self.projection = layers.Dense(projection_dim)
        self.position_embedding = layers.Embedding(num_patches, projection_dim)

    def call(self, patch):
        positions = ops.expand_dims(ops.arange(0, self.num_patches, 1), axis=0)
        return self.projection(patch) + self.position_embedding(positions)


def mlp(x, *units):
    for size in units:
        x = layers.Dropout(0.1)(layers.Dense(size, activation=keras.activations.gelu)(x))
    return x


@program
def vision_transformer(rng):
    inputs = keras.Input((16, 16, 3))
    x = adapted(layers.Normalization(), pixels(rng, 32, 16, 16, 3))(inputs)
    encoded = PatchEncoder(16, 16)(Patches(4)(x))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(encoded)
        y = layers.MultiHeadAttention(num_heads=2, key_dim=8, dropout=0.1)(y, y)
        z = layers.Add()([y, encoded])
        encoded = layers.Add()([mlp(layers.LayerNormalization(epsilon=1e-6)(z), 32, 16), z])
    x = layers.Dropout(0.5)(layers.Flatten()(layers.LayerNormalization(epsilon=1e-6)(encoded)))
    return classifier(inputs, layers.Dense(5)(mlp(x, 32)), pixels(rng, 48, 16, 16, 3), rng.integers(0, 5, 48),
                      CLASSES(from_logits=True), images=True)


class MixerBlock(layers.Layer):
    def __init__(self, num_patches, hidden_units, dropout_rate, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mlp1 = keras.Sequential([layers.Dense(num_patches, activation="gelu"), layers.Dense(num_patches),
                                      layers.Dropout(dropout_rate)])
        self.mlp2 = keras.Sequential([layers.Dense(hidden_units, activation="gelu"), layers.Dense(hidden_units),
                                      layers.Dropout(dropout_rate)])
        self.normalize = layers.LayerNormalization(epsilon=1e-6)

    def build(self, input_shape):
        self.built = True

    def call(self, inputs):
        x = self.normalize(inputs)
        x = ops.transpose(self.mlp1(ops.transpose(x, (0, 2, 1))), (0, 2, 1)) + inputs
        return x + self.mlp2(self.normalize(x))


@program
def mlp_mixer(rng):
    inputs = keras.Input((16, 16, 3))
    x = layers.Dense(12)(Patches(4)(inputs))
    x = keras.Sequential([MixerBlock(16, 12, 0.2) for _ in range(2)])(x)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling1D()(x))
    return classifier(inputs, layers.Dense(5)(x), normal(rng, 48, 16, 16, 3), rng.integers(0, 5, 48),
                      CLASSES(from_logits=True), images=True)


class ConvTokenizer(layers.Layer):
    def __init__(self, channels=(8, 12), **kwargs):
        super().__init__(**kwargs)
        self.conv_model = keras.Sequential()
        for size in channels:
            self.conv_model.add(layers.Conv2D(size, 3, 1, padding="valid", use_bias=False, activation="relu",
                                              kernel_initializer="he_normal"))
            self.conv_model.add(layers.ZeroPadding2D(1))
            self.conv_model.add(layers.MaxPooling2D(3, 2, "same"))

    def call(self, images):
        outputs = self.conv_model(images)
        return ops.reshape(outputs, (-1, ops.shape(outputs)[1] * ops.shape(outputs)[2], ops.shape(outputs)[-1]))


class StochasticDepth(layers.Layer):
    def __init__(self, drop_prob, **kwargs):
        super().__init__(**kwargs)
        self.drop_prob = drop_prob
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, x, training=None):
        if not training:
            return x
        keep = 1 - self.drop_prob
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        return (x / keep) * ops.floor(keep + keras.random.uniform(shape, 0, 1, seed=self.seed_generator))


class SequencePooling(layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = layers.Dense(1)

    def call(self, x):
        weights = ops.transpose(ops.softmax(self.attention(x), axis=1), axes=(0, 2, 1))
        return ops.squeeze(ops.matmul(weights, x), axis=-2)


@program
def compact_convolutional_transformer(rng):
    inputs = keras.Input((16, 16, 3))
    encoded = ConvTokenizer()(layers.Rescaling(scale=1.0 / 255)(inputs))
    for index in range(2):
        x = layers.LayerNormalization(epsilon=1e-5)(encoded)
        x = layers.Add()([StochasticDepth(0.1 * index)(layers.MultiHeadAttention(2, 6, dropout=0.1)(x, x)), encoded])
        encoded = layers.Add()([mlp(layers.LayerNormalization(epsilon=1e-5)(x), 24, 12), x])
    x = SequencePooling()(layers.LayerNormalization(epsilon=1e-5)(encoded))
    return classifier(inputs, layers.Dense(5)(x), pixels(rng, 48, 16, 16, 3), rng.integers(0, 5, 48),
                      CLASSES(from_logits=True), images=True)


@program
def mobile_vit(rng):
    def block(x, filters, size=3, strides=2):
        return layers.Conv2D(filters, size, strides=strides, activation=keras.activations.swish, padding="same")(x)

    inputs = keras.Input((32, 32, 3))
    x = block(layers.Rescaling(1.0 / 255)(inputs), 8)
    y = layers.BatchNormalization()(layers.Conv2D(16, 1, padding="same", use_bias=False)(x))
    y = keras.activations.swish(y)
    y = layers.DepthwiseConv2D(3, strides=1, padding="same", use_bias=False)(y)
    y = keras.activations.swish(layers.BatchNormalization()(y))
    x = layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(8, 1, padding="same", use_bias=False)(y))])
    local = block(block(x, 12, strides=2), 12, 1, 1)
    patches = layers.Reshape((4, 16, 12))(local)
    y = layers.LayerNormalization(epsilon=1e-6)(patches)
    y = layers.Add()([layers.MultiHeadAttention(2, 12, dropout=0.1)(y, y), patches])
    y = layers.Add()([mlp(layers.LayerNormalization(epsilon=1e-6)(y), 24, 12), y])
    folded = block(layers.Reshape((8, 8, 12))(y), 12, 1, 1)
    x = block(layers.Concatenate(axis=-1)([local, folded]), 12, 3, 1)
    x = layers.GlobalAvgPool2D()(x)
    return classifier(inputs, layers.Dense(5, activation="softmax")(x), pixels(rng, 48, 32, 32, 3),
                      rng.integers(0, 5, 48), images=True)


@program
def conv_mixer(rng):
    def activation(x):
        return layers.BatchNormalization()(layers.Activation("gelu")(x))

    inputs = keras.Input((16, 16, 3))
    x = activation(layers.Conv2D(12, 2, strides=2)(layers.Rescaling(1.0 / 255)(inputs)))
    for _ in range(2):
        x0 = x
        x = layers.Add()([activation(layers.DepthwiseConv2D(3, padding="same")(x)), x0])
        x = activation(layers.Conv2D(12, 1)(x))
    x = layers.GlobalAvgPool2D()(x)
    return classifier(inputs, layers.Dense(5, activation="softmax")(x), pixels(rng, 48, 16, 16, 3),
                      rng.integers(0, 5, 48), images=True)


@program
def frozen_backbone(rng):
    inner = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 3, use_bias=False)(inner)))
    backbone = keras.Model(inner, layers.GlobalAveragePooling2D()(x), name="backbone")
    backbone.trainable = False
    inputs = keras.Input((16, 16, 3))
    x = backbone(layers.Normalization(mean=[127.0] * 3, variance=[4000.0] * 3)(inputs), training=False)
    x = layers.Dense(24, "relu")(layers.Dropout(0.2)(x))
    return classifier(inputs, layers.Dense(3, activation="softmax")(x), pixels(rng, 48, 16, 16, 3),
                      rng.integers(0, 3, 48), images=True)


@program
def unet(rng):
    inputs = keras.Input((32, 32, 3))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same")(inputs)))
    previous = x
    for filters in (12, 16):
        x = layers.SeparableConv2D(filters, 3, padding="same")(layers.Activation("relu")(x))
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = previous = layers.add([x, layers.Conv2D(filters, 1, strides=2, padding="same")(previous)])
    for filters in (16, 12, 8):
        x = layers.Conv2DTranspose(filters, 3, padding="same")(layers.Activation("relu")(x))
        x = layers.UpSampling2D(2)(layers.BatchNormalization()(x))
        residual = layers.Conv2D(filters, 1, padding="same")(layers.UpSampling2D(2)(previous))
        x = previous = layers.add([x, residual])
    outputs = layers.Conv2D(3, 3, activation="softmax", padding="same")(x)
    return classifier(inputs, outputs, normal(rng, 24, 32, 32, 3), rng.integers(0, 3, (24, 32, 32)), images=True)


@program
def denoising_autoencoder(rng):
    inputs = keras.Input((28, 28, 1))
    x = layers.MaxPooling2D(2, padding="same")(layers.Conv2D(8, 3, activation="relu", padding="same")(inputs))
    x = layers.MaxPooling2D(2, padding="same")(layers.Conv2D(8, 3, activation="relu", padding="same")(x))
    x = layers.Conv2DTranspose(8, 3, strides=2, activation="relu", padding="same")(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, activation="relu", padding="same")(x)
    images = rng.uniform(size=(32, 28, 28, 1)).astype("float32")
    return regressor(inputs, layers.Conv2D(1, 3, activation="sigmoid", padding="same")(x), images, images, images=True)


class DepthToSpace(layers.Layer):
    def __init__(self, block_size):
        super().__init__()
        self.block_size = block_size

    def call(self, x):
        batch, height, width, depth = ops.shape(x)
        block = self.block_size
        x = ops.reshape(x, (batch, height, width, block, block, depth // block ** 2))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (batch, height * block, width * block, depth // block ** 2))


@program
def super_resolution(rng):
    inputs = keras.Input((None, None, 1))
    x = layers.Conv2D(16, 5, activation="relu", padding="same", kernel_initializer="orthogonal")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", padding="same", kernel_initializer="orthogonal")(x)
    x = layers.Conv2D(4, 3, activation="relu", padding="same", kernel_initializer="orthogonal")(x)
    return regressor(inputs, DepthToSpace(2)(x), normal(rng, 24, 16, 16, 1), normal(rng, 24, 32, 32, 1), images=True)


@program
def siamese_network(rng):
    inner = keras.Input((16, 16, 1))
    x = layers.AveragePooling2D(2)(layers.Conv2D(8, 3, activation="tanh")(layers.BatchNormalization()(inner)))
    x = layers.BatchNormalization()(layers.Flatten()(x))
    embedding = keras.Model(inner, layers.Dense(10, activation="tanh")(x), name="embedding")
    left, right = keras.Input((16, 16, 1), name="left"), keras.Input((16, 16, 1), name="right")

    def distance(pair):
        return ops.sqrt(ops.maximum(ops.sum(ops.square(pair[0] - pair[1]), axis=1, keepdims=True), 1e-7))

    merged = layers.Lambda(distance, output_shape=(1,))([embedding(left), embedding(right)])
    outputs = layers.Dense(1, activation="sigmoid")(layers.BatchNormalization()(merged))
    return classifier([left, right], outputs, [normal(rng, 48, 16, 16, 1), normal(rng, 48, 16, 16, 1)],
                      rng.integers(0, 2, (48, 1)), "binary_crossentropy")


@program
def captcha_ocr(rng):
    inputs = keras.Input((48, 16, 1), name="image")
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, activation="relu", padding="same")(inputs))
    x = layers.MaxPooling2D()(layers.Conv2D(12, 3, activation="relu", padding="same")(x))
    x = layers.Dropout(0.2)(layers.Dense(16, activation="relu")(layers.Reshape((12, 48))(x)))
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True, dropout=0.25))(x)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True, dropout=0.25))(x)
    model = keras.Model(inputs, layers.Dense(11, name="characters")(x))
    model.compile("adam", keras.losses.CTC())
    return Program(model, normal(rng, 32, 48, 16, 1), rng.integers(1, 11, (32, 4)), "own")


@program
def conv3d_scans(rng):
    inputs = keras.Input((16, 16, 8, 1))
    x = layers.BatchNormalization()(layers.MaxPool3D()(layers.Conv3D(8, 3, activation="relu")(inputs)))
    x = layers.Conv3D(8, 2, activation="relu")(x)
    x = layers.Dropout(0.3)(layers.Dense(16, activation="relu")(layers.GlobalAveragePooling3D()(x)))
    return classifier(inputs, layers.Dense(1, activation="sigmoid")(x), normal(rng, 24, 16, 16, 8, 1),
                      rng.integers(0, 2, (24, 1)), "binary_crossentropy")


@keras.saving.register_keras_serializable("programs")
class NearOrthogonal(keras.regularizers.Regularizer):
    def __init__(self, num_features, l2reg=0.001):
        self.num_features, self.l2reg = num_features, l2reg

    def __call__(self, x):
        x = ops.reshape(x, (-1, self.num_features, self.num_features))
        gap = ops.tensordot(x, x, axes=(2, 2))
        return ops.sum(self.l2reg * ops.square(ops.reshape(gap, (-1,))))

    def get_config(self):
        return {"num_features": self.num_features, "l2reg": self.l2reg}


@program
def point_net(rng):
    def dense(x, filters, layer=layers.Dense):
        x = layer(filters, 1, padding="valid")(x) if layer is layers.Conv1D else layer(filters)(x)
        return layers.Activation("relu")(layers.BatchNormalization(momentum=0.0)(x))

    inputs = keras.Input((32, 3))
    x = dense(dense(inputs, 8, layers.Conv1D), 16, layers.Conv1D)
    x = dense(layers.GlobalMaxPooling1D()(x), 12)
    x = layers.Dense(9, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(np.eye(3).flatten()),
                     activity_regularizer=NearOrthogonal(3))(x)
    x = layers.Dot(axes=(2, 1))([inputs, layers.Reshape((3, 3))(x)])
    x = layers.GlobalMaxPooling1D()(dense(dense(x, 8, layers.Conv1D), 16, layers.Conv1D))
    x = layers.Dropout(0.3)(dense(x, 16))
    return classifier(inputs, layers.Dense(4, activation="softmax")(x), normal(rng, 48, 32, 3), rng.integers(0, 4, 48))


# Series and sound


@program
def series_convnet(rng):
    inputs = keras.Input((40, 1))
    x = inputs
    for _ in range(3):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(12, 3, padding="same")(x)))
    x = layers.GlobalAveragePooling1D()(x)
    return classifier(inputs, layers.Dense(2, activation="softmax")(x), normal(rng, 48, 40, 1), rng.integers(0, 2, 48))


@program
def series_transformer(rng):
    inputs = keras.Input((40, 1))
    x = inputs
    for _ in range(2):
        y = layers.MultiHeadAttention(key_dim=8, num_heads=2, dropout=0.25)(x, x)
        res = layers.LayerNormalization(epsilon=1e-6)(layers.Dropout(0.25)(y)) + x
        y = layers.Dropout(0.25)(layers.Conv1D(4, 1, activation="relu")(res))
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv1D(1, 1)(y)) + res
    x = layers.GlobalAveragePooling1D(data_format="channels_last")(x)
    x = layers.Dropout(0.4)(layers.Dense(16, activation="relu")(x))
    return classifier(inputs, layers.Dense(2, activation="softmax")(x), normal(rng, 48, 40, 1), rng.integers(0, 2, 48))


@program
def weather_lstm(rng):
    inputs = keras.Input((24, 7))
    x = adapted(layers.Normalization(), normal(rng, 64, 24, 7) * 9 + 50)(inputs)
    outputs = layers.Dense(1)(layers.LSTM(16)(x))
    return regressor(inputs, outputs, normal(rng, 48, 24, 7) * 9 + 50, normal(rng, 48, 1))


@program
def series_anomaly(rng):
    model = keras.Sequential([
        layers.Input((32, 1)), layers.Conv1D(16, 7, padding="same", strides=2, activation="relu"),
        layers.Dropout(0.2), layers.Conv1D(8, 7, padding="same", strides=2, activation="relu"),
        layers.Conv1DTranspose(8, 7, padding="same", strides=2, activation="relu"), layers.Dropout(0.2),
        layers.Conv1DTranspose(16, 7, padding="same", strides=2, activation="relu"),
        layers.Conv1DTranspose(1, 7, padding="same")])
    model.compile("adam", "mse")
    x = normal(rng, 48, 32, 1)
    return Program(model, x, x, "numbers")


@program
def speaker_recognition(rng):
    inputs = keras.Input((64, 1))
    x = inputs
    for filters, count in ((8, 2), (16, 2)):
        shortcut = layers.Conv1D(filters, 1, padding="same")(x)
        for _ in range(count - 1):
            x = layers.Activation("relu")(layers.Conv1D(filters, 3, padding="same")(x))
        x = layers.Conv1D(filters, 3, padding="same")(x)
        x = layers.MaxPool1D(pool_size=2, strides=2)(layers.Activation("relu")(layers.Add()([x, shortcut])))
    x = layers.Flatten()(layers.AveragePooling1D(pool_size=3, strides=3)(x))
    x = layers.Dense(24, activation="relu")(x)
    return classifier(inputs, layers.Dense(5, activation="softmax")(x), normal(rng, 48, 64, 1), rng.integers(0, 5, 48))


@program
def padded_gru(rng):
    inputs = keras.Input((20, 4))
    x = layers.Masking(0.0)(inputs)
    x = layers.GRU(12, return_sequences=True)(x)
    x = layers.Bidirectional(layers.GRU(8))(x)
    data = normal(rng, 48, 20, 4)
    data[::2, 12:] = 0
    return classifier(inputs, layers.Dense(3)(x), data, rng.integers(0, 3, 48), CLASSES(from_logits=True))


# Text


@program
def text_bidirectional_lstm(rng):
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(50, 16)(inputs)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(8))(x)
    return classifier(inputs, layers.Dense(1, activation="sigmoid")(x), padded(rng, 48, 24, 50),
                      rng.integers(0, 2, (48, 1)), "binary_crossentropy")


@program
def text_convnet(rng):
    inputs = keras.Input((None,), dtype="int64")
    x = layers.Dropout(0.5)(layers.Embedding(50, 12)(inputs))
    x = layers.Conv1D(12, 7, padding="valid", activation="relu", strides=3)(x)
    x = layers.Conv1D(12, 7, padding="valid", activation="relu", strides=3)(x)
    x = layers.Dropout(0.5)(layers.Dense(16, activation="relu")(layers.GlobalMaxPooling1D()(x)))
    return classifier(inputs, layers.Dense(1, activation="sigmoid")(x), padded(rng, 32, 80, 50),
                      rng.integers(0, 2, (32, 1)), "binary_crossentropy")


class TransformerBlock(layers.Layer):
    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1):
        super().__init__()
        self.att = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.ffn = keras.Sequential([layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)])
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, inputs):
        out1 = self.layernorm1(inputs + self.dropout1(self.att(inputs, inputs)))
        return self.layernorm2(out1 + self.dropout2(self.ffn(out1)))


class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen, vocab_size, embed_dim):
        super().__init__()
        self.token_emb = layers.Embedding(input_dim=vocab_size, output_dim=embed_dim)
        self.pos_emb = layers.Embedding(input_dim=maxlen, output_dim=embed_dim)

    def call(self, x):
        positions = ops.arange(start=0, stop=ops.shape(x)[-1], step=1)
        return self.token_emb(x) + self.pos_emb(positions)


@program
def text_transformer(rng):
    inputs = keras.Input((20,))
    x = TransformerBlock(16, 2, 24)(TokenAndPositionEmbedding(20, 50, 16)(inputs))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
    x = layers.Dropout(0.1)(layers.Dense(12, activation="relu")(x))
    return classifier(inputs, layers.Dense(2, activation="softmax")(x), padded(rng, 48, 20, 50), rng.integers(0, 2, 48))


@program
def masked_attention(rng):
    inputs = keras.Input((16,), dtype="int32")
    x = layers.Embedding(40, 16, mask_zero=True)(inputs)
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)]))
    x = layers.Add()([x, layers.Dense(16)(layers.Dense(32, "gelu")(x))])
    outputs = layers.Dense(2)(layers.GlobalAveragePooling1D()(x))
    return classifier(inputs, outputs, padded(rng, 48, 16, 40), rng.integers(0, 2, 48), CLASSES(from_logits=True))


@program
def named_entities(rng):
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(40, 12, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x)
    outputs = layers.TimeDistributed(layers.Dense(5, activation="softmax"))(x)
    return classifier(inputs, outputs, padded(rng, 48, 12, 40), rng.integers(0, 5, (48, 12)))


@program
def raw_text(rng):
    words = np.array(["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "away", "from", "dog"])
    lines = np.array([" ".join(rng.choice(words, size)) for size in rng.integers(2, 9, 48)], dtype=object)[:, None]
    vectorize = layers.TextVectorization(max_tokens=30, output_mode="int", output_sequence_length=10)
    vectorize.adapt(lines[:, 0])
    inputs = keras.Input((1,), dtype="string")
    x = layers.Embedding(30, 12)(vectorize(inputs))
    x = layers.Dense(16, activation="relu")(layers.GlobalMaxPooling1D()(layers.Conv1D(16, 3, activation="relu")(x)))
    return classifier(inputs, layers.Dense(1, activation="sigmoid")(x), tf.constant(lines.tolist()),
                      rng.integers(0, 2, (48, 1)), "binary_crossentropy")


@program
def lstm_seq2seq(rng):
    encoder_inputs = keras.Input((8, 10))
    _, state_h, state_c = layers.LSTM(12, return_state=True)(encoder_inputs)
    decoder_inputs = keras.Input((6, 9))
    x, _, _ = layers.LSTM(12, return_sequences=True, return_state=True)(
        decoder_inputs, initial_state=[state_h, state_c])
    outputs = layers.Dense(9, activation="softmax")(x)
    return classifier([encoder_inputs, decoder_inputs], outputs, [normal(rng, 48, 8, 10), normal(rng, 48, 6, 9)],
                      rng.integers(0, 9, (48, 6)))


# Tables


@program
def wide_and_deep(rng):
    numbers = {name: keras.Input((1,), name=name, dtype="float32") for name in ("age", "hours")}
    words = {name: keras.Input((1,), name=name, dtype="string") for name in ("work", "degree")}
    values = {"work": ["private", "state", "none"], "degree": ["bachelor", "master"]}
    wide = [layers.StringLookup(vocabulary=values[name], output_mode="binary")(x) for name, x in words.items()]
    deep = [layers.Flatten()(layers.Embedding(len(values[name]) + 1, 4)(layers.StringLookup(
        vocabulary=values[name])(x))) for name, x in words.items()]
    deep = layers.concatenate([*deep, *numbers.values()])
    for _ in range(2):
        deep = layers.Dropout(0.1)(layers.ReLU()(layers.BatchNormalization()(layers.Dense(16)(deep))))
    merged = layers.concatenate([layers.BatchNormalization()(layers.concatenate([*wide, *numbers.values()])), deep])
    x = {"age": normal(rng, 48, 1), "hours": normal(rng, 48, 1),
         **{name: tf.constant(rng.choice([*values[name], "unseen"], (48, 1)).tolist()) for name in words}}
    return classifier({**numbers, **words}, layers.Dense(2, activation="softmax")(merged), x, rng.integers(0, 2, 48))


@program
def structured_data(rng):
    numeric, code = keras.Input((1,), name="trestbps"), keras.Input((1,), name="thal", dtype="int64")
    x = adapted(layers.Normalization(), normal(rng, 64, 1) * 20 + 130)(numeric)
    lookup = layers.IntegerLookup(output_mode="one_hot")
    lookup.adapt(np.arange(3, 8))
    x = layers.concatenate([x, lookup(code), layers.Discretization(bin_boundaries=[100.0, 130.0, 150.0],
                                                                   output_mode="one_hot")(numeric)])
    x = layers.Dropout(0.5)(layers.Dense(32, activation="relu")(x))
    data = {"trestbps": normal(rng, 48, 1) * 20 + 130, "thal": rng.integers(3, 9, (48, 1))}
    return classifier({"trestbps": numeric, "thal": code}, layers.Dense(1, activation="sigmoid")(x), data,
                      rng.integers(0, 2, (48, 1)), "binary_crossentropy")


class GatedLinearUnit(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.linear = layers.Dense(units)
        self.sigmoid = layers.Dense(units, activation="sigmoid")

    def call(self, inputs):
        return self.linear(inputs) * self.sigmoid(inputs)


class GatedResidualNetwork(layers.Layer):
    def __init__(self, units, dropout_rate):
        super().__init__()
        self.units = units
        self.elu_dense = layers.Dense(units, activation="elu")
        self.linear_dense = layers.Dense(units)
        self.dropout = layers.Dropout(dropout_rate)
        self.gated_linear_unit = GatedLinearUnit(units)
        self.layer_norm = layers.LayerNormalization()
        self.project = layers.Dense(units)

    def call(self, inputs):
        x = self.dropout(self.linear_dense(self.elu_dense(inputs)))
        if inputs.shape[-1] != self.units:
            inputs = self.project(inputs)
        return self.layer_norm(inputs + self.gated_linear_unit(x))


@program
def gated_residual(rng):
    inputs = keras.Input((10,))
    x = GatedResidualNetwork(16, 0.15)(inputs)
    x = GatedResidualNetwork(16, 0.15)(x)
    return classifier(inputs, layers.Dense(1, activation="sigmoid")(x), normal(rng, 48, 10),
                      rng.integers(0, 2, (48, 1)), "binary_crossentropy")


@program
def imbalanced_table(rng):
    data = normal(rng, 64, 12) * 5 + 3
    model = keras.Sequential([keras.Input((12,)), adapted(layers.Normalization(), data),
                              layers.Dense(32, activation="relu"), layers.Dense(32, activation="relu"),
                              layers.Dropout(0.3), layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=[keras.metrics.Precision()])
    return Program(model, data, (rng.uniform(size=(64, 1)) < 0.2).astype("float32"))


@program
def two_inputs_two_outputs(rng):
    title, tags = keras.Input((None,), name="title", dtype="int32"), keras.Input((6,), name="tags")
    x = layers.concatenate([layers.LSTM(12)(layers.Embedding(40, 12)(title)), tags])
    model = keras.Model({"title": title, "tags": tags}, {
        "priority": layers.Dense(1, name="priority")(x), "department": layers.Dense(4, name="department")(x)})
    model.compile("adam", {"priority": keras.losses.BinaryCrossentropy(from_logits=True),
                           "department": CLASSES(from_logits=True)}, loss_weights={"priority": 1.0, "department": 0.2})
    x = {"title": padded(rng, 48, 12, 40), "tags": normal(rng, 48, 6)}
    y = {"priority": rng.integers(0, 2, (48, 1)).astype("float32"), "department": rng.integers(0, 4, 48)}
    return Program(model, x, y, "own")


# Models that train or are made in a way of their own


class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_var = inputs
        epsilon = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_var) * epsilon


class VAE(keras.Model):
    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")

    @property
    def metrics(self):
        return [self.total_loss_tracker]

    def call(self, inputs):
        return self.decoder(self.encoder(inputs)[0])

    def train_step(self, data):
        with tf.GradientTape() as tape:
            mean, log_var, z = self.encoder(data)
            gap = ops.sum(ops.square(data - self.decoder(z)), axis=(1, 2, 3))
            divergence = -0.5 * ops.sum(1 + log_var - ops.square(mean) - ops.exp(log_var), axis=1)
            loss = ops.mean(gap) + ops.mean(divergence)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights,
                                           strict=True))
        self.total_loss_tracker.update_state(loss)
        return {"loss": self.total_loss_tracker.result()}


@program
def variational_autoencoder(rng):
    inputs = keras.Input((16, 16, 1))
    x = layers.Flatten()(layers.Conv2D(8, 3, activation="relu", strides=2, padding="same")(inputs))
    x = layers.Dense(16, activation="relu")(x)
    mean, log_var = layers.Dense(2, name="z_mean")(x), layers.Dense(2, name="z_log_var")(x)
    encoder = keras.Model(inputs, [mean, log_var, Sampling()([mean, log_var])], name="encoder")
    latent = keras.Input((2,))
    x = layers.Reshape((8, 8, 4))(layers.Dense(8 * 8 * 4, activation="relu")(latent))
    x = layers.Conv2DTranspose(1, 3, activation="sigmoid", strides=2, padding="same")(x)
    model = VAE(encoder, keras.Model(latent, x, name="decoder"))
    data = rng.uniform(size=(32, 16, 16, 1)).astype("float32")
    model(data[:2])
    model.compile("adam")
    return Program(model, data, None, "own", images=True)


class CustomModel(keras.Model):
    """A functional model with its own `train_step`."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = 100.0 + self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics if metric.name == "loss"}


@program
def custom_train_step(rng):
    inputs = keras.Input((12,))
    x = layers.Dense(24, activation="relu")(inputs)
    model = CustomModel(inputs, layers.Dense(1)(x))
    model.compile("adam", "mse")
    return Program(model, normal(rng, 48, 12), normal(rng, 48, 1), "numbers")


@keras.saving.register_keras_serializable("programs")
class RecommenderNet(keras.Model):
    def __init__(self, num_users, num_movies, embedding_size, **kwargs):
        super().__init__(**kwargs)
        self.sizes = num_users, num_movies, embedding_size
        self.user_embedding = layers.Embedding(num_users, embedding_size,
                                               embeddings_regularizer=keras.regularizers.L2(1e-6))
        self.user_bias = layers.Embedding(num_users, 1)
        self.movie_embedding = layers.Embedding(num_movies, embedding_size)
        self.movie_bias = layers.Embedding(num_movies, 1)

    def call(self, inputs):
        user, movie = self.user_embedding(inputs[:, 0]), self.movie_embedding(inputs[:, 1])
        dot = ops.sum(user * movie, axis=1, keepdims=True)
        return ops.nn.sigmoid(dot + self.user_bias(inputs[:, 0]) + self.movie_bias(inputs[:, 1]))

    def get_config(self):
        return {"num_users": self.sizes[0], "num_movies": self.sizes[1], "embedding_size": self.sizes[2]}


@program
def recommender(rng):
    model = RecommenderNet(20, 30, 8)
    x = np.stack([rng.integers(0, 20, 48), rng.integers(0, 30, 48)], 1).astype("int32")
    model(x[:2])
    model.compile("adam", "binary_crossentropy")
    return Program(model, x, rng.uniform(size=(48, 1)).astype("float32"), "numbers")
