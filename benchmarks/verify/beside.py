"""What litert-quantizer makes of the same float file, for the scripts that put it beside this library.

    pip install --no-deps litert-quantizer==0.11.0 litert-lm-builder immutabledict
"""

import contextlib
import importlib.util
import io
import pathlib
import tempfile

import flatbuffers

from tfopt import quantize


def installed():
    return importlib.util.find_spec("litert_quantizer") is not None


def litert_quantizer(model, x, bits=8):
    """A LiteModel with kernels of 8 or 4 bits and activations of 8, calibrated as its own guide does it."""
    from litert_quantizer import qtyping, quantizer

    floats = quantize.convert(model, "float32", calibration=x[:1])
    parsed, builder = floats.parsed, flatbuffers.Builder()
    for entry in parsed.metadata:                          # the note of this library, with the checksum of its file
        parsed.buffers[entry.buffer].data = None
    parsed.metadata = []
    builder.Finish(parsed.Pack(builder), file_identifier=b"TFL3")
    maker = quantizer.Quantizer(bytearray(builder.Output()))
    kinds = qtyping.TFLOperationName                       # what is added later counts for its operation
    for kind, own in {kinds.ALL_SUPPORTED: 8, kinds.CONV_2D: bits, kinds.FULLY_CONNECTED: bits}.items():
        maker.add_static_config(regex=".*", operation_name=kind, activation_num_bits=8, weight_num_bits=own)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ranges = maker.calibrate({"serving_default": [{floats.inputs.name: x[i:i + 1]} for i in range(len(x))]},
                                 num_threads=2)
        path = pathlib.Path(folder, "made.tflite")
        maker.quantize(ranges, enable_progress_report=False, enable_progress_bar=False).export_model(str(path))
        return quantize.load(path)
