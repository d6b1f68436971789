"""Checkpoints of a training run: tensors in ``.safetensors`` files, everything else in JSON.

Checkpoints are not trusted. Nothing in them is executed, and they are checked against the run before they are used.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from examples.mren.files import check_regular
from examples.mren.messages import is_out_of_memory, one_line
from examples.mren.weightfile import is_number, write_tensors

KEEP = 2
PARTIAL = ".part"
STATE = "state.json"
# Of the log; the second of a run with degraded images.
COLUMNS = (
    ("step", "loss", "psnr", "lr", "seconds"),
    ("step", "loss", "psnr", "psnr_clean", "psnr_degraded", "lr", "seconds"),
)


class CheckpointError(ValueError):
    """A checkpoint is damaged, or of another run; the message names it."""


@dataclass
class Progress:
    """Progress of a run."""

    step: int = 0
    fraction: float = 0.0
    """Of the schedule, between 0 and 1."""
    minutes: float | None = None
    """Length of the run to which ``fraction`` refers, if it is given in minutes."""
    seconds: float = 0.0
    best_psnr: float = -math.inf
    interval_loss: float = 0.0
    """Sum of the losses since the last validation."""
    interval_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """A row of the log for each validation."""


def parse_progress(values: Any) -> Progress:
    """Check and parse the progress in a checkpoint.

    Raises:
        ValueError: If a value is missing, unknown, or of another type or range.

    Example:
        >>> parse_progress(dataclasses.asdict(Progress(step=3))).step
        3
    """
    if not isinstance(values, dict) or set(values) != {each.name for each in dataclasses.fields(Progress)}:
        raise ValueError("its progress lacks a value, or has an unknown one")
    history = values["history"]
    valid = {
        "step": type(values["step"]) is int and 0 <= values["step"] < 2**40,
        "fraction": is_number(values["fraction"], 0, 1),
        "minutes": values["minutes"] is None or is_number(values["minutes"], 1e-9, 1e9),
        "seconds": is_number(values["seconds"], 0, 1e12),
        "best_psnr": _is_score(values["best_psnr"]),
        "interval_loss": is_number(values["interval_loss"], 0, 1e300),
        "interval_steps": type(values["interval_steps"]) is int and 0 <= values["interval_steps"] < 2**40,
        "history": isinstance(history, list)
        and any(all(_is_row(row, columns) for row in history) for columns in COLUMNS),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise ValueError(f"its {name} has an invalid type or value")
    return Progress(**values)


def _is_score(value: object) -> bool:
    """Whether a value is a number, or infinite, as the best PSNR is before the first validation."""
    return is_number(value) or value in (-math.inf, math.inf)


def _is_row(row: object, columns: tuple[str, ...]) -> bool:
    return isinstance(row, dict) and tuple(row) == columns and all(map(_is_score, row.values()))


def write_checkpoint(output: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: object) -> None:
    """Write a checkpoint atomically, and delete all but the newest ones.

    Args:
        output: Folder of the run.
        step: Number of steps so far.
        tensors: The tensors of each ``.safetensors`` file, by file name.
        state: Everything else; JSON-serialisable.

    Raises:
        OSError: If it cannot be written; earlier checkpoints are kept.
    """
    folder = output / "checkpoints" / f"step_{step:07d}"
    scratch = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        for name, values in tensors.items():
            write_tensors(scratch / f"{name}.safetensors", values)
        (scratch / STATE).write_text(json.dumps(state), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in checkpoints(output)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)  # a leftover checkpoint is no reason to abort a run


def read_checkpoint(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], Any]:
    """Read the tensors of a checkpoint, by file name, and its state.

    Raises:
        CheckpointError: If a file is missing or damaged.
    """
    try:
        for name in (STATE, *(f"{name}.safetensors" for name in names)):
            check_regular(folder / name)
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return {name: load_file(folder / f"{name}.safetensors") for name in names}, state
    except Exception as error:  # safetensors raises its own exception type
        if is_out_of_memory(error):
            raise MemoryError from error
        raise CheckpointError(f"{folder}: not a readable checkpoint ({one_line(error)[:200]}).") from error


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that tensors are finite and have the expected names, shapes and types.

    Raises:
        ValueError: If they do not.
    """
    if given.keys() != expected.keys():
        raise ValueError(f"holds {len(given)} tensors, of which {len(given.keys() & expected.keys())} are the run's")
    for name, value in given.items():
        own = expected[name]
        if (value.shape, value.dtype) != (own.shape, own.dtype):
            raise ValueError(f"{name} is {tuple(value.shape)} of {value.dtype}, not {tuple(own.shape)} of {own.dtype}")
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")


def checkpoints(output: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first; by number, as names get longer after step 9,999,999."""
    found = {path: path.name.removeprefix("step_") for path in (output / "checkpoints").glob("step_*")}
    return sorted((path for path, step in found.items() if step.isdecimal()), key=lambda path: int(found[path]))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer such as Adam, whose state consists of tensors, by parameter number and name."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that :func:`optimizer_tensors` returned.

    Raises:
        ValueError: If it is not a state of Adam for these parameters, or that of a parameter is incomplete.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not (number.isdecimal() and int(number) < len(parameters)):
            raise ValueError(f"{one_line(key)[:80]} belongs to no parameter")
        state.setdefault(int(number), {})[name] = value
    expected: dict[str, Tensor] = {}
    for number in state:  # parameters that have not been trained yet have none
        parameter = parameters[number]
        expected[f"{number}.step"] = parameter.new_zeros(())
        expected |= {f"{number}.{name}": parameter for name in ("exp_avg", "exp_avg_sq")}
    check_tensors(tensors, expected)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused update works on raw memory: state must have the memory format of its parameter.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # The steps are copied, too: loaded tensors map the file, which some systems then cannot delete.
            like = parameter if value.shape == parameter.shape else value
            values[name] = torch.empty_like(like).copy_(value)
