"""The formulas: plain functions of logits, one value per example, in float32 (float64 stays float64)."""

from .._keras import tf

_FAR = 20.                  # beyond this log-ratio `expm1` would lose what the logarithm keeps


def to_float(x):
    """float64 stays; every other type becomes float32, where half precision could not hold T^2 or a small KL."""
    x = tf.convert_to_tensor(x)
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def pair(teacher, student):
    """Both as `to_float`, in the wider of the two types; no gradient flows to the teacher."""
    teacher, student = tf.stop_gradient(to_float(teacher)), to_float(student)
    wide = tf.float64 if tf.float64 in (teacher.dtype, student.dtype) else tf.float32
    return tf.cast(teacher, wide), tf.cast(student, wide)


def divergence(teacher, student, temperature):
    """`T^2 * KL(softmax(teacher / T) || softmax(student / T))` over the last axis.

    With `v = (student - teacher) / T`, centred so that `sum(p * v) = 0`, the divergence is `log1p(sum(p * expm1(v)))`.
    The plain sum of `p * (log p - log q)` rounds at the size of the logarithms, and T^2 = 400 makes that 1e-4.
    """
    teacher, student = (logits / temperature for logits in pair(teacher, student))
    p = tf.nn.softmax(teacher)

    @tf.custom_gradient                                 # q - p at once is cheaper and rounds less than step by step
    def kl(student):
        v = student - teacher
        v -= tf.reduce_sum(p * v, -1, keepdims=True)
        close = tf.math.log1p(tf.reduce_sum(p * tf.math.expm1(tf.minimum(v, _FAR)), -1))
        far = tf.reduce_logsumexp(tf.nn.log_softmax(teacher) + v, -1)
        value = tf.where(tf.reduce_max(v, -1) < _FAR, close, far)
        return value, lambda upstream: upstream[..., None] * (tf.nn.softmax(student) - p)

    return temperature ** 2 * kl(student)


def binary_divergence(teacher, student, temperature):
    """The same for independent labels: each logit `z` is the two-class pair `(z, 0)`; summed over the last axis."""
    teacher, student = (tf.stack([z, tf.zeros_like(z)], -1) for z in pair(teacher, student))
    return tf.reduce_sum(divergence(teacher, student, temperature), -1)


def mean(values, sample_weight=None):
    """The mean over all values, each times its example's weight: the reduction of Keras' losses."""
    if sample_weight is not None:
        weight = tf.cast(sample_weight, values.dtype)
        if weight.shape.rank == values.shape.rank + 1:
            weight = tf.squeeze(weight, -1)
        weight = tf.reshape(weight, tf.concat([tf.shape(weight), [1] * (values.shape.rank - weight.shape.rank)], 0))
        values *= weight
    return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype))


def log_probability(p, activation):
    """Logits whose softmax (or sigmoid) is `p`; probabilities that were rounded to 0 or 1 stay finite."""
    p = to_float(p)
    tiny = 1e-37 if p.dtype == tf.float32 else 1e-300
    logarithm = tf.math.log(tf.maximum(p, tiny))
    return logarithm if activation == "softmax" else logarithm - tf.math.log(tf.maximum(1 - p, tiny))
