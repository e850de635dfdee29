"""Units of recurrent layers and heads of attention go like channels: what is left computes what it did without them."""

import keras
import numpy as np
import pytest
from graphs import EXACT, gap, leaves, randomize, silenced
from keras import layers as L

from tfopt import report, shrink

WORDS, LENGTH = 12, 7


def tokens(rng):
    """Sentences of several lengths, one of a single word; zeros pad them."""
    x = rng.integers(1, WORDS, size=(6, LENGTH))
    for row, length in zip(x, (7, 5, 1, 3, 7, 2), strict=True):
        row[length:] = 0
    return x


def reader(*middle, mask=True, size=8):
    """Words -> embedding with or without a mask -> `middle` -> classes."""
    x = inputs = keras.Input((LENGTH,), dtype="int32")
    x = L.Embedding(WORDS, size, mask_zero=mask, name="embed")(x)
    for layer in middle:
        x = layer(x)
    x = L.GlobalAveragePooling1D()(x) if len(x.shape) == 3 else x
    model = keras.Model(inputs, L.Dense(3, name="out")(x))
    randomize(model, np.random.default_rng(0))
    return model


def check(model, x, *, names, **options):
    """It is smaller, exact, and the comparison sees a unit that was swapped for another."""
    small = shrink.channels(model, **{"keep": 0.5, "round_to": 2, "where": names, **options})
    assert small.count_params() < model.count_params()
    assert gap(silenced(model, small), small, x) <= EXACT
    for name in names:
        assert leaves(model)[name].count_params() > leaves(small)[name].count_params()
        assert gap(silenced(model, small, swap=name), small, x) > 100 * EXACT
    return small


class OwnLSTM(L.LSTM):
    pass


SEVERAL = [
    L.SimpleRNN(8, name="rnn"), L.RNN(L.LSTMCell(8), name="rnn"), L.GRU(8, name="rnn"),
    L.GRU(8, reset_after=False, return_sequences=True, name="rnn"), OwnLSTM(8, return_sequences=True, name="rnn"),
    L.LSTM(8, go_backwards=True, use_bias=False, activation="relu", name="rnn"),
    L.LSTM(8, return_sequences=True, unroll=True, dropout=0.5, recurrent_dropout=0.5, name="rnn"),
    L.Bidirectional(L.GRU(8, return_sequences=True), "sum", name="rnn"),
    L.Bidirectional(L.LSTM(8, return_sequences=True), "mul", name="rnn"),
    L.Bidirectional(L.RNN(L.GRUCell(8)), backward_layer=L.RNN(L.LSTMCell(8), go_backwards=True), name="rnn")]


@pytest.mark.parametrize(("layer", "mask"), [
    (L.LSTM(8, name="rnn"), True), (L.Bidirectional(L.LSTM(8), name="rnn"), True),
    *[pytest.param(layer, True, marks=pytest.mark.slow) for layer in SEVERAL],
    *[pytest.param(layer, False, marks=pytest.mark.slow) for layer in SEVERAL[2:6:2] + SEVERAL[-2:]]],
    ids=lambda value: type(value).__name__)
def test_units_that_go(layer, mask, rng):
    layer = type(layer).from_config(layer.get_config())
    model = reader(layer, mask=mask)
    table = shrink.plan(model).set_index("layer")
    assert table.loc["rnn", "status"] == table.loc["embed", "status"] == "selected"
    small = check(model, tokens(rng), names=["rnn", "embed"])
    config = small.get_layer("rnn").get_config()
    config = config.get("layer", {}).get("config", config)
    assert config.get("cell", {}).get("config", config)["units"] == 4
    assert type(small.get_layer("rnn")) is type(layer)


def test_units_that_nobody_reads(rng):
    """The other way round: the units are still there, but neither the next step nor the next layer reads them."""
    model = reader(L.LSTM(8, return_sequences=True, name="one"), L.GRU(6, name="two"))
    small = shrink.channels(model, 0.5, round_to=1, where=["one", "two"])
    deaf = keras.models.clone_model(model)
    deaf.set_weights(model.get_weights())
    for name, after in (("one", deaf.get_layer("two").cell), ("two", deaf.get_layer("out"))):
        cell, kept = deaf.get_layer(name).cell, small.get_layer(name).cell
        gone = ~np.isin(cell.bias.numpy(), kept.bias.numpy()).reshape(-1, cell.bias.shape[-1])[-1][:cell.units]
        assert gone.sum() == cell.units // 2
        for kernel in (cell.recurrent_kernel, after.kernel):
            kernel.assign(np.where(gone[:, None], 0, kernel))
    x = tokens(rng)
    assert gap(deaf, small, x) <= EXACT < gap(model, small, x) / 100


def test_states_of_an_encoder_are_tied_to_the_decoder(rng):
    words = keras.Input((LENGTH,), dtype="int32")
    start = keras.Input((4,))
    x = L.Embedding(WORDS, 8, mask_zero=True)(words)
    _, h, c = L.LSTM(8, return_state=True, name="encoder")(x)
    y = L.LSTM(8, return_sequences=True, name="decoder")(x, initial_state=[h, c])
    z = L.GRU(6, name="fed")(y, initial_state=L.Dense(6, "tanh", name="start")(start))
    model = keras.Model([words, start], L.Dense(3)(L.Concatenate()([z, h])))
    randomize(model, rng)
    table = shrink.plan(model).set_index("layer")
    assert table.loc["encoder", "group"] == table.loc["decoder", "group"] != table.loc["fed", "group"]
    assert table.loc["start", "group"] == table.loc["fed", "group"]
    x = [tokens(rng), rng.normal(size=(6, 4)).astype("float32")]
    check(model, x, names=["encoder", "decoder", "start", "fed"])


@pytest.mark.parametrize(("layer", "why"), [
    (L.LSTM(8, activation="sigmoid", name="rnn"), "makes something of 0"),
    (L.GRU(8, recurrent_activation="softmax", name="rnn"), "mixes units"),
    (L.RNN(L.StackedRNNCells([L.LSTMCell(8), L.LSTMCell(8)]), name="rnn"), "no rule for RNN")])
def test_units_that_stay_and_why(layer, why):
    assert why in shrink.plan(reader(layer)).set_index("layer").loc["rnn", "why"]


def test_units_with_a_state_of_their_own_stay():
    inputs = keras.Input(batch_shape=(2, 5, 3))
    model = keras.Model(inputs, L.Dense(2)(L.LSTM(8, stateful=True, name="rnn")(inputs)))
    assert "first state" in shrink.plan(model).set_index("layer").loc["rnn", "why"]


@pytest.mark.parametrize("by", ["l2", "taylor"])
def test_a_batch_of_fixed_size(by, rng):
    """As stateful layers need it; what is cut is zero in the user's own model, whose states stay as they were."""
    inputs = keras.Input(batch_shape=(6, 5, 3))
    x = L.LSTM(8, stateful=True, return_sequences=True, name="stateful")(inputs)
    model = keras.Model(inputs, L.Dense(2, name="out")(L.GRU(8, use_bias=False, name="units")(x)))
    x = rng.normal(size=(15, 5, 3)).astype("float32")
    model.predict(x[:6], batch_size=6, verbose=0)
    model.compile("sgd", "mse")
    states = [np.array(state) for state in model.get_layer("stateful").states]
    small = shrink.channels(model, 0.5, importance=by, round_to=4, data=(x, np.ones((15, 2))))
    for state, before in zip(model.get_layer("stateful").states, states, strict=True):
        np.testing.assert_array_equal(state, before)
    reader = model.get_layer("out").kernel
    stays = np.isin(reader, small.get_layer("out").kernel).all(1)
    assert stays.sum() == small.get_layer("units").units == 4
    reader.assign(reader * stays[:, None])
    recurrent = model.get_layer("units").cell.recurrent_kernel
    recurrent.assign(recurrent * stays[:, None])
    for one in (model, small):
        one.get_layer("stateful").reset_state()
    np.testing.assert_allclose(small(x[:6]), model(x[:6]), atol=1e-5)


# Heads


def transformer(*, mask=True, size=12, heads=4, scores=False, causal=False, norm=True, **options):
    """Two blocks of attention over words; the second one's queries are the first one's, its keys the words."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    words = L.Embedding(WORDS, size, mask_zero=mask, name="embed")(inputs)
    x = L.LayerNormalization()(words) if norm else words
    y = L.MultiHeadAttention(heads, 6, name="one", **options)(x, x, use_causal_mask=causal)
    y = L.Dense(12, activation="relu", name="mlp")(L.Add()([words, y]) if y.shape == words.shape else y)
    z = L.MultiHeadAttention(heads, 4, value_dim=5, name="two", **options)(
        y, words, key=x, return_attention_scores=scores)
    outputs = [L.Dense(3, name="out")(L.GlobalAveragePooling1D()(z[0] if scores else z)), *([z[1]] if scores else [])]
    model = keras.Model(inputs, outputs if scores else outputs[0])
    randomize(model, np.random.default_rng(0))
    return model


@pytest.mark.parametrize("options", [{"causal": True}, *(pytest.param(options, marks=pytest.mark.slow) for options in (
    {"mask": False}, {"use_bias": False}, {"use_gate": True}, {"output_shape": 10}, {"norm": False},
    {"dropout": 0.5, "attention_axes": 1}))], ids=str)
def test_heads_that_go(options, rng):
    model = transformer(**options)
    table = shrink.plan(model)
    assert table[table.layer == "one"].channels.tolist()[0] == 4
    assert table[table.layer == "one"].status.tolist()[0] == "selected"
    small = check(model, tokens(rng), names=["one", "two"], round_to=1)
    assert [small.get_layer(name).num_heads for name in ("one", "two")] == [2, 2]
    assert [small.get_layer(name).key_dim for name in ("one", "two")] == [6, 4]
    everything = shrink.channels(model, 0.5, round_to=2)
    assert gap(silenced(model, everything), everything, tokens(rng)) <= EXACT
    assert everything.get_layer("mlp").units == 6


def test_heads_that_nobody_reads(rng):
    """Against the original with the rows of the output projection at zero."""
    model = transformer()
    small = shrink.channels(model, 0.5, round_to=1, where=["one", "two"])
    deaf = keras.models.clone_model(model)
    deaf.set_weights(model.get_weights())
    for name in ("one", "two"):
        layer, left = deaf.get_layer(name), small.get_layer(name)
        gone = ~np.isin(layer.value_dense.bias, left.value_dense.bias).all(1)
        assert gone.sum() == 2
        kernel = layer.output_dense.kernel
        kernel.assign(np.where(gone[:, None, None], 0, kernel))
    x = tokens(rng)
    assert gap(deaf, small, x) <= EXACT < gap(model, small, x) / 100


def test_heads_of_explicit_masks_and_several_axes(rng):
    x, mask = keras.Input((3, 4, 6)), keras.Input((3, 4, 3, 4), dtype="bool")
    y = L.MultiHeadAttention(4, 5, name="heads")(x, x, attention_mask=mask)
    model = keras.Model([x, mask], L.Dense(2)(y))
    randomize(model, rng)
    allowed = rng.random((5, 3, 4, 3, 4)) < 0.5
    allowed[0] = False                                                  # nothing to look at
    check(model, [rng.normal(size=(5, 3, 4, 6)).astype("float32"), allowed], names=["heads"], round_to=1)


def test_heads_whose_scores_are_put_out_stay():
    table = shrink.plan(transformer(scores=True)).set_index("layer")
    assert "attention scores of two" in table.loc["two", "why"].iloc[0]
    assert table.loc["one", "status"].iloc[0] == "selected"


def test_heads_are_rounded_by_their_size():
    """A head of 8 numbers is a multiple of 8; of heads of 2 numbers four go together."""
    x = keras.Input((5, 6))
    y = L.Add()([L.MultiHeadAttention(8, 8, name="wide")(x, x), L.MultiHeadAttention(8, 2, name="thin")(x, x)])
    small = shrink.channels(keras.Model(x, L.Dense(2)(y)), 0.4)
    assert [small.get_layer(name).num_heads for name in ("wide", "thin")] == [3, 4]


# Both


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda: reader(L.Bidirectional(L.LSTM(8, return_sequences=True)), L.GRU(6)), transformer,
    lambda: transformer(use_bias=False, heads=2, norm=False)], ids=["recurrent", "attention", "plain attention"])
def test_macs_are_those_of_the_report(make):
    """Which counts by other formulas; before and after."""
    model = make()
    small = shrink.channels(model, 0.5, round_to=1)
    for one in (model, small):
        assert shrink.plan(one).macs.sum() == report.measure(one, runs=1).macs
    half = shrink.channels(model, macs=0.5, round_to=1)
    assert 0.3 < report.measure(half, runs=1).macs / report.measure(model, runs=1).macs <= 0.5


def test_importance_tells_dead_units_and_heads(rng):
    """What nobody reads goes, and the outputs stay."""
    model = transformer()
    kernel = model.get_layer("one").output_dense.kernel
    kernel.assign(np.where(np.isin(np.arange(4), [0, 2])[:, None, None], 0, kernel))
    small = shrink.channels(model, 0.5, round_to=1, where="one")
    assert gap(model, small, tokens(rng)) <= EXACT
    model = reader(L.LSTM(8, name="rnn"))
    for kernel in (model.get_layer("rnn").cell.recurrent_kernel, model.get_layer("out").kernel):
        kernel.assign(np.where((np.arange(8) % 2)[:, None] == 0, 0, kernel))
    small = shrink.channels(model, 0.5, round_to=1, where="rnn")
    assert gap(model, small, tokens(rng)) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("by", ["l1", "fpgm", "taylor"])
def test_every_importance_and_ranking(by, rng):
    both = L.Bidirectional(L.GRU(8, return_sequences=True), name="a"), L.LSTM(8, name="b")
    for model, names in ((transformer(), ["one", "two"]), (reader(*both), ["a", "b"])):
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = (tokens(rng), np.arange(6) % 3)
        small = shrink.channels(model, 0.5, round_to=1, importance=by, ranking="global", where=names, data=data)
        assert gap(silenced(model, small), small, data[0]) <= EXACT


@pytest.mark.slow
def test_saved_and_loaded_in_a_new_process(rng, tmp_path, run_python):
    for name, model in {"rnn": reader(L.Bidirectional(L.LSTM(8, return_sequences=True)), L.RNN(L.GRUCell(6))),
                        "heads": transformer()}.items():
        small, x = shrink.channels(model, 0.5, round_to=2), tokens(rng)
        small.save(tmp_path / f"{name}.keras")
        np.savez(tmp_path / f"{name}.npz", x=x, y=small(x))
    run_python(f"""
import keras, numpy as np
for name in ("rnn", "heads"):
    kept = np.load(r"{tmp_path}/" + name + ".npz")
    model = keras.models.load_model(r"{tmp_path}/" + name + ".keras")
    np.testing.assert_allclose(model(kept["x"]), kept["y"], atol=1e-6)
    model.compile("sgd", "mse")
    model.fit(kept["x"], np.zeros((6, 3)), verbose=0)
""", fork=False)
