"""Run a suite: prepare its candidates, each within its share of the time, and time them in turn."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.candidates import ENGINES, NETS, Call, Unavailable, make, prepare, reason
from benchmarks.results import Row
from examples.timing import OutOfTime, interleave, ratio, significant, stopwatch, summarise, time_limit
from sc_blocks.introspect import Complexity, complexity

FORWARD, BACKWARD = "forward", "forward+backward"
MIN_ROUNDS = 3  # time for these is reserved while candidates are prepared


@dataclass(frozen=True)
class Settings:
    """The options of a run."""

    device: torch.device
    threads: int
    repeats: int = 15
    seed: int = 0
    limit: float = math.inf
    """Seconds for the rounds of a suite; preparing the candidates is not included."""
    deadline: float = math.inf
    """When the suite must end, preparation included, on the clock of ``time.monotonic``."""
    quick: bool = False
    """Tiny sizes and few candidates: checks that everything runs, measures nothing."""
    without: frozenset[str] = frozenset()
    """Steps, such as ``compiled``; forms that use one are not measured."""
    only: frozenset[str] = frozenset()
    """Networks and blocks to measure; all if empty."""
    against: Path | None = None
    """Another checkout whose training step is timed as well."""
    log: Callable[[str], object] = print

    @property
    def num_blocks(self) -> int | None:
        """Depth of MREN; ``None`` for the network's own."""
        return 1 if self.quick else None

    def allows(self, form: str) -> bool:
        """Whether a form uses no excluded step. Quick runs do not compile or export."""
        slow = {*ENGINES, "compiled blocks"} - {"eager"} if self.quick else set()
        return not (self.without | slow) & set(form.split(", "))

    def chosen(self, names: Iterable[str]) -> list[str]:
        """Return the networks or blocks of a suite that are measured."""
        return [name for name in names if not self.only or name in self.only]

    def make(self, name: str, size: tuple[int, int]) -> tuple[nn.Module, Tensor]:
        """Build a network or block and its input on the device."""
        net, x = make(name, size, seed=self.seed, num_blocks=self.num_blocks)
        return net.to(self.device), x.to(self.device)


@dataclass
class Candidate:
    """Something to time."""

    row: Row
    """Its entry in the results, with its name; preparing and timing add to it."""
    build: Callable[[Row], Callable[[], float]]
    """Prepares the candidate and returns a function that times one turn of it."""
    reference: str | None = None
    """Key of the candidate that its time is compared with."""
    late: bool = False
    """Whether it is slow to prepare, and therefore prepared after the others."""


def measure(candidates: Mapping[str, Candidate], settings: Settings) -> list[Row]:
    """Prepare candidates, time them in turn, and return their rows.

    With a deadline, preparing a candidate may take half of the remaining time, the last one all of it; time for some
    rounds is reserved. A candidate that does not fit is skipped, and its row says so.
    """
    turns: dict[str, Callable[[], float]] = {}
    waiting = sorted(candidates, key=lambda key: candidates[key].late)
    round_seconds = 0.0
    for number, key in enumerate(waiting):
        candidate = candidates[key]
        left = settings.deadline - time.monotonic() - MIN_ROUNDS * round_seconds
        allowed = left / 2 if number < len(waiting) - 1 else left
        try:
            if left <= 0:
                raise Unavailable("no time was left")
            with time_limit(allowed):
                turn = candidate.build(candidate.row)
                if math.isfinite(settings.deadline):
                    start = time.monotonic()
                    turn()
                    round_seconds += time.monotonic() - start
            turns[key] = turn
        except Unavailable as error:
            candidate.row["skipped"] = str(error)
        except OutOfTime:
            candidate.row["skipped"] = f"not prepared within {allowed:.1f} s"
        except Exception as error:  # one candidate must not end the whole run
            candidate.row["skipped"] = reason(error)
        settings.log(f"  ready: {key}{skipped(candidate.row)}")
    limit = min(settings.limit, settings.deadline - time.monotonic())
    guarded = {key: _guarded(turn, candidates[key].row) for key, turn in turns.items()}
    times = interleave(guarded, settings.repeats, seed=settings.seed, limit=limit)
    rounds = {
        key: [significant(value, 5) for value in values]
        for key, values in times.items()
        if "skipped" not in candidates[key].row
    }
    for key, values in rounds.items():
        row, reference = candidates[key].row, candidates[key].reference
        row["seconds"] = summarise(values).as_dict()
        if reference in rounds:
            row["ratio"] = {"to": reference} | ratio(values, rounds[reference]).as_dict()
        row["rounds"] = values
    return [candidate.row for candidate in candidates.values()]


def _guarded(turn: Callable[[], float], row: Row) -> Callable[[], float]:
    """Wrap a turn so that a failure does not end the run: it is skipped from then on, and its row says why."""

    def run() -> float:
        if "skipped" not in row:
            try:
                return turn()
            except Exception as error:
                row["skipped"] = reason(error)
        return math.nan

    return run


def entry(name: str, form: str, size: tuple[int, int], **more: object) -> Row:
    """Return the initial row of a network or block."""
    return {"name": name, "form": form, **more, "size": [1, 3 if name in NETS else 60, *size]}


def timed_form(
    name: str, form: str, size: tuple[int, int], settings: Settings, reference: str, **more: object
) -> Candidate:
    """Return a candidate for a network or block in a form; ``more``, such as ``mode=BACKWARD``, goes into its row."""

    def build(row: Row) -> Callable[[], float]:
        net, x = settings.make(name, size)
        row |= cost(name, size, settings.num_blocks)
        call, x = prepare(net, x, form)
        run = backward(call, x) if more.get("mode") == BACKWARD else forward(call, x)
        return stopwatch(run, settings.device)

    return Candidate(entry(name, form, size, **more), build, reference, late="compiled" in form)


def forward(call: Call, x: Tensor) -> Callable[[], object]:
    """Return a function that runs inference."""

    def run() -> object:
        with torch.inference_mode():
            return call(x)

    return run


def backward(call: Call, x: Tensor) -> Callable[[], object]:
    """Return a function that runs forward and backward, with gradients for the input and the parameters."""
    x = x.detach().requires_grad_()

    def run() -> None:
        x.grad = None
        if isinstance(call, nn.Module):
            call.zero_grad(set_to_none=True)
        outputs = call(x)
        tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]
        torch.autograd.backward(tensors, [torch.ones_like(tensor) for tensor in tensors])

    return run


@functools.cache
def cost(name: str, size: tuple[int, int], num_blocks: int | None = None) -> Row:
    """Count the parameters and multiply-accumulates of a network in its original form."""
    net, x = make(name, size, num_blocks=num_blocks)
    counted: Complexity | None = None
    try:
        counted = complexity(copy.deepcopy(net).to("meta"), x.shape)
    except Exception:  # some networks read values, which meta tensors lack
        with contextlib.suppress(Exception):  # the counter does not know every operation of every package
            counted = complexity(net, x.shape)
    parameters = sum(p.numel() for p in net.parameters())
    return {"parameters": parameters, "macs": None if counted is None else counted.macs}


def skipped(row: Row) -> str:
    """Why a row was skipped, for the terminal."""
    return f" (skipped: {row['skipped']})" if "skipped" in row else ""
