"""Prints every public signature, to read them side by side: same names, same order, same defaults."""

import importlib
import inspect
import re

import tfopt

_DATA = re.compile(r"numpy\.ndarray \| Tensor \| pandas\.DataFrame .*?PyDataset")


def written(name, thing):
    text = re.sub(r"\b(keras\.src|tensorflow|tfopt|typing|collections)(\.\w+)*\.", "", str(inspect.signature(thing)))
    return name + _DATA.sub("Data", text)


def main():
    for module in (importlib.import_module(f"tfopt.{name}") for name in tfopt.__all__):
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing) or not getattr(thing, "__module__", "").startswith("tfopt"):
                continue
            print(written(f"{module.__name__.removeprefix('tfopt.')}.{name}", thing))
            own = vars(thing).items() if inspect.isclass(thing) else ()
            for method, function in own:
                if inspect.isfunction(function) and not method.startswith("_"):
                    print(written(f"    .{method}", function))


if __name__ == "__main__":
    main()
