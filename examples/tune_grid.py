"""The classic grid: learning rate x batch size x filters x units, on the two-class folder of images.

    python examples/tune_grid.py [--quick] [--save DIR]

The images are 32 x 32 patches of scikit-learn's two photographs, a Chinese temple and a flower (see image_folder.py).
Stop it whenever you like, and start it again: it goes on where it was.
"""

import argparse
import pathlib

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from tfopt import data, tune

SIDE = 32


def cut_photographs(folder):
    """Writes the patches as JPEG files, one folder for each class; the right quarter of each photograph stays out."""
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        height, width, _ = photograph.shape
        for top in range(0, height - SIDE + 1, SIDE):
            for left in range(0, width * 3 // 4 - SIDE + 1, SIDE):
                Image.fromarray(photograph[top:top + SIDE, left:left + SIDE]).save(
                    folder / name / f"{top:03}_{left:03}.jpg", quality=95)
    return folder


def build(hp):
    filters, units = hp.Choice("filters", [8, 16]), hp.Choice("units", [16, 64])
    hp.Choice("batch_size", [16, 64])                                    # `run` trains with it
    model = keras.Sequential([
        keras.Input((SIDE, SIDE, 3)), keras.layers.Rescaling(1 / 127.5, offset=-1),
        keras.layers.Conv2D(filters, 3, strides=2, activation="relu"), keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(2 * filters, 3, activation="relu"), keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(units, activation="relu"), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(hp.Choice("learning_rate", [1e-2, 1e-3])), metrics=["accuracy"],
                  loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def arrays(dataset):
    """All images and labels of batches: the search chooses the size of the batch."""
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images).astype("float32"), np.concatenate(labels)


def main(quick=False, save="results"):
    """Searches the grid; prints the table, saves the picture; returns the table."""
    save = pathlib.Path(save)
    folder = cut_photographs(save / "patches")
    train, validation = data.image_folder(folder, SIDE, 64, validation_split=0.3)
    search = tune.Search(build, "val_accuracy", algorithm="grid", max_trials=3 if quick else 16,
                         directory=save / ("tune_grid_quick" if quick else "tune_grid"))
    search.run(arrays(train), arrays(validation), epochs=2 if quick else 12)
    table = search.frame.sort_values("val_accuracy", ascending=False)
    print(f"\n{table[['val_accuracy', 'learning_rate', 'batch_size', 'filters', 'units', 'params']].to_string()}\n")
    search.plot(save / "tune_grid.png")
    print(f"the best model: {search.best().evaluate(*arrays(validation), verbose=0, return_dict=True)['accuracy']:.1%} "
          f"of the validation images\npicture: {save / 'tune_grid.png'}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 of the 16 points, 2 epochs")
    parser.add_argument("--save", default="results", metavar="DIR", help="where search and picture go")
    main(**vars(parser.parse_args()))
