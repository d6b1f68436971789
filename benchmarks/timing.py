"""Time candidates in turn, and say how far the numbers can be trusted.

Each round times every candidate once, in an order that a seed shuffles anew, so that what else the machine does meets
all of them alike. Ratios are taken within a round, then summarised: a slow minute slows both sides of them.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

WARM_UP = 2  # calls; the first ones build kernels and fill caches
SHORTEST = 0.05  # seconds that one turn of a candidate takes at least


@dataclass(frozen=True)
class Summary:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    def as_dict(self, digits: int = 4) -> dict[str, float]:
        """For JSON, to so many significant digits."""
        return {name: significant(value, digits) for name, value in vars(self).items()}


def significant(value: float, digits: int = 4) -> float:
    """The number, rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")


def summarise(values: Sequence[float]) -> Summary:
    """Median and quartiles, with linear interpolation between the values.

    Raises:
        ValueError: If there are no values.

    Example:
        >>> summarise([4.0, 1.0, 2.0, 3.0, 5.0])
        Summary(median=3.0, q1=2.0, q3=4.0)
    """
    if not values:
        raise ValueError("summarise: values must hold at least one number, got none.")
    if len(values) == 1:
        return Summary(values[0], values[0], values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, q1, q3)


def ratio(of: Sequence[float], to: Sequence[float]) -> Summary:
    """Summary of the ratios within each round, which is not the ratio of the medians.

    Raises:
        ValueError: If the two do not have the same number of rounds.

    Example:
        >>> ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]).median
        2.0
    """
    if len(of) != len(to):
        raise ValueError(f"ratio: both sides must have the same rounds, got {len(of)} and {len(to)}.")
    return summarise([mine / other for mine, other in zip(of, to, strict=True)])


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stopwatch(call: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Warm a candidate up and return what times one turn of it: seconds per call.

    A call much shorter than the clock's and the caches' noise is repeated within the turn, after one that is not timed.
    """

    def seconds(calls: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronise(device)
        return (time.perf_counter() - start) / calls

    for _ in range(WARM_UP):
        seconds(1)
    calls = max(1, math.ceil(SHORTEST / seconds(1)))

    def turn() -> float:
        if calls > 1:
            call()
        return seconds(calls)

    return turn


def interleave(
    turns: Mapping[str, Callable[[], float]], repeats: int, *, seed: int, limit: float = math.inf
) -> dict[str, list[float]]:
    """Time all candidates in turn, round by round.

    Args:
        turns: For each candidate what measures one turn.
        repeats: Rounds.
        seed: Of the order within each round.
        limit: Seconds after which no further round begins; the first always does.

    Returns:
        For each candidate a number for each round; of all equally many.
    """
    order = list(turns)
    shuffle = random.Random(seed).shuffle
    rounds: dict[str, list[float]] = {name: [] for name in turns}
    start = time.monotonic()
    for number in range(repeats):
        if number and time.monotonic() - start > limit:
            break
        shuffle(order)
        for name in order:
            rounds[name].append(turns[name]())
    return rounds
