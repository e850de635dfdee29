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

    With `v = (student - teacher) / T`, centered so that `sum(p * v) = 0`, the divergence is `log1p(sum(p * expm1(v)))`.
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


def standardized(logits):
    """Each example's logits with mean 0 and standard deviation 1 over the last axis."""
    centered = logits - tf.reduce_mean(logits, -1, keepdims=True)
    return centered / tf.sqrt(tf.maximum(tf.reduce_mean(centered ** 2, -1, keepdims=True), 1e-14))


def decoupled(teacher, student, target, temperature):
    """(target part, non-target part) of `divergence`, each per example; `target` holds class numbers."""
    teacher, student = pair(teacher, student)
    hit = tf.one_hot(target, student.shape[-1], True, False, dtype=tf.bool)

    def against_the_rest(logits):
        rest = tf.reduce_logsumexp(tf.where(hit, tf.cast(-1e9, logits.dtype), logits), -1)
        return tf.stack([tf.reduce_sum(tf.where(hit, logits, tf.zeros_like(logits)), -1), rest], -1)

    def without_target(logits):
        return tf.where(hit, tf.cast(-1e9, logits.dtype), logits)

    binary = divergence(against_the_rest(teacher / temperature), against_the_rest(student / temperature), 1.)
    return temperature ** 2 * binary, divergence(without_target(teacher), without_target(student), temperature)


def correlation(a, b, axis, weight=None):
    """Pearson's along `axis`, weighted if weights are given; 0 where one side does not vary."""
    weight = tf.ones_like(a[:, :1]) if weight is None else weight
    share = tf.math.divide_no_nan(weight, tf.reduce_sum(weight * tf.ones_like(a), axis, keepdims=True))
    a, b = (z - tf.reduce_sum(share * z, axis, keepdims=True) for z in (a, b))
    product, aa, bb = (tf.reduce_sum(share * z, axis) for z in (a * b, a * a, b * b))
    return product / (tf.sqrt(tf.maximum(aa * bb, 1e-24)))


def attention(features):
    """Where a feature map is active: the mean square over channels, flattened, of length 1."""
    activity = tf.reduce_mean(to_float(features) ** 2, -1)
    return tf.math.l2_normalize(tf.reshape(activity, (tf.shape(activity)[0], -1)), -1)


def distances(features):
    """Euclidean distances between all pairs of examples, in units of their mean."""
    squares = tf.reduce_sum((features[:, None] - features[None]) ** 2, -1)
    apart = squares > 1e-12
    length = tf.where(apart, tf.sqrt(tf.where(apart, squares, tf.ones_like(squares))), tf.zeros_like(squares))
    count = tf.reduce_sum(tf.cast(apart, length.dtype))
    return tf.math.divide_no_nan(length, tf.math.divide_no_nan(tf.reduce_sum(length), count))


def angles(features):
    """Cosines of the angle at j between i and k, for all triples of examples: (j, i, k)."""
    edges = tf.math.l2_normalize(features[None] - features[:, None], -1)
    return tf.matmul(edges, edges, transpose_b=True)


def huber(difference, delta=1.):
    """Half the square up to `delta`, then a straight line."""
    size = tf.abs(difference)
    return tf.where(size < delta, 0.5 * difference ** 2, delta * (size - 0.5 * delta))


def all_replicas(x):
    """The examples of every replica, for losses that compare examples with each other."""
    context = tf.distribute.get_replica_context()
    if x is None or context is None or context.num_replicas_in_sync == 1:
        return x
    return context.all_gather(x, axis=0)


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
