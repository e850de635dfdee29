"""Which tf.distribute strategy this process has, and in which precision it computes."""

import json
import os
import sys
import typing

from .._check import TEXT, OneOf, checked, require
from .._keras import tf
from . import _slurm
from ._workers import agree, correct

__all__ = ["precision", "strategy"]

KINDS = ("auto", "tpu", "multi_worker", "slurm", "mirrored", "one")
REFUSED = {
    "central_storage": "its metrics are wrong in Keras 3",
    "parameter_server": "Keras 3 has no support for it",
}
POLICIES = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
_made = {}                                                 # {kind: strategy} of this process, at most one


@checked(kind=TEXT)
def strategy(kind: str = "auto") -> typing.Any:
    """The strategy that fits the devices of this process, and one line on standard error that says which and why.

        auto = tpu, where there is one; else multi_worker, where TF_CONFIG names the workers; else mirrored, over
               several GPUs (or several logical CPUs); else one

    Make the model and compile it inside `with distribute.strategy().scope():`; the call itself enters no scope. The
    batch size is that of all replicas together. For several workers the call must come before TensorFlow computes
    anything; it also corrects Keras, which does not train on them by itself, and gives them a common random seed if
    they have none.

    Args:
      kind: "auto"; "tpu"; "multi_worker" (the machines in TF_CONFIG); "slurm" (the tasks that srun
        started); "mirrored" (all devices of this machine); "one" (plain Keras).

    Returns:
      A tf.distribute.Strategy; a second call returns the first one's.

    Raises:
      ValueError: an unknown kind, or one that does not work with Keras 3; no TPU replies; TF_CONFIG or Slurm's
        variables do not tell the workers, or their seeds differ; the call stands inside a scope.
      RuntimeError: this process already has another strategy, or computed something before the workers were joined.

    Example:
      >>> import keras
      >>> one = strategy("one")
      >>> with one.scope():
      ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      >>> one.num_replicas_in_sync
      1
    """
    require(kind not in REFUSED, f"this strategy is not offered, because {REFUSED.get(kind)}", kind=kind,
            do='Use "mirrored" or "multi_worker".')
    require(kind in KINDS, f"`kind` must be one of {', '.join(KINDS)}", kind=kind)
    require(not tf.distribute.has_strategy(), "it must be called outside of every scope",
            inside=type(tf.distribute.get_strategy()).__name__)
    if kind == "auto":
        kind = next(iter(_made), None) or _best()
    if kind == "one":
        chosen, why = tf.distribute.get_strategy(), "plain Keras on one device"
    else:
        require(not _made or kind in _made, "a process can have one strategy over several devices: TensorFlow's "
                "collective operations keep the group they began with", first=next(iter(_made), None), second=kind,
                do="Use a process for each.", error=RuntimeError)
        if kind not in _made:
            _made[kind] = _MAKERS[kind]()
        chosen = _made[kind]
        why = _WHY[kind].format(replicas=chosen.num_replicas_in_sync)
    sys.stderr.write(f"distribute.strategy: {kind}, {why}.\n")
    return chosen


def made():
    """The strategy over several devices that `strategy` gave this process, or None."""
    return next(iter(_made.values()), None)


def replicas_here():
    """Replicas of the strategy whose scope this is, else of the one this process has made."""
    inside = tf.distribute.get_strategy()
    return max(one.num_replicas_in_sync for one in (inside, *_made.values()))


def _best():
    if "TPU_NAME" in os.environ or tf.config.list_physical_devices("TPU"):
        return "tpu"
    if "TF_CONFIG" in os.environ:
        return "multi_worker"
    return "mirrored" if len(_devices()) > 1 else "one"


def _devices():
    """Names of the GPUs of this machine, else of its CPUs, of which there are several only if someone split them."""
    return [device.name for device in
            tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]


def _tpu():
    place = os.environ.get("TPU_NAME", "local")
    try:
        return tf.distribute.TPUStrategy(tf.distribute.cluster_resolver.TPUClusterResolver.connect(place))
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"No TPU replies. Received: TPU_NAME={place!r}, {str(error).splitlines()[0]}. Set TPU_NAME, "
                         "or install tensorflow-tpu on a machine that has one.") from error


def _multi_worker():
    _require_cluster(os.environ.get("TF_CONFIG"))
    return _joined(tf.distribute.cluster_resolver.TFConfigClusterResolver())


def _joined(resolver):
    """The strategy over the workers of a cluster, corrected."""
    try:
        joined = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except RuntimeError as error:                          # "... must be configured at program startup"
        raise RuntimeError(f"distribute.strategy must join the workers before TensorFlow computes anything. Received: "
                           f"{error}. Move the call to the top of the script.") from error
    agree(joined)
    correct(joined)
    return joined


def _require_cluster(text):
    remedy = "Start the script with `python -m tfopt.distribute --workers N script.py`, or see --hosts."
    try:
        found = json.loads(text or "")
        workers, task = found["cluster"], found["task"]
        fits = set(workers) <= {"chief", "worker"} and 0 <= task["index"] < len(workers[task["type"]])
    except (ValueError, TypeError, KeyError):
        fits = False
    require(fits, "TF_CONFIG must list workers, of type chief or worker, and which of them this process is",
            TF_CONFIG=text, do=remedy)


_MAKERS = {"tpu": _tpu, "multi_worker": _multi_worker, "slurm": lambda: _joined(_slurm.resolver()),
           "mirrored": lambda: tf.distribute.MirroredStrategy(_devices())}
_WHY = {"tpu": "{replicas} TPU cores", "multi_worker": "{replicas} replicas on the workers that TF_CONFIG names",
        "slurm": "{replicas} replicas on the tasks of this Slurm job step",
        "mirrored": "{replicas} devices of this machine"}


@checked(kind=OneOf(*POLICIES))
def precision(kind: str = "auto") -> str:
    """The name of the dtype policy that suits the devices: hand it to `keras.config.set_dtype_policy`.

        mixed_bfloat16 on TPUs and on GPUs of compute capability >= 8; mixed_float16 on GPUs from 7 on; else float32

    The worst of several GPUs decides. On a CPU half precision saves memory and costs time. Nothing is set, and no
    device is started, so the call can stand before `strategy`.

    Args:
      kind: "auto", or the name of one of the three, which is returned as it is.

    Returns:
      "float32", "mixed_bfloat16" or "mixed_float16". `compile` adds the loss scaling that mixed_float16 needs.

    Raises:
      ValueError: another name.

    Example:
      >>> precision("mixed_bfloat16")
      'mixed_bfloat16'
    """
    if kind != "auto":
        return kind
    if "TPU_NAME" in os.environ or tf.config.list_physical_devices("TPU"):
        return "mixed_bfloat16"
    gpus = tf.config.list_physical_devices("GPU")
    details = (tf.config.experimental.get_device_details(gpu) for gpu in gpus)
    able = min((one.get("compute_capability", (0, 0))[0] for one in details), default=0)
    return "mixed_bfloat16" if able >= 8 else "mixed_float16" if able == 7 else "float32"
