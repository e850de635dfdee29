"""The one refusal sentence: the rule, what was received, what to do."""


def require(ok, rule, *, do="", error=ValueError, **received):
    """Raises `error` with one sentence unless `ok`.

    Args:
      ok: the rule holds.
      rule: what is asked for, as a clause without a full stop.
      do: what the caller can do about it; ends with a full stop.
      error: class of the exception.
      **received: the values that broke the rule, by the names the caller knows.

    Example:
      >>> require(0 < 2, "`rate` must be > 0", rate=2)
      >>> require(0 < -1, "`rate` must be > 0", do="Pass a step size such as 0.1.", rate=-1)
      Traceback (most recent call last):
      ValueError: `rate` must be > 0. Received: rate=-1. Pass a step size such as 0.1.
    """
    if ok:
        return
    shown = ", ".join(f"{name}={value!r}" for name, value in received.items())
    parts = [f"{rule}.", f"Received: {shown}." if shown else "", do]
    raise error(" ".join(part for part in parts if part))


def require_number(name, value, *, low=None, high=None, above=None, below=None, integer=False):
    """Refuses `value` unless it is a finite number (a bool is not one) within its bounds.

    Args:
      name: the argument's name.
      value: what the caller passed.
      low, high: closed bounds.
      above, below: open bounds.
      integer: only whole numbers pass.

    Example:
      >>> require_number("rate", 0.5, low=0, below=1)
      >>> require_number("steps", 2.5, low=1, integer=True)
      Traceback (most recent call last):
      ValueError: `steps` must be a whole number >= 1. Received: steps=2.5.
    """
    bounds = [(low, ">=", lambda v, b: v >= b), (above, ">", lambda v, b: v > b),
              (high, "<=", lambda v, b: v <= b), (below, "<", lambda v, b: v < b)]
    bounds = [(bound, sign, holds) for bound, sign, holds in bounds if bound is not None]
    kind = "whole number" if integer else "finite number"
    limits = " and ".join(f"{sign} {bound}" for bound, sign, _ in bounds)
    rule = f"`{name}` must be a {kind} {limits}".rstrip()
    require(_is_number(value, integer) and all(holds(value, bound) for bound, _, holds in bounds),
            rule, **{name: value})


def _is_number(value, integer):
    if isinstance(value, bool):
        return False
    try:
        return value == int(value) if integer else abs(float(value)) < float("inf")
    except (TypeError, ValueError, OverflowError):
        return False
