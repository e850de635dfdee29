"""What in a model will not behave under several replicas as it does on one device."""

import pandas as pd

from .. import _data, _models
from .._check import MODEL, checked
from .._keras import graph_of, keras, mask_of, parts_of, tf
from .._tables import Frame
from .._typing import Dataset
from ._corrected import CLIPS, GlobalBatchOptimizer, unsynchronized
from ._strategy import made, replicas_here

__all__ = ["diagnose"]

OWN_LOSS = "divide what it adds to the loss by tf.distribute.get_strategy().num_replicas_in_sync"


@checked(model=MODEL, data=_data.BATCHES)
def diagnose(model: keras.Model, data: Dataset | None = None) -> pd.DataFrame:
    """Diagnosis for distributed training: what differs under replicas, and what to do.

    Whatever it names was run, on several devices and on one (docs/measured/distribute.csv). It does not see a layer of
    your own that assigns to its variables.

    Args:
      model: a built keras.Model; compile it first, or the optimizer and the loss are not looked at.
      data: None, or the tf.data.Dataset of batches that `fit` will get.

    Returns:
      pandas.DataFrame with a row for each finding: `part` (layer, optimizer, ...), `finding`, `effect` and `do`. The
      effect is "fails" (an error), "differs" (silently another result), "random" (other random numbers), or "unknown"
      (code of your own).

    Raises:
      ValueError: the model is not built.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(name="bn")])
      >>> model.compile(keras.optimizers.SGD(0.1, clipnorm=1.0), "mse")
      >>> print(diagnose(model)[["part", "effect"]].to_string(index=False))
           part  effect
      optimizer differs
             bn differs
    """
    _models.require_model(model, "distribute.diagnose")
    optimizer = getattr(model, "optimizer", None)
    rows = [*_of_scope(model), *_of_compile(model), *_of_optimizer(optimizer), *_of_class(model), *_of_outputs(model),
            *_of_layers(model), *_of_data(data)]
    return Frame(rows, columns=["part", "finding", "effect", "do"])


def _of_scope(model):
    if made() is not None and model.distribute_strategy is not made():
        yield ("model", "made outside of the strategy's scope: it trains on one device", "differs",
               "make and compile it inside `with strategy.scope():`")


def _of_compile(model):
    if not model.compiled:
        return
    if model.steps_per_execution > 1:
        yield "compile", f"steps_per_execution={model.steps_per_execution}", "fails", "leave it at 1"
    if model.jit_compile and not tf.config.list_physical_devices("GPU"):
        yield "compile", "jit_compile=True without a GPU", "fails", "jit_compile=False"


def _of_optimizer(optimizer):
    while hasattr(optimizer, "inner_optimizer") and not isinstance(optimizer, GlobalBatchOptimizer):
        optimizer = optimizer.inner_optimizer
    if optimizer is None or isinstance(optimizer, GlobalBatchOptimizer):
        return
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        for part in optimizer.optimizers:
            yield from _of_optimizer(part)
        return
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        yield ("optimizer", "ScheduleFreeAdamW trains to other weights than on one device", "differs",
               "another optimizer, such as AdamW")
    clips = {clip: getattr(optimizer, clip) for clip in CLIPS if getattr(optimizer, clip)}
    for clip, value in clips.items():
        yield ("optimizer", f"{clip}={value} clips the part of each replica", "differs",
               "distribute.GlobalBatchOptimizer(optimizer)")
    if optimizer.gradient_accumulation_steps:
        yield ("optimizer", f"gradient_accumulation_steps={optimizer.gradient_accumulation_steps}", "fails",
               "distribute.GlobalBatchOptimizer(optimizer)")
    if optimizer.ema_overwrite_frequency:
        yield ("optimizer", f"ema_overwrite_frequency={optimizer.ema_overwrite_frequency}", "fails",
               "leave it out, or average.SWA(momentum=...)")


def _of_class(model):
    for part in parts_of(model):
        if isinstance(part, keras.distillation.Distiller) and not _ours(type(part)):
            yield part.name, "the teacher's loss is not divided by the replicas", "differs", "distill.Distiller"
            continue
        for method in ("train_step", "compute_loss"):
            owner = next((kind for kind in type(part).__mro__ if method in vars(kind)), None)
            if owner and not owner.__module__.startswith("keras.") and not _ours(owner):
                yield part.name, f"{owner.__name__}.{method} is your own", "unknown", OWN_LOSS


def _ours(kind):
    return kind.__module__.startswith("tfopt.")


def _of_outputs(model):
    graph = graph_of(model)
    if graph is not None and any(mask_of(output) is not None for output in graph.outputs):
        yield ("model", "its outputs have a mask: the loss is a mean over the steps that are left to each replica",
               "differs", "no mask_zero; pass sample_weight of shape (batch, steps)")


def _of_layers(model):
    for part in parts_of(model):
        if unsynchronized(part) and part.trainable:
            yield part.name, "sees its replica's part of the batch", "differs", "distribute.sync_batch_norm(model)"
        if getattr(part, "seed_generator", None) is not None:
            yield part.name, "each replica draws for its own examples", "random", "nothing"
        if type(part).__module__.startswith("tfopt.quantize"):
            yield part.name, "each replica has ranges of its own, averaged at each step", "differs", "nothing"


def _of_data(data):
    if data is None:
        return
    sizes = {spec.shape[0] for spec in keras.tree.flatten(data.element_spec)}
    if None in sizes:
        yield ("data", "its last batch may be one that the replicas cannot share evenly", "differs",
               "distribute.equal_batches(data) for fit")
    elif any(size % replicas_here() for size in sizes):
        yield "data", f"{replicas_here()} replicas cannot share {max(sizes)} evenly", "differs", "another batch size"
