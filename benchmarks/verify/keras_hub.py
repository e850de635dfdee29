"""Backbones of KerasHub, small and with random weights, each put through the library as programs.py does it.

    pip install --no-deps keras-hub && pip install kagglehub regex tokenizers
    python -P benchmarks/verify/keras_hub.py [backbone ...]

Writes docs/measured/keras_hub.csv, a row a backbone and a column a piece, and keras_hub_why.csv.
"""

import importlib.util
import pathlib
import sys

import keras
import keras_hub
import numpy as np

_spec = importlib.util.spec_from_file_location("verify", pathlib.Path(__file__).with_name("programs.py"))
verify = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(verify)
programs = sys.modules["programs"]

PIECES = ("report", "float32 file", "dynamic file", "int8 file", "regularizers", "average.outputs", "average.weights",
          "prune", "cluster", "quantize", "shrink", "distill", "Resume")
WORDS = {"vocabulary_size": 60, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24,
         "max_sequence_length": 24}


def trained_on(model, rng, x, images=False):
    """A program that fits the backbone's outputs to random numbers."""
    y = keras.tree.map_structure(lambda part: rng.normal(size=part.shape).astype("float32"),
                                 model(x, training=False))
    model.compile(keras.optimizers.Adam(1e-3), keras.tree.map_structure(lambda part: "mse", y))
    return programs.Program(model, x, y, "numbers", images)


def of_images(make):
    def program(rng):
        return trained_on(make(), rng, programs.normal(rng, 32, 32, 32, 3), images=True)
    return program


def of_words(make, segments=False):
    def program(rng):
        tokens = programs.padded(rng, 32, 12, 60)
        x = {"token_ids": tokens, "padding_mask": (tokens != 0).astype("int32")}
        return trained_on(make(**WORDS), rng, {**x, "segment_ids": np.zeros_like(tokens)} if segments else x)
    return program


def resnet():
    return keras_hub.models.ResNetBackbone([64], [3], [64, 16], [1, 1], [1, 2], "basic_block", image_shape=(32, 32, 3))


def mobilenet():
    return keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[16, 24], [24, 32]], stackwise_num_blocks=[2, 2], stackwise_num_filters=[[8, 8], [16, 16]],
        stackwise_kernel_size=[[3, 3], [5, 5]], stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]], stackwise_activation=[["relu"] * 2, ["hard_swish"] * 2],
        stackwise_padding=[[1, 1], [2, 2]], output_num_filters=32, depthwise_filters=8, depthwise_stride=1,
        depthwise_residual=False, last_layer_filter=24, squeeze_and_excite=0.5, input_num_filters=8,
        input_activation="hard_swish", output_activation="hard_swish", image_shape=(32, 32, 3))


def vit():
    return keras_hub.models.ViTBackbone((32, 32, 3), 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24)


BACKBONES = {"resnet": of_images(resnet), "mobilenet": of_images(mobilenet), "vit": of_images(vit),
             "bert": of_words(keras_hub.models.BertBackbone, segments=True),
             "distilbert": of_words(keras_hub.models.DistilBertBackbone),
             "gpt2": of_words(keras_hub.models.GPT2Backbone)}

if __name__ == "__main__":
    programs.PROGRAMS.update(BACKBONES)
    verify.main(__file__, "keras_hub", list(BACKBONES), {piece: verify.PIECES[piece] for piece in PIECES})
