"""Does the counterpart compute what the original computes?"""

import contextlib
import inspect
import typing

import numpy as np

from .._check import refusal, require
from .._keras import keras, mask_of, set_mask, tf
from .build import run

_ROWS, _SIDE, _STEPS = 2, 96, 8      # rows of the batch; what stands for an open size of images, and of sequences
_BOUNDED = {"Embedding": "input_dim", "ReversibleEmbedding": "input_dim", "CategoryEncoding": "num_tokens"}
_WORDS = ("", "a", "the cat")


def require_equal(model, graph, counterpart, build):
    """Refuses unless `counterpart` and `model` give the same outputs for a random batch."""
    batch, expected = _run_on_random(model, graph, build)
    tolerance = 0.1 if build.dtype or any("16" in str(layer.compute_dtype) for layer in counterpart.layers) else 1e-4
    with unfused(counterpart):
        if _close(expected, counterpart(batch, training=False), tolerance):
            return
        place, gap = _first_difference(graph, batch, build, tolerance)
    raise refusal(f"{build.caller} needs a tf_keras counterpart that computes the same, and that of {place} does not",
                  difference=gap, do="Replace this layer, or leave it out of the model.")


@contextlib.contextmanager
def unfused(counterpart):
    """While it lasts, batch normalization computes step by step, as in Keras 3.

    The fused kernel of tf_keras rounds otherwise, which a deep network that is not trained yet can blow up to anything.
    """
    fused = [layer for layer in counterpart.layers if getattr(layer, "fused", False)]
    try:
        for layer in fused:
            layer.fused = False
        yield
    finally:
        for layer in fused:
            layer.fused = True


def _run_on_random(model, graph, build) -> typing.Any:
    """A batch the model accepts, and its outputs: finite ones if any of the batches gives them."""
    limits = [getattr(op, _BOUNDED[type(op).__name__]) for op, _ in build.counterparts.values()
              if type(op).__name__ in _BOUNDED]
    problem, candidate = None, None
    kinds = ("whole", "normal", "uniform") if limits else ("normal", "uniform", "whole")
    for kind, limit in zip(kinds, (min(limits, default=256), *[min(limits, default=2)] * 2), strict=True):
        rng = np.random.default_rng(0)
        batch = keras.tree.map_structure(lambda x, args=(rng, limit, kind): _values(x, *args), graph.input)
        try:
            outputs = model(batch, training=False)
        except (ValueError, tf.errors.OpError) as reason:
            problem = reason
            continue
        candidate = candidate or (batch, outputs)
        if all(np.isfinite(x).all() for x in _arrays(outputs)):
            return batch, outputs
    require(candidate, f"{build.caller} needs a model that runs on random inputs, to compare its counterpart with",
            reason=str(problem).strip().split("\n")[0])
    return candidate


def _values(x, rng, limit, kind):
    side = _SIDE if len(x.shape) > 3 else _STEPS
    shape = [_ROWS if axis == 0 and size is None else size or side for axis, size in enumerate(x.shape)]
    if x.dtype == "string":
        return tf.constant(rng.choice(_WORDS, size=shape).tolist(), shape=shape)
    whole = "float" not in x.dtype or kind == "whole"
    return tf.cast(rng.integers(limit, size=shape) if whole else getattr(rng, kind)(size=shape), x.dtype)


def _first_difference(graph, batch, build, tolerance):
    """Runs each layer beside its counterpart on the same values: the first that differs, and by how much at most."""
    found = []

    def use(op, given, symbols, prefix):
        layer = isinstance(op, keras.layers.Layer)
        training = {"training": False} if layer and "training" in inspect.signature(op.call).parameters else {}
        masks = [(x, mask_of(x)) for x in keras.tree.flatten(given) if mask_of(x) is not None]
        outputs = op(*given[0], **given[1], **training)
        for x, mask in masks:
            set_mask(x, mask)
        counterpart_outputs = build.use(op, given, symbols, prefix)
        if not found and not _close(_with_masks(outputs), _with_masks(counterpart_outputs), tolerance):
            gap = max((np.abs(a - b).max() for a, b in zip(_arrays(outputs), _arrays(counterpart_outputs), strict=True)
                       if a.shape == b.shape), default=np.nan)
            found.append((f"the layer {prefix}{op.name} ({type(op).__name__})", float(gap)))
        return outputs

    run(graph, batch, use, build.masks)
    return found[0] if found else ("no single layer but the whole", float("nan"))


def _with_masks(outputs):
    outputs = keras.tree.flatten(outputs)
    return outputs, [mask for x in outputs if (mask := mask_of(x)) is not None]


def _arrays(outputs):
    return [np.asarray(keras.ops.convert_to_numpy(x), "float64") for x in keras.tree.flatten(outputs)
            if x.dtype != "string"]


def _close(expected, got, tolerance):
    """Equal within `tolerance` of the largest value; NaN and infinity where the other has them."""
    expected, got = _arrays(expected), _arrays(got)
    if len(expected) != len(got):
        return False
    for a, b in zip(expected, got, strict=True):
        scale = max(1.0, np.abs(a[np.isfinite(a)]).max(initial=0))
        if a.shape != b.shape or not np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True):
            return False
    return True
