"""What comes from others: calls over the network, paths in files, images that are bombs."""

import json
import os
import pathlib
import socket
import stat
import subprocess
import sys

import keras
import numpy as np
import test_tune_record as record
from PIL import Image

from tfopt import callbacks, data, distill, distribute, tune
from tfopt.callbacks._states import Folder
from tfopt.distribute import _launch
from tfopt.tune import _service
from tfopt.tune._checkpoint import Checkpoint

from . import fault, said

PROGRAMS = pathlib.Path(distribute.__file__).parents[2]
WON = {"status": "completed", "scores": {"score": -1e9}, "values": {}, "space": []}


def attacked(folder, calls):
    """Makes each call to a chief of a running search, then lets its worker finish: (sentence, what was kept).

    A call is (token, seed, method, arguments).
    """
    study = record.open_study(folder / "study", trials=3, objectives={"score": "min"})
    chief = _service.Chief(study, "secret")
    with _service.serving(chief, "127.0.0.1:0") as port:
        def client(name, token, seed=0):
            return _service.Client(f"127.0.0.1:{port}", name, seed, lambda: token)

        owner = client("owner", "secret")
        job = owner.call("ask", timeout=10)["job"]
        for token, seed, method, arguments in calls:
            text, _ = said(client("stranger", token, seed).call, method, timeout=10, **arguments)
            running = study.trials[job["number"]]
            yield text, {"the running trial": running.status == "running" and not running.scores,
                         "the search": chief.error is None, "the list of workers": list(chief.seen) == ["owner"]}
        _service.work(owner, lambda job, alive: record.score(job["values"]))
    study.record.close()
    scores = [trial.scores["score"] for trial in study.trials.values()]
    yield "(afterwards its own worker finishes the search)", {
        "the search": len(scores) == 3, "the scores": min(scores) > -10}


@fault("stranger", "tune", "reports a score of -1e9 to the chief of a search, without its token")
def wrong_token(folder):
    yield from attacked(folder, [(token, 0, "tell", {"number": 0, "result": WON})
                                 for token in ("", "guess", "0", "secre", "secret ")])


@fault("stranger", "tune", "takes trials from the chief, knowing the seed alone")
def takes_trials(folder):
    yield from attacked(folder, [(token, seed, "ask", {}) for token in ("", "0") for seed in (0, 1)])


@fault("stranger", "tune", "calls methods that there are not, with the token")
def unknown_method(folder):
    yield from attacked(folder, [("secret", 0, method, {}) for method in
                                 ("drop", "__init__", "reply", "expired", "over", "tell", "")])


@fault("stranger", "tune", "reports results that are none, with the token")
def bad_results(folder):
    results = [5, {}, {"status": "won"}, {"status": "completed", "scores": {}},
               {"status": "completed", "scores": {"score": "-1e9"}}, {"status": "completed", "scores": {"score": None}},
               {"status": "completed", "scores": {"score": float("nan")}}, {**WON, "owner": "me"},
               {"status": "failed", "space": [{"class_name": "os"}]}]
    yield from attacked(folder, [("secret", 0, "tell", {"number": 0, "result": result}) for result in results])


@fault("stranger", "tune", "reaches for the chief's port from another address of the machine")
def other_address(folder):
    study = record.open_study(folder / "study", trials=1)
    with _service.serving(_service.Chief(study, "secret"), "127.0.0.1:0") as port:
        for address in [*_launch._addresses(), "127.0.0.2"]:
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as line:
                line.settimeout(2)
                refused = line.connect_ex((address, port)) != 0
            yield "(no connection: the chief listens at 127.0.0.1 alone)", {"the port": refused}
    study.record.close()


@fault("stranger", "tune", "reads the file of the token as another user")
def token_file(folder):
    for mask in (0o022, 0o000, 0o077):
        before = os.umask(mask)
        try:
            with _service.token_file(folder) as token:
                mode = stat.S_IMODE((folder / "token").stat().st_mode)
        finally:
            os.umask(before)
        yield "(mode 0600 under each umask; gone with the search)", {
            "the token": mode == 0o600 and len(token) >= 32, "its end": not (folder / "token").exists()}


@fault("stranger", "tune", "best.json of a study names a file outside")
def note_outside(folder):
    outside = folder / "mine.weights.h5"
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    for name in ("../../../mine.weights.h5", str(outside), "../../mine.weights.h5"):
        outside.write_text("mine")
        checkpoint = Checkpoint(folder / "study" / "trials" / "0", "trial 0")
        said(checkpoint.open, {})
        checkpoint._write({"values": {}, "file": name, "sha256": "0" * 64, "logs": {"loss": 1.}})
        for act in (lambda: checkpoint.save(model, 0, {}, {}), checkpoint.read):  # noqa: B023
            text, _ = said(act)
            yield text, {"the file outside": outside.read_text() == "mine"}


@fault("stranger", "callbacks", "state.json of Resume sets where ModelCheckpoint writes")
def state_outside(folder):
    outside, states = folder / "outside.keras", folder / "states"

    def train(epochs):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        mine = keras.callbacks.ModelCheckpoint(folder / "mine.keras")
        model.fit(np.ones((8, 2)), np.ones((8, 1)), epochs=epochs, verbose=0,
                  callbacks=[mine, callbacks.Resume(states)])

    train(1)
    for name, value in (("filepath", str(outside)), ("on_epoch_end", 1), ("_model", 1), ("__class__", 1)):
        store = Folder(states, 1)
        state, arrays = store.read(store.numbers()[0])
        forged = [["ModelCheckpoint", {name: value}]]
        own = [entry for entry in state["callbacks"] if entry[0] != "ModelCheckpoint"]
        store.write({**state, "callbacks": [*own, *forged]}, arrays)          # with sound checksums
        text, _ = said(train, 3)
        yield text, {"the path of the callback": not outside.exists()}


@fault("stranger", "distribute", "reaches TensorFlow's servers, which listen on all interfaces")
def servers(folder):
    (folder / "script.py").write_text("")
    done = subprocess.run([sys.executable, "-P", "-m", "tfopt.distribute", "--workers", "1", folder / "script.py"],
                          capture_output=True, text=True, check=True, cwd=PROGRAMS)
    warned = "reads and writes files as you" in done.stderr
    text = next((line for line in done.stderr.splitlines() if "listen on all interfaces" in line), "")
    page = (PROGRAMS / "docs" / "distribute.md").read_text()
    yield text or "(no warning: this machine has no other address)", {
        "the warning": warned == bool(_launch._addresses()), "the box in the page": '!!! danger "Security' in page}


# Images


def pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (9, 99, 200)).save(folder / name)


def loaded(path, **options):
    return data.image_folder(path, 8, 2, shuffle=False, cache=None, **options)


@fault("stranger", "data", "a CSV of images names files outside its folder: `../`, absolute, through a link")
def csv_outside(folder):
    pictures(folder, "secret.png", "lists/b.png")
    (folder / "lists" / "link").symlink_to(folder)
    for name in ("sub/../../secret.png", str(folder / "secret.png"), "link/secret.png", "../secret.png"):
        (folder / "lists" / "labels.csv").write_text(f"file,label\n{name},x\nb.png,y\n")
        for read in (loaded, data.scan_images):
            text, found = said(read, folder / "lists" / "labels.csv")
            yield text, {"the file outside": found is None}
    allowed = loaded(folder / "lists" / "labels.csv", root=folder).file_paths
    yield "(with `root` it is read)", {"what is allowed": len(allowed) == 2}


@fault("stranger", "data", "a class folder is a link, also in a circle")
def linked_class(folder):
    pictures(folder, "photos/cat/1.png", "elsewhere/1.png")
    (folder / "photos" / "dog").symlink_to(folder / "elsewhere")
    (folder / "elsewhere" / "circle").symlink_to(folder / "photos")
    (folder / "photos" / "self").symlink_to(folder / "photos")
    _, found = said(loaded, folder / "photos")
    theirs = keras.utils.image_dataset_from_directory(folder / "photos", image_size=(8, 8), verbose=False)
    yield "(read as Keras reads it)", {"the classes": found.class_names == theirs.class_names,
                                       "its image": any("/dog/1.png" in path for path in found.file_paths)}


@fault("stranger", "data", "a class folder is empty")
def empty_class(folder):
    pictures(folder, "photos/cat/1.png", "photos/dog/1.png")
    (folder / "photos" / "emu").mkdir()
    text, found = said(loaded, folder / "photos")
    yield text, {"the classes": found.class_names == ["cat", "dog", "emu"], "its name": "emu" in text}
    report = data.scan_images(folder / "photos")
    yield str(report), {"its name": report.empty == ["emu"]}


@fault("stranger", "data", "an image is a bomb: 400 million pixels in 50 kB")
def bomb(folder):
    pictures(folder, "photos/cat/1.png", "photos/dog/1.png")
    for name, form in (("bomb.png", "PNG"), ("bomb.gif", "GIF"), ("bomb.jpg", "PNG")):
        path = folder / "photos" / "dog" / name
        Image.new("1", (20000, 20000)).save(path, format=form)
        text, found = said(loaded, folder / "photos")
        _, rest = said(loaded, folder / "photos", on_error="skip")
        yield text, {"the memory": found is None and name in text, "the other images": len(rest.file_paths) == 2}
        path.unlink()


@fault("stranger", "data", "pipes, devices and folders among the images: they once were read for ever")
def no_files(folder):
    pictures(folder, "photos/cat/1.png", "photos/dog/1.png")
    os.mkfifo(folder / "photos" / "cat" / "pipe.png")
    (folder / "photos" / "cat" / "zeros.png").symlink_to("/dev/zero")
    (folder / "photos" / "cat" / "inner.png").mkdir()
    report = data.scan_images(folder / "photos")
    yield str(report), {"their names": sorted(report.bad) == ["cat/pipe.png", "cat/zeros.png"]}
    text, found = said(loaded, folder / "photos", on_error="skip")
    yield text, {"the other images": len(found.file_paths) == 2}


@fault("stranger", "data", "a CSV of images is damaged: empty, not UTF-8, ragged, without names, infinite labels")
def damaged_csv(folder):
    pictures(folder, "b.png")
    for text in (b"", b"\xff\xfea\0,\0b\0", b'file,label\n"b.png,1\n', b"file,label\nb.png,1,2,3\n", b"a\nb,c\nd,e,f\n",
                 b"file,label\n,1\nb.png,2\n", b"file,label\nb.png,inf\n", b"file,label\nb.png,18446744073709551615\n"):
        (folder / "labels.csv").write_bytes(text)
        told, found = said(loaded, folder / "labels.csv")
        yield told, {"a false label": found is None}


@fault("stranger", "distill", "an index of cached outputs with a sound checksum, of other types and paths")
def hostile_index(folder):
    teacher, x = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), np.ones((20, 4), "float32")
    path = folder / "outputs" / "index.json"

    def use():
        made = distill.cache_teacher(teacher, x, directory=folder / "outputs", verbose=0)
        return [part.numpy() for batch in made for part in keras.tree.flatten(batch)]

    expected, held = use(), json.loads(path.read_text())
    content = held["content"]
    shard = next(iter(content["shards"].values()))
    for other in ([1], {}, {"made_from": [1], "shards": [1]}, {**content, "shards": {"view-000-shard-00000": 3}},
                  {**content, "shards": {**content["shards"], "../../x": shard}}):
        record._files.write_json(path, other, kind=held["kind"], version=held["version"])
        text, found = said(use)
        yield text, {"the outputs": all(map(np.array_equal, found, expected)), "what is outside": not (
            folder.parent / "x.npy").exists()}


@fault("stranger", "tune", "a search begun with a record of hostile lines: deep nesting, huge numbers, other types")
def hostile_record(folder):
    lines = [b"[" * 100_000 + b"\n", b'{"event":{"kind":"end","number":1e999},"sum":"0"}\n', b'{"event":5}\n',
             b'{"event":' + b'{"a":' * 5000 + b"1" + b"}" * 5001 + b"\n", b"9" * 10_000 + b"\n"]
    for line in lines:
        path = folder / "study" / "record.jsonl"
        record.go_on(record.open_study(folder / "study", trials=2), 2)
        path.write_bytes(path.read_bytes() + line)
        text, frame = said(lambda: tune.Search(lambda hp: None, ("score", "max"), algorithm="random", max_trials=2,
                                               directory=folder / "study").frame)
        yield text, {"the trials": len(frame) == 2}
        path.unlink()
