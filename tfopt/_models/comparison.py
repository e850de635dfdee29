"""The one comparison with the model that the user passed in, on inputs that this model can take."""

import dataclasses
import inspect
import itertools
import typing

import numpy as np

from .._check import require
from .._keras import graph_of, keras, parts_of, replay, seeded, tf, uses
from .describe import array_of, describe, recurrent_states

_OPEN = (8, 16, 32, 64, 128, 256)        # tried in this order for sizes that the model leaves open; images from 32 on
_FEW = 4                                 # inputs of which each may be words
_STYLES = ("normal", "uniform", "few")   # kinds of numbers, tried in this order
_LOOKUPS = (keras.layers.StringLookup, keras.layers.IntegerLookup, keras.layers.TextVectorization)
_BOUNDS = {"CategoryEncoding": "num_tokens", "Embedding": "input_dim", "OneHot": "num_classes",
           "ReversibleEmbedding": "input_dim"}
_WORDS = ("", "a", "the cat", "not in any vocabulary")


def compare(model, made, *, inputs=None, value=None, tolerance=1e-4):
    """Refuses a result that does not compute what the user's model computes.

    Args:
      model: what the user passed in; its weights and random states are left as they are.
      made: what was made of it, with the same inputs and outputs.
      inputs: a batch as the model takes it; None generates one, see `example_inputs`.
      value: `variable of model -> array` to compute with in place of its value.
      tolerance: largest difference, as a share of the largest output.

    Returns:
      float, the largest difference as a share of the largest output.

    Raises:
      RuntimeError: the two differ.
    """
    expected = None
    if inputs is None:
        inputs, expected = _example(model)
    if expected is None or value is not None:
        expected = outputs_of(model, inputs, value=value)
    return require_close(expected, outputs_of(made, inputs), tolerance=tolerance)


def require_close(expected, received, *, tolerance=1e-4):
    """As `compare`, for two lists of arrays."""
    same = len(expected) == len(received) and all(a.shape == b.shape for a, b in zip(expected, received, strict=True))
    gap = max(map(_gap, expected, received), default=0.) if same else float("inf")
    require(gap <= tolerance,
            "the result computes something else than the model that was passed in",
            difference=f"{gap:.2g} of the largest output" if same else "another number or shape of outputs",
            error=RuntimeError, do="Leave layers of your own out by `where`, or give their classes a `get_config` that "
            "returns every argument of the constructor.")
    return gap


def _gap(expected, received):
    """Largest difference as a share of the largest finite value; infinite where one is not finite and the other is."""
    if expected.dtype.kind not in "biuf" and str(expected.dtype) != "bfloat16":
        return 0. if (expected == received).all() else float("inf")
    a, b = expected.astype("float64"), received.astype("float64")
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    return float(np.abs(a - b)[finite].max(initial=0) / np.abs(a[finite]).max(initial=1e-6))


def outputs_of(model, inputs, *, value=None):
    """The model's outputs in inference, as a flat list of arrays; no weight and no random state of it is moved.

    Args:
      model: a built model.
      inputs: a batch as the model takes it.
      value: `variable of model -> array` to compute with in place of its value.
    """
    training = {"training": False} if "training" in inspect.signature(model.call).parameters else {}
    with seeded(0):
        if value is not None:
            kinds = model.trainable_variables, model.non_trainable_variables
            outputs, _ = model.stateless_call(*([keras.ops.convert_to_tensor(value(variable), variable.dtype)
                                                 for variable in kind] for kind in kinds), inputs, **training)
        else:
            states = [(variable, array_of(variable))
                      for variable in (*model.non_trainable_variables, *recurrent_states(model))]
            outputs = model(inputs, **training)
            for variable, state in states:
                variable.assign(state)
    return [x.numpy() if x.dtype == "string" else keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]


def example_inputs(model):
    """A batch of a few rows that the model can take, nested as its inputs are.

    Whole numbers lie within the Embedding or encoding that they go to, words come from the vocabulary (and one from
    outside), numbers in front of a Normalization are spread as it expects. Where there are masks the second row is
    padded: with zeros in front of an Embedding, with its value in front of a Masking. Open sizes are as long as the
    model's convolutions need.

    Args:
      model: a built model.

    Raises:
      ValueError: the model runs on nothing that was tried.
    """
    return _example(model)[0]


def _example(model):
    """`example_inputs`, and the model's outputs for them: finite ones if any of those that were tried gives them."""
    specs = _specs(model)
    shapes = keras.tree.flatten(specs)
    is_open = graph_of(model) is None or any(None in x.shape[1:] for x in shapes)
    rows = next((x.shape[0] for x in shapes if x.shape[0]), 2 if any(len(x.shape) > 3 for x in shapes) else 3)
    found: typing.Any = None
    problem = None
    for (flat, facts), side, style in itertools.product(
            [(shapes, _facts(model))] if graph_of(model) is not None else _guesses(model, shapes),
            _OPEN if is_open else _OPEN[:1], _STYLES):
        rng = np.random.default_rng(0)
        values = [_values(x, fact, rng, rows, side, style) for x, fact in zip(flat, facts, strict=True)]
        batch = keras.tree.pack_sequence_as(specs, values)
        try:
            if is_open:
                _require_room(model, values)
            outputs = outputs_of(model, batch)
        except Exception as reason:                            # whatever a layer makes of inputs that it cannot take
            problem = reason
            continue
        found = found or (batch, outputs)
        if all(x.size and (x.dtype.kind not in "f" or np.isfinite(x).all()) for x in outputs):
            return batch, outputs
    require(found, "the model must run on generated inputs, so that the result can be compared with it",
            model=describe(model), reason=str(problem).strip().split("\n")[0],
            do="Check that the model runs on a batch of your data.")
    return found


def _require_room(model, values):
    """Raises if inputs of these shapes leave nothing for some operation of a graph to work on."""
    def checked(op):
        def call(*args, **kwargs):
            if graph_of(op) is not None:
                return visit(op, [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)])
            outputs = op.compute_output_spec(*args, **kwargs)
            require(all(size is None or size > 0 for x in keras.tree.flatten(outputs) for size in x.shape),
                    "the inputs are too small", operation=op.name)
            return outputs
        return call

    def visit(owner, tensors):
        return replay(graph_of(owner), tensors, checked)

    if graph_of(model) is not None:
        visit(model, [keras.KerasTensor(x.shape, x.dtype) for x in values])


def _specs(model):
    """The inputs of a model as KerasTensors, nested as they are."""
    graph = graph_of(model)
    if graph is not None:
        return graph.input
    config = model.get_build_config() or {}
    shapes = config.get("input_shape") or config.get("shapes_dict")
    require(shapes, "a subclassed model must have been called on a batch", model=describe(model),
            do="Call it once: model(batch).")
    return keras.tree.map_shape_structure(lambda shape: keras.KerasTensor((None, *shape[1:])), shapes)


def _guesses(model, flat):
    """[(inputs, their Facts)] that a model without a graph may take: numbers, or words where it looks some up."""
    words = [word for part in parts_of(model) if isinstance(part, _LOOKUPS[:1])
             for word in part.get_vocabulary(include_special_tokens=False)]
    texts = words or any(isinstance(part, keras.layers.TextVectorization) for part in parts_of(model))
    plain, text = Facts(), Facts(words=words or list(_WORDS))
    for chosen in itertools.product((False, True) if texts and len(flat) <= _FEW else (False,), repeat=len(flat)):
        kinds = list(zip(flat, chosen, strict=True))
        yield ([keras.KerasTensor(x.shape, "string") if is_text else x for x, is_text in kinds],
               [text if is_text else plain for is_text in chosen])


@dataclasses.dataclass
class Facts:
    """What the layers behind an input tell of its values."""

    limit: int | None = None        # whole numbers must be smaller
    words: list | None = None       # what a lookup knows
    padding: float | None = None    # the value that masks a step
    mean: object = None             # what a Normalization expects
    deviation: object = None


def _facts(model):
    """[Facts] of each input of a graph model."""
    graph = graph_of(model)
    facts = [Facts() for _ in graph.inputs]
    _follow(graph, {id(x): [fact] for x, fact in zip(graph.inputs, facts, strict=True)})
    return facts


def _follow(graph, known):
    """Carries facts, {id(tensor): those of the inputs it is made of}, through what has no weights."""
    for op, args, kwargs, outputs in uses(graph):
        tensors = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        facts = [fact for x in tensors for fact in known.get(id(x), ())]
        inner = graph_of(op)
        if inner is not None:
            inside = {id(start): known.get(id(x), []) for x, start in zip(tensors, inner.inputs, strict=False)}
            _follow(inner, inside)
            known.update((id(y), inside.get(id(x), [])) for x, y in zip(inner.outputs, outputs, strict=True))
        elif facts and not _learn(op, facts):
            known.update((id(y), facts) for y in outputs)


def _learn(op, facts):
    """Notes what `op` asks of the inputs it reads; True if what it makes no longer depends on their values alone."""
    for part in parts_of(op):
        bound = getattr(part, _BOUNDS.get(type(part).__name__, ""), None)
        for fact in facts:
            if isinstance(part, _LOOKUPS):
                words = list(part.get_vocabulary(include_special_tokens=False))
                texts = isinstance(part, keras.layers.TextVectorization)
                fact.words = [f"{a} {b}" for a, b in zip(words, reversed(words), strict=True)] if texts else words
            elif bound is not None:
                fact.limit = min(bound, fact.limit or bound)
                fact.padding = 0 if getattr(part, "mask_zero", False) else fact.padding
            elif isinstance(part, keras.layers.Masking):
                fact.padding = part.mask_value
            elif isinstance(part, keras.layers.Normalization) and not part.invert and part.built:
                fact.mean, fact.deviation = np.asarray(part.mean), np.sqrt(np.asarray(part.variance))
    return bool(getattr(op, "weights", ())) or isinstance(op, _LOOKUPS)


def _values(x, fact, rng, rows, side, style):
    """Values of one input."""
    side = max(side, 32) if len(x.shape) > 3 else side
    shape = (x.shape[0] or rows, *(side if size is None else size for size in x.shape[1:]))
    if fact.words:
        values = _words(x, fact, rng, shape, unknown=style == "normal")
    elif x.dtype == "string":
        values = rng.choice(_WORDS, size=shape)
    elif "float" not in x.dtype or fact.limit:
        values = rng.integers({"normal": 256, "uniform": 2, "few": 1}[style] if fact.limit is None else fact.limit,
                              size=shape)
    else:
        values = rng.integers(2, size=shape) if style == "few" else getattr(rng, style)(size=shape)
        if fact.mean is not None and np.broadcast_shapes(shape, fact.mean.shape) == shape:
            values = fact.mean + fact.deviation * values
    if fact.padding is not None and shape[0] > 1 and len(shape) > 1:
        values[1, (shape[1] + 1) // 2:] = fact.padding
    values = tf.constant(values.tolist(), shape=shape) if x.dtype == "string" else tf.cast(values, x.dtype)
    return tf.sparse.from_dense(values) if x.sparse else values


def _words(x, fact, rng, shape, *, unknown):
    """Entries of a vocabulary, the first one from outside of it if `unknown`."""
    values = rng.choice(np.array(fact.words, object if x.dtype == "string" else None), size=shape)
    if unknown:
        values.flat[0] = _WORDS[-1] if x.dtype == "string" else max(fact.words) + 1
    return values
