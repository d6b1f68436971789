"""Whether what a page shows is what its code prints, up to rounding on another machine."""

from __future__ import annotations

import doctest
import math
import re

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def as_shown(shown: str, printed: str) -> bool:
    """Whether it is printed as shown, where ``...`` stands for anything, or up to the last digits of numbers."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown, printed, options) or alike(printed, shown)


def alike(printed: str, shown: str) -> bool:
    """Equal words, and numbers that are equal but for the last digits."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", shown).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(close(*(float(number.replace(",", "")) for number in pair)) for pair in pairs)


def close(a: float, b: float) -> bool:
    if max(abs(a), abs(b)) < 0.01:  # an error of rounding: its size alone
        return max(abs(a), abs(b)) <= 5 * min(abs(a), abs(b))
    return math.isclose(a, b, rel_tol=1e-3, abs_tol=0.021)
