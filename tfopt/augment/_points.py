"""Boxes and keypoints: where the points of an image go, which is the way back from where pixels come from."""

from .._keras import tf
from . import _geometry

FORMATS = ("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw", "rel_xyxy", "rel_yxyx", "rel_xywh", "rel_center_xywh")
BOXES, KEYPOINTS = ("boxes", "bounding_boxes"), ("keypoints",)
STEPS = 12                             # a field of shifts is inverted by iteration; each step leaves half or less
SIDES = ((0, 0), (1, 0), (0, 1), (1, 1))
EDGES = (*SIDES, *((x, y) for part in (0.25, 0.5, 0.75) for x, y in ((part, 0), (part, 1), (0, part), (1, part))))


def move_keypoints(points, drawn, old, new):
    """float32[batch, n, 2 or more] (x, y in pixels, edges of the image at 0 and its size); what follows stays."""
    return tf.concat([move(points[..., :2], *drawn, old=old, new=new), points[..., 2:]], axis=2)


def move_boxes(boxes, drawn, old, new):
    """float32[batch, n, 4] (x1, y1, x2, y2 in pixels) around the corners (with shifts, the edges) of what they held.

    They are clipped to the image; a box that has left it has no area. One that had none (padding) stays.
    """
    along = tf.constant(SIDES if len(drawn) == 1 else EDGES, tf.float32)
    start, end = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    outline = start + (end - start) * along
    shape = tf.shape(outline)
    places = tf.reshape(move(tf.reshape(outline, (shape[0], -1, 2)), *drawn, old=old, new=new), shape)
    size = tf.constant(new[::-1], tf.float32)
    ends = [tf.clip_by_value(reduce(places, axis=2), 0.0, size) for reduce in (tf.reduce_min, tf.reduce_max)]
    holds = tf.reduce_all(boxes[..., 2:] > boxes[..., :2], axis=-1, keepdims=True)
    return tf.where(holds, tf.concat(ends, axis=2), boxes)


def move(points, matrix, shifts=None, *, old, new):
    """float32[batch, n, 2] in the new image, of points in the old one."""
    a, b, c, d, e, f, g, h, i = _geometry.adjugate(_geometry.full(tf.unstack(matrix[..., None], axis=1)))
    x, y = points[..., 0] - old[1] / 2, points[..., 1] - old[0] / 2
    w = g * x + h * y + i
    x, y = (a * x + b * y + c) / w, (d * x + e * y + f) / w
    if shifts is not None:
        column, row = x, y                                         # sought: the place that its shift brings to (x, y)
        for _ in range(STEPS):
            places = ((place + (size - 1) / 2)[..., None] for place, size in ((column, new[1]), (row, new[0])))
            found = _geometry.sample(shifts, *places, fill_mode="nearest")[:, :, 0]
            column, row = x - found[..., 0], y - found[..., 1]
        x, y = column, row
    return tf.stack([x + new[1] / 2, y + new[0] / 2], axis=-1)


def to_corners(boxes, form, size):
    """Boxes of one of Keras' formats as (x1, y1, x2, y2) in pixels of an image of that (height, width)."""
    first, second = tf.split(boxes, 2, axis=-1)
    if form.split("_")[-1].startswith("yx"):
        first, second = first[..., ::-1], second[..., ::-1]
    if "center" in form:
        first, second = first - second / 2, first + second / 2
    elif form.endswith("wh"):
        second += first
    corners = tf.concat([first, second], axis=-1)
    return corners * _scale(size) if form.startswith("rel") else corners


def from_corners(corners, form, size):
    """The way back from `to_corners`."""
    corners = corners / _scale(size) if form.startswith("rel") else corners
    first, second = tf.split(corners, 2, axis=-1)
    if "center" in form:
        first, second = (first + second) / 2, second - first
    elif form.endswith("wh"):
        second -= first
    if form.split("_")[-1].startswith("yx"):
        first, second = first[..., ::-1], second[..., ::-1]
    return tf.concat([first, second], axis=-1)


def _scale(size):
    return tf.constant([size[1], size[0]] * 2, tf.float32)
