"""Test-time augmentation: one model over several views of its input."""

from collections.abc import Callable, Sequence
from typing import Any

from .. import _models
from .._check import FUNCTION, MODEL, Instance, ListOf, Whole, checked, refusal, require, said
from .._keras import ConfigFromArguments, fresh_inputs, graph_of, keras, serializable, tf

_VIEWS = Instance("keras.layers.Layer", text="an augment.Pipeline") | ListOf(FUNCTION)


@checked(model=MODEL, views=_VIEWS, n=Whole(low=2))
def views(model: keras.Model, views: keras.layers.Layer | Sequence[Callable[[Any], Any]], *,
          n: int = 8) -> keras.Model:
    """Test-time augmentation: one model whose outputs are the mean of the model's outputs for several views.

        outputs(x) = 1/n * sum_i model(view_i(x))

    The first view is the input itself; a pipeline gives n - 1 others, the same for every example, batch and call. With
    a list the views are those of its functions alone: put `lambda x: x` into it for the input itself.

    Args:
      model: a built functional or Sequential model with one input; it is copied.
      views: an augment.Pipeline that does not mix examples, or a list of functions or layers of a batch of inputs, such
        as `lambda x: x[:, :, ::-1]` for images mirrored left to right.
      n: number of views of a pipeline, >= 2; the model computes n times as long.

    Returns:
      An uncompiled keras.Model. `distill.Distiller` takes it as a teacher.

    Raises:
      TypeError: `model` is no Keras 3 model.
      ValueError: the model has no graph or several inputs; the pipeline mixes examples; a view has another shape.

    Example:
      >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
      >>> both, x = views(model, [lambda x: x, lambda x: x[:, :, ::-1]]), tf.random.normal((1, 4, 4, 1))
      >>> bool(tf.reduce_all(tf.abs(both(x) - (model(x) + model(x[:, :, ::-1])) / 2) < 1e-6))
      True

    Reference:
      Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks (2012).
      https://papers.nips.cc/paper/4824
    """
    graph = _models.require_graph(model, "average.views")
    require(len(graph.inputs) == 1, "the model must have one input", inputs=[x.name for x in graph.inputs],
            do="Build the views inside the model, or average the outputs by hand.")
    low, high = getattr(views, "value_range", (None, None))
    if isinstance(views, keras.layers.Layer):
        require(getattr(views, "replayable", False), "`views` must be an augment.Pipeline that does not mix examples",
                views=type(views).__name__, do="Leave MixUp and CutMix out.")
        shape = graph.inputs[0].shape
        require(len(shape) == 4, "an augment.Pipeline needs a model of images [batch, height, width, channels]",
                input=shape, do="Pass a list of functions that make views of the input.")
        views = [lambda x: x, *(View(_models.recreate(views), number) for number in range(1, n))]
    with _models.scope_of(model):
        member = _models.copy(model)
        inputs = fresh_inputs(graph_of(model))
        x, = keras.tree.flatten(inputs)
        try:
            seen = [view(x) for view in views]
        except Exception as error:                         # of an operation, or of the user's own function
            raise refusal("views must take the model's input", input=x.shape, view=said(error)) from error
        require(all(tuple(one.shape) == tuple(x.shape) for one in seen), "views must have the shape of the input",
                input=x.shape, views=[one.shape for one in seen], do="Use operations that keep the size.")
        outputs = [member(keras.tree.pack_sequence_as(inputs, [one])) for one in seen]

        def mean(*parts):
            return keras.layers.Average()(list(parts))

        together = keras.Model(inputs, keras.tree.map_structure(mean, *outputs), name=f"{model.name}_views")
    _require_mean(model, together, views, low, high)
    return together


def _require_mean(model, together, views, low, high):
    """The result must give the mean of what the user's model gives for each view, of values from `low` to `high`."""
    inputs = _models.example_inputs(model)
    x, = keras.tree.flatten(inputs)
    if low is not None and "float" in x.dtype.name:
        x = low + (high - low) * (x - tf.reduce_min(x)) / (tf.reduce_max(x) - tf.reduce_min(x))
        inputs = keras.tree.pack_sequence_as(inputs, [x])
    found = [_models.outputs_of(model, keras.tree.pack_sequence_as(inputs, [view(x)])) for view in views]
    _models.require_close([sum(part / len(views) for part in parts) for parts in zip(*found, strict=True)],
                          _models.outputs_of(together, inputs))


@serializable
class View(ConfigFromArguments, keras.layers.Layer):
    """One view of images by an augment.Pipeline: that of `epoch`, the same for every example."""

    def __init__(self, pipeline: keras.layers.Layer, epoch: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pipeline, self.epoch = pipeline, epoch

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.built = True                                  # nothing of the pipeline's is used that it would build

    def call(self, images: tf.Tensor) -> tf.Tensor:
        index = tf.zeros(tf.shape(images)[:1], tf.int64)
        return tf.cast(self.pipeline.apply(images, epoch=self.epoch, index=index), images.dtype)

    def compute_output_spec(self, images: keras.KerasTensor) -> keras.KerasTensor:
        shape = self.pipeline.compute_output_shape(images.shape)
        return keras.KerasTensor(shape, images.dtype)
