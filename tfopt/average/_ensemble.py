"""Ensembles and soups: several models become one."""

from collections.abc import Callable, Sequence

import numpy as np

from .. import _models
from .._check import FUNCTION, MODEL, ListOf, Number, checked, require
from .._keras import fresh_inputs, graph_of, keras

_MODELS = ListOf(MODEL, low=2)


@checked(models=_MODELS, weights=ListOf(Number(above=0)))
def outputs(models: Sequence[keras.Model], *, weights: Sequence[float] | None = None) -> keras.Model:
    """Ensemble: one model whose outputs are the weighted mean of its members' outputs.

        outputs(x) = sum_i w_i * model_i(x) / sum_i w_i

    Members that end in a softmax give a mean of probabilities, usually the better ensemble; members that end in logits
    a mean of logits. The members are copied.

    Args:
      models: two or more built functional or Sequential models with the same inputs and outputs.
      weights: a number > 0 for each model; None is 1 for each.

    Returns:
      An uncompiled keras.Model. `distill.Distiller` takes it as a teacher.

    Raises:
      ValueError: the models differ in inputs or outputs, or a weight is not > 0.

    Example:
      >>> import numpy as np
      >>> members = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")]) for _ in range(2)]
      >>> together, x = outputs(members), np.ones((1, 2))
      >>> bool(np.allclose(together(x), (members[0](x) + members[1](x)) / 2))
      True

    Reference:
      Lakshminarayanan, Pritzel, Blundell: Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles
      (2017). https://arxiv.org/abs/1612.01474
    """
    for model in models:
        _models.require_graph(model, "average.outputs")
        _models.require_finite(model)
    shares = np.ones(len(models)) if weights is None else np.array(weights, float)
    require(len(shares) == len(models), "`weights` must hold one number for each model", weights=weights,
            models=len(models))
    shares = shares / shares.sum()
    forms = [keras.tree.map_structure(lambda tensor: tuple(tensor.shape), (graph.input, graph.output))
             for graph in map(graph_of, models)]
    require(all(form == forms[0] for form in forms), "the models must have the same inputs and outputs",
            inputs_and_outputs=forms)
    with _models.scope_of(models[0]):
        members = list(map(_models.copy, models))
        for number, member in enumerate(members):
            member.name = f"member_{number}"
        inputs = fresh_inputs(graph_of(models[0]))

        def mean(*parts):
            return keras.layers.Add()([part * float(share) for part, share in zip(parts, shares, strict=True)])

        together = keras.Model(inputs, keras.tree.map_structure(mean, *[member(inputs) for member in members]),
                               name="ensemble")
    x = _models.example_inputs(models[0])
    found = [_models.outputs_of(model, x) for model in models]
    _models.require_close([sum(share * part for share, part in zip(shares, parts, strict=True))
                           for parts in zip(*found, strict=True)], _models.outputs_of(together, x))
    return together


@checked(models=_MODELS, score=FUNCTION)
def weights(models: Sequence[keras.Model], *,
            score: Callable[[keras.Model], float] | None = None) -> keras.Model:
    """Model soup: one model whose weights are the mean of the models' weights.

        w = mean over the chosen models of w_i

    The models must have been trained from the same start (fine-tuned from one model, or moments of one run): the mean
    of independently trained networks is no better than chance. Batch normalization needs `update_batch_norm`
    afterwards.

    Args:
      models: two or more built models of one architecture, also subclassed.
      score: None averages all. Or `model -> number`, higher is better, measured on held-out data: the models are tried
        in the order of their own scores and kept where the soup does not get worse (greedy soup).

    Returns:
      An uncompiled keras.Model.

    Raises:
      ValueError: the models have different weights; a score is not a number.

    Example:
      >>> import numpy as np
      >>> models = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for _ in range(2)]
      >>> models[1].set_weights([np.zeros((2, 1)), np.ones(1)])
      >>> weights(models).layers[0].bias.numpy().tolist()
      [0.5]

    Reference:
      Wortsman et al.: Model soups (2022). https://arxiv.org/abs/2203.05482
    """
    for model in models:
        _models.require_model(model, "average.weights")
        _models.require_finite(model)
    shapes = [[tuple(variable.shape) for variable in model.variables] for model in models]
    for model, found in zip(models, shapes, strict=True):
        require(found == shapes[0], "the models must have the same weights, shape by shape",
                first=models[0].name, other=model.name, variables=(len(shapes[0]), len(found)),
                do="Average their outputs with average.outputs.")
    if score is None:
        return _soup(models)
    scores = [_scored(score, model) for model in models]
    order = sorted(range(len(models)), key=lambda i: -scores[i])
    chosen, best = [models[order[0]]], scores[order[0]]
    for number in order[1:]:
        found = _scored(score, _soup([*chosen, models[number]]))
        if found >= best:
            chosen, best = [*chosen, models[number]], found
    return _soup(chosen)


def _soup(models):
    """Floating variables are averaged in float64; of others, such as random states, the first model's are kept."""
    theirs = {id(same[0]): same for same in zip(*(model.variables for model in models), strict=True)}

    def mean(variable):
        if "float" not in variable.dtype:
            return variable
        return np.mean([_models.array_of(one).astype("float64") for one in theirs[id(variable)]], axis=0)

    soup = _models.copy(models[0], value=mean)
    _models.compare(models[0], soup, value=mean)
    return soup


def _scored(score, model):
    found = Number()(score(model))
    require(isinstance(found, int | float), "`score(model)` must be a number", returned=found)
    return float(found)
