"""Temperature scaling of networks that learned noisy classes by heart, on data that neither was fitted on.

    python benchmarks/verify/calibration.py

A row a seed: 300 examples to train on for 60 epochs, 1,000 for the temperature, 2,000 for the figures; of 8 numbers an
example, three classes drawn from the softmax of linear functions. And the calibration error of a perfect model, which
knows the probabilities that the labels were drawn from, by the number of examples. Writes
docs/measured/calibration.csv.
"""

import pathlib

import keras
import numpy as np
import pandas as pd

from tfopt import report

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "measured"
MEASURES = "accuracy", "log_loss", "expected_calibration_error"


def overfitted(seed):
    """(a network that is too sure, validation data, test data)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3300, 8)).astype("float32")
    y = (x @ rng.normal(size=(8, 3)) + 2 * rng.gumbel(size=(3300, 3))).argmax(1)
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3, name="logits")])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:300], y[:300], epochs=60, batch_size=64, verbose=0)
    return model, (x[300:1300], y[300:1300]), (x[1300:], y[1300:])


def perfect(examples):
    """Calibration errors of the model that the labels were drawn from, ten samples."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Softmax()(inputs))
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        z = 2 * rng.normal(size=(examples, 3)).astype("float32")
        y = (z + rng.gumbel(size=z.shape)).argmax(1)
        found.append(report.measure(model, (z, y), measures=MEASURES[2:], runs=1).measures[MEASURES[2]])
    return np.mean(found)


def main():
    rows = []
    for seed in range(3):
        model, val, test = overfitted(seed)
        calibrated = report.temperature(model, val)
        table = report.compare({"before": model, "after": calibrated}, test, measures=MEASURES, runs=1)
        ratio = model.get_layer("logits").kernel / calibrated.get_layer("logits").kernel
        rows.append({"model": "overfitted", "seed": seed, "examples": len(test[1]),
                     "temperature": float(np.median(ratio)),
                     **{f"{row.name}_{name}": row.measures[name] for row in table.rows for name in MEASURES}})
    rows += [{"model": "perfect", "examples": n, f"before_{MEASURES[2]}": perfect(n)} for n in (200, 2000, 20000)]
    frame = pd.DataFrame(rows)
    frame.to_csv(RESULTS / "calibration.csv", index=False, float_format="%.4f")
    print(frame.to_string())


if __name__ == "__main__":
    main()
