"""What TensorFlow's LiteRT converter needs and has no public name for."""

import itertools

import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.lite.python.util import get_grappler_config, run_graph_optimizations
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

__all__ = ["ConverterError", "frozen", "of_graph"]


def frozen(function, specs, *, fold=False):
    """A concrete function of `function` with its variables as constants.

    Args:
      function: of tensors.
      specs: tf.TensorSpec of each.
      fold: what is computed of constants alone becomes a constant, such as the kernel of extract_patches: the converter
        takes that for an activation, and makes a file that does not run. Random numbers are not made constants.
    """
    concrete = convert_variables_to_constants_v2(tf.function(function).get_concrete_function(*specs),
                                                 lower_control_flow=False)
    if not fold or any("Random" in op.type for op in concrete.graph.get_operations()):
        return concrete
    graph = run_graph_optimizations(concrete.graph.as_graph_def(), concrete.inputs, concrete.outputs,
                                    config=get_grappler_config(["constfold"]), graph=concrete.graph)
    _rename_functions(graph)
    return of_graph(graph, concrete)


def of_graph(graph, function):
    """The concrete function of a GraphDef whose inputs and outputs have the names of those of `function`."""
    whole = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    return whole.prune(*([whole.graph.as_graph_element(x.name) for x in ends]
                         for ends in (function.inputs, function.outputs)))


def _rename_functions(graph):
    """New names for the functions of a GraphDef, as bodies of loops are: TensorFlow knows others by the old ones."""
    names = {function.signature.name: f"{function.signature.name}_folded" for function in graph.library.function}
    for node in itertools.chain(graph.node, *(function.node_def for function in graph.library.function)):
        for attribute in node.attr.values():
            for called in [attribute.func] if attribute.HasField("func") else attribute.list.func:
                called.name = names.get(called.name, called.name)
    for function in graph.library.function:
        function.signature.name = names[function.signature.name]
