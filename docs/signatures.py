"""Prints every public signature, to be read for consistency.

    python docs/signatures.py [module ...]
"""

import importlib
import inspect
import sys

import tfopt


def signatures(module):
    """One line for each public name of a module, one for each public method that its classes define."""
    for name in (listed := importlib.import_module(f"tfopt.{module}")).__all__:
        thing = getattr(listed, name)
        if not callable(thing) or not thing.__module__.startswith("tfopt"):
            yield f"{module}.{name}: {getattr(thing, '__module__', type(thing).__name__)}"
            continue
        yield f"{module}.{name}{inspect.signature(thing)}"
        for method, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not method.startswith("_") and inspect.isfunction(value):
                yield f"    .{method}{inspect.signature(value)}"


if __name__ == "__main__":
    for module in sys.argv[1:] or tfopt.__all__:
        print(*signatures(module), "", sep="\n")
