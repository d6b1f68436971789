"""Time candidates in interleaved rounds, and summarise the rounds.

Each round times every candidate once, in a newly shuffled order, so that other load on the machine affects all of them
alike. Ratios are taken within a round, then summarised: a slow minute slows both sides of a ratio.
"""

from __future__ import annotations

import math
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")

WARM_UP = 2  # calls; the first ones build kernels and fill caches
# Minimum seconds per turn of a candidate. GPU events are less noisy than the clock of a CPU.
MIN_SECONDS = {"cpu": 0.05, "cuda": 0.02}


class OutOfTime(BaseException):
    """A :func:`time_limit` has expired. Not an ``Exception``, which compilers catch to report or fall back."""


@dataclass(frozen=True)
class Summary:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    def as_dict(self) -> dict[str, float]:
        """For JSON, rounded to four significant digits."""
        return {name: significant(value) for name, value in vars(self).items()}


def significant(value: float, digits: int = 4) -> float:
    """The number, rounded to ``digits`` significant digits."""
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
        raise ValueError(f"ratio: both sides must have the same number of rounds, got {len(of)} and {len(to)}.")
    return summarise([mine / other for mine, other in zip(of, to, strict=True)])


def elapsed(work: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that ``work`` takes: between two events on a GPU, by ``clock`` elsewhere."""
    if device.type != "cuda":
        start = clock()
        work()
        return clock() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def stopwatch(
    call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """Warm up a candidate and return a function that times one turn of it, in seconds per call.

    Calls that are short compared with the noise of the clock are repeated within the turn, after an untimed one.
    """

    def seconds(calls: int) -> float:
        return elapsed(lambda: [call() for _ in range(calls)], device, clock) / calls

    for _ in range(WARM_UP):
        call()
    minimum, calls = MIN_SECONDS[device.type], 1
    while (per_call := seconds(calls)) * calls < minimum / 2:  # a tick of the clock may be 16 ms
        calls *= 2
    calls = max(1, math.ceil(minimum / per_call))

    def turn() -> float:
        if calls > 1:
            call()
        return seconds(calls)

    return turn


def interleave(
    turns: Mapping[Key, Callable[[], float]], repeats: int, *, seed: int, limit: float = math.inf
) -> dict[Key, list[float]]:
    """Time all candidates in turn, round by round.

    Args:
        turns: A function for each candidate that times one turn.
        repeats: Number of rounds.
        seed: Of the order within each round.
        limit: Time budget in seconds. No round starts that would exceed it if it took as long as the longest so far;
            the first round always runs.

    Returns:
        The times of each candidate, one per round.
    """
    order = list(turns)
    shuffle = random.Random(seed).shuffle
    rounds: dict[Key, list[float]] = {name: [] for name in turns}
    longest = 0.0
    start = now = time.monotonic()
    for number in range(repeats):
        if number and now - start + longest > limit:
            break
        shuffle(order)
        for name in order:
            rounds[name].append(turns[name]())
        longest, now = max(longest, time.monotonic() - now), time.monotonic()
    return rounds


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` if the block takes longer. For the main thread only; without effect on Windows.

    A call into compiled code is not interrupted before it returns.
    """
    if math.isinf(seconds) or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    # Repeated every second: an exception that is raised within a finaliser is swallowed.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
