"""Checkpoints of a training run: tensors in ``.safetensors`` files, everything else in JSON.

Nothing in a checkpoint is executed when it is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

KEEP = 2
PARTIAL = ".part"


class CheckpointError(ValueError):
    """A checkpoint is damaged; the message names it."""


def write_checkpoint(output: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: object) -> None:
    """Write a checkpoint, whole or not at all, and delete all but the newest ones.

    Args:
        output: Folder of the run.
        step: Number of steps that were taken.
        tensors: A ``.safetensors`` file's worth of tensors by the name of the file.
        state: Everything else, of the types that JSON has.
    """
    folder = output / "checkpoints" / f"step_{step:07d}"
    scratch = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        for name, values in tensors.items():
            contiguous = {key: value.detach().cpu().contiguous() for key, value in values.items()}
            save_file(contiguous, scratch / f"{name}.safetensors")
        (scratch / "state.json").write_text(json.dumps(state))
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in checkpoints(output)[:-KEEP]:
        shutil.rmtree(old)


def read_checkpoint(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], Any]:
    """The tensors, by the name of their file, and the state of a checkpoint.

    Raises:
        CheckpointError: If a file is missing or damaged.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        return {name: load_file(folder / f"{name}.safetensors") for name in names}, state
    except Exception as error:  # safetensors has an exception type of its own
        raise CheckpointError(f"{folder}: not a readable checkpoint ({error}).") from error


def checkpoints(output: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(path for path in (output / "checkpoints").glob("step_*") if path.suffix != PARTIAL)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer whose state consists of tensors, as Adam's does, by number of parameter and name."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # The fused update walks through memory: what belongs to a parameter must lie in the order of the parameter.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)
