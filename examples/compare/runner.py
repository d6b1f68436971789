"""Train networks with the same seeds at one budget, score them, and record the results.

A run is a folder with ``weights.safetensors`` and ``run.json``, which is written last. A finished run is not trained
again, an interrupted one resumes from its last checkpoint, and one with other settings is refused.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from examples.compare.cost import cost_of
from examples.compare.runs import RunFolder, checksum, list_runs
from examples.compare.setup import Row, Setup
from examples.compare.tables import Run
from examples.mren.data import ImagePair, load_pairs
from examples.mren.messages import describe, is_out_of_memory, one_line
from examples.mren.metrics import Score
from examples.mren.model import save_weights
from examples.mren.training.patches import PatchSampler
from examples.mren.training.trainer import Trainer
from examples.mren.training.warmstart import warm_start
from examples.mren.weightfile import write_tensors
from examples.records import read_json, write_json
from sc_blocks import to_local
from sc_blocks.introspect import Complexity


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
    runs = list_runs(rows, setup, files)
    for run in runs:
        run.finished()  # refuse runs with other settings before training
    folders: dict[Path, RunFolder] = {}
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
    images = {name: checksum(files) for name, files in sets.items()}
    return [scored for run in runs if run.finished() for scored in _score(run, setup, sets, images)]


def _train_alone(
    run: RunFolder, first: Row, setup: Setup, pairs: Sequence[ImagePair], cost: Complexity, stop_at: float
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


def _train(
    run: RunFolder, first: Row, setup: Setup, pairs: Sequence[ImagePair], cost: Complexity, stop_at: float
) -> bool:
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


def _initial_network(run: RunFolder, first: Row, init: Path | None) -> tuple[nn.Module, list[str]]:
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


def _score_of(net: nn.Module, file: Path, setup: Setup) -> Score:
    """The score of a network on an image; errors name the image."""
    try:
        return setup.task.score(net, file, setup.device)
    except ValueError as error:
        raise ValueError(describe(error, file)) from error


def _load_weights(net: nn.Module, run: RunFolder) -> None:
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


def _score(run: RunFolder, setup: Setup, sets: dict[str, list[Path]], images: dict[str, int]) -> list[Run]:
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
