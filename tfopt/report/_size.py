"""How many bytes, as they are and through gzip."""

import zlib

import numpy as np


def packed_size(chunks):
    """(bytes, gzip bytes) of arrays, or of bytes, laid end to end."""
    packer = zlib.compressobj(6, wbits=31)
    raw = packed = 0
    for chunk in chunks:
        chunk = bytes(chunk) if isinstance(chunk, bytes) else np.ascontiguousarray(chunk).tobytes()
        raw, packed = raw + len(chunk), packed + len(packer.compress(chunk))
    return raw, packed + len(packer.flush())
