"""Teacher and student as the losses see them: their outputs, of known kinds, and layers that can be tapped."""

import functools
import typing

from .. import _models
from .._check import refusal, require
from .._keras import graph_of, keras, producer, tf
from ._outputs import inspect_outputs, logits_of, run
from ._packing import unpack


class Output(typing.NamedTuple):
    """One output of a model: where it is and what it is called, and of what kind."""

    path: tuple
    name: str | None
    shape: tuple
    kind: str | None
    last: str

    @property
    def key(self):
        """How a loss names it: a key or an index, None for the only output."""
        return self.path[0] if len(self.path) == 1 else self.path or None


class Result(typing.NamedTuple):
    """What a model computed for one batch."""

    outputs: object
    features: dict


class Network:
    """A model: its outputs, and layers that losses can tap.

    Args:
      model: a built model.
      role: "teacher" or "student", for the sentences.
      inputs: tensors like those of a batch, nested as the model takes them.
    """

    def __init__(self, model, role, inputs):
        self.model, self.role, self._inputs = model, role, inputs
        self.name = model.name
        self.taps = {}
        self._tapped = None

    @functools.cached_property
    def outputs(self):
        found, names = inspect_outputs(self.model, self._inputs), getattr(self.model, "output_names", None) or []
        names = names if len(names) == len(found) else [None] * len(found)
        return [Output(path, name, *rest) for (path, *rest), name in zip(found, names, strict=True)]

    def logits(self, result, output, kind, activation):
        """The logits behind an output of this kind."""
        del activation
        return logits_of(part_of(result.outputs, output.path), kind)

    def value(self, result, output):
        """An output as the model gives it."""
        return part_of(result.outputs, output.path)

    def all_values(self, result, like):
        """All outputs; nested as `like` is where they do not come nested."""
        del like
        return result.outputs

    def tap(self, layer):
        """Makes the output of a layer part of each `Result`; returns its shape."""
        graph = graph_of(self.model)
        require(graph is not None, "a layer can be tapped in a functional or Sequential model only", layer=layer,
                **{self.role: _models.describe(self.model)}, do="Use a loss between outputs, such as Logits.")
        found = _tensors(graph)
        require(layer in found, f"the {self.role} must have a layer of this name", layer=layer,
                do=f"Its layers are {', '.join(reversed(found))}.")
        require(len(found[layer]) == 1, f"a tapped layer of the {self.role} must be used once and have one output",
                layer=layer, do="Name another layer, or put an Identity layer behind the use that is meant.")
        self.taps[layer], = found[layer]
        self._tapped = keras.Model(graph.input, {"outputs": graph.output, "features": self.taps})
        return tuple(self.taps[layer].shape)

    def __call__(self, x, training):
        if self._tapped is None:
            return Result(run(self.model, x, training), {})
        return Result(**self._tapped(x, training=training))


class Cache:
    """A teacher whose outputs come with the data, see `distill.cache_teacher`.

    Of what kind they are is known when data come: until then they pass for logits.
    """

    model, name, role = None, "cached outputs", "teacher"

    def __init__(self, student):
        self._student = student

    @property
    def outputs(self):
        return [output._replace(kind="logits") for output in self._student.outputs]

    def logits(self, result, output, kind, activation):
        del kind
        cached, value = self._unpacked(result, output)
        require(cached in ("logits", activation, None), "the cached outputs and the student must be of the same kind",
                cached=cached, student=activation, do="Use distill.Values for outputs that are numbers."
                if cached == "numbers" else f'Pass activation="{cached}" to the loss.')
        return value

    def value(self, result, output):
        cached, value = self._unpacked(result, output)
        return {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}.get(cached, tf.identity)(value)

    def all_values(self, result, like):
        return keras.tree.pack_sequence_as(like, [self.value(result, output) for output in self.outputs])

    def tap(self, layer):
        raise refusal("cached outputs hold no features", layer=layer, do="Pass the teacher itself.")

    def _unpacked(self, result, output):
        """(kind, logits or numbers in float32) of one output; without a kind where they are the user's own arrays."""
        name = name_of(output.path)
        if not _are_packed(result.outputs):
            value = part_of(result.outputs, output.path, output.name)
            require(not keras.tree.is_nested(value) and _fit([output.shape], [value.shape]),
                    "the teacher's outputs in the data have the shape of the student's", student=(*output.shape,),
                    teacher=sorted(value) if isinstance(value, dict) else getattr(value, "shape", value))
            return None, tf.cast(value, tf.float32)
        require(name in result.outputs, "the cached outputs and the student's must be nested alike",
                cached=sorted(result.outputs), student=name, do="Pass a student with the outputs of the teacher.")
        (kind, packed), = result.outputs[name].items()
        return kind, unpack(packed, output.shape[-1])


def _are_packed(outputs):
    """Did `cache_teacher` make them: {name: {kind: {...}}}?"""
    return isinstance(outputs, dict) and all(
        isinstance(part, dict) and len(part) == 1 and isinstance(next(iter(part.values())), dict)
        for part in outputs.values())


def name_of(path):
    """An output's name among cached outputs."""
    return "/".join(map(str, path)) or "output"


def part_of(nested, path, name=None):
    """The part of `nested` that belongs to an output: all of it if it is not nested as the outputs are.

    Args:
      nested: outputs, labels or weights.
      path: of the output.
      name: the output's name, where a dict has no such key.
    """
    for key in path:
        if not keras.tree.is_nested(nested):
            break
        known = key in nested if isinstance(nested, dict) else isinstance(key, int) and key < len(nested)
        require(known or (isinstance(nested, dict) and name in nested), "labels, weights and outputs must be nested "
                "alike", output=key, received=sorted(nested) if isinstance(nested, dict) else f"{len(nested)} parts")
        nested = nested[key if known else name]
    return nested


def inputs_of(*models):
    """Tensors like those of a batch, from whichever models tell the shape of their inputs."""
    graphs = [graph_of(model.base if type(model).__module__.startswith("tfopt.") and hasattr(model, "base") else model)
              for model in models]
    graphs = [graph for graph in graphs if graph is not None]
    shapes = [[tuple(tensor.shape) for tensor in keras.tree.flatten(graph.input)] for graph in graphs]
    for other in shapes[1:]:
        require(_fit(shapes[0], other), "teacher and student must take the same inputs", shapes=shapes)
    if graphs:
        return graphs[0].input
    shape = next((config["input_shape"] for model in models
                  if "input_shape" in (config := model.get_build_config() or {})), None)
    require(shape is not None, "one of teacher and student must tell the shape of its input",
            models=[_models.describe(model) for model in models],
            do="Build one with keras.Model(inputs, outputs), or with build(input_shape).")
    return keras.tree.map_shape_structure(lambda shape: keras.KerasTensor((None, *shape[1:])), shape)


def _fit(shapes, others):
    return len(shapes) == len(others) and all(
        len(a) == len(b) and all(None in (m, n) or m == n for m, n in zip(a, b, strict=True))
        for a, b in zip(shapes, others, strict=True))


def _tensors(graph):
    """{name of an operation: its tensors} of everything the outputs of a graph are made from."""
    found, waiting, seen = {}, list(graph.outputs), set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            op, inputs = producer(tensor)
            found.setdefault(op.name, []).append(tensor)
            waiting.extend(inputs)
    return found
