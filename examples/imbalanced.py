"""Few positives: class weights, what the F1 score and the area under the ROC curve say, and calibrated probabilities.

    python examples/imbalanced.py [--quick] [--save DIR]

The data are made by scikit-learn's make_classification: 20 numbers an example, 5% of class 1, 2% of the labels drawn
anew. Two networks of one size see the same examples, one of them with class weights. The accuracy says little here:
who always says "0" has 94%. Class weights move the threshold: more positives are found and more alarms are false, while
the order of the examples (the area under the ROC curve) gains nothing. They make the probabilities wrong, which the log
loss shows, and which no temperature undoes: it scales the logits and does not shift them. A third of the examples is
for training, a third for validation, on which the temperatures are fitted, and a third is the test set.
"""

import argparse
import pathlib

import keras
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split

from tfopt import quantize, report

MEASURES = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc", "log_loss",
            "expected_calibration_error")


def load(quick):
    """(x, y) for training, for validation, for the test."""
    x, y = make_classification(6_000 if quick else 30_000, n_features=20, n_informative=8, n_clusters_per_class=3,
                               weights=[0.95], flip_y=0.02, class_sep=0.8, random_state=0)
    x, x_rest, y, y_rest = train_test_split(x.astype("float32"), y, test_size=2 / 3, stratify=y, random_state=0)
    x_val, x_test, y_val, y_test = train_test_split(x_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0)
    return (x, y), (x_val, y_val), (x_test, y_test)


def trained(train, epochs, class_weight=None):
    """A network with one logit."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input((20,)), keras.layers.Normalization(), keras.layers.Dense(64, "relu"),
                            keras.layers.Dense(64, "relu"), keras.layers.Dense(1, name="logit")])
    net.layers[0].adapt(train[0])
    net.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    net.fit(*train, epochs=epochs, batch_size=64, class_weight=class_weight, verbose=0)
    return net


def main(quick=False, save="results"):
    """Prints all forms side by side and the classes of one; saves a confusion matrix and a card; returns the table."""
    folder = pathlib.Path(save)
    folder.mkdir(parents=True, exist_ok=True)
    train, val, test = load(quick)
    share = float(train[1].mean())
    weights = {0: 0.5 / (1 - share), 1: 0.5 / share}                 # both classes count the same, 1 on average
    epochs = 10 if quick else 20
    models = {"plain": trained(train, epochs), "weighted": trained(train, epochs, weights)}
    for name in ("plain", "weighted"):
        models[f"{name}, calibrated"] = report.temperature(models[name], val)
    models["plain, int8"] = quantize.convert(models["plain, calibrated"], "int8", calibration=train[0][:200])

    title = f"make_classification, {len(test[1]):,} test examples, {share:.1%} of class 1"
    table = report.compare(models, test, title=title, measures=MEASURES, runs=10)
    frame = table.frame
    print(f"{title}\n\n{frame[list(MEASURES)].astype(float).round(3).T.to_string()}\n")
    print("p-values of the difference from the first, in pairs of predictions:\n")
    print(frame[[f"{name}_p" for name in MEASURES]].iloc[1:].astype(float).round(4).T.to_string())
    classes = report.classes(models["weighted"], test, names=["0", "1"])
    print("\nThe weighted network by class:\n")
    print(classes)
    classes.plot(folder / "imbalanced_classes.png")
    report.card(table, folder / "imbalanced_card.md", task="tabular-classification")
    print(f"\npicture: {folder / 'imbalanced_classes.png'}; model card: {folder / 'imbalanced_card.md'}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="6,000 examples and 10 epochs in place of 30,000 and 20")
    parser.add_argument("--save", default="results", metavar="DIR", help="where the picture and the card go")
    main(**vars(parser.parse_args()))
