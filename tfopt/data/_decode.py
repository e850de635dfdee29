"""One image file to pixels, or why not."""

import concurrent.futures
import os
import pathlib
import stat
import typing

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")             # what is opened; others of Pillow's start programs
MAX_PIXELS = 90_000_000                                     # as many as Pillow warns of
Image.init()                      # now: the first threads to open a file would meet a half-filled table of formats


class BadImageError(OSError):
    """A file that cannot be decoded, and why."""

    def __init__(self, path, why):
        super().__init__(f"{path}: {why}")
        self.why = why


def decode(path, height, width, channels, max_pixels=MAX_PIXELS):
    """uint8[height, width, channels] of an image file, resized with antialiasing, turned as its EXIF tag says.

    The content counts, not the suffix. Of an animation the first frame; 16 bits are cut to 8; alpha is dropped.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):             # a pipe or a device would be read for ever
        raise BadImageError(path, "not a regular file")
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > max_pixels:         # its header says so; nothing is unpacked yet
            raise BadImageError(path, f"{image.width} x {image.height} are more than max_pixels={max_pixels:,}")
        image.draft(None, (2 * max(height, width),) * 2)    # a JPEG far too large is decoded at 1/2, 1/4 or 1/8
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
        if image.mode == "P":
            image = image.convert("RGBA")
        mode = "L" if channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels)


def load(path, height, width, channels, max_pixels=MAX_PIXELS):
    """`decode`, whose every failure is a BadImageError that says why in plain words."""
    try:
        return decode(path, height, width, channels, max_pixels)
    except BadImageError:
        raise
    except FileNotFoundError:
        why = "no such file"
    except PermissionError:
        why = "permission denied"
    except UnidentifiedImageError:
        why = "empty file" if not os.path.getsize(path) else "not a BMP, GIF, JPEG, PNG or WEBP image"
    except Image.DecompressionBombError:                     # Pillow's own limit, twice as high, on opening
        why = f"more pixels than max_pixels={max_pixels:,}"
    except Exception as error:                               # what Pillow's decoders raise has no common class
        why = f"damaged: {error}"
    raise BadImageError(path, why)


def oddity(path):
    """What is unusual about an image that can be decoded, or None."""
    with Image.open(path, formats=FORMATS) as image:
        kind = "JPEG" if image.format == "MPO" else image.format         # a JPEG with a second picture behind it
        suffix = pathlib.Path(path).suffix[1:].upper().replace("JPG", "JPEG")
        notes = {f"{kind} content": kind != suffix, "CMYK": image.mode == "CMYK", "16 bits": image.mode.startswith("I"),
                 "animation, of which the first frame is used": kind != "JPEG" and getattr(image, "is_animated", False)}
    return ", ".join(note for note, holds in notes.items() if holds) or None


def each(function, items) -> list[typing.Any]:
    """[function(item) ...] in parallel: Pillow reads and resizes outside Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return [result for start in range(0, len(items), 4096)           # few enough to wait in line
                for result in threads.map(function, items[start:start + 4096])]
