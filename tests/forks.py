"""A process that has imported TensorFlow and forks for each program it is sent: a new process in tenths of a second.

It reads one JSON line per program from standard input, and writes a line with the exit code when the program has ended.
TensorFlow has computed nothing here, so each fork may still choose its devices. tfopt is not imported: a program that
loads a saved model has to import what the model needs, as in a process of its own.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys

HEAVY = ("tensorflow_model_optimization", "ai_edge_litert.interpreter", "keras_tuner", "matplotlib.pyplot", "optuna",
         "pandas", "scipy.stats", "sklearn.datasets")


def serve(requests, replies):
    """Forks for each request; returns (path, arguments) in the fork, None when the requests end."""
    for line in requests:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["environment"])
            signal.alarm(request["seconds"])
            requests.close()
            replies.close()
            return request["command"]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=replies, flush=True)
    return None


def main():
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                                 # what the imports print is no reply

    import keras
    import tensorflow as tf
    assert tf.keras.layers.Layer is keras.layers.Layer        # before tensorflow_model_optimization makes it Keras 2
    for name in HEAVY:
        importlib.import_module(name)

    gc.collect()
    gc.freeze()                                                   # a collection in a fork would copy every page
    command = serve(requests, replies)
    if command:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
