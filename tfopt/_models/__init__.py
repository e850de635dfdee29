"""Models: what one is, which layers `where` chooses, the one way to copy it, and the one comparison with the user's."""

from .batch_norm import batch_moments, batch_normalizations
from .comparison import compare, example_inputs, outputs_of, require_close
from .copies import copy, graph_model, own_methods, recreate, takes_graph, transfer
from .describe import array_of, describe, require_built, require_finite, require_graph, require_model, scope_of
from .scoring import evaluate_outputs
from .selection import layers, plan, select, table

__all__ = ["array_of", "batch_moments", "batch_normalizations", "compare", "copy", "describe", "evaluate_outputs",
           "example_inputs", "graph_model", "layers", "outputs_of", "own_methods", "plan", "recreate", "require_built",
           "require_close", "require_finite", "require_graph", "require_model", "scope_of", "select", "table",
           "takes_graph", "transfer"]
