import pytest

from tfopt._check import require, require_number


def test_a_refusal_is_rule_received_remedy():
    with pytest.raises(ValueError, match=r"^`a` must be b\. Received: a=3, c='d'\. Do e\.$"):
        require(False, "`a` must be b", a=3, c="d", do="Do e.")


def test_what_holds_passes():
    require(True, "`a` must be b", a=3)


@pytest.mark.parametrize(("value", "bounds", "passes"), [
    (1, {"low": 1}, True), (1, {"above": 1}, False), (2, {"high": 1}, False), (1, {"below": 1}, False),
    (float("nan"), {}, False), (float("inf"), {"low": 0}, False), (True, {}, False), ("1", {"integer": True}, False),
    (None, {}, False), (2.0, {"integer": True}, True), (2.5, {"integer": True}, False)])
def test_numbers(value, bounds, passes):
    if passes:
        require_number("x", value, **bounds)
    else:
        with pytest.raises(ValueError, match="`x` must be a"):
            require_number("x", value, **bounds)
