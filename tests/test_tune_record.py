"""What a search records, the oracles that are rebuilt from it, and who trains what."""

import json
import math
import pathlib
import random
import stat

import keras_tuner
import numpy as np
import pytest

from tfopt import _files
from tfopt.tune import _oracles, _service, _study
from tfopt.tune._study import Study

ALGORITHMS = ("tpe", "random", "grid", "bayesian", "hyperband")


def space():
    hp = keras_tuner.HyperParameters()
    kind = hp.Choice("kind", ["a", "b", "c"])
    hp.Int("units", 1, 64, sampling="log")
    hp.Float("step", 0, 1, step=0.25)
    hp.Float("late", 1e-3, 1.0, sampling="reverse_log")
    hp.Fixed("fixed", 3)
    with hp.conditional_scope("kind", ["b"]):
        hp.Boolean("extra")
    del kind
    return _oracles.space_from(_oracles.space_config(hp))


def identity(algorithm="random", **given):
    return {"algorithm": algorithm, "seed": 0, "epochs": 9, **given}


def open_study(folder, algorithm="random", trials=12, objectives=None, **given):
    return Study(folder, identity(algorithm, **given), objectives or {"score": "max"}, max_trials=trials,
                 keep_weights=2, space=few if algorithm == "bayesian" else space)


def few():
    """So few parameters that Bayesian search comes to the end of its random points."""
    hp = keras_tuner.HyperParameters()
    hp.Float("late", 1e-3, 1.0, sampling="log")
    return _oracles.space_from(_oracles.space_config(hp))


def score(values):
    """A function of the values, so that a study has one course."""
    near = values.get("units", 0) / 64 - (values.get("step", 0) - 0.5) ** 2 + (values.get("kind") == "b")
    near -= values["late"]
    return {"status": "completed", "scores": {"score": float(near)}, "values": values, "space": []}


def go_on(study, ends=1000):
    """Runs up to so many trials; every fourth fails, every fifth is rejected."""
    while ends and (trial := study.next()) is not None:
        result = score(trial.values)
        if trial.number % 4 == 3:
            result = {"status": "failed", "message": "broken", "values": trial.values, "space": []}
        if trial.number % 5 == 4:
            result = {"status": "rejected", "message": "large", "values": trial.values, "space": []}
        study.end(trial.number, result)
        ends -= 1
    study.record.close()
    return [(trial.number, trial.values, trial.status, trial.scores) for trial in study.trials.values()]


def test_a_study_has_one_writer(tmp_path):
    study = open_study(tmp_path)
    with pytest.raises(ValueError, match="another process is running the one in"):
        open_study(tmp_path)
    study.record.close()
    open_study(tmp_path).record.close()


@pytest.mark.parametrize("harm", ["missing", "empty"])
def test_a_lost_record_of_a_study_with_trials_is_refused(tmp_path, harm):
    go_on(open_study(tmp_path), 2)
    (tmp_path / "trials" / "000000").mkdir(parents=True)
    path = tmp_path / "record.jsonl"
    path.unlink() if harm == "missing" else path.write_bytes(b"")
    with pytest.raises(ValueError, match="a study with trials needs its record") as caught:
        open_study(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("event", [
    {}, {"kind": 5}, {"kind": "start"}, {"kind": "start", "number": "0", "values": {}}, {"kind": "space", "space": 3},
    {"kind": "start", "number": -1, "values": {}}, {"kind": "start", "number": True, "values": {}},
    {"kind": "end", "number": 9, "values": [1]}, {"kind": "end", "number": 9, "values": {}, "status": "won"},
    {"kind": "end", "number": 9, "values": {}, "status": "completed", "scores": {"score": "1"}},
    {"kind": "end", "number": 9, "values": {}, "status": "completed", "scores": [], "facts": 3}], ids=str)
def test_an_event_of_other_content_is_left_out_whatever_its_checksum(tmp_path, event):
    expected = go_on(open_study(tmp_path / "whole", trials=3))
    go_on(open_study(tmp_path / "study", trials=3), 2)
    with (tmp_path / "study" / "record.jsonl").open("ab") as file:
        file.write(_files.line_of(event))
    with pytest.warns(UserWarning, match=r"line 7 of .* cannot be read and was left out"):
        study = open_study(tmp_path / "study", trials=3)
    assert go_on(study) == expected


# Oracles rebuilt from the record


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_study_that_is_reopened_after_every_trial_takes_the_same_course(tmp_path, algorithm):
    whole = go_on(open_study(tmp_path / "whole", algorithm))
    for _ in range(40):
        found = go_on(open_study(tmp_path / "parts", algorithm), 1)
    assert found == whole
    assert sum(status != "rejected" for _, _, status, _ in whole) == 12
    assert all(("extra" in values) == (values.get("kind") == "b") for _, values, _, _ in whole)      # active ones alone


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_trial_that_was_running_is_the_next_one(tmp_path, algorithm):
    study = open_study(tmp_path, algorithm)
    go_on(study, 3)
    study = open_study(tmp_path, algorithm)
    running = study.next()
    study.record.close()
    study = open_study(tmp_path, algorithm)
    assert study.next().values == running.values
    assert study.running[0].number == running.number == 3
    study.record.close()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_lost_line_does_not_stop_a_study(tmp_path, algorithm):
    """Whatever line is lost, a study goes on to the end; only what the line told is done again."""
    go_on(open_study(tmp_path / "whole", algorithm, trials=8), 7)
    lines = (tmp_path / "whole" / "record.jsonl").read_bytes().splitlines(keepends=True)
    for lost in random.Random(0).sample(range(len(lines)), 3):
        folder = tmp_path / str(lost)
        folder.mkdir()
        (folder / "record.jsonl").write_bytes(b"".join([*lines[:lost], b"#" + lines[lost], *lines[lost + 1:]]))
        with pytest.warns(UserWarning, match="left out"):
            found = go_on(open_study(folder, algorithm, trials=8))
        assert sum(status != "rejected" for _, _, status, _ in found) >= 8
        assert all(status != "running" for _, _, status, _ in found)


@pytest.mark.parametrize(("algorithm", "trials"), [("tpe", 12), ("random", 12), ("bayesian", 3), ("hyperband", 12)])
def test_independent_seeds_share_no_points(tmp_path, algorithm, trials):
    """Of Bayesian search its random ones: those it computes may well be the same bound."""
    points = [{values["late"] for _, values, _, _ in
               go_on(open_study(tmp_path / str(seed), algorithm, trials, seed=seed))} for seed in range(4)]
    for one in range(4):
        for other in range(one):
            assert not points[one] & points[other]


def test_neighboring_seeds_of_keras_tuner_itself_do_share_points():
    """Negative control: what the hash is for."""
    def draws(seed):
        oracle = keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=10, seed=seed, hyperparameters=space())
        oracle._save_trial = oracle.save = lambda *_: None
        oracle.verbose = 0
        return {hp.random_sample(oracle._seed_state + i) for i in range(10) for hp in oracle.hyperparameters.space
                if hp.name == "late"}
    assert len(draws(1) & draws(3)) == 8


def test_the_grid_is_the_whole_grid(tmp_path):
    def small():
        hp = keras_tuner.HyperParameters()
        hp.Choice("a", [1, 2, 3])
        with hp.conditional_scope("a", [2]):
            hp.Choice("b", ["x", "y"])
        hp.Boolean("c")
        return _oracles.space_from(_oracles.space_config(hp))

    study = Study(tmp_path, identity("grid"), {"score": "max"}, max_trials=99, keep_weights=1, space=small)
    seen = []
    while (trial := study.next()) is not None:
        seen.append(tuple(sorted(trial.values.items())))
        study.end(trial.number, {"status": "completed", "scores": {"score": 1.0}, "values": trial.values, "space": []})
    study.record.close()
    assert len(seen) == len(set(seen)) == 2 + 4 + 2
    assert study.exhausted


def test_reading_a_space_leaves_its_config_as_it_is():
    """KerasTuner puts objects in the place of conditions, which no record can hold."""
    hp = keras_tuner.HyperParameters()
    hp.Choice("optimizer", ["sgd", "adam"])
    with hp.conditional_scope("optimizer", ["sgd"]):
        hp.Float("momentum", 0.0, 0.9)
    config = _oracles.space_config(hp)
    text = json.dumps(config)
    again = _oracles.space_from(config)
    assert text.count("Parent") == 1
    assert json.dumps(config) == text
    assert json.dumps(_oracles.space_config(again)) == text


def test_an_exhausted_space_ends_a_random_search(tmp_path):
    def small():
        hp = keras_tuner.HyperParameters()
        hp.Choice("a", [1, 2, 3])
        return _oracles.space_from(_oracles.space_config(hp))

    for algorithm in ("random", "tpe", "bayesian"):
        study = Study(tmp_path / algorithm, identity(algorithm), {"score": "max"}, max_trials=50,
                      keep_weights=1, space=small)
        seen = []
        while (trial := study.next()) is not None:
            seen.append(trial.values["a"])
            study.end(trial.number, {"status": "completed", "scores": {"score": float(seen[-1])},
                                     "values": trial.values, "space": []})
        study.record.close()
        assert sorted(seen) == [1, 2, 3], algorithm


def test_tpe_finds_more_than_chance(tmp_path):
    def best(kind, seed):
        found = go_on(Study(tmp_path / f"{kind}{seed}", identity(kind, seed=seed), {"score": "max"}, max_trials=40,
                            keep_weights=1, space=space))
        return max(scores.get("score", -math.inf) for *_, scores in found)

    assert np.mean([best("tpe", seed) for seed in range(3)]) > np.mean([best("random", seed) for seed in range(3)])


def test_two_objectives_are_told_apart(tmp_path):
    study = open_study(tmp_path, "tpe", trials=30, objectives={"a": "max", "b": "min"})
    while (trial := study.next()) is not None:
        a, b = trial.values["units"] / 64, trial.values["late"]
        study.end(trial.number, {**score(trial.values), "scores": {"a": a, "b": b}})
    study.record.close()
    front = _study.front(list(study.trials.values()), study.objectives)
    assert 1 <= len(front) < 30
    assert [d.name for d in study.oracle.study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_suggested_values_find_their_place_again():
    hp = space()
    for one in hp.space:
        for prob in (0.0, 0.3, 0.999):
            if not _oracles.tunable(one):
                continue
            value = one.prob_to_value(prob)
            place = _oracles.place(one, value)

            class Asked:
                def suggest_float(self, name, low, high, log=False, place=place):
                    return place

                suggest_int = suggest_categorical = lambda self, name, *_, place=place, **__: place

            assert _oracles.suggest(Asked(), one) == pytest.approx(value)


def test_the_private_names_of_keras_tuner_are_there():
    oracle = keras_tuner.oracles.BayesianOptimizationOracle("val_loss", seed=1)
    for name in ("_seed_state", "_record_values", "_random_values", "_duplicate", "_save_trial", "_random_state"):
        assert hasattr(oracle, name)
    assert hasattr(keras_tuner.oracles.GridSearchOracle("val_loss"), "_ordered_ids")
    assert hasattr(keras_tuner.oracles.HyperbandOracle("val_loss"), "_brackets")


# Leases, in logical time


class Clock:
    now = 0.

    def __call__(self):
        return self.now


@pytest.fixture
def chief(tmp_path):
    study = open_study(tmp_path, trials=3)
    yield _service.Chief(study, "secret", lease=10, clock=Clock())
    study.record.close()


def call(chief, what, worker, **given):
    request = {"what": what, "worker": worker, "study": 0, "token": "secret", **given}
    return json.loads(chief.reply(json.dumps(request).encode()))


def finish(chief, worker, job):
    call(chief, "tell", worker, number=job["number"], result=score(job["values"]))


def test_two_workers_do_a_study_between_them(chief):
    first, second = call(chief, "ask", "a")["job"], call(chief, "ask", "b")["job"]
    assert [first["number"], second["number"]] == [0, 1]
    assert call(chief, "ask", "a")["job"] == {**first, "space": call(chief, "ask", "a")["job"]["space"]}
    finish(chief, "a", first)
    third = call(chief, "ask", "a")["job"]
    finish(chief, "a", third)
    assert call(chief, "ask", "a") == {"wait": True}                 # b might still die
    assert not chief.over()
    finish(chief, "b", second)
    assert call(chief, "ask", "a") == call(chief, "ask", "b") == {"stop": True}
    assert chief.over()
    assert [trial.status for trial in chief.study.trials.values()] == ["completed"] * 3


def test_the_trial_of_a_silent_worker_goes_to_the_next(chief):
    job = call(chief, "ask", "dies")["job"]
    chief.clock.now = 9
    assert call(chief, "ask", "b")["job"]["number"] == 1             # the lease still runs
    chief.clock.now = 11
    assert call(chief, "beat", "b", number=1) == {"yours": True}
    finish(chief, "b", {"number": 1, "values": chief.study.trials[1].values})
    taken = call(chief, "ask", "b")["job"]
    assert (taken["number"], taken["values"]) == (0, job["values"])
    assert call(chief, "beat", "dies", number=0) == {"yours": False}
    finish(chief, "dies", job)                                        # too late: nothing is told twice
    assert chief.study.trials[0].status == "running"
    finish(chief, "b", taken)
    finish(chief, "b", call(chief, "ask", "b")["job"])
    assert call(chief, "ask", "b") == {"stop": True}
    assert not chief.over()                                           # "dies" spoke a moment ago, it may ask
    chief.clock.now = 30
    assert chief.over()


def test_a_worker_that_beats_keeps_its_trial(chief):
    call(chief, "ask", "a")
    for now in range(0, 100, 9):
        chief.clock.now = now
        assert call(chief, "beat", "a", number=0) == {"yours": True}
        assert not chief.expired()


def test_a_trial_that_kills_three_workers_has_failed(chief):
    for n in range(3):
        assert call(chief, "ask", f"w{n}")["job"]["number"] == 0
        chief.clock.now += 11
    assert call(chief, "ask", "w4")["job"]["number"] == 1
    assert chief.study.trials[0].status == "failed"
    assert "three workers" in chief.study.trials[0].message


def test_a_chief_without_workers_ends(chief):
    chief.clock.now = _service.START - 1
    assert not chief.over()
    call(chief, "ask", "a")
    chief.clock.now += _service.PATIENCE - 1
    assert not chief.over()
    chief.clock.now += 2
    with pytest.raises(RuntimeError, match="a search needs a worker, and none has been heard of"):
        chief.over()


@pytest.mark.parametrize(("change", "reason"), [
    ({"study": 5}, "another seed"), ({"token": "guess"}, "the token"), ({"token": None}, "the token"),
    ({"token": ""}, "the token"), ({"what": "drop"}, "no method 'drop'"), ({"what": "reply"}, "no method 'reply'"),
    ({"what": "__init__"}, "no method"), ({"what": ["ask"]}, "no method"), ({"more": 1}, "no method"),
    ({"worker": 7}, "a worker's name"), ({"worker": "x" * 300}, "a worker's name"),
    ({"what": "beat"}, "no method"), ({"what": "beat", "number": 99}, "no trial 99"),
    ({"what": "beat", "number": True}, "no trial True"), ({"what": "beat", "number": "0"}, "no trial '0'"),
    ({"what": "tell", "number": 0, "result": 5}, "other fields"),
    ({"what": "tell", "number": 0, "result": {"status": "completed", "owner": "me"}}, "other fields"),
    ({"what": "tell", "number": 0, "result": {"status": "won"}}, "a status is one of"),
    ({"what": "tell", "number": 0, "result": {"status": "completed", "scores": {}}}, "scores are those of score"),
    ({"what": "tell", "number": 0, "result": {"status": "completed", "scores": {"score": "9"}}}, "scores are numbers"),
    ({"what": "tell", "number": 0, "result": {"status": "failed", "space": [{"class_name": "os"}]}}, "a space is"),
    ({"what": "halt", "reason": 1}, "a reason"),
], ids=str)
def test_a_bad_call_is_refused_and_changes_nothing(chief, change, reason):
    job = call(chief, "ask", "a")["job"]
    assert reason in call(chief, **{"what": "ask", "worker": "stranger", **change})["refused"]
    assert chief.error is None
    assert list(chief.seen) == ["a"]
    finish(chief, "a", job)
    assert chief.study.trials[0].status == "completed"


@pytest.mark.parametrize("request_", [b"", b"\xff\xfe", b"[]", b"3", b"{}", b"null", b"[" * 100_000,
                                      b'{"token": NaN, "study": 0, "what": "ask", "worker": "a"}'])
def test_noise_is_refused(chief, request_):
    assert "a call is a JSON object" in json.loads(chief.reply(request_))["refused"]
    assert chief.error is None


def test_a_worker_without_room_stops_the_search(chief):
    call(chief, "ask", "a")
    call(chief, "halt", "a", reason="the disk is full")
    assert "the disk is full" in call(chief, "ask", "b")["refused"]
    with pytest.raises(OSError, match="a: the disk is full"):
        _service.wait_for_workers(chief)
    assert chief.study.trials[0].status == "running"


def test_the_token_is_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(_service.TOKEN, raising=False)
    assert _service.token_in(tmp_path) == ""
    with _service.token_file(tmp_path) as token:
        assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
        assert _service.token_in(tmp_path) == token
        assert len(token) >= 32
    assert not (tmp_path / "token").exists()
    with _service.token_file(tmp_path) as other:
        assert other != token
    monkeypatch.setenv(_service.TOKEN, "given")
    with _service.token_file(tmp_path) as given:
        assert given == _service.token_in("nowhere") == "given"


def test_a_worker_stops_by_itself_when_the_chief_is_gone():
    clock = Clock()

    class Gone:
        def call(self, *_, **__):
            raise ConnectionError

    heart = _service.Heartbeat(Gone(), 0, lease=10, clock=clock)
    clock.now = 9
    heart.beat()
    heart.check()
    clock.now = 10.5
    with pytest.raises(_service.LostError):
        heart.check()


def test_workers_and_strangers_call_a_chief(tmp_path):
    study, tokens = open_study(tmp_path, trials=2), iter(["of an earlier chief"])
    chief = _service.Chief(study, "secret")
    with _service.serving(chief, "127.0.0.1:0") as port:
        address = f"127.0.0.1:{port}"
        with pytest.raises(ConnectionError, match="another seed"):
            _service.Client(address, "b", 1, lambda: "secret").call("ask", timeout=10)
        with pytest.raises(ConnectionError, match="the token is not the one this chief made"):
            _service.Client(address, "c", 0, lambda: "guess").call("ask", timeout=10)
        client = _service.Client(address, "a", 0, lambda: next(tokens, "secret"))
        _service.work(client, lambda job, alive: score(job["values"]))
        with pytest.raises(RuntimeError, match="free port"), _service.serving(chief, address):
            pass
    study.record.close()
    assert [trial.status for trial in study.trials.values()] == ["completed"] * 2


@pytest.mark.parametrize("missing", ["KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_PORT"])
def test_half_an_environment_is_refused(monkeypatch, missing):
    for name, value in (("KERASTUNER_TUNER_ID", "chief"), ("KERASTUNER_ORACLE_IP", "10.0.0.1"),
                        ("KERASTUNER_ORACLE_PORT", "1234")):
        monkeypatch.setenv(name, value)
    assert _service.role() == ("chief", "10.0.0.1:1234")
    monkeypatch.delenv("KERASTUNER_ORACLE_IP")
    assert _service.role() == ("chief", "127.0.0.1:1234")            # this machine alone, unless told otherwise
    monkeypatch.delenv(missing)
    with pytest.raises(ValueError, match="a distributed search needs KERASTUNER_TUNER_ID"):
        _service.role()


def test_folders_of_nobody_are_left_alone(tmp_path):
    pathlib.Path(tmp_path / "trials" / "notes").mkdir(parents=True)
    (tmp_path / "record.jsonl").write_bytes(_files.line_of({"kind": "study", **identity()}))
    open_study(tmp_path).record.close()
    assert (tmp_path / "trials" / "notes").is_dir()
