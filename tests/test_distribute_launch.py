"""The launcher: who starts, what is printed, who ends whom. The scripts load no TensorFlow, so this costs little."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tfopt.distribute import _launch

LAUNCH = [sys.executable, "-P", "-m", "tfopt.distribute"]
WAIT = "time.sleep(300)"                                          # ended long before, or the test fails


@pytest.fixture
def launch(tmp_path):
    """Starts the launcher on a script; each process first notes its id in a file.

    It hears Ctrl-C, also where the tests run in the background, whose processes begin deaf to it.
    """

    def start(script, *options, arguments=()):
        path = tmp_path / "script.py"
        path.write_text("import json, os, pathlib, signal, sys, time\n"
                        "pathlib.Path(__file__).with_name(f'{os.getpid()}.pid').touch()\n"
                        "me = json.loads(os.environ.get('TF_CONFIG', 'null'))\n"
                        "me = me and me['task']['index']\n"
                        "tuner = os.environ.get('KERASTUNER_TUNER_ID')\n"
                        "def wait_for(name):\n    while not os.path.exists(name): time.sleep(0.01)\n" + script)
        return subprocess.Popen([*LAUNCH, *options, str(path), *arguments], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, cwd=tmp_path,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    yield start
    for path in tmp_path.glob("*.pid"):
        assert not running(int(path.stem)), "a process was left"


def running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def finish(started):
    out, err = started.communicate(timeout=120)
    return started.returncode, sorted(out.splitlines()), err


def test_workers_learn_who_they_are(launch):
    code, out, err = finish(launch("print(json.dumps(json.loads(os.environ['TF_CONFIG'])), *sys.argv[1:])",
                                   "--workers", "3", arguments=["--epochs", "5"]))
    assert code == 0, err
    seen = [line.partition("] ") for line in out]
    assert [name for name, *_ in seen] == ["[worker 0", "[worker 1", "[worker 2"]
    configs = [json.loads(text.removesuffix(" --epochs 5")) for *_, text in seen]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(3)]
    addresses = configs[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    assert all(config["cluster"] == {"worker": addresses} for config in configs)


def test_one_that_fails_ends_all(launch):
    script = ("if me == 1: wait_for('told'); raise ValueError('no data')\n"
              "if me == 0: print('hello', file=sys.stderr, flush=True); open('told', 'w')\n")
    code, _, err = finish(launch(script + WAIT, "--workers", "3"))
    assert code == 1
    assert "[worker 0] hello" in err.splitlines()
    last = err.splitlines()[-1]
    assert last == ("tfopt.distribute: worker 1 ended with exit code 1: ValueError: no data. "
                    "The other workers were ended with it.")


@pytest.mark.parametrize(("death", "code", "told"), [
    ("sys.exit(7)", 7, "worker 1 ended with exit code 7."),
    ("os.kill(os.getpid(), signal.SIGKILL)", 137, "worker 1 was ended by SIGKILL.")])
def test_its_exit_code_is_theirs(launch, death, code, told):
    seen, _, err = finish(launch(f"if me == 1: {death}\n{WAIT}", "--workers", "2"))
    assert seen == code
    assert told in err


@pytest.mark.parametrize(("addresses", "told"), [(["10.0.0.7"], "here also 10.0.0.7"), ([], "")])
def test_it_warns_of_servers_that_others_reach(monkeypatch, capsys, addresses, told):
    monkeypatch.setattr(_launch, "_addresses", lambda: addresses)
    monkeypatch.setattr(_launch, "_train", lambda count, command: 0)
    monkeypatch.setattr(_launch.signal, "signal", lambda *_: None)
    assert _launch.main(["--workers", "2", "train.py"]) == 0
    err = capsys.readouterr().err
    assert told in err
    assert ("reads and writes files as you" in err) == bool(addresses)


def test_the_addresses_are_those_of_this_machine():
    for address in _launch._addresses():
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))                                       # no other machine's could be bound
        assert not address.startswith("127.")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all(launch, number, code):
    """The workers swallow it, as TensorFlow's servers do."""
    started = launch(f"signal.signal({int(number)}, signal.SIG_IGN)\nprint('ready')\n{WAIT}", "--workers", "2")
    assert {started.stdout.readline() for _ in range(2)} == {"[worker 0] ready\n", "[worker 1] ready\n"}
    started.send_signal(number)
    assert finish(started)[0] == code


def test_a_search_goes_on_while_a_worker_is_left(launch):
    script = ("print(tuner, os.environ['KERASTUNER_ORACLE_IP'], os.environ['KERASTUNER_ORACLE_PORT'].isdecimal(), me)\n"
              "if tuner == 'tuner0': open(f'gone {os.getpid()}', 'w'); sys.exit(9)\n"
              "if tuner == 'chief': wait_for('found'); sys.exit()\n"
              "while not (gone := list(pathlib.Path().glob('gone *'))): time.sleep(0.01)\n"
              "place = f'/proc/{gone[0].name.split()[1]}'\n"
              "while os.path.exists(place): time.sleep(0.01)\n"
              "time.sleep(0.2); open('found', 'w')\n")
    code, out, err = finish(launch(script, "--search", "2"))
    assert code == 0
    assert out == [f"[{name}] {name} 127.0.0.1 True None" for name in ("chief", "tuner0", "tuner1")]
    assert "tuner0 ended with exit code 9. 1 of 2 workers go on." in err


@pytest.mark.parametrize(("script", "code", "told"), [
    (f"if tuner != 'chief': sys.exit(4)\n{WAIT}", 4, "No worker is left"),
    (f"if tuner == 'chief': sys.exit(3)\n{WAIT}", 3, "chief ended with exit code 3.")])
def test_a_search_that_cannot_go_on_ends(launch, script, code, told):
    seen, _, err = finish(launch(script, "--search", "2"))
    assert seen == code
    assert told in err


def test_hosts_are_told_what_to_run(capsys):
    assert _launch.main(["--hosts", "a,b:3000", "train.py", "--name", "two words"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0::2] == ["# on a", "# on b:3000"]
    for index, line in enumerate(lines[1::2]):
        environment, command = line.split(" python ")
        assert command == "train.py --name 'two words'"
        assert json.loads(environment.removeprefix("TF_CONFIG=").strip("'")) == {
            "cluster": {"worker": ["a:2222", "b:3000"]}, "task": {"type": "worker", "index": index}}


@pytest.mark.parametrize(("arguments", "told"), [
    (["--workers", "0", "x.py"], "must be a whole number >= 1. Received: '0'."),
    (["--workers", "two", "x.py"], "must be a whole number >= 1. Received: 'two'."),
    (["--hosts", "a,,b", "x.py"], "must be different names"), (["--hosts", "a,a", "x.py"], "must be different names"),
    (["x.py"], "one of the arguments"), (["--workers", "2", "--search", "2", "x.py"], "not allowed with")])
def test_the_command_line_is_checked(capsys, arguments, told):
    with pytest.raises(SystemExit):
        _launch.main(arguments)
    assert told in capsys.readouterr().err


def test_the_launcher_loads_no_tensorflow():
    program = "import sys, tfopt.distribute._launch; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
