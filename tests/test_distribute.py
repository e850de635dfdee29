"""Strategies, what is refused, what `check` finds, and a sample of the table that compares devices and workers."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from tfopt import _keras, distribute
from tfopt.distribute import _slurm, _strategy, _workers

PROJECT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _first(monkeypatch):
    """As in a process that has no strategy yet, on a machine without TPU or workers."""
    monkeypatch.setattr(_strategy, "_made", {})
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)


def cluster(index=0, **other):
    return json.dumps({"cluster": {"worker": ["a:1", "b:1"], **other}, "task": {"type": "worker", "index": index}})


def network(*middle):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), *middle, keras.layers.Dense(2, name="last")])


# Which strategy

class Made:
    num_replicas_in_sync = 8


@pytest.mark.parametrize(("environment", "devices", "expected"), [
    ({}, ["CPU:0"], "one"), ({}, ["GPU:0"], "one"), ({}, ["GPU:0", "GPU:1"], "mirrored"),
    ({"TF_CONFIG": cluster()}, ["GPU:0", "GPU:1"], "multi_worker"),
    ({"TF_CONFIG": cluster(), "TPU_NAME": "local"}, ["GPU:0", "GPU:1"], "tpu")])
def test_the_best_is_picked_and_explained(monkeypatch, capsys, environment, devices, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_strategy, "_devices", lambda: devices)
    monkeypatch.setattr(_strategy, "_MAKERS", dict.fromkeys(("tpu", "multi_worker", "mirrored"), Made))
    picked = distribute.strategy()
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"distribute.strategy: {expected}, ")
    assert picked is (tf.distribute.get_strategy() if expected == "one" else _strategy.made())
    assert distribute.strategy() is picked
    assert not tf.distribute.has_strategy(), "no scope was entered"


def test_a_second_topology_is_refused(monkeypatch):
    monkeypatch.setattr(_strategy, "_made", {"mirrored": Made()})
    with pytest.raises(RuntimeError, match=r"first='mirrored', second='multi_worker'. Use a process for each"):
        distribute.strategy("multi_worker")
    assert distribute.strategy("one") is tf.distribute.get_strategy()


@pytest.mark.parametrize(("kind", "match"), [
    ("gpu", "`kind` must be one of auto, tpu"), ("parameter_server", "Keras 3 has no support for it"),
    ("central_storage", "its metrics are wrong in Keras 3")])
def test_what_does_not_work_is_refused(kind, match):
    with pytest.raises(ValueError, match=match):
        distribute.strategy(kind)


def test_a_tpu_that_does_not_reply_is_refused_in_one_line(monkeypatch):
    def connect(place):
        raise tf.errors.InvalidArgumentError(None, None, f"TPUs not found in {place}\nand much more")

    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", connect)
    with pytest.raises(ValueError, match=r"No TPU replies.*TPU_NAME='local', TPUs not found in local. Set TPU_NAME"):
        distribute.strategy("tpu")


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "nonsense", cluster(2), cluster(-1), cluster(ps=["c:1"]),
                                  cluster().replace('"type": "worker"', '"type": "evaluator"')])
def test_a_strange_cluster_is_refused(monkeypatch, text):
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=r"TF_CONFIG must list workers.*python -m tfopt.distribute"):
        distribute.strategy("multi_worker")


def test_a_cluster_with_a_chief_is_one():
    _strategy._require_cluster(json.dumps({"cluster": {"chief": ["a:1"], "worker": ["b:1"]},
                                           "task": {"type": "chief", "index": 0}}))


def test_workers_join_before_anything_is_computed(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", cluster())
    tf.zeros([])
    with pytest.raises(RuntimeError, match=r"must join the workers before TensorFlow computes.*top of the script"):
        distribute.strategy("multi_worker")


def test_a_call_inside_a_scope_is_refused():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope(), pytest.raises(ValueError, match="outside of every scope"):
        distribute.strategy()


@pytest.mark.parametrize(("tpus", "capabilities", "expected"), [
    (1, [], "mixed_bfloat16"), (0, [(8, 0), (9, 0)], "mixed_bfloat16"), (0, [(8, 6), (7, 5)], "mixed_float16"),
    (0, [(6, 1)], "float32"), (0, [None], "float32"), (0, [], "float32")])
def test_the_precision_fits_the_worst_device(monkeypatch, tpus, capabilities, expected):
    devices = {"TPU": [None] * tpus, "GPU": capabilities}
    monkeypatch.setattr(tf.config, "list_physical_devices", devices.get)
    monkeypatch.setattr(tf.config.experimental, "get_device_details",
                        lambda gpu: {"compute_capability": gpu} if gpu else {})
    before = keras.config.dtype_policy().name
    assert distribute.precision() == expected
    assert keras.config.dtype_policy().name == before


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="`kind` must be 'auto', 'float32'"):
        distribute.precision("float16")


# The probe

def test_the_probe_tells_right_from_wrong(monkeypatch):
    strategy, right = tf.distribute.get_strategy(), _keras.workers.tf_trainer.reduce_per_replica
    assert _workers.fault(strategy) is None
    monkeypatch.setattr(_keras.workers.tf_trainer, "reduce_per_replica", lambda values, *arguments, **settings:
                        keras.tree.map_structure(lambda value: 2 * value, right(values, *arguments, **settings)))
    assert _workers.fault(strategy) is None, "the trackers know the loss, whatever a step returns"

    def fails(*arguments, **settings):
        raise ValueError("no such axis")

    monkeypatch.setattr(_keras.workers.tf_trainer, "reduce_per_replica", fails)
    assert _workers.fault(strategy) == "ValueError: no such axis"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_the_probe_is_right_under_any_policy(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        assert _workers.fault(tf.distribute.get_strategy()) is None
    finally:
        keras.config.set_dtype_policy(before)


def test_the_correction_is_applied_only_where_it_is_needed(monkeypatch):
    faults, corrected = [None], []
    monkeypatch.setattr(_workers, "fault", lambda strategy: faults.pop(0))
    monkeypatch.setattr(_workers, "patch_workers", lambda: corrected.append(True))
    _workers.correct(Made())
    assert not corrected
    faults[:] = ["wrong", None]
    _workers.correct(Made())
    assert corrected
    faults[:] = ["wrong", "still wrong"]
    with pytest.raises(RuntimeError, match=r"cannot correct this version of Keras.*still wrong"):
        _workers.correct(Made())


# What check finds

def test_a_model_that_behaves_has_no_findings():
    model = network(keras.layers.LayerNormalization())
    model.compile("adam", "mse", jit_compile=False)
    data = tf.data.Dataset.range(8).batch(4, drop_remainder=True)
    found = distribute.diagnose(model, data)
    assert isinstance(found, pd.DataFrame)
    assert found.empty
    assert distribute.diagnose(network()).empty, "not compiled"


def compiled(optimizer="sgd", **settings):
    model = network()
    model.compile(optimizer, "mse", **{"jit_compile": False, **settings})
    return model


def sgd(**settings):
    return keras.optimizers.SGD(0.1, **settings)


def several(kernels, biases):
    return keras.optimizers.MultiOptimizer(lambda variable: kernels if "kernel" in variable.path else biases)


class Own(keras.Model):
    def compute_loss(self, *arguments, **settings):
        return super().compute_loss(*arguments, **settings)


class Ranges(keras.layers.Layer):
    """Passes for a model that quantize.wrap made."""


Ranges.__module__ = "tfopt.quantize._train"


def own():
    inner = network()
    return Own(inner.inputs, inner.outputs, name="own")


FINDINGS = {
    "clipnorm": (lambda: compiled(sgd(clipnorm=1.)), "optimizer", "differs"),
    "global_clipnorm": (lambda: compiled(keras.optimizers.LossScaleOptimizer(sgd(global_clipnorm=1.))),
                        "optimizer", "differs"),
    "accumulation": (lambda: compiled(sgd(gradient_accumulation_steps=2)), "optimizer", "fails"),
    "schedule-free": (lambda: compiled(keras.optimizers.ScheduleFreeAdamW()), "optimizer", "differs"),
    "average": (lambda: compiled(sgd(use_ema=True, ema_overwrite_frequency=2)), "optimizer", "fails"),
    "steps": (lambda: compiled(steps_per_execution=2), "compile", "fails"),
    "jit": (lambda: compiled(jit_compile=True), "compile", "fails"),
    "batch norm": (lambda: network(keras.layers.BatchNormalization(name="bn")), "bn", "differs"),
    "dropout": (lambda: network(keras.layers.Dropout(0.5, name="drop")), "drop", "random"),
    "own": (own, "own", "unknown"),
    "ranges": (lambda: network(Ranges(name="ranges")), "ranges", "differs"),
    "mask": (lambda: keras.Sequential([keras.Input((3,)), keras.layers.Embedding(4, 2, mask_zero=True)]), "model",
             "differs"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_says_what_to_do(name):
    make, part, effect = FINDINGS[name]
    row, = distribute.diagnose(make()).to_dict("records")
    assert (row["part"], row["effect"]) == (part, effect)
    assert row["do"]


def test_keras_distiller_is_found():
    model = keras.distillation.Distiller(network(), network(), keras.distillation.LogitsDistillation(), name="keras")
    model.compile("sgd", "mse", jit_compile=False)
    model.build((None, 4))
    found = distribute.diagnose(model).set_index("part").do
    assert found["keras"] == "distill.Distiller"


def test_data_that_replicas_cannot_share_is_found(monkeypatch):
    monkeypatch.setattr(_strategy, "_made", {"mirrored": Made()})
    monkeypatch.setattr("tfopt.distribute._findings.made", lambda: None)
    data = tf.data.Dataset.range(20)
    assert list(distribute.diagnose(network(), data.batch(8)).do) == ["distribute.equal_batches(data) for fit"]
    assert list(distribute.diagnose(network(), data.batch(4, drop_remainder=True)).part) == ["data"]
    assert distribute.diagnose(network(), data.batch(8, drop_remainder=True)).empty


def test_a_model_outside_of_the_scope_is_found(monkeypatch):
    monkeypatch.setattr(_strategy, "_made", {"mirrored": Made()})
    assert "outside of the strategy's scope" in distribute.diagnose(network()).finding[0]


def test_check_needs_a_built_model():
    with pytest.raises(ValueError, match=r"distribute.diagnose needs a built model"):
        distribute.diagnose(keras.Sequential([keras.layers.Dense(1)]))


# The corrected versions, on one device

@pytest.mark.parametrize("settings", [{"clipnorm": 0.1}, {"clipvalue": 0.01}, {"global_clipnorm": 0.1},
                                      {"gradient_accumulation_steps": 3}, {"weight_decay": 0.1},
                                      {"global_clipnorm": 0.1, "gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("rate", [0.01, keras.optimizers.schedules.PolynomialDecay(0.05, 6)])
def test_global_batch_optimizer_is_the_optimizer_itself_on_one_device(settings, rate):
    variables = [[keras.Variable(tf.ones((3, 2))), keras.Variable(tf.ones(2))] for _ in range(2)]
    optimizers = [keras.optimizers.Adam(rate, **settings),
                  distribute.GlobalBatchOptimizer(keras.optimizers.Adam(rate, **settings))]
    for step in range(7):
        gradients = [tf.random.stateless_normal(variable.shape, (step, 0)) for variable in variables[0]]
        for optimizer, own in zip(optimizers, variables, strict=True):
            optimizer.apply(gradients, own)
    for one, other in zip(*variables, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)
    assert int(optimizers[0].iterations) == int(optimizers[1].iterations)


@pytest.mark.slow
def test_global_batch_optimizer_is_saved_with_its_state(tmp_path):
    rate = keras.optimizers.schedules.PolynomialDecay(0.05, 20)
    x, y = np.random.normal(size=(12, 4)), np.random.normal(size=(12, 2))
    model = network()
    adam = keras.optimizers.Adam(rate, clipnorm=1., gradient_accumulation_steps=2)
    model.compile(distribute.GlobalBatchOptimizer(adam), "mse")
    model.fit(x, y, batch_size=4, verbose=0, shuffle=False)           # 3 steps: one waits in the sums
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        one.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    for weight, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, other)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda around: around(keras.optimizers.ScheduleFreeAdamW(0.01, clipnorm=0.1)),
    lambda around: around(keras.optimizers.Muon(0.01, global_clipnorm=0.1)),
    lambda around: keras.optimizers.LossScaleOptimizer(around(keras.optimizers.Adam(0.01, clipnorm=0.1))),
    lambda around: several(around(keras.optimizers.Adam(0.01, clipnorm=0.1)),
                           around(keras.optimizers.SGD(0.1, clipvalue=0.01)))],
    ids=["ScheduleFreeAdamW", "Muon", "LossScaleOptimizer", "MultiOptimizer"])
def test_global_batch_optimizer_with_unusual_optimizers(make):
    x, y = np.random.default_rng(0).normal(size=(2, 24, 4)).astype("float32")
    weights = []
    for around in (lambda optimizer: optimizer, distribute.GlobalBatchOptimizer):
        keras.utils.set_random_seed(0)
        model = network()
        model.compile(make(around), "mse")
        model.fit(x, y[:, :2], batch_size=8, epochs=2, verbose=0, shuffle=False)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_global_batch_optimizer_leaves_weights_without_a_gradient_alone():
    used, idle = keras.Variable(1.0), keras.Variable(1.0)
    optimizer = distribute.GlobalBatchOptimizer(sgd(clipnorm=1., gradient_accumulation_steps=2))
    for _ in range(2):
        optimizer.apply([tf.constant(2.0), None], [used, idle])
    assert (float(used), float(idle)) == (pytest.approx(0.9), 1.0)


@pytest.mark.parametrize(("make", "error", "match"), [
    (lambda: "adam", TypeError, "must be a Keras optimizer"),
    (lambda: keras.optimizers.LossScaleOptimizer(sgd()), ValueError,
     r"inside other wrappers.*Write LossScaleOptimizer\(GlobalBatchOptimizer\(optimizer\)\)"),
    (lambda: several(sgd(), sgd()), ValueError,
     "Make the MultiOptimizer of GlobalBatchOptimizers"),
    (lambda: sgd(use_ema=True, ema_overwrite_frequency=2), ValueError, "cannot replace the weights"),
    (lambda: sgd(use_ema=True, gradient_accumulation_steps=2), ValueError, "cannot average the weights")])
def test_global_batch_optimizer_refuses(make, error, match):
    with pytest.raises(error, match=match):
        distribute.GlobalBatchOptimizer(make())


@pytest.mark.parametrize("size", range(1, 14))
def test_equal_batches_leaves_out_the_remainder_alone(size):
    numbers = tf.data.Dataset.range(size).map(lambda x: {"x": x, "y": (x, -x)})
    data = distribute.equal_batches(numbers.batch(6), replicas=4)
    seen = [batch["x"].numpy().tolist() for batch in data]
    expected = [list(range(start, start + count // 4 * 4)) for start in range(0, size, 6)
                if (count := min(6, size - start)) >= 4]
    assert seen == expected


def test_equal_batches_refuses():
    with pytest.raises(TypeError, match=r"must be a tf.data.Dataset"):
        distribute.equal_batches(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="`replicas` must be None or a whole number >= 1"):
        distribute.equal_batches(tf.data.Dataset.range(2).batch(2), replicas=0)


def test_sync_batch_norm_changes_a_copy():
    inner = network(keras.layers.BatchNormalization(name="bn", momentum=0.7))
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.BatchNormalization(name="outer")])
    copy = distribute.sync_batch_norm(model)
    assert [copy.layers[0].get_layer("bn").synchronized, copy.get_layer("outer").synchronized] == [True, True]
    assert [inner.get_layer("bn").synchronized, model.get_layer("outer").synchronized] == [False, False]
    assert copy.layers[0].get_layer("bn").momentum == 0.7
    np.testing.assert_array_equal(model(np.ones((2, 4))), copy(np.ones((2, 4))))


def test_sync_batch_norm_keeps_a_class_of_ones_own():
    class Twice(keras.Model):
        def train_step(self, data):
            return {"loss": tf.constant(2.0)}

    inputs = keras.Input((4,))
    model = Twice(inputs, keras.layers.BatchNormalization()(keras.layers.Dense(3)(inputs)))
    copy = distribute.sync_batch_norm(model)
    assert type(copy) is Twice
    assert copy.layers[-1].synchronized
    with pytest.raises(ValueError, match=r"distribute.sync_batch_norm needs a built"):
        distribute.sync_batch_norm(keras.Sequential([keras.layers.Dense(1)]))


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match=r"tfopt.distribute has GlobalBatchOptimizer, diagnose"):
        distribute.Strategy  # noqa: B018


# Slurm

def in_step(monkeypatch, **variables):
    """As srun sets them: two tasks on each of three nodes and one on the last; this is the second one of n10."""
    step = {"JOB_ID": "1234", "STEP_ID": "0", "STEP_NODELIST": "n[9-11],m1", "STEP_TASKS_PER_NODE": "2(x3),1",
            "NODEID": "1", "LOCALID": "1", **variables}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value) if value else monkeypatch.delenv(f"SLURM_{name}", raising=False)


def test_workers_of_a_slurm_step_come_in_the_order_of_the_nodes(monkeypatch):
    in_step(monkeypatch)
    port = 20_000 + 97 * 1234 % 11_900
    resolver = _slurm.resolver()
    assert resolver.cluster_spec().as_dict() == {"worker": [
        *(f"{node}:{port + place}" for node in ("n9", "n10", "n11") for place in (0, 1)), f"m1:{port}"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 3)


@pytest.mark.parametrize(("variables", "words"), [
    ({"NODEID": ""}, r"of a Slurm job step must be set. Received: SLURM_NODEID=None. Start the script with srun"),
    ({"STEP_NODELIST": "n[1-"}, "do not fit together"), ({"NODEID": "4"}, "do not fit together"),
    ({"LOCALID": "2"}, "do not fit together"), ({"STEP_TASKS_PER_NODE": "2(x3)"}, "do not fit together"),
    ({"JOB_ID": "one"}, "do not fit together")])
def test_strange_variables_of_slurm_are_refused(monkeypatch, variables, words):
    in_step(monkeypatch, **variables)
    with pytest.raises(ValueError, match="^distribute.strategy: the variables.*" + words):
        distribute.strategy("slurm")


IN_SLURM = """
import keras, numpy as np
from tfopt import distribute
strategy = distribute.strategy("slurm")
keras.utils.set_random_seed(0)
x = np.random.normal(size=(64, 4)).astype("float32")
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
model.fit(x, x[:, :1], batch_size=16, epochs=2, verbose=0)
print(strategy.num_replicas_in_sync, *np.ravel(model.get_weights()[0]))
"""


@pytest.mark.slow
def test_two_tasks_of_slurm_train_as_one(tmp_path):
    (tmp_path / "script.py").write_text(IN_SLURM)

    def start(step, tasks, place):
        step = {"JOB_ID": os.getpid(), "STEP_ID": step, "STEP_NODELIST": "localhost", "STEP_TASKS_PER_NODE": tasks,
                "NODEID": 0, "LOCALID": place}
        variables = {f"SLURM_{name}": str(value) for name, value in step.items()}
        return subprocess.Popen([sys.executable, "-P", "script.py"], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                                env={**os.environ, **variables})

    started = [start(0, 1, 0), start(1, 2, 0), start(1, 2, 1)]
    one, first, second = (np.array(each.communicate(timeout=600)[0].split(), float) for each in started)
    assert (one[0], first[0]) == (1, 2)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[1:], one[1:], atol=1e-5)


# Several devices, several processes

def run(*command, cwd, **environment):
    return subprocess.run([sys.executable, "-P", *map(str, command)], cwd=cwd, text=True, capture_output=True,
                          timeout=3000, env={**os.environ, **environment})


SAMPLE = ["L2: Adam", "mixed bfloat16", "sync_batch_norm", "GlobalBatchOptimizer: accumulate", "schedule: Knee",
          "Distiller: Logits", "prune.wrap: gradual", "SWA: mean", "Keras clips: global_clipnorm",
          "unsynchronized BatchNormalization"]


@pytest.mark.slow
def test_devices_and_workers_equal_one_device(tmp_path):
    """The whole table, 4 devices included: python benchmarks/verify/distribute.py"""
    done = run(PROJECT / "benchmarks" / "verify" / "distribute.py", "--no-table", "--folder", tmp_path,
               "--topologies", "2", "workers", "--pieces", *SAMPLE, cwd=PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
def test_keras_alone_fails_where_tfopt_equals_one_device(tmp_path):
    done = run(PROJECT / "examples" / "multi_worker.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert "two workers, Keras alone    exit code 1: tfopt.distribute: worker" in done.stdout
    assert "ValueError: Attempt to convert a value (PerReplica" in done.stdout
    assert float(lines[-1].rsplit(" ", 1)[1]) < 1e-5


KILLED = """
import os, signal
import keras, numpy as np
import tensorflow as tf
from tfopt import distribute
keras.config.set_dtype_policy(distribute.precision("mixed_bfloat16"))
strategy = distribute.strategy()
print("draw", float(tf.random.uniform([])))
x = np.ones((16, 2))
with strategy.scope():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")


class Dies(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1 and strategy.cluster_resolver.task_id == 1:
            os.kill(os.getpid(), signal.SIGKILL)


model.fit(x, x[:, :1], batch_size=8, epochs=1000000, verbose=0, callbacks=[Dies()])
"""


@pytest.mark.slow
def test_a_killed_worker_ends_the_others(tmp_path):
    """Also: the policy may be set before, and workers without a seed get a common one."""
    (tmp_path / "killed.py").write_text(KILLED)
    done = run("-m", "tfopt.distribute", "--workers", "2", "killed.py", cwd=tmp_path)
    assert done.returncode == 137, done.stderr[-4000:]
    last = done.stderr.splitlines()[-1]
    assert last == "tfopt.distribute: worker 1 was ended by SIGKILL. The other workers were ended with it."
    draws = [line.partition("] ")[2] for line in done.stdout.splitlines() if "draw" in line]
    assert len(draws) == 2
    assert len(set(draws)) == 1


@pytest.mark.slow
def test_workers_with_different_seeds_are_refused(tmp_path):
    (tmp_path / "seeds.py").write_text(
        "import json, os, keras\nfrom tfopt import distribute\n"
        "keras.utils.set_random_seed(json.loads(os.environ['TF_CONFIG'])['task']['index'])\ndistribute.strategy()\n")
    done = run("-m", "tfopt.distribute", "--workers", "2", "seeds.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: distribute.strategy: all workers must have the same random seed" in done.stderr.splitlines()[-1]
    assert "seeds=[0, 1]" in done.stderr.splitlines()[-1]
