"""The layers of a model: all of them, those that `where` chooses, and the table behind every `plan`."""

import math

from .._check import require
from .._keras import graph_of, keras, parts_of
from .._tables import Frame
from .describe import Verbatim


def layers(model):
    """{path: layer} of every layer that is not itself a graph model, in order; nested ones as `outer/inner`.

    A layer that is used several times, or reached by several paths, is listed once. Subclassed models may have several
    layers of one name: the paths of the later ones end in one prime more each.
    """
    found, seen = {}, set()

    def visit(owner, prefix):
        for layer in owner.layers:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            if graph_of(layer) is not None:
                visit(layer, f"{prefix}{layer.name}/")
            else:
                path = f"{prefix}{layer.name}"
                while path in found:
                    path += "'"
                found[path] = layer

    visit(model, "")
    return found


def select(model, where, caller, *, able=None, what="layer"):
    """{path: layer} that `where` chooses, never empty.

    Args:
      model: a built model.
      where: None for every able layer; layer names, paths (`outer/inner`) or layers, one or a list; `layer -> bool`.
        A nested model stands for every able layer in it.
      caller: public name for the sentences.
      able: `layer -> bool`, what the technique can treat. A layer that is named and cannot be treated is refused.
      what: what an able layer is called, e.g. "layer with a kernel".
    """
    everything = layers(model)
    able = able or (lambda layer: True)
    names = Verbatim(", ".join(everything))
    if where is None or (callable(where) and not isinstance(where, keras.layers.Layer)):
        chosen = {path: layer for path, layer in everything.items() if able(layer) and _holds(where, layer, caller)}
    else:
        asked = _listed(where, caller)
        inside = {path for one in asked for path in _inside(one, everything)}
        named = {path: layer for path, layer in everything.items() if any(_is(one, path, layer) for one in asked)}
        unknown = [one if isinstance(one, str) else one.name for one in asked if not _inside(one, everything)
                   and not any(_is(one, path, layer) for path, layer in named.items())]
        require(not unknown, f"{caller}: `where` must name layers of the model", unknown=unknown,
                do=f"Its layers are {names}.")
        unfit = [path for path, layer in named.items() if not able(layer)]
        require(not unfit, f"{caller}: `where` must name a {what}", unfit=unfit, do="Leave these out.")
        chosen = {path: layer for path, layer in everything.items()
                  if path in named or (path in inside and able(layer))}
    require(chosen, f"{caller}: `where` must choose at least one {what}", where=where, do=f"Its layers are {names}.")
    return chosen


def _holds(where, layer, caller):
    found = where is None or where(layer)
    require(not getattr(found, "shape", ()), f"{caller}: a function given as `where` must return True or False",
            layer=layer.name, returned=found, do="Write e.g. lambda layer: isinstance(layer, keras.layers.Dense).")
    return bool(found)


def _listed(where, caller):
    asked = [where] if isinstance(where, str | keras.layers.Layer) else where
    require(isinstance(asked, list | tuple | set | frozenset)
            and all(isinstance(one, str | keras.layers.Layer) for one in asked),
            f"{caller}: `where` must be None, layer names, layers, or a function `layer -> bool`", where=where,
            do='Pass e.g. ["conv1", "conv2"].', error=TypeError)
    return list(asked)


def _inside(asked, everything):
    """The paths of the layers in a nested model, given by name or as it is."""
    if isinstance(asked, str):
        return [path for path in everything if f"/{asked}/" in f"/{path}"]
    ids = {id(part) for part in parts_of(asked)[1:]} if graph_of(asked) is not None else ()
    return [path for path, layer in everything.items() if id(layer) in ids]


def _is(asked, path, layer):
    return asked in (path, layer.name) if isinstance(asked, str) else asked is layer


def plan(model, chosen, sizes, why):
    """The table behind every `plan`: one row a layer with weights.

    Args:
      model: a built model.
      chosen: paths of the layers that would be treated.
      sizes: {path: shapes of the weights that can be treated}.
      why: `(path, layer) -> reason` for the layers that are skipped.

    Returns:
      pandas.DataFrame with `layer`, `class`, `parameters` (numbers in its weights), `affected` (how many of them would
      be treated), `status` ("selected" or "skipped"), `why`.
    """
    return table([{"layer": path, "class": type(layer).__name__, "parameters": _count(w.shape for w in layer.weights),
                   "affected": _count(sizes.get(path, ())) if path in chosen else 0,
                   "why": "" if path in chosen else why(path, layer)}
                  for path, layer in layers(model).items() if layer.weights])


def table(rows, more=()):
    """A plan from rows of `layer`, `class`, `parameters`, `affected`, `why` and, after these, the columns `more`.

    A row with a reason `why` is "skipped", unless it brings a `status` of its own.
    """
    columns = ["layer", "class", "parameters", "affected", *more, "status", "why"]
    return Frame([{"status": "skipped" if row["why"] else "selected", **row} for row in rows], columns=columns)


def _count(shapes):
    return sum(math.prod(shape) for shape in shapes)
