"""Does `schedules.find` suggest a rate near the best of a grid? Fashion-MNIST, 784-128-10, two epochs a rate."""

import keras

from tfopt import schedules

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
OPTIMIZERS = {"SGD, Nesterov 0.9": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
              "Adam": keras.optimizers.Adam}


def build(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(128, activation="relu"),
                              keras.layers.Dropout(0.2), keras.layers.Dense(10)])
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def main():
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, y, x_test, y_test = x[:10_000] / 255, y[:10_000], x_test[:3000] / 255, y_test[:3000]

    def accuracy(optimizer):
        model = build(optimizer)
        model.fit(x, y, epochs=2, verbose=0)
        return model.evaluate(x_test, y_test, verbose=0)[1]

    for name, make in OPTIMIZERS.items():
        rates = schedules.find(build(make(0.1)), (x, y), verbose=0).rates
        best = max((accuracy(make(rate)), rate) for rate in GRID)
        for suggestion, rate in rates.items():
            found = accuracy(make(rate))
            print(f"{name}: {suggestion} {rate:.2g} gives {found:.4f}, {found / best[0]:.3f} of the best of the grid "
                  f"({best[1]:g}: {best[0]:.4f})", flush=True)


if __name__ == "__main__":
    main()
