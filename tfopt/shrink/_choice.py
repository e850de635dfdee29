"""Which channels go: groups of channels that go together, what each is worth, how many stay."""

import dataclasses
import itertools
import math

import numpy as np

from .._check import require
from .._keras import keras, parts_of, tf

# The formulas: the weights that make each channel and those that read it, as {(path of the variable, axis): array
# (channels, numbers)}, to the worth of each channel


def l1(made, read):
    """Norm of what makes a channel times norm of what reads it: zero if either is; no scale between matters."""
    return _both(made, read, lambda parts: sum(np.abs(values).sum(1) for values in parts.values()))


def l2(made, read):
    return _both(made, read, lambda parts: np.sqrt(sum((values ** 2).sum(1) for values in parts.values())))


def _both(made, read, norm):
    return math.prod(norm(parts) for parts in (made, read) if parts)


def gamma(made, read):
    return sum(np.abs(values).sum(1) for values in (made | read).values())


def geometric_median(made, read):
    """Sum of the distances to the other filters of the group: what lies in their middle can be replaced by them."""
    filters = np.concatenate(list(made.values()), 1)
    squares = (filters ** 2).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * filters @ filters.T, 0)).sum(1)


def random(made, read):
    count = len(next(iter((made | read).values())))
    return np.random.default_rng(count).permutation(count) + 1.0


def first_order(batches):
    """Mean over the batches of (sum of weight * gradient)^2: how much the loss changes without the channel."""
    def formula(made, read):
        return (sum(values.reshape(len(values), -1, batches).sum(1) for values in read.values()) ** 2).mean(1)
    return formula


def weights_of(row):
    """The variable of a row, its channels first."""
    return np.moveaxis(keras.ops.convert_to_numpy(row.variable), row.axis, 0).reshape(len(row.ids), -1)


@dataclasses.dataclass(frozen=True)
class Criterion:
    """A formula, the rows of the table it judges by, and the numbers it takes from each."""

    formula: object
    looks_at: object = lambda row: len(row.variable.shape) > 1
    needs: str = "layers with a kernel"
    numbers: object = weights_of


CRITERIA = {
    "l1": Criterion(l1), "l2": Criterion(l2), "random": Criterion(random),
    "gamma": Criterion(gamma, lambda row: row.variable.path.endswith("/gamma"), "batch normalization with a scale"),
    "fpgm": Criterion(geometric_median, lambda row: len(row.variable.shape) > 1 and row.out),
}


def taylor(model, data, rows):
    """The first-order criterion; the gradients are those of the loss that the model was compiled with."""
    rows = [row for row in rows if len(row.variable.shape) > 1 and not row.out]       # what reads the channels
    sums = {row: [] for row in rows}
    moved = [[metric.variables for metric in model.metrics], [getattr(part, "states", ()) for part in parts_of(model)]]
    kept = [(one, one.numpy()) for one in keras.tree.flatten(moved) if isinstance(one, keras.Variable)]
    for x, y, weight in data:
        with tf.GradientTape() as tape:
            tape.watch([row.variable.value for row in rows])
            loss = model.compute_loss(x, y, model(x, training=False), weight, training=False)
        gradients = tape.gradient(loss, [row.variable.value for row in rows], unconnected_gradients="zero")
        for row, gradient in zip(rows, gradients, strict=True):
            product = np.moveaxis(keras.ops.convert_to_numpy(row.variable * gradient), row.axis, 0)
            sums[row].append(product.reshape(len(row.ids), -1).sum(1))
    for variable, value in kept:
        variable.assign(value)
    return Criterion(first_order(len(next(iter(sums.values()), ()))), sums.__contains__, "layers that read channels",
                     lambda row: np.stack(sums[row], 1))


# The choice


@dataclasses.dataclass(eq=False)
class Group:
    """Channels that differ only in their index: the same rows of the table hold each of them equally often."""

    channels: np.ndarray            # labels
    step: int                       # how many of them change a width by a multiple of `round_to`
    rows: list

    def allowed(self, share):
        """The largest number of channels within `share` that leaves a rounded width."""
        size = len(self.channels)
        return size if share >= 1 else max(int(share * size / self.step + 1e-9) * self.step, min(self.step, size))

    def parts(self, label, criterion):
        """The weights that make and that read the channels, of the rows that a criterion looks at."""
        made, read = {}, {}
        for row in filter(criterion.looks_at, self.rows):
            labels = label[row.ids]
            here = np.flatnonzero(np.isin(labels, self.channels))
            order = here[np.argsort(labels[here], kind="stable")]
            side = made if row.out else read
            side[row.variable.path, row.axis] = criterion.numbers(row)[order].reshape(len(self.channels), -1)
        return made, read


class Choice:
    """The groups of a traced model, and the channels that stay.

    Args:
      graph: the traced table.
      round_to: widths that change become multiples of this.
    """

    def __init__(self, graph, round_to=1):
        self.graph = graph
        self.label, self.locked = graph.solve()
        self.each = {int(self.label[one]): each for one, each in graph.each.items()}      # see Graph
        self.alive = np.ones(len(self.label), bool)                    # by label
        self.rows = list(graph.rows.values())
        self.groups = self._group(round_to)
        self._count()

    def _group(self, round_to):
        signature = np.zeros(len(self.label), np.uint64)               # a sum of random numbers, one for each row
        numbers = np.random.default_rng(0).integers(2**63, size=len(self.rows), dtype=np.uint64)
        for row, number in zip(self.rows, numbers, strict=True):
            np.add.at(signature, self.label[row.ids], number)
        free = np.setdiff1d(np.flatnonzero(signature), list(self.locked))
        _, first, inverse = np.unique(signature[free], return_index=True, return_inverse=True)
        groups = []
        for index in np.argsort(first):
            channels = free[inverse == index]
            widths = [count for ids in self.graph.sizes.values() if (count := (self.label[ids] == channels[0]).sum())]
            width = int(min(widths, default=1)) * self.each.get(int(channels[0]), 1)
            rows = [row for row in self.rows if channels[0] in self.label[row.ids]]
            groups.append(Group(channels, math.lcm(round_to, width) // width, rows))
        return [group for group in groups if len(group.channels) > 1]

    def _count(self):
        """Widths are linear in the channels kept of each group; multiply-accumulates are products of widths."""
        firsts = [group.channels[0] for group in self.groups]
        each = [np.bincount(self.label[row.ids], minlength=len(self.label))[firsts] for row in self.rows]
        self._each = np.array(each, float).reshape(len(self.rows), len(firsts))
        self._base = np.array([len(row.ids) for row in self.rows]) - self._each @ self.sizes
        places = {(id(row.variable), row.axis): index for index, row in enumerate(self.rows)}
        self._factors = [(macs, [places[key]]) for key, macs in self.graph.products.items()]
        # Each is (positions times untouched axes, rows)
        for key, work in self.graph.work.items():
            rows = [index for index, row in enumerate(self.rows) if id(row.variable) == key]
            if work and rows:
                shape = self.rows[rows[0]].variable.shape
                self._factors.append((work * math.prod(shape) / math.prod(len(self.rows[r].ids) for r in rows), rows))

    @property
    def sizes(self):
        return np.array([len(group.channels) for group in self.groups], int)

    def macs(self, kept):
        """Multiply-accumulates per example with so many channels kept of each group."""
        widths = self._base + self._each @ kept
        return sum(factor * math.prod(widths[rows]) for factor, rows in self._factors)

    def amounts(self, share):
        return np.array([group.allowed(share) for group in self.groups], int)

    def within(self, target, scores, amounts):
        """How many channels of each group stay so that the multiply-accumulates come to just under `target`.

        `amounts` of a share as large as fits; then, while there is room, the group whose next channels are worth most
        gets them.
        """
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.macs(amounts(middle)) <= target else (low, middle)
        kept = amounts(low)
        ranked = _ranked(scores)
        candidates = [g for g, size in enumerate(self.sizes) if kept[g] < size]
        while candidates:
            best = max(candidates, key=lambda g: ranked[g][kept[g]:kept[g] + self.groups[g].step].mean())
            more = kept.copy()
            more[best] = min(kept[best] + self.groups[best].step, self.sizes[best])
            fits = self.macs(more) <= target
            kept = more if fits else kept
            if not fits or kept[best] == self.sizes[best]:
                candidates.remove(best)
        return kept

    def path(self, scores, ranking):
        """The way from the fewest channels to all of them: [(group, how many of its channels stay from here on)].

        By steps, the most important channels of all groups first; ranking="layer": all groups at the same pace.
        """
        steps = []
        for g, (group, ranked) in enumerate(zip(self.groups, _ranked(scores), strict=True)):
            counts = [*range(group.allowed(0), len(ranked), group.step), len(ranked)]
            worth = np.minimum.accumulate([ranked[a:b].mean() for a, b in itertools.pairwise(counts)])
            steps += [(count / len(ranked) if ranking == "layer" else 0, -value, g, count)
                      for count, value in zip(counts[1:], worth, strict=True)]
        return [(g, count) for *_, g, count in sorted(steps)]

    def share_of_all(self, share, path):
        """How many channels of each group stay where a path has come to this share of the channels of all groups."""
        kept = self.amounts(0)
        room = share * self.sizes.sum() + 1e-9 - kept.sum()
        for g, count in path:
            room -= count - kept[g]
            if room < 0:
                break
            kept[g] = count
        return kept

    def along(self, path):
        """How many channels of each group stay at the end of the beginning of a path."""
        kept = self.amounts(0)
        for g, after in path:
            kept[g] = after
        return kept

    def judge(self, criterion):
        """Worth of the channels of each group; a group that the criterion cannot judge keeps all of its channels."""
        judged = []
        for group in self.groups:
            made, read = group.parts(self.label, criterion)
            if made or read:
                score = np.asarray(criterion.formula(made, read), float)
                require(score.shape == group.channels.shape and np.isfinite(score).all(),
                        "`importance` must give one finite number per channel", channels=len(group.channels),
                        returned=score.shape, do="Return an array of that length.")
                judged.append((group, score))
        require(judged, f"this `importance` needs {criterion.needs}",
                do="Choose another, such as importance='l2'.")
        self.groups = [group for group, _ in judged]
        self._count()
        return [score for _, score in judged]

    def keep(self, kept, scores):
        """All but the `kept` best channels of each group go."""
        self.alive[:] = True
        for group, count, score in zip(self.groups, kept, scores, strict=True):
            self.alive[group.channels[np.argsort(-score, kind="stable")[count:]]] = False

    def stays(self, ids):
        return self.alive[self.label[np.abs(ids)]]


def _ranked(scores):
    """The worth of each group's channels, best first, 1 in the mean."""
    return [np.sort(score)[::-1] / max(np.abs(score).mean(), 1e-30) for score in scores]
