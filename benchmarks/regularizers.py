"""Does each penalty do what it is for? Fashion-MNIST, 784-128-10, one training without and one with each penalty."""

import keras
import numpy as np

from tfopt import regularizers


def train(penalty, data):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10)])
    if penalty is not None:
        model = regularizers.add(model, penalty, where=lambda layer: layer is model.layers[0])
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                  metrics=["accuracy"])
    model.fit(*data, batch_size=128, epochs=6, verbose=0)
    return model


def accuracy_with(model, treat, test):
    """Test accuracy with another kernel in the first layer."""
    kept = model.layers[0].kernel.numpy()
    model.layers[0].kernel.assign(treat(kept))
    found = model.evaluate(*test, verbose=0)[1]
    model.layers[0].kernel.assign(kept)
    return found


def smallest_to_zero(kernel):
    return kernel * (abs(kernel) >= np.quantile(abs(kernel), 0.85))


def weakest_channels_to_zero(kernel):
    norms = np.linalg.norm(kernel, axis=0)
    return kernel * (norms >= np.quantile(norms, 0.75))


def three_bits(kernel):
    step = abs(kernel).max() / 3.5
    return (np.clip(np.floor(kernel / step), -4, 3) + 0.5) * step


def main():
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    data = x[:20_000].reshape(-1, 784) / 255, y[:20_000]
    test = x_test.reshape(-1, 784) / 255, y_test
    plain = train(None, data)
    for penalty, treat in ((regularizers.Hoyer(1e-4), smallest_to_zero),
                           (regularizers.GroupLasso(1e-4), weakest_channels_to_zero),
                           (regularizers.Kurtosis(1e-1), three_bits)):
        model = train(penalty, data)
        (before, with_it), (without, treated) = (
            [accuracy_with(m, f, test) for m in (plain, model)] for f in (lambda kernel: kernel, treat))
        print(f"{type(penalty).__name__}({penalty.strength:g}): {treat.__name__}: {treated:.4f} with it, {without:.4f} "
              f"without, ratio {treated / without:.3f}; untreated {with_it:.4f} and {before:.4f}", flush=True)


if __name__ == "__main__":
    main()
