"""What an element of a data set holds (images, labels, maps of the image's size, boxes), and the way back."""

import dataclasses
import typing

from .._check import require
from .._keras import tf

MASKS = ("masks", "segmentation_masks")
BOXES = ("boxes", "bounding_boxes")
KEYS = ("images", "labels", "sample_weights", *MASKS, *BOXES)


@dataclasses.dataclass(frozen=True)
class Element:
    """Tensors in their structure, and the places among them that a pipeline changes.

    Args:
      structure: what came in, with a place number for each tensor.
      leaves: the tensors (or None) by place.
      image: place of the images.
      label: place of what MixUp and CutMix mix, or None.
      maps: {place: nearest} of what has the image's size and moves with it.
      boxes: place of the boxes, or None.
      mixable: one image and at most one label for each example, and nothing else that would have to be mixed.
    """

    structure: typing.Any
    leaves: list
    image: int
    label: int | None = None
    maps: dict = dataclasses.field(default_factory=dict)
    boxes: int | None = None
    mixable: bool = True

    def at(self, place):
        return None if place is None else self.leaves[place]

    def maps_to_move(self):
        """[(tensor [batch, height, width, channels], nearest)]."""
        return [(leaf if leaf.shape.rank == 4 else leaf[..., None], nearest)
                for leaf, nearest in ((self.leaves[place], nearest) for place, nearest in self.maps.items())]

    def replaced(self, images, labels, maps, boxes):
        """The structure with the views in their places."""
        new = dict(enumerate(self.leaves)) | {self.image: images}
        for place, part in zip(self.maps, maps, strict=True):
            new[place] = part if self.leaves[place].shape.rank == 4 else part[..., 0]
        if self.label is not None:
            new[self.label] = labels
        if self.boxes is not None:
            new[self.boxes] = boxes
        return tf.nest.map_structure(new.__getitem__, self.structure)


def element_of(parts):
    """The Element of (inputs), (inputs, targets) or (inputs, targets, weights); each an array, dict or tuple."""
    if len(parts) == 1 and isinstance(parts[0], dict) and "images" in parts[0]:
        return _from_keys(parts[0])
    parts = _tensors(tuple(parts))
    leaves, inputs = tf.nest.flatten(parts), tf.nest.flatten(parts[0])
    image = _only_image(inputs, parts[0])
    targets = tf.nest.flatten(parts[1]) if len(parts) > 1 else []
    maps = {place: not leaf.dtype.is_floating for place, leaf in enumerate(leaves)
            if place != image and _has_size_of(leaf, leaves[image])}
    label = len(inputs) if len(targets) == 1 and len(inputs) not in maps else None
    return Element(tf.nest.pack_sequence_as(parts, range(len(leaves))), leaves, image, label, maps,
                   mixable=not maps and len(inputs) == 1 and len(targets) <= 1)


def _from_keys(batch):
    """The Element of a dict with the keys of KEYS."""
    unknown = [key for key in batch if key not in KEYS]
    require(not unknown, f"a dict with `images` has the keys {', '.join(KEYS)}", keys=list(batch),
            do="Leave the others out, or zip them to the result.")
    batch = {key: _tensors(value) for key, value in batch.items()}
    place = {key: number for number, key in enumerate(batch)}
    maps = {place[key]: True for key in MASKS if key in batch}
    boxes = next((place[key] for key in BOXES if key in batch), None)
    for key in MASKS:
        require(key not in batch or batch[key].shape.rank in (3, 4),
                "masks are [batch, height, width] or have one more axis",
                shape=key in batch and tuple(batch[key].shape))
    leaves = list(batch.values())
    if boxes is not None:
        leaves[boxes] = tf.cast(leaves[boxes], tf.float32)
        require(leaves[boxes].shape.rank == 3 and leaves[boxes].shape[2] == 4,
                "boxes are [batch, n, 4]", shape=tuple(leaves[boxes].shape))
    return Element(place, leaves, place["images"], place.get("labels"), maps, boxes,
                   mixable=not maps and boxes is None)


def _tensors(part):
    """Arrays and lists as tensors, in dicts and tuples; ragged and sparse ones stay, as does None."""
    if isinstance(part, dict):
        return {key: _tensors(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(map(_tensors, part))
    return part if part is None or isinstance(part, tf.RaggedTensor | tf.SparseTensor) else tf.convert_to_tensor(part)


def _only_image(inputs, structure):
    """The place of the one input that is images."""
    if isinstance(structure, dict):
        boxes = [key for key in structure if "box" in str(key)]
        require(not boxes, "boxes are moved only in a dict with `images` and `boxes`", keys=boxes,
                do='Pass {"images": images, "boxes": boxes}.')
    found = [place for place, leaf in enumerate(inputs) if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 4
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
