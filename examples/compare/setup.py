"""What is compared: the networks, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.compare.tasks import Task
from examples.mren.data import list_images, split_held_out
from examples.mren.training.recipes import Training

HELD_OUT = "held out"


@dataclass(frozen=True)
class Row:
    """A network of a comparison."""

    name: str
    make: Callable[[], nn.Module]
    """Builds it with newly initialised weights."""
    config: Mapping[str, Any] | None = None
    """The arguments of an :class:`~examples.mren.model.MREN`, to be written into its weight files."""
    channels: int = 0
    """Width, where rows differ in it."""
    begins_alike: bool = True
    """Whether its parameters start from those of the first row with the same names and shapes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`~examples.mren.training.recipes.Training` that differ from those of other rows."""
    trained_as: str = ""
    """Name of the row whose trained networks are scored; empty for those of its own."""
    local: bool = False
    """Whether it is scored with windowed statistics, see :func:`~sc_blocks.to_local`, whose windows fit the size of the
    patches it was trained on."""

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return self.trained_as or self.name


@dataclass(frozen=True)
class Setup:
    """What all rows of a comparison share."""

    task: Task
    training: Training
    """Its ``minutes`` count only the steps, see :class:`~examples.mren.training.trainer.Trainer`."""
    data: Sequence[Path]
    """Folders of images to train on."""
    test: Sequence[Path]
    """Folders of images to score on."""
    output: Path
    """Folder of the runs."""
    seeds: int = 3
    """Runs per row. A seed determines the patches and the initial weights; rows that begin alike share those of
    parameters with the same name and shape."""
    held_out: int = 0
    """Number of images kept from training; the networks are scored on them, too."""
    matched: str = ""
    """What is equal in all rows; see :class:`~examples.compare.tables.Run`."""
    device: torch.device | str = "cpu"

    def images(self) -> tuple[list[Path], dict[str, list[Path]]]:
        """The images to train on, and those to score on, by the name of their data set.

        Raises:
            ValueError: If there are none, or two folders of test images have one name.
        """
        files = list_images(*self.data)
        names = [folder.resolve().name for folder in self.test]
        if len(set(names)) < len(names):
            raise ValueError(f"--test: scores are filed by folder name, so names must differ; got {', '.join(names)}.")
        if self.held_out and HELD_OUT in names:
            raise ValueError(
                f"--test: rename the folder {HELD_OUT!r}, the name under which the --held-out images are filed."
            )
        sets = {name: list_images(folder) for name, folder in zip(names, self.test, strict=True)}
        if self.held_out:
            files, sets[HELD_OUT] = split_held_out(files, self.held_out)
        return files, sets
