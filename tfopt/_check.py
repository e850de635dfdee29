"""Refusals in one sentence, and what arguments may be, declared as data beside a signature.

    @checked(sparsity=Number(above=0, below=1), begin=Whole(low=0), where=WHERE)
    def wrap(model: keras.Model, sparsity: float, *, begin: int = 0, where: Where = None) -> keras.Model:

`wrap(model, 1.5)` then raises "prune.wrap: `sparsity` must be a number > 0 and < 1. Received: sparsity=1.5.", and
`wrap(model, amount=0.5)` asks "did you mean `sparsity`?". Inside, an argument has its plain Python type: NumPy scalars
and whole floats have become `int` and `float`, paths `str`. The default of an argument is always allowed.
"""

import difflib
import functools
import inspect
import math
import numbers
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
NO = object()                                              # what a constraint returns of a value that breaks it


class ArgumentError(ValueError, TypeError):
    """An argument of the wrong kind or out of range: whoever catches either is right."""


# ------------------------------------------------------------------------------------------------ refusals

def refusal(rule: str, /, *, do: str = "", error: type[Exception] = ValueError, **received: Any) -> Exception:
    """The exception to raise: one sentence of the rule, what was received, what to do.

    A function that is `checked` puts its public name before it.

    Args:
      rule: what is asked for, as a clause without a full stop.
      do: what the caller can do about it; ends with a full stop.
      error: class of the exception.
      **received: the values that broke the rule, by the names the caller knows.

    Example:
      >>> raise refusal("`rate` must be > 0", rate=-1, do="Pass a step size such as 0.1.")
      Traceback (most recent call last):
      ValueError: `rate` must be > 0. Received: rate=-1. Pass a step size such as 0.1.
    """
    given = ", ".join(f"{name}={shown(value)}" for name, value in received.items())
    exception = error(" ".join(part for part in (f"{rule}.", f"Received: {given}." if given else "", do) if part))
    exception.unnamed = True
    return exception


def require(ok: Any, rule: str, /, *, do: str = "", error: type[Exception] = ValueError, **received: Any) -> None:
    """Raises `refusal(rule, ...)` unless `ok`.

    Example:
      >>> require(0 < 2, "`rate` must be > 0", rate=2)
    """
    if not ok:
        raise refusal(rule, do=do, error=error, **received)


def shown(value: Any) -> str:
    """A value as it stands in a refusal: on one line, arrays by their shape, also those in a tuple or list.

    Example:
      >>> import numpy as np
      >>> shown("a"), shown(np.ones((3, 4))), shown((np.ones(2), 1))
      ("'a'", 'ndarray of shape (3, 4)', '(ndarray of shape (2,), 1)')
    """
    if type(value) in (tuple, list) and any(getattr(part, "shape", ()) != () for part in value):
        text = f"({', '.join(map(shown, value))})"
        return text if len(text) <= 300 else f"{text[:297]}..."
    if getattr(value, "shape", ()) != () and not isinstance(value, type):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def said(error: BaseException) -> str:
    """What an exception of TensorFlow or Keras says, on one line, without where in the graph it was said.

    Example:
      >>> said(ValueError("Graph execution error:\\n\\nDetected at node a\\n  File b.py\\nReceived a label of 9."))
      'ValueError: Received a label of 9.'
      >>> said(ValueError("{{function_node __wrapped__Cast_device_/job:a}} No such cast [Op:Cast] name: "))
      'ValueError: No such cast'
    """
    lines = [line.strip() for line in str(error).split("Stack trace for op definition")[0].splitlines()
             if line.strip() and not line.startswith((" ", "\t", "Graph execution error", "Detected at node"))]
    text = re.sub(r"\{\{.*?\}\} *| *\[Op:.*", "", " ".join(lines)) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:297]}...'}"


def did_you_mean(name, known):
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6) if isinstance(name, str) else []
    return f"Did you mean `{close[0]}`?" if close else ""


def _listed(words):
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# ------------------------------------------------------------------------------------------------ constraints

class Constraint:
    """What an argument may be: `text` says it, calling it returns the value as the function gets it, or `NO`."""

    text: str

    def __call__(self, value: Any) -> Any:
        raise NotImplementedError

    def __or__(self, other: "Constraint") -> "Constraint":
        return _Either(self, other)

    def hint(self, value: Any) -> str:
        """What to do about `value`, if more can be said than the rule."""
        return ""


class Number(Constraint):
    """A finite number within bounds; Python's and NumPy's pass, a bool does not.

    Args:
      low, high: closed bounds.
      above, below: open bounds.

    Example:
      >>> Number(above=0).text, Number(above=0)(0.5), Number(above=0)(-1) is NO
      ('a number > 0', 0.5, True)
    """

    kind = "a number"

    def __init__(self, *, low: float | None = None, high: float | None = None, above: float | None = None,
                 below: float | None = None):
        bounds = [f"{sign} {bound}" for sign, bound in ((">=", low), (">", above), ("<=", high), ("<", below))
                  if bound is not None]
        self.text = " ".join([self.kind, " and ".join(bounds)]).strip()
        self.fits = lambda x: ((low is None or x >= low) and (above is None or x > above)
                               and (high is None or x <= high) and (below is None or x < below))

    def __call__(self, value: Any) -> Any:
        value = self.plain(value)
        return value if value is not NO and self.fits(value) else NO

    def plain(self, value: Any) -> Any:
        if isinstance(value, numbers.Integral) and not isinstance(value, bool):
            return int(value) if abs(int(value)) < sys.float_info.max else NO
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        return NO


class Whole(Number):
    """A whole number within bounds; 2.0 is 2, and 2.5 is refused.

    Example:
      >>> Whole(low=1).text, Whole(low=1)(2.0), Whole(low=1)(2.5) is NO
      ('a whole number >= 1', 2, True)
    """

    kind = "a whole number"

    def plain(self, value: Any) -> Any:
        value = super().plain(value)
        return int(value) if value is not NO and value == int(value) and abs(value) < 2**63 else NO

    def hint(self, value: Any) -> str:
        return "It does not fit into 64 bits." if super().plain(value) is not NO and abs(value) >= 2**63 else ""


class OneOf(Constraint):
    """One of a few words or numbers; a word that is nearly one of them is asked about.

    Example:
      >>> OneOf("min", "max").text, OneOf("min", "max").hint("mix")
      ("'min' or 'max'", 'Did you mean `min`?')
    """

    def __init__(self, *options: Any):
        self.options, self.text = options, _listed([repr(option) for option in options])

    def __call__(self, value: Any) -> Any:
        value = value.item() if Instance("numpy.generic")(value) is not NO else value
        if any(hasattr(part, "shape") for part in (value if isinstance(value, list | tuple) else [value])):
            return NO                                      # which compare element by element, or not at all
        return next((option for option in self.options if option is value or (
            value == option and isinstance(value, str) == isinstance(option, str))), NO)

    def hint(self, value: Any) -> str:
        return did_you_mean(value, [option for option in self.options if isinstance(option, str)])


class Instance(Constraint):
    """An instance of one of some classes, given as classes or by name ("keras.Model", not imported for the check).

    Example:
      >>> Instance("keras.Model")(3) is NO, Instance(dict).text
      (True, 'a dict')
    """

    def __init__(self, *classes: type | str, text: str = "", do: str = ""):
        names = [name if isinstance(name, str) else name.__name__ for name in classes]
        self.classes, self.do = classes, do
        self.text = text or _listed([f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}" for name in names])

    def __call__(self, value: Any) -> Any:
        found = [_imported(name) if isinstance(name, str) else name for name in self.classes]
        return value if isinstance(value, tuple(cls for cls in found if cls is not None)) else NO

    def hint(self, value: Any) -> str:
        return self.do


class Rule(Constraint):
    """Whatever `test(value)` holds for, described by `text`.

    Example:
      >>> Rule("an even number", lambda x: x % 2 == 0)(3) is NO
      True
    """

    def __init__(self, text: str, test: Callable[[Any], bool], plain: Callable[[Any], Any] = lambda value: value):
        self.text, self.test, self.plain = text, test, plain

    def __call__(self, value: Any) -> Any:
        return self.plain(value) if self.test(value) else NO


class ListOf(Constraint):
    """A list or tuple, each of whose elements meets a constraint; of `length` elements, or of at least `low`.

    Example:
      >>> ListOf(Whole(low=1)).text, ListOf(Whole(low=1))((1, 2.0)), ListOf(Whole(low=1))([0]) is NO
      ('a list, each element a whole number >= 1', (1, 2), True)
    """

    def __init__(self, item: Constraint, *, low: int = 1, length: int | None = None):
        self.item, self.low, self.length = item, low, length
        size = f" of {length} elements" if length else f" of at least {low} elements" if low > 1 else ""
        self.text = f"a list{size}, each element {item.text}"

    def __call__(self, value: Any) -> Any:
        if type(value) not in (list, tuple) or (
                len(value) < self.low if self.length is None else len(value) != self.length):
            return NO
        items = [self.item(item) for item in value]
        return NO if any(item is NO for item in items) else type(value)(items)


class DictOf(Constraint):
    """A dict with words as keys, each of whose values meets a constraint.

    Example:
      >>> DictOf(Number(low=0)).text, DictOf(Number(low=0))({"a": 1}), DictOf(Number(low=0))({"a": -1}) is NO
      ('a dict of names, each value a number >= 0', {'a': 1}, True)
    """

    def __init__(self, value: Constraint):
        self.value, self.text = value, f"a dict of names, each value {value.text}"

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
            return NO
        values = {key: self.value(item) for key, item in value.items()}
        return NO if any(item is NO for item in values.values()) else values


class _Either(Constraint):
    def __init__(self, *options: Constraint):
        self.options = [part for option in options
                        for part in (option.options if isinstance(option, _Either) else [option])]
        self.text = _listed([option.text for option in self.options])

    def __call__(self, value: Any) -> Any:
        return next((found for found in (option(value) for option in self.options) if found is not NO), NO)

    def hint(self, value: Any) -> str:
        return next((hint for hint in (option.hint(value) for option in self.options) if hint), "")


def _is_flag(value):
    return isinstance(value, bool) or Instance("numpy.bool_")(value) is not NO


def _is_path(value):
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else b""
    return isinstance(path, str) and bool(path.strip()) and "\0" not in path


def _is_where(value):
    one = Instance("keras.layers.Layer", str)
    if isinstance(value, list | tuple | set):
        return bool(value) and all(one(item) not in (NO, "") for item in value)
    return one(value) not in (NO, "") or (FUNCTION(value) is not NO and Instance("tensorflow.Module")(value) is NO)


FLAG = Rule("True or False", _is_flag, bool)
TEXT = Rule("a text that is not empty", lambda value: isinstance(value, str) and bool(value.strip()), str)
NAME = Rule("a name without `/`", lambda value: TEXT(value) is not NO and "/" not in value, str)
PATH = Rule("a path (str or os.PathLike)", _is_path, os.fspath)
FUNCTION = Rule("a function", lambda value: callable(value) and not isinstance(value, type))
SEED = Whole(low=0, high=2**31 - 1)
BATCH_SIZE = Whole(low=1)
EPOCHS = Whole(low=1)
VERBOSE = OneOf(0, 1, 2, "auto")
MODEL = Instance("keras.Model", text="a Keras 3 model", do="Build it with `keras`; tf_keras makes Keras 2 models.")
CALLBACKS = ListOf(Instance("keras.callbacks.Callback"), low=0)
WHERE = Rule("names of layers, layers, or a function `layer -> bool`", _is_where)


def _imported(name):
    """The class of that name, or None while its package is not imported: then nothing can be an instance of it."""
    package, *path = name.split(".")
    found = sys.modules.get(package)
    for part in path:
        found = getattr(found, part, None)
    return found


# ------------------------------------------------------------------------------------------------ signatures

# Keywords of Keras, TFMOT, torch, fastai, scikit-learn and KerasTuner typed by habit, and what they are called here.
_HABITS = {
    "sparsity": "target_sparsity final_sparsity amount ratio pruning_rate prune_ratio",
    "peak": "max_lr lr rate learning_rate initial_learning_rate base_lr lr_max max_learning_rate",
    "learning_rate": "lr rate max_lr initial_learning_rate base_lr",
    "start": "lr rate learning_rate initial_learning_rate base_lr initial_lr start_lr init_lr",
    "total": "total_steps decay_steps max_steps num_steps num_training_steps t_max T_max steps end_step",
    "warmup": "warmup_steps warmup_target num_warmup_steps pct_start warmup_epochs",
    "steps": "warmup_steps num_steps num_iter total_steps num_it",
    "low": "start_lr min_lr base_lr lr_min min_value", "high": "end_lr max_lr lr_max max_value",
    "every": "step_size frequency freq pruning_frequency save_freq step_size_up period interval",
    "begin": "begin_step start_step", "end": "end_step end_lr end_learning_rate min_lr eta_min stop_step",
    "factor": "gamma decay_rate drop drop_rate alpha scale", "rate": "p prob probability drop_rate drop_path drop_prob",
    "probability": "p prob rate proba", "batch_size": "batch bs batchsize batch_sizes",
    "directory": "path dir folder backup_dir log_dir root cache_dir project_name filepath dirname",
    "path": "filepath directory file filename file_path fname", "max_to_keep": "keep max_keep save_total_limit",
    "seed": "random_state rng random_seed", "clusters": "number_of_clusters n_clusters num_clusters k",
    "pattern": "sparsity_m_by_n m_by_n sparsity_2x4", "block": "block_size",
    "init": "cluster_centroids_init centroids_init", "strength": "l1 l2 factor lambda_ alpha weight weight_decay",
    "calibration": "representative_dataset calibration_data data dataset representative_data calib",
    "bits": "num_bits nbits bitwidth", "where": "layers modules layer_names include only to_quantize filter",
    "losses": "distillation_losses distillation_loss loss distillers", "loss_weights": "weights loss_weight",
    "student_loss_weight": "student_weight alpha distillation_weight", "T": "temperature t temp",
    "temperature": "T t temp", "data": "x dataset train_data ds inputs x_train dataloader training_data",
    "val": "validation_data validation val_data valid test_data", "train": "x train_data dataset data training_data",
    "max_trials": "n_trials trials num_trials max_evals n_iter", "build": "hypermodel build_fn model_fn objective_fn",
    "keep_weights": "keep save_best max_to_keep", "metrics": "metric scoring", "objective": "metric direction scoring",
    "folds": "n_splits cv k n_folds", "keep": "ratio amount keep_ratio width pruning_ratio ch_sparsity",
    "importance": "by criterion", "ops": "layers transforms augmentations operations", "limits": "constraints",
    "image_size": "size target_size input_size", "models": "model", "model": "models net network to_prune to_quantize",
    "threads": "num_threads n_threads workers", "epochs": "n_epochs num_epochs max_epochs nb_epoch",
    "max_drop": "tolerance max_loss accuracy_drop", "top_k": "k topk", "target": "columns label label_name y",
    "boundaries": "milestones", "patience": "wait", "threshold_db": "threshold", "schedule": "after scheduler decay",
    "angle": "degrees factor rotation", "views": "n tta num_views n_views", "runs": "repeat repeats n number",
    "max_angle": "degrees angle",
}


def checked(**constraints: Constraint) -> Callable[[F], F]:
    """Decorator: checks arguments, and puts the function's public name before each refusal that leaves it.

    For functions, methods and constructors. The signature stays what it is.

    Args:
      **constraints: by argument name; for `*args` and `**kwargs` of each element.

    Example:
      >>> @checked(rate=Number(above=0))
      ... def train(rate, steps=None):
      ...     return rate
      >>> train(2)
      2
      >>> train(drop_rate=0.1)
      Traceback (most recent call last):
      TypeError: tfopt._check.train has no argument `drop_rate`. Did you mean `rate`?
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        unknown = constraints.keys() - signature.parameters.keys()
        if unknown:
            raise NameError(f"{function.__qualname__} has no argument {', '.join(sorted(unknown))}")
        names = [(parameter, constraints[name]) for name, parameter in signature.parameters.items()
                 if name in constraints]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = _bound(signature, function, args, kwargs)
                for parameter, constraint in names:
                    if parameter.name in bound.arguments:
                        bound.arguments[parameter.name] = _met(parameter, constraint, bound.arguments[parameter.name])
                return function(*bound.args, **bound.kwargs)
            except Exception as error:
                if getattr(error, "unnamed", False):
                    error.unnamed = False
                    _put_first(f"{_public_name(function, args)}: ", error)
                raise

        call.__signature__ = signature                     # Keras reads it without following __wrapped__
        return cast(F, call)

    return decorate


def _met(parameter, constraint, value):
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(_taken(parameter.name, constraint, item) for item in value)
    if parameter.kind is parameter.VAR_KEYWORD:
        return {name: _taken(name, constraint, item) for name, item in value.items()}
    if value is parameter.default:
        return value
    return _taken(parameter.name, constraint, value, or_none=parameter.default is None)


def _taken(name, constraint, value, *, or_none=False):
    taken = constraint(value)
    if taken is NO:
        choice = " or " in re.sub(r"\(.*?\)", "", constraint.text) and not constraint.text.startswith("a list")
        lead = "" if not or_none else "None, " if choice else "None or "
        raise refusal(f"`{name}` must be {lead}{constraint.text}", error=ArgumentError, do=constraint.hint(value),
                      **{name: value})
    return taken


def _bound(signature, function, args, kwargs):
    """The arguments by name; what Python says of a wrong call is said so that one knows what to type."""
    known = [name for name, parameter in signature.parameters.items()
             if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]
    takes_more = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    allowed = {*known, *_arguments_of_bases(function, args)} if takes_more else known
    strange = [name for name in kwargs if name not in allowed]
    if strange and allowed is not None and not (takes_more and function.__name__ != "__init__"):
        raise _named(f"has no argument `{strange[0]}`", function, args, TypeError, _meant(strange[0], known)
                     or f"Its arguments are {', '.join(known)}.")
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        missing = [name for name in known[len(args) - ("self" in signature.parameters):] if name not in kwargs
                   and signature.parameters[name].default is inspect.Parameter.empty]
        if missing and str(error).startswith("missing"):
            raise _named(f"needs the argument `{missing[0]}`", function, args, TypeError) from None
        by_name = [name for name in known if signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY]
        do = f"Pass these by name: {', '.join(by_name)}." if by_name else f"Its arguments are {', '.join(known)}."
        raise _named(f"was called with {error}", function, args, TypeError, do) from None


def _arguments_of_bases(function, args):
    """What the constructors of a class' bases take by name, Keras' layers with their shapes."""
    if function.__name__ != "__init__" or not args:
        return []
    names = ["input_shape", "batch_shape", "batch_size", "input_dtype", "input_tensor"]
    for cls in type(args[0]).__mro__:
        if "__init__" in vars(cls) and cls is not object:
            names += inspect.signature(cls.__init__).parameters
    return names


def _named(rule, function, args, error, do=""):
    return error(f"{_public_name(function, args)} {rule}. {do}".strip())


def _public_name(function, args):
    """`prune.wrap`, `schedules.Linear`, `tune.Search.run`: as it is reached from `tfopt`."""
    module, name = function.__module__.split("."), function.__qualname__.split("<locals>.")[-1]
    if name.endswith(".__init__"):
        cls = type(args[0])
        own = cls.__module__.startswith("tfopt.")
        module, name = cls.__module__.split(".") if own else module, cls.__name__ if own else name[: -len(".__init__")]
    public = module[0] == "tfopt" and len(module) > 1 and not module[1].startswith("_")
    return f"{module[1] if public else '.'.join(module)}.{name}"


def _put_first(name, error):
    text = str(error.args[0]) if error.args else ""
    if not text.startswith((name, name[:-2] + " ")):
        error.args = (name + text, *error.args[1:])


def _meant(name, known):
    by_habit = [ours for ours in known if name in _HABITS.get(ours, "").split()]
    return f"Did you mean `{by_habit[0]}`?" if by_habit else did_you_mean(name, known)
