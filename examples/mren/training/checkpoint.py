"""Checkpoints of a training run: tensors in ``.safetensors`` files, everything else in JSON.

A checkpoint may come from anybody. Nothing in it is executed, and it is compared with the run that it is to continue
before any of it is used.
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

from examples.mren.cli import is_out_of_memory, one_line
from examples.mren.files import check_regular
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
    """How far a run has come."""

    step: int = 0
    fraction: float = 0.0
    """Of the schedule, between 0 and 1."""
    minutes: float | None = None
    """Length of the run that the fraction is part of, if it is given by time."""
    seconds: float = 0.0
    best_psnr: float = -math.inf
    interval_loss: float = 0.0
    """Sum of the losses since the last validation."""
    interval_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """A row of the log for each validation."""


def parse_progress(values: Any) -> Progress:
    """The progress that a checkpoint holds.

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
            raise ValueError(f"its {name} is not of the type and range of a run")
    return Progress(**values)


def _is_score(value: object) -> bool:
    """Whether a value is a number, or infinite, as the best PSNR is before the first validation."""
    return is_number(value) or value in (-math.inf, math.inf)


def _is_row(row: object, columns: tuple[str, ...]) -> bool:
    return isinstance(row, dict) and tuple(row) == columns and all(map(_is_score, row.values()))


def write_checkpoint(output: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: object) -> None:
    """Write a checkpoint, whole or not at all, and delete all but the newest ones.

    Args:
        output: Folder of the run.
        step: Number of steps that were taken.
        tensors: The tensors of each ``.safetensors`` file, by the name of the file.
        state: Everything else, of the types that JSON has.

    Raises:
        OSError: If it cannot be written; the checkpoints before it stay.
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
        shutil.rmtree(old, ignore_errors=True)  # one too many is no reason to end a run


def read_checkpoint(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], Any]:
    """The tensors, by the name of their file, and the state of a checkpoint.

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
    """Raise unless tensors have the names, shapes and types of others, and finite values.

    Raises:
        ValueError: As it says.
    """
    if given.keys() != expected.keys():
        raise ValueError(f"holds {len(given)} tensors, of which {len(given.keys() & expected.keys())} are the run's")
    for name, value in given.items():
        if (value.shape, value.dtype) != (expected[name].shape, expected[name].dtype):
            raise ValueError(f"{name} is {tuple(value.shape)} of {value.dtype}, not as the run has it")
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")


def checkpoints(output: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first: by number, for names grow longer after step 9,999,999."""
    found = {path: path.name.removeprefix("step_") for path in (output / "checkpoints").glob("step_*")}
    return sorted((path for path, step in found.items() if step.isdecimal()), key=lambda path: int(found[path]))


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer whose state consists of tensors, as Adam's does, by number of parameter and name."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` returned.

    Raises:
        ValueError: If that is not the state of Adam for these parameters, none of which may lack a part of its state.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not (number.isdecimal() and int(number) < len(parameters)):
            raise ValueError(f"{one_line(key)[:80]} belongs to no parameter")
        state.setdefault(int(number), {})[name] = value
    expected: dict[str, Tensor] = {}
    for number in state:  # parameters that were not trained yet have none
        parameter = parameters[number]
        expected[f"{number}.step"] = parameter.new_zeros(())
        expected |= {f"{number}.{name}": parameter for name in ("exp_avg", "exp_avg_sq")}
    check_tensors(tensors, expected)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused update walks through memory: what belongs to a parameter must lie in the order of the parameter.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            # The steps are copied, too: loaded tensors map the file, which some systems then cannot delete.
            like = parameter if value.shape == parameter.shape else value
            values[name] = torch.empty_like(like).copy_(value)
