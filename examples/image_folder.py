"""A folder of images, a class in each sub-folder: schedule and early stopping, without and with augmentation.

    python examples/image_folder.py [--path FOLDER] [--size 32] [--quick] [--save DIR]

Without --path the folder is made from scikit-learn's two photographs, a Chinese temple and a flower: 32 x 32 patches
side by side. That is no benchmark: patches of one photograph resemble each other, and validation patches are neighbors
of training patches. So the right quarter of each photograph is kept apart as the test set. With --path the table is of
the validation images, on which early stopping chose the weights.
"""

import argparse
import pathlib

import keras
import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from tfopt import augment, data, report, schedules

BATCH = 32


def cut_photographs(folder, side=32):
    """Writes the patches as real JPEG files; returns the training and the test folder."""
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        height, width, _ = photograph.shape
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                place = folder / ("test" if left + side > 0.75 * width else "train") / name
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(photograph[top:top + side, left:left + side]).save(
                    place / f"{top:03}_{left:03}.jpg", quality=95)
    return folder / "train", folder / "test"


def build(size, classes):
    layers = [keras.layers.Rescaling(1 / 127.5, offset=-1)]
    for width in (16, 32, 64):
        layers += [keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
                   keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU(), keras.layers.MaxPooling2D()]
    return keras.Sequential([keras.Input((size, size, 3)), *layers, keras.layers.GlobalAveragePooling2D(),
                             keras.layers.Dense(classes)])


def show(dataset, path):
    """Draws the first batch as the model sees it."""
    images, labels = next(iter(dataset))
    figure = matplotlib.figure.Figure(figsize=(8, 4), layout="constrained")
    for axes, image, label in zip(figure.subplots(4, 8).flat, images.numpy(), labels.numpy(), strict=False):
        axes.imshow(image.clip(0, 255).astype(np.uint8))
        axes.set_title(dataset.class_names[label], fontsize=7)
    for axes in figure.axes:
        axes.axis("off")
    figure.savefig(path, dpi=120)


def main(quick=False, save="results", path=None, size=32):
    """Trains twice; prints the table, saves the pictures; returns the table."""
    save = pathlib.Path(save)
    save.mkdir(parents=True, exist_ok=True)
    if path:
        folder, test, title = pathlib.Path(path), None, f"{path}: validation images"
    else:
        print("These are 32 x 32 patches of scikit-learn's two photographs (china, flower); --path takes any folder.")
        folder, test = cut_photographs(save / "photographs")
        title = "patches of two photographs: the right quarter of each"
    print(data.scan_images(folder))

    views = augment.Pipeline([augment.Flip(), augment.Rotate(0.05), augment.Zoom(0.15), augment.Translate(0.1),
                              augment.Brightness(0.15), augment.Contrast(0.15)])
    epochs = 12 if quick else 60
    models, histories = {}, {}
    for name, pipeline in {"without": None, "with augmentation": views}.items():
        keras.utils.set_random_seed(0)
        train, validation = data.image_folder(folder, size, BATCH, validation_split=0.2, augment=pipeline)
        show(train, save / f"image_folder_{name.split()[0]}.png")
        steps = epochs * len(train)
        rate = schedules.Warmup(schedules.CosineDecay(0.05, steps - steps // 10), steps // 10)
        stop = keras.callbacks.EarlyStopping("val_loss", patience=epochs // 3, restore_best_weights=True)
        model = build(size, len(train.class_names))
        model.compile(keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        histories[name] = model.fit(train, validation_data=validation, epochs=epochs, callbacks=[stop], verbose=0,
                                    class_weight=train.class_weight)
        print(f"{name:18} {len(histories[name].epoch):3} epochs   "
              f"validation accuracy {max(histories[name].history['val_accuracy']):.1%}", flush=True)
        models[name] = model

    if test:
        validation = data.image_folder(test, size, BATCH, shuffle=False)
    table = report.compare(models, validation, title=title)
    print(f"\n{table}\n")
    report.curves(histories).savefig(save / "image_folder_curves.png", dpi=120)
    print(f"pictures: {save}/image_folder*.png")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", help="a folder with a sub-folder for each class")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--quick", action="store_true", help="12 epochs in place of 60")
    parser.add_argument("--save", default="results", metavar="DIR", help="where the pictures go")
    main(**vars(parser.parse_args()))
