"""One training run of a comparison: any network, for given steps or given minutes; it can be cut off and resumed."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from examples.compare.tasks import Task
from examples.mren.checkpoint import (
    CheckpointError,
    checkpoints,
    load_optimizer_tensors,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from examples.mren.cli import note
from examples.mren.data import PatchSampler
from examples.mren.recipes import LOSSES, RECIPES, Recipe, ema_decay_at, make_optimizer

CHECK_EVERY = 50  # steps between looks at the loss
SAVE_EVERY = 60.0  # seconds between checkpoints
TYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Training:
    """How networks are trained. What is ``None`` is as the recipe has it."""

    recipe: str = "short"
    """Name in :data:`examples.mren.recipes.RECIPES`."""
    steps: int | None = None
    minutes: float | None = None
    """Length instead of steps: the schedule follows the time. On one thread of a CPU it is processor time, which other
    programs disturb less; otherwise it is clock time. The first step, which may compile, does not count."""
    batch_size: int | None = None
    """In all stages."""
    patch_size: int | None = None
    """Likewise."""
    lr: float | None = None
    """Of the first stage."""
    ema_decay: float | None = None
    init: Path | None = None
    """Weight file to begin from; see :func:`examples.mren.model.warm_start`."""
    warm_up_new: int = 0
    """Steps at the start that train only what ``init`` does not have."""
    precision: str = "no"
    """``"no"``, ``"bf16"`` or ``"fp16"``, under autocast."""
    compile: bool = False
    cuda_graph: bool = False
    """With ``compile``: replay what was compiled as CUDA graphs."""
    channels_last: bool = True
    accumulate: int = 1
    """Parts in which a batch is processed."""

    def plan(self, images: int, scale: int) -> Recipe:
        """The recipe with its length for a number of images, and patches that are multiples of the scale."""
        recipe = RECIPES[self.recipe]
        stages = [
            dataclasses.replace(
                stage,
                batch_size=self.batch_size or stage.batch_size,
                patch_size=(self.patch_size or stage.patch_size) // scale * scale,
            )
            for stage in recipe.stages
        ]
        if self.lr is not None:
            stages[0] = dataclasses.replace(stages[0], lr=self.lr)
        steps = self.steps or recipe.steps or (recipe.epochs or 0) * math.ceil(images / stages[0].batch_size)
        decay = recipe.ema_decay if self.ema_decay is None else self.ema_decay
        return dataclasses.replace(recipe, stages=tuple(stages), steps=steps, ema_decay=decay)


@dataclass(frozen=True)
class Trained:
    """What came out of a run."""

    net: nn.Module
    """The average of the weights; nothing is chosen by a score on the way."""
    steps: int
    minutes: float


def train(
    net: nn.Module,
    task: Task,
    sampler: PatchSampler,
    training: Training,
    folder: Path,
    *,
    label: str,
    settings: dict[str, Any],
    untouched: Collection[str] = (),
    stop_at: float = math.inf,
) -> Trained | None:
    """Train one network, from the newest checkpoint in its folder if there is one.

    Args:
        net: With fresh weights; changed in place.
        task: What is done to the patches.
        sampler: Where they come from; its device is that of the training.
        training: How it is trained.
        folder: For checkpoints.
        label: What to call the run.
        settings: What decides the numbers of the run, kept in its checkpoints; those of others are refused.
        untouched: Names of the parameters that ``training.init`` does not have.
        stop_at: When to stop with a checkpoint, on the clock of ``time.monotonic``.

    Returns:
        The trained network; ``None`` if it was stopped.

    Raises:
        ValueError: If the loss or the network is not finite, or a checkpoint was written with other settings.
    """
    device = sampler.device
    recipe = training.plan(len(sampler.paths), task.scale)
    samplers = [
        sampler.with_patches(patch_size=stage.patch_size, batch_size=stage.batch_size) for stage in recipe.stages
    ]
    net = net.to(device, memory_format=torch.channels_last if training.channels_last else torch.preserve_format)
    optimizer = make_optimizer(net, recipe.stages[0].lr)
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
    step, seconds = 0, 0.0
    average = AveragedModel(net, multi_avg_fn=lambda *parts: get_ema_multi_avg_fn(ema_decay_at(recipe, step))(*parts))

    def save() -> None:
        tensors = {"net": net.state_dict(), "average": average.state_dict(), "optimizer": optimizer_tensors(optimizer)}
        state = {"settings": settings, "step": step, "seconds": seconds, "scaler": scaler.state_dict()}
        write_checkpoint(folder, step, tensors, state)

    if (found := _newest(folder)) is not None:
        tensors, state = found
        check_settings(folder, state["settings"], settings)
        net.load_state_dict(tensors["net"])
        average.load_state_dict(tensors["average"])
        load_optimizer_tensors(optimizer, tensors["optimizer"])
        if scaler.is_enabled():
            scaler.load_state_dict(state["scaler"])
        step, seconds = state["step"], state["seconds"]
    call = net
    if training.compile:
        torch.compiler.reset()  # of the rows before: only so many variants of a block are compiled
        call = torch.compile(net, dynamic=False, mode="reduce-overhead" if training.cuda_graph else None)
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    begun, saved = step, time.monotonic()
    bar = tqdm(desc=label, unit="step", initial=step, total=None if training.minutes else recipe.steps, disable=None)
    with bar:
        while (fraction := progress(training, recipe, step, seconds)) < 1:
            started = clock()
            number, within = recipe.locate(fraction)
            stage = recipe.stages[number]
            if untouched and step in (begun, training.warm_up_new):
                for name, parameter in net.named_parameters():
                    parameter.requires_grad_(step >= training.warm_up_new or name in untouched)
            damaged, clean = task.batch(samplers[number], step)
            loss = torch.zeros((), device=device)
            parts = zip(damaged.chunk(training.accumulate), clean.chunk(training.accumulate), strict=True)
            for damaged_part, clean_part in parts:
                with torch.autocast(device.type, TYPES[training.precision], enabled=training.precision != "no"):
                    restored = call(damaged_part)
                part = LOSSES[stage.loss](restored.float(), clean_part) * (len(clean_part) / len(clean))
                scaler.scale(part).backward()
                loss += part.detach()
            if step % CHECK_EVERY == 0 and not loss.isfinite():
                raise ValueError(f"{label}: the loss is {loss.item()} at step {step}; try a lower --lr.")
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_grad_norm or math.inf)
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate(within)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            average.update_parameters(net)
            seconds += clock() - started if step > begun else 0.0
            step += 1
            bar.update()
            now = time.monotonic()
            if now > min(stop_at, saved + SAVE_EVERY):
                save()
                saved = now
            if now > stop_at:
                return None
    # A finite loss says nothing of the update after it.
    if not all(parameter.isfinite().all() for parameter in average.module.parameters()):
        raise ValueError(f"{label}: the network is not finite after step {step}; try a lower --lr.")
    return Trained(average.module.eval(), step, seconds / 60)


def _newest(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The tensors and the state of the newest readable checkpoint, if there is one."""
    for checkpoint in reversed(checkpoints(folder)):
        try:
            return read_checkpoint(checkpoint, ("net", "average", "optimizer"))
        except CheckpointError as error:
            note(f"{error} Trying the one before.")
    return None


def progress(training: Training, recipe: Recipe, step: int, seconds: float) -> float:
    """How far a run has come: 1 at its end."""
    return step / (recipe.steps or 1) if training.minutes is None else seconds / (60 * training.minutes)


def check_settings(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on with a run of other settings, or to take its result for this one's.

    Raises:
        ValueError: If they differ; the message says in what.
    """
    differing = [
        f"{name} was {found.get(name)!r}, is {value!r}" for name, value in wanted.items() if found.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a run of other settings ({'; '.join(differing)}); take another --output, or the same "
            "options as there."
        )
