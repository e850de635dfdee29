"""Fine-tuning: blocks by depth, layer-wise rates, frozen and gradually thawed blocks."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import callbacks, compress, distill, distribute, finetune, prune, quantize, schedules

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(1).normal(size=(60, 6)).astype("float32")
Y = np.random.default_rng(2).integers(0, 3, 60)


def backbone(name="backbone"):
    return keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu", name="stem"), layers.BatchNormalization(),
                             layers.Dense(5, "relu", name="body")], name=name)


def net(dropout=0.0, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((6,)), backbone(), layers.Dropout(dropout),
                             layers.Dense(4, "relu", name="neck"), layers.Dense(3, name="head")])


def warm_up():
    return keras.optimizers.schedules.CosineDecay(0.0, 30, warmup_target=0.05, warmup_steps=5)


def train(model, optimizer, epochs=4, **options):
    model.compile(optimizer, LOSS)
    keras.utils.set_random_seed(1)
    return model.fit(X, Y, batch_size=10, epochs=epochs, verbose=0, **options).history["loss"]


def values(model):
    return [weight.numpy() for weight in model.weights]


def assert_same(one, other, tolerance=0):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------- blocks

def names(model):
    table = finetune.plan(model)
    return list(zip(table.depth, table.block, strict=True))


def test_plan_of_a_nested_backbone():
    table = finetune.plan(net())
    assert table.block.tolist() == ["backbone/stem", "backbone/body", "neck", "head"]
    assert table.depth.tolist() == [0, 1, 2, 3]
    assert table.layers.str.startswith("backbone/stem, backbone/batch_normalization").tolist() == [True] + [False] * 3
    assert table.parameters.tolist() == [6 * 5 + 5 + 4 * 5, 5 * 5 + 5, 5 * 4 + 4, 4 * 3 + 3]
    assert table.trainable.all()


def residual(x, name=None):
    y = layers.Conv2D(4, 3, padding="same", name=name and f"{name}_1")(x)
    return layers.Add()([x, layers.Conv2D(4, 3, padding="same", name=name and f"{name}_2")(layers.ReLU()(y))])


def test_what_passes_through_one_tensor_ends_a_block():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="first")(layers.Normalization()(inputs))
    x = residual(residual(layers.BatchNormalization()(x), "a"), "b")
    x = layers.Concatenate()([layers.Conv2D(2, 1, name="left")(x), layers.Conv2D(2, 1, name="right")(x)])
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))
    assert names(model) == [(0, "first"), (1, "a_1"), (2, "b_1"), (3, "left"), (4, "head")]
    assert finetune.plan(model).layers.tolist()[1:4] == ["a_1, a_2", "b_1, b_2", "left, right"]
    first = finetune.plan(model).layers[0].split(", ")
    assert [path.split("_")[0] for path in first] == ["normalization", "first", "batch"]


def test_names_tell_blocks_where_the_graph_does_not():
    x = inputs = keras.Input((8, 8, 4))
    kept = x = layers.Conv2D(4, 3, padding="same", name="block1_conv")(x)         # a U-Net: all passes by all
    x = layers.Conv2D(4, 3, padding="same", name="block2_conv2")(layers.Conv2D(4, 1, name="block2_conv1")(x))
    model = keras.Model(inputs, layers.Conv2D(1, 1, name="head")(layers.Add()([kept, x])))
    assert names(model) == [(0, "block1"), (1, "block2"), (2, "head")]


def test_towers_end_at_the_same_depth():
    one, two = keras.Input((3,)), keras.Input((3,))
    x = layers.Dense(2, name="q2")(layers.Dense(2, name="q1")(two))
    x = layers.Concatenate()([layers.Dense(2, name="p")(one), x])
    outputs = [layers.Dense(1, name="left")(x), layers.Dense(1, name="right")(x)]
    assert names(keras.Model([one, two], outputs)) == [(0, "q1"), (1, "p"), (1, "q2"), (2, "right")]


def test_a_shared_backbone_is_one():
    shared, one, two = backbone(), keras.Input((6,)), keras.Input((6,))
    model = keras.Model([one, two], layers.Dense(1, name="head")(layers.Concatenate()([shared(one), shared(two)])))
    assert names(model) == [(0, "backbone/stem"), (1, "backbone/body"), (2, "head")]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.backbone, self.drop, self.head = backbone(), layers.Dropout(0.1), layers.Dense(3, name="head")

    def call(self, x):
        return self.head(self.drop(self.backbone(x)))

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


def test_subclassed_models_and_wrappers():
    model = Subclassed()
    model(X[:1])
    assert names(model) == [(0, "backbone/stem"), (1, "backbone/body"), (2, "head")]
    assert finetune.plan(finetune.freeze(model, "backbone")).trainable.tolist() == [False, False, True]
    steps = keras.Sequential([keras.Input((5, 6)), layers.TimeDistributed(backbone()), layers.Dense(2, name="head")])
    assert names(steps) == names(model)


@pytest.mark.parametrize(("name", "blocks", "second"), [
    ("MobileNetV2", 20, "expanded_conv"), ("ResNet50", 18, "conv2_block1"), ("VGG16", 8, "block2"),
    ("EfficientNetB0", 19, "block1a"), ("ConvNeXtTiny", 23, "convnext_tiny_stage_0_block_0")])
@pytest.mark.slow
def test_blocks_of_applications(name, blocks, second):
    model = getattr(keras.applications, name)(weights=None)
    table = finetune.plan(model)
    assert table.depth.tolist() == list(range(blocks))
    assert table.block[1] == second
    assert table.parameters.sum() == model.count_params()


# ------------------------------------------------------------------------------------------------------- freeze

@pytest.mark.parametrize("until", [0, -4, "stem", "backbone/stem"])
def test_what_until_may_be(until):
    assert finetune.plan(finetune.freeze(net(), until)).trainable.tolist() == [False, True, True, True]


def test_until_may_be_a_layer_or_a_backbone():
    model = net()
    for until in (model.layers[0], "backbone", model.layers[0].layers[2], 1):
        assert finetune.plan(finetune.freeze(model, until)).trainable.tolist() == [False, False, True, True]
    assert finetune.plan(finetune.freeze(model)).trainable.tolist() == [False] * 3 + [True]
    assert finetune.plan(model).trainable.all()                          # the one passed in


def test_frozen_blocks_keep_all_they_hold():
    """A normalization inside a frozen backbone keeps its moments and normalizes by them; a thawed one does not."""
    model = finetune.freeze(net(), "stem")
    before, norm = values(model), model.layers[0].layers[1]
    inputs = model.layers[0].layers[0](X)
    expected = norm(inputs, training=False)
    np.testing.assert_array_equal(norm(inputs, training=True), expected)
    train(model, "adam", 1)
    changed = [np.any(a != b) for a, b in zip(before, values(model), strict=True)]
    assert changed == [False] * 6 + [True] * 6
    norm.trainable = True
    assert np.any(norm(inputs, training=True) != expected)


# -------------------------------------------------------------------------------------------------------- rates

OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), "Adam": lambda: keras.optimizers.Adam(0.01),
    "AdamW": lambda: keras.optimizers.AdamW(warm_up(), weight_decay=0.1, use_ema=True, global_clipnorm=0.5),
    "accumulation": lambda: keras.optimizers.Adam(warm_up(), gradient_accumulation_steps=2, clipnorm=0.3),
    **{name: functools.partial(getattr(keras.optimizers, name), 0.01)
       for name in ("Nadam", "Muon", "Adafactor", "Lion", "RMSprop")}}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make if name == "AdamW" else slow(make)
                                  for name, make in OPTIMIZERS.items()], ids=list(OPTIMIZERS))
def test_without_decay_it_is_the_optimizer_alone(make):
    alone, rated, decayed = net(0.3), net(0.3), net(0.3)
    losses = train(alone, make(), 3)
    np.testing.assert_allclose(train(rated, finetune.rates(rated, make(), decay=1.0), 3), losses, rtol=0, atol=1e-6)
    assert_same(values(alone), values(rated), 1e-6)
    assert int(alone.optimizer.iterations) == int(rated.optimizer.iterations)
    train(decayed, finetune.rates(decayed, make(), decay=0.5), 3)
    assert max(np.abs(a - b).max() for a, b in zip(values(alone), values(decayed), strict=True)) > 1e-4


def test_each_block_has_its_share():
    """One step of SGD on a linear chain against the gradient; weight decay and schedule have the same share."""
    model = net()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([5], [0.5, 0.1])
    optimizer = keras.optimizers.SGD(schedule, weight_decay=0.2)
    with tf.GradientTape() as tape:
        loss = LOSS(Y, model(X, training=True))
    start, gradients = values(model), tape.gradient(loss, model.trainable_variables)
    trained = {id(v): g for v, g in zip(model.trainable_variables, gradients, strict=True)}
    rated = finetune.rates(model, optimizer, decay=0.5)
    rated.apply(gradients, model.trainable_variables)
    places = [0] * 6 + [1] * 2 + [2] * 2 + [3] * 2
    for weight, before, place in zip(model.weights, start, places, strict=True):
        if id(weight) in trained:
            rate = 0.5 * 0.5 ** (3 - place)
            expected = before - rate * 0.2 * before - rate * trained[id(weight)].numpy()
            np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert isinstance(rated, keras.optimizers.MultiOptimizer)
    assert not optimizer.built
    assert [round(float(one.learning_rate), 4) for one in rated.optimizers] == [0.0625, 0.125, 0.25, 0.5]


@pytest.mark.slow
def test_excluded_from_weight_decay_stays_excluded():
    model, optimizer = net(), keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    alone, rated = net(), net()
    for part in (alone, rated):
        part.layers[-1].bias.assign([1.0, 2.0, 3.0])
    plain = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    plain.exclude_from_weight_decay(var_names=["bias"])
    train(alone, plain)
    train(rated, finetune.rates(model, optimizer, decay=1.0))
    assert_same(values(alone), values(rated), 1e-6)


@pytest.mark.slow
def test_saved_models_find_their_blocks(tmp_path):
    model = net()
    train(model, finetune.rates(model, keras.optimizers.AdamW(warm_up()), decay=0.5), 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.weights[0].path != model.weights[0].path                # Keras forgets the Sequential's name
    assert [float(one.learning_rate) for one in loaded.optimizer.optimizers] == [
        float(one.learning_rate) for one in model.optimizer.optimizers]
    for one in (model, loaded):
        keras.utils.set_random_seed(1)
        one.fit(X, Y, batch_size=10, epochs=2, verbose=0)
    assert_same(values(model), values(loaded))
    assert_same([v.numpy() for v in model.optimizer.variables], [v.numpy() for v in loaded.optimizer.variables])


@pytest.mark.slow
def test_loads_in_a_new_process(tmp_path, run_python):
    model = net()
    train(model, finetune.rates(model, keras.optimizers.AdamW(warm_up()), decay=0.5), epochs=1)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    program = ("import sys, keras, numpy as np, tfopt.finetune\n"
               "model = keras.models.load_model(sys.argv[1])\n"
               "print([float(one.learning_rate) for one in model.optimizer.optimizers])\n"
               "np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))")
    printed = run_python(program, tmp_path / "model.keras", tmp_path / "x.npy", tmp_path / "y.npy")
    assert printed.strip().splitlines()[-1] == str([float(one.learning_rate) for one in model.optimizer.optimizers])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model.predict(X, verbose=0), atol=1e-6)


def one_name_twice():
    two = [keras.Sequential([keras.Input((6,)), layers.Dense(3, name="dense")], name=name) for name in "ab"]
    x = inputs = keras.Input((6,))
    x = layers.Dense(6, name="between")(layers.Concatenate()([two[0](x), two[0](x)]))
    return keras.Model(inputs, layers.Dense(3, name="head")(two[1](x)))


@pytest.mark.slow
def test_layers_of_one_name_are_told_apart_by_their_order(tmp_path):
    model = one_name_twice()
    model.compile(finetune.rates(model, keras.optimizers.SGD(1.0), decay=0.5), LOSS)
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len({v.path for v in loaded.trainable_variables}) < len(loaded.trainable_variables)
    for one in (model, loaded):
        keras.utils.set_random_seed(1)
        one.fit(X, Y, verbose=0)
    assert_same(values(model), values(loaded))
    with pytest.raises(ValueError, match="layers in different blocks must differ in name"):
        finetune.rates(loaded, "sgd")


@pytest.mark.slow
def test_finding_a_rate():
    """Without decay it is the rate of the optimizer alone."""
    model = net()
    model.compile(finetune.rates(model, keras.optimizers.AdamW(warm_up()), decay=0.5), LOSS)
    before = values(model)
    learnable = (X[:, 0] > 0) + 1 * (X[:, 1] > 0)
    assert 1e-4 < schedules.find(model, (X, learnable), steps=40, verbose=0).rate < 1
    assert_same(before, values(model))
    alone, rated = net(), net()
    alone.compile(keras.optimizers.AdamW(0.1), LOSS)
    rated.compile(finetune.rates(rated, keras.optimizers.AdamW(0.1), decay=1.0), LOSS)
    found = [schedules.find(one, (X, learnable), steps=40, verbose=0).rate for one in (alone, rated)]
    assert found[0] == found[1]


@pytest.mark.parametrize(("rate", "scaled"), [(warm_up(), True), slow(warm_up(), False), slow(0.01, False),
                                              slow(0.01, True)])
def test_plateau_lowers_all_rates(rate, scaled):
    model = net()
    optimizer = finetune.rates(model, keras.optimizers.Adam(rate), decay=0.5)
    plateau = schedules.Plateau("loss", factor=0.5, patience=0, min_delta=99)
    train(model, keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, 3, callbacks=[plateau])
    base = rate if rate == 0.01 else float(rate(18))                      # two plateaus
    np.testing.assert_allclose([float(one.learning_rate) for one in optimizer.optimizers],
                               [base * 0.25 * 0.5 ** (3 - place) for place in range(4)], rtol=1e-5)


@pytest.mark.slow
def test_mixed_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        alone, rated = net(), net()
        losses = train(alone, keras.optimizers.Adam(0.01))
        assert train(rated, finetune.rates(rated, keras.optimizers.Adam(0.01), decay=1.0)) == losses
        frozen = finetune.freeze(net())
        train(frozen, finetune.rates(frozen, "adam"), 2, callbacks=[finetune.Unfreeze()])
        assert isinstance(frozen.optimizer, keras.optimizers.LossScaleOptimizer)
        assert_same(values(alone), values(rated), 1e-6)
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.mark.slow
def test_wrapped_models_and_students():
    model = net()
    for wrapped in (prune.wrap(model, 0.5, end=10), quantize.wrap(model)):
        optimizer = finetune.rates(wrapped, keras.optimizers.SGD(0.1), decay=0.5)
        train(wrapped, optimizer, 1)
        kernels = [weight for weight in wrapped.trainable_variables if weight.name == "kernel"]
        places = [optimizer.optimizers.index(optimizer.of(kernel)) for kernel in kernels]
        assert places == sorted(set(places))                              # the rounding of inputs is a block of its own
        assert (places[0], places[-1]) == (0, len(optimizer.optimizers) - 1)
    student = finetune.freeze(model)
    learner = distill.Distiller(net(seed=1), student, distill.Logits(from_logits=True))
    train(learner, finetune.rates(student, "adam"), 3, callbacks=[finetune.Unfreeze()])
    assert finetune.plan(student).trainable.tolist() == [False, True, True, True]
    trained = {id(variable) for variable in learner.trainable_variables}
    assert trained
    assert not trained & {id(variable) for variable in learner.teacher.variables}


@pytest.mark.slow
def test_compress(tmp_path):
    model = net()
    train(model, finetune.rates(model, keras.optimizers.Adam(warm_up()), decay=0.5), 1)
    data = X, Y
    result = compress.run(model, data, data, max_drop=0.5, stages=("prune",), epochs=1)
    assert result.best is not model


# ------------------------------------------------------------------------------------------------------ unfreeze

class Watch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((finetune.plan(self.model).trainable.tolist(), values(self.model)))


@pytest.mark.slow
@pytest.mark.parametrize("rated", [slow(False), True])
def test_blocks_are_thawed_from_the_head_down(rated):
    model, watch = finetune.freeze(net()), Watch()
    start = values(model)
    optimizer = keras.optimizers.AdamW(0.01, use_ema=True)
    train(model, finetune.rates(model, optimizer) if rated else optimizer, 5,
          callbacks=[finetune.Unfreeze(every=2), watch])
    flags = [seen for seen, _ in watch.seen]
    assert flags == [[False] * 3 + [True]] * 2 + [[False] * 2 + [True] * 2] * 2 + [[False] + [True] * 3]
    weights = [start, *(seen for _, seen in watch.seen)]
    moved = [[np.any(a != b) for a, b in zip(one, two, strict=True)] for one, two in itertools.pairwise(weights)]
    assert moved == [[False] * 10 + [True] * 2] * 2 + [[False] * 8 + [True] * 4] * 2 + [[False] * 6 + [True] * 6]


@pytest.mark.slow
def test_until_stops_the_thaw():
    model = finetune.freeze(net())
    train(model, "sgd", 5, callbacks=[finetune.Unfreeze(until="body")])
    assert finetune.plan(model).trainable.tolist() == [False, True, True, True]


@pytest.mark.slow
def test_thawing_equals_training_by_hand():
    """Stages of one epoch, compiled anew each time, with what SGD with momentum keeps carried over by hand."""
    model, by_hand = finetune.freeze(net()), finetune.freeze(net())
    train(model, keras.optimizers.SGD(0.1, momentum=0.9), 3, callbacks=[finetune.Unfreeze()], shuffle=False)
    kept = {}
    for thawed in (None, by_hand.get_layer("neck"), by_hand.layers[0].get_layer("body")):
        if thawed is not None:
            thawed.trainable = True
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        by_hand.compile(optimizer, LOSS)
        optimizer.build(by_hand.trainable_variables)
        slots = dict(zip(map(id, by_hand.trainable_variables), optimizer.variables[2:], strict=True))
        for key, value in kept.items():
            slots[key].assign(value)
        by_hand.fit(X, Y, batch_size=10, verbose=0, shuffle=False)
        kept = {key: slot.numpy() for key, slot in slots.items()}
    assert_same(values(model), values(by_hand), 1e-6)


@pytest.mark.slow
def test_a_thawed_block_starts_as_it_would_have_at_first():
    """The first step of Adam is the rate, whatever the gradient; with steps counted from the start it is not."""
    sizes = {}
    for rated in (False, True):
        model, watch = finetune.freeze(net()), Watch()
        optimizer = keras.optimizers.Adam(1e-3, epsilon=1e-12)
        model.compile(finetune.rates(model, optimizer, decay=1.0) if rated else optimizer, LOSS)
        model.fit(X, Y, batch_size=60, epochs=51, verbose=0, callbacks=[finetune.Unfreeze(50), watch])
        sizes[rated] = np.abs(watch.seen[-1][1][8] - watch.seen[-2][1][8]).max()
    np.testing.assert_allclose(sizes[True], 1e-3, rtol=1e-3)
    late = (1 - 0.9) / (1 - 0.9 ** 51) / np.sqrt((1 - 0.999) / (1 - 0.999 ** 51))       # its moments begin at step 51
    np.testing.assert_allclose(sizes[False], 1e-3 * late, rtol=2e-2)


def test_a_schedule_goes_on_for_a_block_that_waited():
    model = finetune.freeze(net())
    optimizer = finetune.rates(model, keras.optimizers.Adam(warm_up()), decay=0.5)
    train(model, optimizer, 4, callbacks=[finetune.Unfreeze(2)])
    np.testing.assert_allclose([float(one.learning_rate) for one in model.optimizer.optimizers],
                               [float(warm_up()(24)) * 0.5 ** (3 - place) for place in range(4)], rtol=1e-5)
    assert [int(one.iterations) for one in model.optimizer.optimizers] == [0, 0, 12, 24]


@pytest.mark.slow
def test_a_thawed_model_is_saved_thawed(tmp_path):
    model = net()
    model.layers[0].trainable = False                                     # as many do it, in place
    train(model, "sgd", 3, callbacks=[finetune.Unfreeze()])
    model.save(tmp_path / "model.keras")
    assert finetune.plan(keras.models.load_model(tmp_path / "model.keras")).trainable.all()


@pytest.mark.slow
def test_a_second_fit_goes_on():
    model = finetune.freeze(net())
    train(model, "sgd", 2, callbacks=[finetune.Unfreeze()])
    model.fit(X, Y, epochs=3, initial_epoch=2, verbose=0, callbacks=[finetune.Unfreeze()])
    assert finetune.plan(model).trainable.tolist() == [False, False, True, True]
    model.fit(X, Y, epochs=4, initial_epoch=2, verbose=0, callbacks=[finetune.Unfreeze()])
    assert finetune.plan(model).trainable.tolist() == [False, True, True, True]


# --------------------------------------------------------------------------------- restart, strategies, refusals

class BrokenOffError(Exception):
    pass


class Break(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.left = iter(range(batches - 1))               # no data, so that no restart brings it back

    def on_train_batch_end(self, batch, logs=None):
        if next(self.left, None) is None:
            raise BrokenOffError


def restarted(folder, breaks, *, rated, every=2):
    """(weights and optimizer, history) of a training that is broken off after so many batches each time."""
    for broken in [*breaks, None]:
        model = finetune.freeze(net(0.3))
        optimizer = keras.optimizers.AdamW(warm_up(), use_ema=True)
        others = [finetune.Unfreeze(every=1)] + ([schedules.Plateau("loss", patience=0, min_delta=99)] if rated else [])
        if folder is not None:
            others.insert(0, callbacks.Resume(folder, every=every))
        try:
            history = train(model, finetune.rates(model, optimizer) if rated else optimizer, 4,
                            callbacks=[*others, *([Break(broken)] if broken else [])])
        except BrokenOffError:
            continue
        return [v.numpy() for v in [*model.variables, *model.optimizer.variables]], history


@pytest.mark.slow
@pytest.mark.parametrize(("breaks", "every", "rated"), [((9,), 2, True), slow((3, 10), None, False),
                                                        slow((13, 4), 3, True)])
def test_a_broken_training_ends_as_a_whole_one(tmp_path, breaks, every, rated):
    whole, history = restarted(None, (), rated=rated)
    again, repeated = restarted(tmp_path, breaks, rated=rated, every=every)
    assert repeated == history
    assert_same(whole, again)


MIRRORED = """
import keras, numpy as np
from tfopt import finetune
layers = keras.layers
x = np.random.default_rng(1).normal(size=(64, 6)).astype("float32")
y = np.random.default_rng(2).integers(0, 3, 64)

def train(rated):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.Sequential([keras.Input((6,)), layers.Dense(5, "relu"),
        layers.Dense(5, "relu")], name="backbone"), layers.Dense(4, "relu"), layers.Dense(3)])
    model = finetune.freeze(model)
    rate = keras.optimizers.schedules.CosineDecay(0.0, 30, warmup_target=.05, warmup_steps=5)
    optimizer = keras.optimizers.AdamW(rate, use_ema=True)
    model.compile(finetune.rates(model, optimizer, decay=.5) if rated else optimizer,
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x, y, batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=[finetune.Unfreeze()])
    return [w.numpy() for w in model.weights]

strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU"))
assert strategy.num_replicas_in_sync == 2
for rated in (False, True):
    alone = train(rated)
    with strategy.scope():
        both = train(rated)
    print(max(abs(a - b).max() for a, b in zip(alone, both)))
"""


@pytest.mark.slow
def test_two_devices_equal_one(run_python):
    gaps = list(map(float, run_python(MIRRORED, devices=2).split()[-2:]))
    assert max(gaps) < 1e-5


def no_weights():
    return keras.Sequential([keras.Input((2,)), layers.Dropout(0.1)])


def used_before():
    model = finetune.freeze(net())
    train(model, "adam", 1)
    model.fit(X, Y, verbose=0, callbacks=[finetune.Unfreeze()])


def with_multi_optimizer():
    model = finetune.freeze(net())
    optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD()))
    train(model, optimizer, 1, callbacks=[finetune.Unfreeze()])


def for_another_model():
    train(keras.Sequential([keras.Input((6,)), layers.Dense(3, name="other")]), finetune.rates(net(), "sgd"))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: finetune.plan(no_weights()), "finetune.plan needs a model with weights"),
    (lambda: finetune.plan(keras.Sequential([layers.Dense(1)])), "finetune.plan needs a built model"),
    (lambda: finetune.freeze(net(), "tail"), "Its blocks are backbone/stem, backbone/body, neck, head"),
    (lambda: finetune.freeze(net(), 4), "`until` must be a depth of the model. Received: until=4, depths='0 to 3'"),
    (lambda: finetune.freeze(net(), "head"), "a block above `until` must be left to train"),
    (lambda: finetune.freeze(keras.Sequential([keras.Input((2,)), layers.Dense(1)])), "must be left to train"),
    (lambda: finetune.freeze(net(), 2.5), "`until` must be"),
    (lambda: finetune.rates(net(), "adam", decay=0), "`decay` must be a number > 0 and <= 1"),
    (lambda: finetune.rates(net(), "adam", decay=1.5), "`decay` must be"),
    (lambda: finetune.rates(net(), "adamant"), "`optimizer` must be the name of a Keras optimizer"),
    (lambda: finetune.rates(net(), finetune.rates(net(), "sgd")), "`optimizer` must be a single one"),
    (lambda: finetune.rates(net(), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())), "be a single one"),
    (lambda: finetune.rates(net(), distribute.GlobalBatchOptimizer(keras.optimizers.SGD())), "must be a single one"),
    (lambda: finetune.rates(net(), keras.optimizers.SGD(lambda: 0.1)), "must hold a number or a LearningRateSchedule"),
    (lambda: finetune.rates(net(), keras.optimizers.SGD(global_clipnorm=1.0, gradient_accumulation_steps=2)),
     "must not clip the global norm of gradients that it accumulates"),
    (lambda: train(net(), "sgd", callbacks=[finetune.Unfreeze()]), "thaws blocks that are frozen, and none is"),
    (lambda: finetune.Unfreeze(0), "`every` must be a whole number >= 1"),
    (used_before, "was built for all blocks, or has not trained yet"),
    (with_multi_optimizer, "Compile with finetune.rates"), (for_another_model, "the optimizer is for another model")])
def test_refusals(call, message):
    with pytest.raises((ValueError, TypeError), match=message.replace("(", r"\(").replace(")", r"\)")):
        call()
