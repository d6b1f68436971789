"""Train networks with the same seeds at one budget, score them, and record the results.

A run is a folder with ``weights.safetensors`` and ``run.json``, which is written last. A finished run is not trained
again, an interrupted one resumes from its last checkpoint, and one with other settings is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from examples.compare.cost import cost_of
from examples.compare.tables import Run
from examples.compare.tasks import Task
from examples.mren.cli import describe, is_out_of_memory, one_line
from examples.mren.data import ImagePair, list_images, load_pairs, split_held_out
from examples.mren.metrics import Score
from examples.mren.model import save_weights
from examples.mren.training.patches import PatchSampler
from examples.mren.training.recipes import Training
from examples.mren.training.trainer import Trainer, check_settings
from examples.mren.training.warmstart import warm_start
from examples.mren.weightfile import write_tensors
from examples.records import read_json, write_json
from sc_blocks import to_local
from sc_blocks.introspect import Complexity

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


def compare(
    rows: Sequence[Row],
    setup: Setup,
    *,
    only: Collection[str] | None = None,
    max_minutes: float = math.inf,
    dry_run: bool = False,
) -> list[Run]:
    """Train and score every row with every seed.

    Args:
        rows: The networks; the others start from the initial weights of the first where names and shapes agree.
        setup: What they share.
        only: Names of the rows to train, to share the work among processes; ``None`` for all.
        max_minutes: Stop after this long; the same call resumes from there.
        dry_run: Print what would be trained, and train nothing.

    Returns:
        A run for each row, seed and test set that is finished by now, whatever ``only`` says; none if time ran out,
        or with ``dry_run``.

    Raises:
        ValueError: If images, networks or options do not fit, or the folder holds runs of other settings.
        OSError: If another process is training a run in the same folder.
    """
    stop_at = time.monotonic() + 60 * max_minutes
    files, sets = setup.images()
    scale = setup.task.scale
    runs = _list_runs(rows, setup, files)
    for run in runs:
        run.finished()  # refuse runs with other settings before training
    folders: dict[Path, _Run] = {}
    for run in runs:
        if only is None or run.row.name in only:
            folders.setdefault(run.folder, run)  # rows may share their runs: the first one trains them
    unfinished = [run for run in folders.values() if not run.finished()]
    costs = {row.name: cost_of(row.make, scale) for row in rows if only is None or row.name in only}
    for name, cost in costs.items():
        print(f"{name}: {cost.parameters:,} parameters, {cost.macs / 1e9:.2f} G MACs")
    # Refuse initial weights that do not fit a row before training.
    for run in {run.row.name: run for run in unfinished}.values():
        _initial_network(run, rows[0], dataclasses.replace(setup.training, **run.row.options).init)
    length = setup.training.minutes
    each = f"{setup.training.plan(len(files), scale).steps} steps" if length is None else f"{length:g} minutes"
    print(f"{len(unfinished)} of {len(folders)} runs to train, {each} each", flush=True)
    if dry_run:
        return []
    pairs = []
    if unfinished:
        side = max(side for run in unfinished for side in run.settings["patch_size"])
        pairs = load_pairs(files, scale, min_size=side)
    for run in unfinished:
        if not _train_alone(run, rows[0], setup, pairs, costs[run.row.name], stop_at):
            print(f"{run.label}: stopped; repeat the command to resume.")
            return []
    images = {name: _checksum(files) for name, files in sets.items()}
    return [scored for run in runs if run.finished() for scored in _score(run, setup, sets, images)]


def _train_alone(
    run: _Run, first: Row, setup: Setup, pairs: Sequence[ImagePair], cost: Complexity, stop_at: float
) -> bool:
    """Train a run under a lock; returns whether it finished. The checkpoints of a finished run are deleted."""
    checkpoints = run.folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(checkpoints / ".lock", timeout=0):  # two processes would mix up their checkpoints
            # Another process may have finished it since the runs were counted.
            if not run.finished() and not _train(run, first, setup, pairs, cost, stop_at):
                return False
    except Timeout:
        raise OSError(
            f"{run.folder}: another process is training it; wait for it, or choose other rows or another folder."
        ) from None
    shutil.rmtree(checkpoints, ignore_errors=True)
    return True


def _train(run: _Run, first: Row, setup: Setup, pairs: Sequence[ImagePair], cost: Complexity, stop_at: float) -> bool:
    """Train a run from its last checkpoint, and record the results; returns whether it finished."""
    training = dataclasses.replace(setup.training, **run.row.options)
    net, untouched = _initial_network(run, first, training.init)
    patches = {name: run.settings[name][0] for name in ("patch_size", "batch_size")}
    trainer = Trainer(
        net,
        training,
        PatchSampler(
            pairs, setup.task.scale, **patches, seed=run.seed, device=setup.device, textured=training.textured
        ),
        run.folder,
        label=run.label,
        draw=setup.task.batch,
        untouched=untouched,
        time_steps_alone=True,
    )
    settings = run.folder / "checkpoints" / "settings.json"
    if settings.exists():
        run.check(read_json(settings))
    write_json(settings, run.settings)
    trainer.resume()
    progress = trainer.run(stop_at=stop_at)
    if progress.fraction < 1:
        return False
    weights = run.folder / "weights.safetensors"
    if run.row.config is None:
        write_tensors(weights, trainer.learner.average.state_dict())
    else:
        save_weights(trainer.learner.average, weights, dict(run.row.config))
    record = {
        "settings": run.settings,
        "torch": torch.__version__,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "steps": progress.step,
        "minutes": round(progress.seconds / 60, 2),
        "scores": {},
    }
    write_json(run.record, record)
    return True


# The entries of a record besides its settings, and their types.
_RECORD = {"parameters": (int,), "macs": (int,), "steps": (int,), "minutes": (int, float), "scores": (dict,)}


def _is_record(value: object) -> bool:
    """Whether a value has the structure of a run's record."""
    if not isinstance(value, dict) or any(type(value.get(key)) not in types for key, types in _RECORD.items()):
        return False
    kept = [value["scores"], value.get("local_scores", {})]
    return all(isinstance(scores, dict) and all(map(_is_score, scores.values())) for scores in kept)


def _is_score(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"psnr"} <= set(value) <= {"psnr", "ssim"}
        and all(type(number) in (int, float) for number in value.values())
    )


@dataclass(frozen=True)
class _Run:
    """A row with a seed."""

    row: Row
    seed: int
    folder: Path
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    def finished(self) -> bool:
        """Whether the run is finished; raises if its record is that of another run."""
        if self.record.exists():
            self.read_record()
        return self.record.exists()

    def read_record(self) -> dict[str, Any]:
        """The record of the finished run.

        Raises:
            ValueError: If the file is damaged, or the record of another run.
        """
        record = read_json(self.record)
        if isinstance(record, dict):
            self.check(record.get("settings"))
        if not _is_record(record):
            raise ValueError(f"{self.record}: is not the record of a run; delete the file to train the run again.")
        return record

    def check(self, found: Any) -> None:
        """Raise if the settings in the folder are of another run. Those of earlier versions lack ``contents``."""
        known = found if isinstance(found, dict) else {}
        check_settings(self.folder, {"contents": self.settings["contents"], **known}, self.settings)


def _list_runs(rows: Sequence[Row], setup: Setup, files: Sequence[Path]) -> list[_Run]:
    """Every row with one seed, then with the next, so that what is finished when time is up can be compared."""
    trained_on = {
        "images": len(files),
        "files": zlib.crc32(os.fsencode("/".join(path.name for path in files))),
        "contents": _checksum(files),
    }
    return [
        _Run(row, seed, setup.output / row.folder / f"seed_{seed}", _settings(setup, row, rows[0], seed, trained_on))
        for seed in range(setup.seeds)
        for row in rows
    ]


def _settings(setup: Setup, row: Row, first: Row, seed: int, trained_on: Mapping[str, int]) -> dict[str, Any]:
    """The settings that determine the results of a run, in the form that JSON returns."""
    training = dataclasses.replace(setup.training, **row.options)
    settings = {
        "row": row.folder,
        "channels": row.channels,
        "config": row.config,
        "begins_as": first.name if row.begins_alike else row.folder,
        "task": dataclasses.asdict(setup.task),
        "seed": seed,
        **training.settings(trained_on["images"], setup.task.scale),
        **trained_on,
    }
    return json.loads(json.dumps(settings))


def _initial_network(run: _Run, first: Row, init: Path | None) -> tuple[nn.Module, list[str]]:
    """A network with the initial weights of a run, and the names of the parameters that ``init`` lacks."""
    torch.manual_seed(run.seed)
    net = run.row.make()
    torch.manual_seed(run.seed)
    shared = dict(first.make().named_parameters()) if run.row.begins_alike else {}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name in shared and shared[name].shape == parameter.shape:
                parameter.copy_(shared[name])
    return net, [] if init is None else warm_start(net, init)


def _checksum(files: Sequence[Path]) -> int:
    """A checksum of the contents of images, as different folders may share a name."""
    return functools.reduce(lambda checksum, file: zlib.crc32(file.read_bytes(), checksum), files, 0)


def _score_of(net: nn.Module, file: Path, setup: Setup) -> Score:
    """The score of a network on an image; errors name the image."""
    try:
        return setup.task.score(net, file, setup.device)
    except ValueError as error:
        raise ValueError(describe(error, file)) from error


def _load_weights(net: nn.Module, run: _Run) -> None:
    """Load the weights of a finished run; errors name the file."""
    file = run.folder / "weights.safetensors"
    try:
        net.load_state_dict(load_file(file))
    except Exception as error:  # safetensors raises its own exception type
        if is_out_of_memory(error):
            raise
        reason = one_line(error)[:200]
        raise ValueError(
            f"{file}: is not the weight file of this run ({reason}); delete {run.record} to train the run again."
        ) from error


def _score(run: _Run, setup: Setup, sets: dict[str, list[Path]], images: dict[str, int]) -> list[Run]:
    """The scores of a trained network, cached in its record so that only new test sets are scored."""
    record = run.read_record()
    # The last two are not in records of earlier versions.
    scores, local_scores, known = (record.setdefault(key, {}) for key in ("scores", "local_scores", "images"))
    for name in sets:
        if known.setdefault(name, images[name]) != images[name]:
            known[name] = images[name]
            scores.pop(name, None)
            local_scores.pop(name, None)
    own = local_scores if run.row.local else scores
    missing = [name for name in sets if name not in own]
    if missing:
        net = run.row.make()
        _load_weights(net, run)
        net = net.to(setup.device).eval()
        if run.row.local:
            side = run.settings["patch_size"][0] // setup.task.scale
            to_local(net, torch.zeros(1, 3, side, side, device=setup.device))
        for name in missing:
            files = tqdm(sets[name], desc=name, leave=False, disable=None)
            found = [_score_of(net, file, setup) for file in files]
            means = {"psnr": fmean(score.psnr for score in found), "ssim": fmean(score.ssim for score in found)}
            own[name] = {key: round(mean, 5) for key, mean in means.items() if not math.isnan(mean)}
        write_json(run.record, record)
    return [
        Run(
            name=run.row.name,
            seed=run.seed,
            batch_size=run.settings["batch_size"][0],
            patch_size=run.settings["patch_size"][0],
            **{key: record[key] for key in ("parameters", "macs", "steps", "minutes")},
            dataset=name,
            **own[name],
            channels=run.row.channels,
            matched=setup.matched,
            paired=1,
        )
        for name in sets
    ]
