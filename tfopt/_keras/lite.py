"""What TensorFlow's LiteRT converter needs and has no public name for."""

import tensorflow as tf
from tensorflow.lite.python.convert_phase import ConverterError
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

__all__ = ["ConverterError", "frozen"]


def frozen(function, specs):
    """A concrete function of `function` with its variables as constants."""
    return convert_variables_to_constants_v2(tf.function(function).get_concrete_function(*specs),
                                             lower_control_flow=False)
