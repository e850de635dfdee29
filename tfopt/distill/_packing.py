"""How cached outputs are stored: in half precision where that loses nothing that counts, and back."""

from .._keras import tf

_FLOOR = -60000.                # float16 ends at 65504; exp(-60000 / T) is 0 for any temperature in use


def pack(outputs, kind, top_k):
    """What is stored of a batch of logits, {name: tensor}; of numbers (`kind` None) all of it, in float32.

    Logits are stored as differences to the largest of their row: float16 would round logits that share an offset to
    steps of that offset's size. With `top_k`, the log-probabilities of the k largest classes, and of the rest together.

    Args:
      outputs: float32 logits behind outputs, or numbers, (batch, ..., classes).
      kind: "logits", "softmax", "sigmoid" or None.
      top_k: None or how many classes.
    """
    if kind is None:
        return {"numbers": outputs}
    if kind == "sigmoid":
        return {"logits": tf.cast(outputs, tf.float16)}
    if top_k is None:
        largest = tf.reduce_max(outputs, -1, keepdims=True)
        below = outputs - largest
        if kind == "softmax":                           # the others may be meant as numbers: no constant is dropped
            return {"logits": tf.cast(tf.maximum(below, _FLOOR), tf.float16)}
        return {"logits": tf.cast(below, tf.float16), "largest": largest}
    classes = outputs.shape[-1]
    values, indices = tf.math.top_k(tf.nn.log_softmax(outputs), top_k)
    rest = tf.math.log(tf.maximum(-tf.math.expm1(tf.minimum(tf.reduce_logsumexp(values, -1), 0.)), 1e-30))
    whole = tf.uint8 if classes <= 256 else tf.uint16 if classes <= 65536 else tf.int32
    return {"values": tf.cast(values, tf.float16), "indices": tf.cast(indices, whole),
            "rest": tf.cast(rest, tf.float16)}


def unpack(packed, classes):
    """float32 logits or numbers (batch, ..., classes) of what `pack` made: classes beyond the top k share the rest."""
    packed = {name: tf.convert_to_tensor(value) for name, value in packed.items()}
    if "numbers" in packed:
        return packed["numbers"]
    if "logits" in packed:
        return tf.cast(packed["logits"], tf.float32) + packed.get("largest", 0.)
    values, indices = tf.cast(packed["values"], tf.float32), tf.cast(packed["indices"], tf.int32)
    others = max(classes - values.shape[-1], 1)
    fill = tf.repeat((tf.cast(packed["rest"], tf.float32) - tf.math.log(float(others)))[:, None], classes, 1)
    rows = tf.repeat(tf.range(tf.shape(values)[0])[:, None], values.shape[-1], 1)
    return tf.tensor_scatter_nd_update(fill, tf.stack([rows, indices], -1), values)
