"""TFMOT's magnitude pruning, as the constraint of a kernel."""

from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl

from .._keras import applies_now, tf
from . import tfmot

_sparsity = tfmot.sparsity.keras


class _Constraint:
    """What becomes the constraint of a kernel, after the one that the kernel had."""

    def __init__(self, kernel):
        self.kernel, self.own = kernel, kernel.constraint
        kernel.constraint = self

    def __call__(self, kernel):
        return tf.convert_to_tensor(kernel.value if self.own is None else self.own(kernel))


class KeepZeros(_Constraint):
    """Weights that a mask leaves out are zero.

    Args:
      kernel: keras.Variable, whose constraint this becomes.
      mask: boolean variable of its shape.
    """

    def __init__(self, kernel, mask):
        super().__init__(kernel)
        self.mask = mask

    def __call__(self, kernel):
        return self.masked(super().__call__(kernel))

    def masked(self, value):
        return tf.where(self.mask.value, value, tf.zeros_like(value))

    def settle(self):
        """Once more, after someone assigned the kernel past this: an optimizer that ends with averages of the past."""
        self.kernel.assign(self.masked(self.kernel.value))


class Prune(KeepZeros):
    """Magnitude pruning: after each optimizer step that the schedule names, the mask is chosen anew.

    An optimizer applies a constraint after its step, whatever loop or model that step belongs to. TFMOT does the same
    work at the beginning of the next forward pass: its step t + 1 chooses what is chosen here after step t.

    Args:
      kernel, mask: as above.
      step: whole-number variable: the optimizer steps this kernel has seen.
      sparsity, begin, end, every, block, pattern: as `prune.wrap` has them.
    """

    def __init__(self, kernel, mask, step, *, sparsity, begin, end, every, block, pattern):
        super().__init__(kernel, mask)
        self.schedule = (_sparsity.ConstantSparsity(sparsity, begin, frequency=every) if end is None
                         else _sparsity.PolynomialDecay(0.0, sparsity, begin, end, frequency=every))
        self.step, self.sparsity, self.block, self.pattern = step, sparsity, block, pattern
        self._toolkit = pruning_impl.Pruning(lambda: step.value, [], self.schedule, (1, 1), "AVG")

    def __call__(self, kernel):
        _in_all_replicas(self.advance)
        return super().__call__(kernel)

    def last(self, step):
        """The mask of a kernel that no optimizer has touched, as it would be chosen after `step` steps."""
        seen = int(self.step.numpy())
        self.step.assign(step)
        mask = self.largest(tf.convert_to_tensor(self.kernel.value))
        self.step.assign(seen)
        return mask

    def advance(self, applies):
        """Counts a step, if the optimizer took one, and chooses the mask if it is time to."""
        self.step.assign_add(tf.cast(applies, self.step.dtype))
        due = tf.equal(self.step.value, 1) if self.pattern else self.schedule(self.step.value)[0]
        tf.cond(applies & due, self._choose, lambda: None)

    def _choose(self):
        value = _Constraint.__call__(self, self.kernel)
        self.mask.assign(self.largest(value))
        if not self.kernel.trainable:                      # no optimizer assigns what this constraint returns
            self.kernel.assign(self.masked(value))

    def largest(self, value):
        """The mask of what stays of `value` at this step."""
        if self.pattern:
            mask = self._toolkit._update_mask_sparsity_m_by_n(value, tuple(self.pattern))
        elif self.block:
            mask = self._largest_blocks(tf.abs(value), *self.block)
        else:
            mask = self._toolkit._update_mask(value)[1]
        return tf.cast(mask, tf.bool)

    def _largest_blocks(self, magnitude, height, width):
        """Blocks begin at the kernel's corner; those at its far edges may be cut off. TFMOT shifts them there."""
        rows, columns = magnitude.shape

        def by_block(values):
            whole = tf.pad(values, [[0, -rows % height], [0, -columns % width]])
            return tf.reduce_sum(tf.reshape(whole, [-(-rows // height), height, -(-columns // width), width]), [1, 3])

        mask = self._toolkit._update_mask(by_block(magnitude) / by_block(tf.ones_like(magnitude)))[1]
        return tf.repeat(tf.repeat(mask, height, 0), width, 1)[:rows, :columns]


class Drive(_Constraint):
    """Moves frozen kernels on, which no optimizer touches, whenever one applies the constraint of another variable."""

    def __init__(self, variable, frozen):
        super().__init__(variable)
        self.frozen = frozen

    def __call__(self, variable):
        _in_all_replicas(self._advance)
        return super().__call__(variable)

    def _advance(self, applies):
        for prune in self.frozen:
            if not prune.kernel.trainable:
                prune.advance(applies)


def release(variables):
    """Gives variables that are copied with a `_Constraint` the constraint they had before it."""
    for variable in variables:
        while isinstance(variable.constraint, _Constraint):
            variable.constraint = variable.constraint.own


def _in_all_replicas(advance):
    """Calls `advance(does the optimizer apply its gradients now)` once for all replicas: only there may it branch."""
    def call(strategy, applies):
        advance(tf.convert_to_tensor(strategy.experimental_local_results(applies)[0]))

    tf.__internal__.distribute.interim.maybe_merge_call(call, tf.distribute.get_strategy(), applies_now())
