"""The numbers that a conjunction allows: bounds and steps, where the compiler has no gaps in them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import ceil, floor, lcm, nextafter
from typing import Any

from .conjunction import Conjunction, at
from .errors import ConstraintError, Unsatisfiable

MAX_STEP = 1024  # the compiler's own bound of multipleOf
MAX_MULTIPLES = 2000  # that are enumerated where multipleOf meets a bound
DIGITS = 6  # behind the point of a number with bounds, in the compiler
INT64 = 2**63 - 1


def integer_bounds(wanted: Conjunction) -> tuple[int | None, int | None]:
    """Both inclusive."""
    lows = [ceil(wanted.minimum)] if wanted.minimum is not None else []
    lows += [floor(wanted.above) + 1] if wanted.above is not None else []
    highs = [floor(wanted.maximum)] if wanted.maximum is not None else []
    highs += [ceil(wanted.below) - 1] if wanted.below is not None else []
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        raise Unsatisfiable(wanted.path, f"no integer lies between the bounds, {low} and {high}")
    return low, high


def integer_schema(wanted: Conjunction) -> dict[str, Any]:
    low, high = integer_bounds(wanted)
    if (low is not None and low > INT64) or (high is not None and high < -INT64):
        raise ConstraintError(wanted.path, "integers of more than 64 bits are not supported")
    if low is not None or high is not None:  # the compiler counts in 64 bits
        low = None if low is None else max(low, -INT64)
        high = None if high is None else min(high, INT64)
    if wanted.multiples:
        return multiples(wanted, low, high)
    return between(low, high)


def multiples(wanted: Conjunction, low: int | None, high: int | None) -> dict[str, Any]:
    """Integers that are multiples of all steps; a step such as 0.5 asks nothing more of an integer."""
    ratios = [Decimal(str(step)).as_integer_ratio() for step in wanted.multiples]
    step = lcm(*(numerator for numerator, _ in ratios))
    path = at(wanted.path, "multipleOf")
    if low is None and high is None:
        if step > MAX_STEP:
            raise ConstraintError(
                path, f"multiples of {step} cannot be enforced, of at most {MAX_STEP} they can"
            )
        return {"type": "integer"} if step == 1 else {"type": "integer", "multipleOf": step}
    if step == 1:
        return between(low, high)
    if low is None or high is None:
        raise ConstraintError(
            path, "`multipleOf` beside one bound cannot be enforced: give both bounds, or none"
        )
    first = -(-low // step) * step
    number = (high - first) // step + 1
    if number < 1:
        raise Unsatisfiable(path, f"no multiple of {step} lies between the bounds")
    if number > MAX_MULTIPLES:
        raise ConstraintError(
            path, f"{number} multiples between the bounds are too many, {MAX_MULTIPLES} can be listed"
        )
    return {"enum": list(range(first, high + 1, step))}


def between(low: int | None, high: int | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    if low is not None:
        schema["minimum"] = low
    if high is not None:
        schema["maximum"] = high
    return schema


def number_schema(wanted: Conjunction) -> dict[str, Any]:
    if wanted.multiples:
        if all(float(step).is_integer() for step in wanted.multiples):
            return integer_schema(wanted)
        raise ConstraintError(at(wanted.path, "multipleOf"), "fractions cannot be enforced as a step")
    schema: dict[str, Any] = {"type": "number"}
    bounds = (
        ("minimum", wanted.minimum, True),
        ("exclusiveMinimum", wanted.above, True),
        ("maximum", wanted.maximum, False),
        ("exclusiveMaximum", wanted.below, False),
    )
    for keyword, bound, is_low in bounds:
        if bound is not None:
            schema[keyword] = inward(bound, is_low)
    if not has_number(schema):
        raise Unsatisfiable(wanted.path, f"no number of {DIGITS} decimals lies between the bounds")
    return schema


def has_number(schema: dict[str, Any]) -> bool:
    """Does the compiler, which writes `DIGITS` decimals, find a number between the bounds?"""
    scaled = {name: Fraction(str(bound)) * 10**DIGITS for name, bound in schema.items() if name != "type"}
    lows = [ceil(scaled["minimum"])] if "minimum" in scaled else []
    lows += [floor(scaled["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in scaled else []
    highs = [floor(scaled["maximum"])] if "maximum" in scaled else []
    highs += [ceil(scaled["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in scaled else []
    return not lows or not highs or max(lows) <= min(highs)


def inward(bound: float, is_low: bool) -> float:
    """The compiler reads bounds as doubles: a large integer is moved to the next one inside the range."""
    try:
        rounded = float(bound)
    except OverflowError:
        return 1.7e308 if bound > 0 else -1.7e308
    if is_low and rounded < bound:
        return nextafter(rounded, float("inf"))
    if not is_low and rounded > bound:
        return nextafter(rounded, float("-inf"))
    return bound
