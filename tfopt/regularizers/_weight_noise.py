"""Weight noise: a model whose kernels are noisy while it trains."""

import random

import numpy as np

from .. import _models
from .._check import MODEL, SEED, WHERE, Number, OneOf, checked, require
from .._keras import (
    Wrapped,
    inner_layers,
    is_training,
    is_wrapped,
    keras,
    parts_of,
    same_randomness,
    serializable,
    substitute,
    tf,
)
from .._typing import Where
from ._model import kernels

_READ_WHOLE = keras.layers.RNN, keras.layers.TimeDistributed      # they call what is inside once for each time step


@serializable
class Noisy(Wrapped):
    """A model whose chosen kernels are noisy while it trains. Made by `weight_noise`; undone by `strip`."""

    def attach(self):
        recipe, layers, places, seen = self.recipe, list(_models.layers(self).values()), {}, set()
        for place in recipe["layers"]:
            callers = _callers(layers[place])
            for owner, variable in _noisy(layers[place], recipe["embeddings"]):
                if id(variable) in seen:
                    continue
                draws = self.add_state(f"draws_{len(seen)}", (), "int64")
                seed = int(np.random.SeedSequence([recipe["seed"], len(seen)]).generate_state(1)[0])
                noise = _Noise(variable, draws, seed, recipe["stddev"], recipe["relative_to"])
                seen.add(id(variable))
                caller = callers[id(owner)]
                places.setdefault(id(caller), (caller, []))[1].append((owner, variable, noise))
        for caller, tensors in places.values():
            substitute(caller, tensors)
        self.call_in_training()

    def settle(self):
        """Nothing has to be made true after training."""


class _Noise:
    """The noisy kernel of the next call in training: the same for the same `seed` and number of `draws`."""

    def __init__(self, variable, draws, seed, stddev, relative_to):
        self._weight = variable.value                      # in float32 also where layers cast what they read
        self._draws, self._seed, self._stddev, self._relative_to = draws, seed, stddev, relative_to

    def __call__(self):
        if not is_training():
            return None
        weight, count = tf.convert_to_tensor(self._weight), tf.identity(self._draws.value)
        self._draws.assign(count + 1)
        noise = tf.random.stateless_normal(weight.shape, [self._seed, count], dtype=weight.dtype)
        return weight + tf.stop_gradient(self._scale(weight) * noise)

    def _scale(self, weight):
        stddev = tf.cast(self._stddev, weight.dtype)
        if self._relative_to is None:
            return stddev
        return stddev * (tf.reduce_max(tf.abs(weight)) if self._relative_to == "max" else tf.math.reduce_std(weight))


@checked(model=MODEL, stddev=Number(low=0), relative_to=OneOf("max", "std", None), seed=SEED, where=WHERE)
def weight_noise(model: keras.Model, stddev: float, *, relative_to: str | None = "max", seed: int | None = None,
                 where: Where = None) -> keras.Model:
    """Weight noise: a copy of the model that adds Gaussian noise to its kernels while it trains.

        training:    y = layer(x; w + stddev * scale(w) * e),   e ~ N(0, 1), drawn for each weight at each call
        inference:   y = layer(x; w)

    The gradient at the noisy weights is applied to the weights themselves, and `scale(w)` is taken for a constant: the
    optimizer looks for weights around which the loss is low. It prepares a model for hardware whose weights are not
    exact, such as analog memory. A recurrent layer keeps one draw for all time steps. Kernels are those of
    `regularizers.add`; biases and normalization stay exact, penalties see the weights without noise.

    Noise is a function of `seed` and the number of the call, which is saved with the model: training goes on after a
    restart as it would have. All replicas of a strategy draw the same noise, so several devices train as one does.

    Args:
      model: built Keras 3 model of any kind and dtype policy. It is only read.
      stddev: standard deviation of the noise as a share of `relative_to`, >= 0.
      relative_to: of each kernel by itself: "max", its largest magnitude, as is usual for analog hardware; "std", the
        standard deviation of its weights; None: `stddev` is the standard deviation itself.
      seed: whole number >= 0, or None for one drawn from Python's random state (`keras.utils.set_random_seed`).
      where: None for every layer with a kernel but embeddings; layer names or paths (`outer/inner`), layers, or
        `layer -> bool`.

    Returns:
      keras.Model, not compiled, of the model's own class, with the same inputs, outputs and predictions. It is saved
      (`.keras`, `.weights.h5`, `export`) and loaded like any other after `from tfopt import regularizers`. `strip`
      makes a plain model of it, which prune, cluster and quantize need.

    Raises:
      TypeError: `model` is no Keras 3 model.
      ValueError: an argument is out of range; the model is not built, is wrapped or rounds its weights already; `where`
        names no layer of it or one without a kernel.

    Example:
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
      >>> noisy = weight_noise(model, 0.05, seed=0)
      >>> x = tf.ones((1, 8))
      >>> bool(noisy(x) == model(x)), bool(noisy(x, training=True) == noisy(x, training=True))
      (True, False)

    Reference:
      Graves, Practical Variational Inference for Neural Networks, 2011.
      https://papers.nips.cc/paper/2011/hash/7eb3c8be3d411e8ebfab08eba5f49632-Abstract.html
      Joshi et al., Accurate deep neural network inference using computational phase-change memory, 2020.
      https://arxiv.org/abs/1906.03138
    """
    _models.require_model(model, "regularizers.weight_noise")
    require(not is_wrapped(model), "the model must be a plain one", model=type(model).__name__,
            do="It is wrapped already: train it and call `strip` first.")
    rounded = [part.name for part in parts_of(model) if type(part).__module__.startswith("tfopt.quantize.")]
    require(not rounded, "the model must be a plain one", model=model.name, rounded=rounded[:3],
            do="It came from quantize.wrap: add the noise before, train, strip, and wrap the result.")
    _models.require_finite(model)
    embeddings = where is not None
    chosen = _models.select(model, where, "regularizers.weight_noise", what="layer with a kernel",
                            able=lambda layer: _noisy(layer, embeddings))
    places = [place for place, path in enumerate(_models.layers(model)) if path in chosen]       # names may be new ones
    recipe = {"layers": places, "embeddings": embeddings, "stddev": stddev, "relative_to": relative_to,
              "seed": random.getrandbits(31) if seed is None else seed}
    with same_randomness(), _models.scope_of(model):
        noisy = Noisy.of(_models.copy(model), recipe)
    _models.compare(model, noisy)
    return noisy


@checked(model=MODEL)
def strip(model: keras.Model) -> keras.Model:
    """A new, plain model with the weights of one from `weight_noise`: without noise when it trains.

    Args:
      model: what `weight_noise` returned.

    Returns:
      keras.Model of the class given to `weight_noise`, not compiled, with the same predictions.

    Raises:
      ValueError: `model` did not come from `weight_noise`.

    Example:
      >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
      >>> plain = strip(weight_noise(model, 0.05))
      >>> type(plain).__name__, bool(plain(tf.ones((1, 8)), training=True) == model(tf.ones((1, 8))))
      ('Sequential', True)
    """
    require(isinstance(model, Noisy), "the model must have come from regularizers.weight_noise",
            model=_models.describe(model), do="Call regularizers.weight_noise(model, ...), train and pass the result.")
    with model.plain(), same_randomness():
        return _models.copy(model)


def _callers(layer, caller=None):
    """{id of a layer and those inside: the layer in whose call its kernels are read as a whole}."""
    caller = caller or (layer if isinstance(layer, _READ_WHOLE) else None)
    found = {id(layer): caller or layer}
    for part in inner_layers(layer):
        found |= _callers(part, caller)
    return found


def _noisy(layer, embeddings):
    """[(layer inside, variable)] of the kernels that can be noisy: those that are not integers."""
    return [(owner, variable) for owner, _, variable in kernels(layer, embeddings=embeddings)
            if variable is not None and keras.backend.is_float_dtype(variable.dtype)]
