"""What an element of a data set holds (images, labels, maps of the image's size, boxes ...), and the way back."""

import dataclasses
import typing

from .._check import require
from .._keras import tf
from ._points import BOXES, KEYPOINTS, from_corners, move_boxes, move_keypoints, to_corners

MASKS = ("masks", "segmentation_masks")
KEYS = ("images", "labels", "sample_weights", *MASKS, *BOXES, *KEYPOINTS)


@dataclasses.dataclass(frozen=True)
class Element:
    """Tensors in their structure, and the places among them that a pipeline changes.

    Args:
      structure: what came in, with a place number for each tensor.
      leaves: the tensors (or None) by place.
      image: place of the images.
      label: place of what MixUp and CutMix mix, or None.
      maps: {place: nearest} of what has the image's size and moves with it.
      points: {place: move_boxes or move_keypoints}.
      mixable: one image and at most one label for each example, and nothing else that would have to be mixed.
    """

    structure: typing.Any
    leaves: list
    image: int
    label: int | None = None
    maps: dict = dataclasses.field(default_factory=dict)
    points: dict = dataclasses.field(default_factory=dict)
    mixable: bool = True

    def at(self, place):
        return None if place is None else self.leaves[place]

    def repeated(self, times):
        """The Element with each example so many times, side by side."""
        rows = tf.range(tf.shape(self.leaves[self.image])[0] * times) // times
        return dataclasses.replace(self, leaves=[leaf if leaf is None else tf.gather(leaf, rows)
                                                 for leaf in self.leaves])

    def maps_to_move(self):
        """[(tensor [batch, height, width, channels], nearest)]."""
        return [(leaf if leaf.shape.rank == 4 else leaf[..., None], nearest)
                for leaf, nearest in ((self.leaves[place], nearest) for place, nearest in self.maps.items())]

    def points_to_move(self, form):
        """[(float32[batch, n, ...], function that moves them)]; boxes of one of Keras' formats become corners."""
        size = self.leaves[self.image].shape[1:3]
        return [(to_corners(_dense(leaf), form, size) if move is move_boxes else _dense(leaf), move)
                for leaf, move in ((self.leaves[place], move) for place, move in self.points.items())]

    def replaced(self, images, labels, maps, points, form):
        """The structure with the views in their places."""
        new = dict(enumerate(self.leaves)) | {self.image: images}
        for place, part in zip(self.maps, maps, strict=True):
            new[place] = part if self.leaves[place].shape.rank == 4 else part[..., 0]
        for (place, move), part in zip(self.points.items(), points, strict=True):
            part = from_corners(part, form, images.shape[1:3]) if move is move_boxes else part
            new[place] = _as_it_came(part, self.leaves[place])
        if self.label is not None:
            new[self.label] = labels
        return tf.nest.map_structure(new.__getitem__, self.structure)


def element_of(parts):
    """The Element of (inputs), (inputs, targets) or (inputs, targets, weights); each an array, dict or tuple."""
    if len(parts) == 1 and isinstance(parts[0], dict) and "images" in parts[0]:
        return _from_keys(parts[0])
    parts = tensors(tuple(parts))
    leaves, inputs, names = tf.nest.flatten(parts), tf.nest.flatten(parts[0]), _names(parts)
    points = _points(names, leaves)
    image = _only_image(inputs, parts[0], points)
    targets = tf.nest.flatten(parts[1]) if len(parts) > 1 else []
    maps = {place: not leaf.dtype.is_floating for place, leaf in enumerate(leaves)
            if place != image and place not in points and _has_size_of(leaf, leaves[image])}
    label = len(inputs) if len(targets) == 1 and len(inputs) not in {*maps, *points} else None
    return Element(tf.nest.pack_sequence_as(parts, range(len(leaves))), leaves, image, label, maps, points,
                   mixable=not maps and not points and len(inputs) == 1 and len(targets) <= 1)


def _points(names, leaves):
    """{place: mover} of the boxes and keypoints; without `:=`, which AutoGraph warns of inside a data set's map."""
    movers = {place: _mover(name, leaf) for place, (name, leaf) in enumerate(zip(names, leaves, strict=True))}
    return {place: move for place, move in movers.items() if move}


def _from_keys(batch):
    """The Element of a dict with the keys of KEYS."""
    unknown = [key for key in batch if key not in KEYS]
    require(not unknown, f"a dict with `images` has the keys {', '.join(KEYS)}", keys=list(batch),
            do="Leave the others out, or zip them to the result.")
    batch = {key: tensors(value) for key, value in batch.items()}
    for key in MASKS:
        require(key not in batch or batch[key].shape.rank in (3, 4),
                "masks are [batch, height, width] or have one more axis",
                shape=key in batch and tuple(batch[key].shape))
    leaves, names = tf.nest.flatten(batch), _names(batch)
    points = _points(names, leaves)
    maps = {names.index(key): True for key in MASKS if key in batch}
    label = names.index("labels") if "labels" in batch and isinstance(batch["labels"], tf.Tensor) else None
    return Element(tf.nest.pack_sequence_as(batch, range(len(leaves))), leaves, names.index("images"), label, maps,
                   points, mixable=not maps and not points)


def _names(part, name=""):
    """The key nearest to each leaf, in the order of tf.nest."""
    if isinstance(part, dict):
        return [one for key in sorted(part) for one in _names(part[key], key)]
    return [one for each in part for one in _names(each, name)] if isinstance(part, tuple) else [name]


def _mover(name, leaf):
    """What moves a leaf of that name, after a look at its shape; None for all but boxes and keypoints."""
    if name not in (*BOXES, *KEYPOINTS):
        return None
    boxes = name in BOXES
    last = leaf.shape[-1] if hasattr(leaf, "shape") and leaf.shape.rank == 3 else 0
    require(isinstance(leaf, tf.Tensor | tf.RaggedTensor) and (last == 4 if boxes else last is not None and last >= 2),
            "boxes are [batch, n, 4]" if boxes else "keypoints are [batch, n, 2] (x, y), or have more columns",
            shape=tuple(leaf.shape) if hasattr(leaf, "shape") else leaf)
    return move_boxes if boxes else move_keypoints


def _dense(points):
    points = points.to_tensor() if isinstance(points, tf.RaggedTensor) else points
    return tf.cast(points, tf.float32)


def _as_it_came(points, leaf):
    """Ragged if the points were."""
    ragged = isinstance(leaf, tf.RaggedTensor)
    return tf.RaggedTensor.from_tensor(points, lengths=leaf.row_lengths()) if ragged else points


def tensors(part):
    """Arrays and lists as tensors, in dicts and tuples; ragged and sparse ones stay, as does None."""
    if isinstance(part, dict):
        return {key: tensors(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(map(tensors, part))
    return part if part is None or isinstance(part, tf.RaggedTensor | tf.SparseTensor) else tf.convert_to_tensor(part)


def _only_image(inputs, structure, points):
    """The place of the one input that is images."""
    if isinstance(structure, dict):
        boxes = [key for key in structure if "box" in str(key) and key not in BOXES]
        require(not boxes, "boxes are moved under the names `boxes` and `bounding_boxes`", keys=boxes,
                do='Pass {"images": images, "boxes": boxes}.')
    found = [place for place, leaf in enumerate(inputs)
             if place not in points and isinstance(leaf, tf.Tensor) and leaf.shape.rank == 4
             and (leaf.dtype == tf.uint8 or leaf.dtype.is_floating)]
    if len(inputs) == 1:
        return 0
    require(len(found) == 1, "it needs exactly one input that is images [batch, height, width, channels]",
            shapes=[tuple(leaf.shape) for leaf in inputs], do="Map the pipeline over a data set of these images alone, "
            "and zip the other inputs to it.")
    return found[0]


def _has_size_of(leaf, images):
    return isinstance(leaf, tf.Tensor) and leaf.shape.rank in (3, 4) and images.shape.rank == 4 \
        and None not in leaf.shape[1:3] and leaf.shape[1:3] == images.shape[1:3] \
        and (leaf.dtype.is_floating or leaf.dtype.is_integer or leaf.dtype == tf.bool)
