"""Timing of a training run: the parts of its steps, and the number of steps that fit into a given time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

MEASURED_STEPS = 50  # timed before a run of given minutes estimates how many steps fit
SAVE_EVERY = 60.0  # seconds between validations of a run of given minutes
VALIDATION_SHARE = 0.03  # maximum share of its time, not counting the last one
MARGIN = 2.0  # seconds that such a run reserves for writing its last files


@dataclass
class Timing:
    """Seconds spent in each part of a step, summed over the timed steps."""

    seconds: dict[str, float] = field(default_factory=lambda: {"input": 0.0, "network": 0.0, "update": 0.0})
    """Input: drawing patches. Network: forward, loss and backward. Update: gradient clipping, optimizer and EMA."""
    steps: int = 0

    def add(self, times: Sequence[float]) -> None:
        """Add a step, given the start times of its parts and the end time of the last one."""
        for part, start, end in zip(self.seconds, times, times[1:], strict=False):
            self.seconds[part] += end - start
        self.steps += 1

    def describe(self, batch_size: int) -> str:
        """One line with the speed, and the share of each part in the time of a step."""
        total = sum(self.seconds.values())
        if not (self.steps and total):
            return "no step was timed"
        shares = ", ".join(f"{part} {spent / total:.1%}".replace("%", " %") for part, spent in self.seconds.items())
        speed = self.steps / total
        return f"{speed:.4g} steps/s, {speed * batch_size:.4g} images/s; time per step: {shares}"


@dataclass
class Deadline:
    """The end of a run of given minutes, and the number of steps that fit before it."""

    end: float
    """On the clock of ``time.monotonic``."""
    seconds_per_step: float | None = None
    """``None`` until enough steps were timed, or a few if time is short."""
    is_measured: bool = False
    """Whether ``seconds_per_step`` is the mean of enough steps."""
    validation: float | None = None
    """Seconds that the last validation took; ``None`` before the first."""
    last_measurement: tuple[int, float] | None = None
    """Its step and its time, from which the next measurement starts."""

    def is_short(self, step: int) -> bool:
        """Whether the end would come before enough steps are timed."""
        if self.last_measurement is None or self.is_measured or step == self.last_measurement[0]:
            return False
        now, timed = time.monotonic(), step - self.last_measurement[0]
        return now + (MEASURED_STEPS - timed) * (now - self.last_measurement[1]) / timed > self.end

    def measure(self, step: int, *, short: bool = False) -> None:
        """Measure the steps since the last call, if there are enough. The first call must come after compilation.

        Args:
            step: Number of steps so far.
            short: Whether a few steps are enough, because time is short; later calls then refine the measurement.
        """
        now = time.monotonic()
        if self.last_measurement is None:
            self.last_measurement = step, now
            return
        timed = step - self.last_measurement[0]
        enough = timed >= MEASURED_STEPS
        if enough or (timed and (short or not (self.is_measured or self.seconds_per_step is None))):
            self.seconds_per_step = (now - self.last_measurement[1]) / timed
        if enough:
            self.is_measured = True
            self.last_measurement = step, now

    def validated(self, step: int, seconds: float) -> None:
        """Record a validation and exclude it from the measurement of the steps."""
        self.validation = seconds
        self.last_measurement = step, time.monotonic()

    def steps_left(self, steps_per_validation: float) -> int | None:
        """Steps that fit before the last validation; ``None`` as long as that is unknown.

        Args:
            steps_per_validation: How many steps take as long as a validation, roughly; used before the first one.
        """
        if self.seconds_per_step is None:
            return None
        known = self.validation is not None
        validation = self.validation if known else steps_per_validation * self.seconds_per_step
        left = self.end - time.monotonic() - validation - MARGIN
        share = 1 - VALIDATION_SHARE * (left > SAVE_EVERY)  # the rest is for intermediate validations
        return max(1, int(share * left / self.seconds_per_step))
