"""Programs that people copy (tests/programs.py), each put through every piece of the library.

    python benchmarks/verify/programs.py [program ...]

Each cell is checked against the model that the program made: outputs by numpy, files by the LiteRT interpreter. Writes
docs/measured/programs.csv, a row a program and a column a piece: "ok", "refused" (in one sentence; programs_why.csv has
it), "wrong" or "raised".
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import traceback
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

PROJECT = pathlib.Path(__file__).parents[2]
MEASURED = PROJECT / "docs" / "measured"
sys.path.insert(0, str(PROJECT / "tests"))

import programs  # noqa: E402

import tfopt  # noqa: E402
from tfopt import (  # noqa: E402
    augment,
    average,
    callbacks,
    cluster,
    compress,
    distill,
    distribute,
    prune,
    quantize,
    regularizers,
    report,
    schedules,
    shrink,
)


class WrongError(Exception):
    """A result that is not what the user's model says it must be."""


def arrays(nested):
    return [np.asarray(part, "float64") for part in keras.tree.flatten(nested)]


def outputs(model, x):
    return arrays(model(keras.tree.map_structure(tf.convert_to_tensor, x), training=False))


def one_by_one(model, x):
    """The outputs for the first samples, each alone: those of some models depend on the batch."""
    found = [outputs(model, keras.tree.map_structure(lambda part, row=row: part[row:row + 1], x)) for row in range(8)]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def near(found, expected, share, what, steps=None):
    """Refuses outputs that lie further apart than `share` of the range of what is expected, or two of their `steps`."""
    if len(found) != len(expected):
        raise WrongError(f"{what}: {len(found)} outputs instead of {len(expected)}")
    for a, b, step in zip(found, expected, steps or [0.0] * len(found), strict=True):
        gap, reach = np.abs(a.reshape(b.shape) - b).max(), max(np.ptp(b), 1e-3)
        if not gap <= max(share * reach, 2 * step):
            raise WrongError(f"{what}: {gap / reach:.2g} of the range apart")


def compiled(model, of):
    """`model` with the loss and metrics of a program, and an optimizer of its own."""
    config = of.model._compile_config.config if hasattr(of.model, "_compile_config") else {}
    loss, weights = config.get("loss"), config.get("loss_weights")
    model.compile(keras.optimizers.Adam(1e-3), loss, **({"loss_weights": weights} if weights else {}))
    return model


def fitted(model, of, epochs=1, **options):
    compiled(model, of).fit(of.x, of.y, batch_size=16, epochs=epochs, verbose=0, **options)
    return model


def pair(p):
    return p.x if p.y is None else (p.x, p.y)


def in_interpreter(lite, p, model):
    """The outputs of a file, one sample at a time, by the interpreter itself."""
    interpreter = Interpreter(model_content=lite.content)
    interpreter.allocate_tensors()
    details, flat = interpreter.get_input_details(), [np.asarray(part) for part in keras.tree.flatten(p.x)]
    names = [x.name for x in model.inputs] if getattr(model, "inputs", None) else [""]
    found = []
    for row in range(8):
        for detail in details:
            place = names.index(detail["name"]) if detail["name"] in names else details.index(detail)
            value, (scale, zero) = flat[place][row:row + 1], detail["quantization"]
            value = np.repeat(value, detail["shape"][0], axis=0)
            if scale:
                limits = np.iinfo(detail["dtype"])
                value = np.clip(np.round(value / scale + zero), limits.min, limits.max)
            interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
        interpreter.invoke()
        parts = []
        for detail in interpreter.get_output_details():
            value, (scale, zero) = interpreter.get_tensor(detail["index"])[:1].astype("float64"), detail["quantization"]
            parts.append((value - zero) * scale if scale else value)
        found.append(parts)
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def output_steps(lite):
    """What one integer of each output stands for; 0 where the file's output is in float."""
    return [detail["quantization"][0] for detail in Interpreter(model_content=lite.content).get_output_details()]


def same_file(lite, p, model, share, what):
    """The file's outputs are the model's, whatever the order its outputs are listed in."""
    found, expected = in_interpreter(lite, p, model), one_by_one(model, p.x)
    order = sorted(range(len(found)), key=lambda i: (found[i].size, i))
    found, steps = [found[i] for i in order], output_steps(lite)
    places = sorted(range(len(expected)), key=lambda i: (expected[i].size, i))
    in_model = dict(zip(places, (steps[i] for i in order), strict=False))
    expected = [expected[i] for i in places]
    near(found, expected, share, f"{what} in the interpreter", [steps[i] for i in order])
    near(arrays(lite.predict(keras.tree.map_structure(lambda part: np.asarray(part)[:8], p.x))),
         one_by_one(model, p.x), share, f"{what}.predict", [in_model[i] for i in sorted(in_model)])


def reloaded(model, p):
    """The model as it comes back from disk; itself where Keras cannot save or load the program's own."""
    try:
        saved_and_loaded(p.model)
    except (TypeError, NotImplementedError):               # no **kwargs, no get_config
        return model
    return saved_and_loaded(model)


def saved_and_loaded(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        with keras.saving.custom_object_scope({name: part for name, part in vars(programs).items()
                                               if isinstance(part, type)}):
            return keras.models.load_model(f"{folder}/model.keras", compile=False, safe_mode=False)


# The pieces


def table(p):
    rows = report.compare({"model": p.model}, pair(p)).frame
    if int(rows["parameters"].iloc[0]) != p.model.count_params():
        raise WrongError(f"parameters: {rows['parameters'].iloc[0]} instead of {p.model.count_params()}")


def convert_float(p):
    same_file(quantize.convert(p.model, "float32", calibration=p.x), p, p.model, 1e-3, "float32")


def convert_dynamic(p):
    same_file(quantize.convert(p.model, "dynamic", calibration=p.x), p, p.model, 0.2, "dynamic")


def convert_int8(p):
    same_file(quantize.convert(p.model, "int8", calibration=p.x), p, p.model, 0.4, "int8")


def penalty(p):
    new = regularizers.add(p.model, keras.regularizers.L2(1e-2))
    near(outputs(new, p.x), outputs(p.model, p.x), 1e-5, "add")
    outputs(new, p.x)
    if not sum(float(loss) for loss in new.losses) > 0:
        raise WrongError("add: there is no penalty")
    fitted(new, p)


def ensemble(p):
    near(outputs(average.outputs([p.model, p.model]), p.x), outputs(p.model, p.x), 1e-5, "outputs")


def soup(p):
    near(outputs(average.weights([p.model, p.model]), p.x), outputs(p.model, p.x), 1e-5, "weights")


def swa(p):
    p.model.fit(p.x, p.y, batch_size=16, epochs=2, verbose=0, callbacks=[average.SWA(0, 1, data=p.x)])


def kernels(model, plan):
    """The arrays of a plan's selected layers with at least two axes."""
    chosen = set(plan["layer"][plan["status"] == "selected"])
    return [np.asarray(weight) for weight in model.trainable_weights if len(weight.shape) > 1
            and any(weight.path.split("/")[0] == name.split("/")[0] for name in chosen)]


def pruned(p):
    new = prune.wrap(p.model, 0.5, end=4)
    near(outputs(new, p.x), outputs(p.model, p.x), 1e-4, "wrap")
    fitted(new, p, epochs=3)
    near(outputs(reloaded(new, p), p.x), outputs(new, p.x), 1e-4, "reload")
    plain = prune.strip(new)
    near(outputs(plain, p.x), outputs(new, p.x), 0.2, "strip")
    shares = prune.sparsities(new).values()
    if not shares or sorted(shares)[len(shares) // 2] < 0.45:       # of a kernel of one weight nothing is left to prune
        raise WrongError(f"prune: shares of zeros {sorted(shares)[:3]}")
    zeros = sum(int((np.asarray(weight) == 0).sum()) for weight in plain.weights if len(weight.shape) > 1)
    if zeros < 0.3 * sum(np.asarray(weight).size for weight in plain.trainable_weights if len(weight.shape) > 1):
        raise WrongError(f"prune: {zeros} zeros in all")


def clustered(p):
    new = cluster.wrap(p.model, 8)
    fitted(new, p)
    near(outputs(reloaded(new, p), p.x), outputs(new, p.x), 1e-4, "reload")
    plain = cluster.strip(new)
    near(outputs(plain, p.x), outputs(new, p.x), 1e-4, "strip")
    done = cluster.plan(p.model, 8)
    counts = [np.unique(np.asarray(weight)).size for weight in plain.weights if len(weight.shape) > 1]
    if sum(count <= 8 for count in counts) < (done["status"] == "selected").sum():
        raise WrongError(f"cluster: values in kernels {counts}")


def trained_in_8_bits(p):
    new = quantize.calibrate(quantize.wrap(p.model), p.x)
    near(outputs(new, p.x), outputs(p.model, p.x), 0.3, "wrap")
    fitted(new, p)
    near(outputs(reloaded(new, p), p.x), outputs(new, p.x), 1e-3, "reload")
    same_file(quantize.convert(new, calibration=p.x), p, new, 0.15, "file")


def shrunk(p):
    new = shrink.channels(p.model, 0.5, round_to=4, data=p.x)
    if not new.count_params() < p.model.count_params():
        raise WrongError("shrink: nothing was removed")
    fitted(new, p)
    near(outputs(reloaded(new, p), p.x), outputs(new, p.x), 1e-4, "reload")


def student_of(p):
    return programs.make(p.name).model


def teacher_loss(p):
    if p.task != "classes":
        return distill.Values()
    binary = outputs(p.model, p.x)[0].shape[-1] == 1
    return distill.Logits(activation="sigmoid") if binary else distill.Logits(temperature=2.0)


def distilled(p):
    fitted(distill.Distiller(p.model, student_of(p), teacher_loss(p)), p)


def distilled_from_cache(p):
    cached = distill.cache_teacher(p.model, pair(p), batch_size=16, verbose=0)
    compiled(distill.Distiller(None, student_of(p), teacher_loss(p)), p).fit(cached, verbose=0)


def resumed(p):
    found = []
    for epochs in ((2,), (1, 2)):
        with tempfile.TemporaryDirectory() as folder:
            for last in epochs:
                q = programs.make(p.name)
                keras.utils.set_random_seed(1)
                q.model.fit(q.x, q.y, batch_size=16, epochs=last, verbose=0, callbacks=[callbacks.Resume(folder)])
        found.append(arrays(q.model.get_weights()))
    near(found[1], found[0], 1e-5, "Resume")


def rate(p):
    found = schedules.find(p.model, pair(p), steps=20, batch_size=16, verbose=0)
    if not 1e-7 < found.rate < 10:
        raise WrongError(f"find: {found.rate} is an end of the sweep")


def augmented(p):
    if not p.images:
        return "not images"
    ends = float(np.min(p.x)), float(np.max(p.x))
    pipeline = augment.Pipeline([augment.Flip(), augment.Translate(0.1)], value_range=ends)
    examples = tf.data.Dataset.from_tensor_slices(pair(p) if p.y is not None else (p.x, p.x)).batch(16)
    moved = next(iter(examples.map(pipeline.map)))
    keras.tree.map_structure(lambda a, b: a.shape.assert_is_compatible_with(b.shape), moved, next(iter(examples)))
    return "ok"


def devices(p):
    x, y = (tuple(part) if isinstance(part, list) else part for part in (p.x, p.y))     # tf.data stacks lists
    distribute.diagnose(p.model, tf.data.Dataset.from_tensor_slices(x if y is None else (x, y)).batch(16))


def compressed(p):
    found = compress.run(p.model, pair(p), pair(p), max_drop=1e6, epochs=1, stages=("prune", "cluster", "quantize"))
    raised = [why for why in found.tried["why"].fillna("") if "Error: " in why
              and not any(f"Error: {name}." in why for name in tfopt.__all__)]
    if raised:
        raise WrongError(f"compress: {raised[0]}")


PIECES = {"report": table, "float32 file": convert_float, "dynamic file": convert_dynamic, "int8 file": convert_int8,
          "regularizers": penalty, "average.outputs": ensemble, "average.weights": soup, "average.SWA": swa,
          "prune": pruned, "cluster": clustered, "quantize": trained_in_8_bits, "shrink": shrunk,
          "distill": distilled, "cache_teacher": distilled_from_cache, "Resume": resumed, "find": rate,
          "augment": augmented, "distribute": devices, "compress": compressed}


def refused(error):
    """Was this said by the library itself, in one sentence that names the function?"""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    named = any(f"{name}." in str(error) for name in tfopt.__all__)
    return (isinstance(error, ValueError | TypeError | NotImplementedError) and named
            and pathlib.Path(tfopt.__file__).parent in pathlib.Path(frame.filename).parents)


def one(name, pieces):
    """[(piece, result, why)] of one program."""
    rows = []
    for piece, check in pieces.items():
        p = programs.make(name)
        p.name = name
        before = [np.array(weight) for weight in p.model.get_weights()]
        try:
            result, why = check(p) or "ok", ""
            trains = piece in ("average.SWA", "Resume")
            if not trains and not all(map(np.array_equal, before, p.model.get_weights())):
                result, why = "wrong", "the user's model has changed"
        except WrongError as error:
            result, why = "wrong", str(error)
        except Exception as error:
            result, why = "refused" if refused(error) else "raised", f"{type(error).__name__}: {error}"
            if result == "raised":
                traceback.print_exc()
        rows.append((piece, result, " ".join(why.split())[:400]))
        print(name, *rows[-1], sep=" | ", flush=True)
        keras.backend.clear_session()
    return rows


def keep(name, rows, path):
    """Puts the rows of one program in place of its earlier ones."""
    new = pd.DataFrame([(name, *row) for row in rows], columns=["program", "piece", "result", "why"])
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False)
        new = pd.concat([old[~((old["program"] == name) & old["piece"].isin(new["piece"]))], new])
    new.to_csv(path, index=False)


def main(script, table, every, pieces):
    """Each program in a process of its own; its rows go to `table`_why.csv, and all of them, wide, to `table`.csv."""
    warnings.simplefilter("ignore")
    path = MEASURED / f"{table}_why.csv"
    if sys.argv[1:2] == ["one"]:
        chosen = {piece: check for piece, check in pieces.items() if piece in (sys.argv[3:] or pieces)}
        keep(sys.argv[2], one(sys.argv[2], chosen), path)
        return
    for name in sys.argv[1:] or every:
        subprocess.run([sys.executable, "-P", script, "one", name], check=False)
    rows = pd.read_csv(path, keep_default_na=False)
    wide = rows.pivot(index="program", columns="piece", values="result")
    wide = wide.reindex(index=[name for name in every if name in wide.index],
                        columns=[piece for piece in pieces if piece in wide.columns])
    wide.to_csv(MEASURED / f"{table}.csv")
    print(rows["result"].value_counts().to_string())


if __name__ == "__main__":
    main(__file__, "programs", list(programs.PROGRAMS), PIECES)
