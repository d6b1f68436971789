"""One training run: the network, its data, and where it has got to.

:mod:`examples.mren.train` runs one from the command line, :mod:`examples.mren.ablate` many.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from examples.mren.checkpoint import (
    CheckpointError,
    Progress,
    check_tensors,
    checkpoints,
    load_optimizer_tensors,
    optimizer_tensors,
    parse_progress,
    read_checkpoint,
    write_checkpoint,
)
from examples.mren.cli import describe, one_line
from examples.mren.data import ImagePair, PatchSampler
from examples.mren.degradation import degrade as degrade_image
from examples.mren.degradation import draw_degradation, make_generator
from examples.mren.files import write_text
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import MREN, save_weights, warm_start
from examples.mren.recipes import LOSSES, Recipe, ema_decay_at, make_optimizer
from examples.mren.timing import SAVE_EVERY, VALIDATION_SHARE, Deadline, Timing

CHECK_EVERY = {"cpu": 10, "cuda": 100}  # steps between looks at the loss and the clock: each look waits for the device


class TrainingError(ValueError):
    """Training cannot go on; the message says why and what to do."""


class Trainer:
    """One run: the network, its data, and where it has got to.

    Args:
        config: Arguments of the :class:`~examples.mren.model.MREN`.
        recipe: How it is trained.
        train: Images to train on.
        held_out: Images to validate on.
        output: Folder for everything that is written.
        accelerator: Device, precision, processes and gradient accumulation.
        minutes: Length of the run, in place of the recipe's; the schedule is stretched so that it ends on time.
        variant: Name of the weight file, before the scale.
        seed: Of the initial weights and of everything that is drawn.
        channels_last: Memory format of the network.
        compile: Whether the blocks of the network are compiled.
        cuda_graph: Whether forward and backward of a step are one CUDA graph each.
        degrade: Whether half of the low-resolution patches are degraded as a photograph may be, see
            :mod:`examples.mren.degradation`. What is best is then chosen by the mean of the PSNRs of clean and degraded
            images.
        init: A weight file to begin from, see :func:`~examples.mren.model.warm_start`.
        warm_up_new: Steps at the start in which only the parameters that ``init`` does not have are trained.

    Raises:
        TrainingError: If a batch does not divide among processes and accumulated parts, or the options contradict each
            other.
    """

    def __init__(
        self,
        config: dict[str, Any],
        recipe: Recipe,
        train: list[ImagePair],
        held_out: list[ImagePair],
        output: Path,
        *,
        accelerator: Accelerator,
        minutes: float | None = None,
        variant: str = "mren",
        seed: int = 0,
        channels_last: bool = False,
        compile: bool = False,
        cuda_graph: bool = False,
        degrade: bool = False,
        init: Path | None = None,
        warm_up_new: int = 0,
    ) -> None:
        scale: int = config["scale"]
        first = recipe.stages[0]
        self.recipe = recipe
        self.minutes = minutes
        self.steps: int | None = None  # of a run of given minutes, until steps were timed
        if minutes is None:
            self.steps = recipe.steps or (recipe.epochs or 0) * math.ceil(len(train) / first.batch_size)
        self.held_out = {"psnr": held_out}
        if degrade:
            self.held_out = {"psnr_clean": held_out, "psnr_degraded": _degraded(held_out)}
        self.degrade = "photo" if degrade else None
        self.output = output
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.variant = variant
        self.config = config
        self.check_every = CHECK_EVERY.get(self.device.type, 10)
        self.interrupted = False
        self.cuda_graph = cuda_graph
        self.warm_up_new = warm_up_new
        self.sampler = PatchSampler(
            train,
            scale,
            patch_size=first.patch_size // scale * scale,
            batch_size=first.batch_size,
            seed=seed,
            device=self.device,
            degrade=degrade,
        )
        self.parts = accelerator.gradient_accumulation_steps
        for stage in recipe.stages:
            if stage.batch_size % (accelerator.num_processes * self.parts):
                raise TrainingError(
                    f"a batch of {stage.batch_size} does not divide among {accelerator.num_processes} processes with "
                    f"{self.parts} parts each; use a --batch-size that does."
                )
        if cuda_graph and (self.device.type != "cuda" or self.parts > 1 or accelerator.num_processes > 1):
            raise TrainingError("--cuda-graph needs one GPU and --accumulate 1; leave it out.")

        torch.manual_seed(seed)
        net = MREN(**config)
        self.untouched = warm_start(net, init) if init is not None else None
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
        net = net.to(self.device)
        optimizer = make_optimizer(net, first.lr)
        self.raw_net = net  # what is saved: never wrapped for mixed precision, graphs or several processes
        self.average = None
        if recipe.ema_decay:
            self.average = MREN(**config, device=self.device)
            self.average.load_state_dict(net.state_dict())
        # Listed once: to walk through hundreds of modules at every step takes longer than the update itself.
        self._parameters = list(net.parameters())
        self._averaged = [] if self.average is None else list(self.average.parameters())
        if compile:
            # Block by block: six MREBs are compiled once, the whole network would be six times as much work.
            for block in (*net.body, *net.reconstruct):
                block.compile(dynamic=False)
        self.timing = Timing()
        self.net: nn.Module
        self.net, self.optimizer = accelerator.prepare(net, optimizer)
        self.validated = MREN(**config, device=self.device).eval()
        self._graphed: tuple[Any, ...] | None = None  # what the CUDA graphs were recorded for
        self.progress = Progress(minutes=minutes)
        # What decides the numbers of a run; a checkpoint of other settings, but for its length, is refused.
        self.settings: dict[str, Any] = {
            **config,
            **{
                name: [stage[name] for stage in map(dataclasses.asdict, recipe.stages)]
                for name in dataclasses.asdict(first)
            },
            "clip_grad_norm": recipe.clip_grad_norm,
            "ema_decay": recipe.ema_decay,
            "steps": self.steps,
            "minutes": minutes,
            "seed": seed,
            "images": len(train),
            "held_out": len(held_out),
            "files": _fingerprint(train + held_out),
            "precision": accelerator.mixed_precision,
            "compile": compile,
            "channels_last": channels_last,
            "processes": accelerator.num_processes,
            "accumulate": self.parts,
            "init": None if init is None else hashlib.sha256(init.read_bytes()).hexdigest(),
            "warm_up_new": warm_up_new,
            "degrade": self.degrade,
        }

    def run(
        self, *, validate_every: int | None = None, max_minutes: float | None = None, started: float | None = None
    ) -> Progress:
        """Train to the end of the recipe, or for ``max_minutes``.

        Args:
            validate_every: Steps between validations; ``None`` for about a minute.
            max_minutes: Stop after this long, to be resumed.
            started: When the run began on the clock of ``time.monotonic``, if before this call.
        """
        progress = self.progress
        self.net.train()
        started = time.monotonic() if started is None else started
        before = progress.seconds
        deadline = None if self.minutes is None else Deadline(started + self.minutes * 60 - before)
        last_validation = time.monotonic()
        losses: list[Tensor] = []
        bar = tqdm(
            initial=progress.step,
            total=self.steps,
            desc=f"{self.variant} x{self.config['scale']}",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        shown = {"loss": "-", "PSNR": f"{progress.history[-1]['psnr']:.2f}" if progress.history else "-"}
        with bar:
            while progress.fraction < 1:
                losses.append(self._step())
                progress.step += 1
                bar.update()
                self._advance()
                checking = progress.step % self.check_every == 0
                late = max_minutes is not None and time.monotonic() - started > max_minutes * 60
                out_of_time = checking and self._any_process(late or self.interrupted)
                if validate_every is not None:
                    due = progress.step % validate_every == 0
                else:
                    cost = (deadline and deadline.validation) or 0.0
                    since = time.monotonic() - last_validation
                    due = checking and self._any_process(since > max(SAVE_EVERY, cost / VALIDATION_SHARE))
                validating = due or progress.fraction >= 1
                if checking or validating:
                    values = self._finite(losses)
                    progress.interval_loss += sum(values)
                    progress.interval_steps += len(values)
                    shown["loss"] = f"{values[-1]:.4f}"
                    losses.clear()
                if deadline is not None and checking:
                    deadline.look(progress.step)
                    self._plan(deadline)
                    bar.total = self.steps
                progress.seconds = before + time.monotonic() - started
                if validating:
                    validated = self._validate()
                    shown["PSNR"] = f"{validated['psnr']:.2f}"
                    progress.history.append(
                        {
                            "step": progress.step,
                            "loss": progress.interval_loss / progress.interval_steps,
                            **validated,
                            "lr": self._learning_rate(),
                            "seconds": round(progress.seconds, 1),
                        }
                    )
                    progress.interval_loss, progress.interval_steps = 0.0, 0
                    self._save(best=validated["psnr"] > progress.best_psnr)
                    last_validation = time.monotonic()
                    if deadline is not None:
                        deadline.validated(progress.step, last_validation - started + before - progress.seconds)
                elif out_of_time:
                    # Not validated: that a run was stopped must not show in what comes out of it.
                    self._save(best=False)
                bar.set_postfix(shown, refresh=False)
                if out_of_time:
                    break
        return progress

    def interrupt(self) -> None:
        """Ask a run to stop at its next look at the clock, with a checkpoint. Signal handlers may call it."""
        self.interrupted = True

    def resume(self) -> int:
        """Go back to the newest readable checkpoint and return its step; 0 if none was written yet.

        A run may have another length than before: its schedule is then laid over the whole of it, as if the run had
        been begun with that length.

        Raises:
            TrainingError: If the run has other settings, is longer than asked for, or no checkpoint is readable.
        """
        found = checkpoints(self.output)
        if not found:
            return 0
        for folder in reversed(found):
            try:
                self._load(folder)
            except CheckpointError as error:
                self.accelerator.print(f"{error} Trying the one before.")
            else:
                return self.progress.step
        raise TrainingError(f"{self.output / 'checkpoints'}: no readable checkpoint; start afresh in another folder.")

    def check_settings(self, saved: dict[str, Any]) -> None:
        """Raise if a run was begun with other settings than this one; its length may be another.

        Args:
            saved: What ``run.json`` says.

        Raises:
            TrainingError: As it says; the message names all that differ.
        """
        differing = [
            f"{name} was {one_line(repr(saved.get(name)))[:80]}, is {value!r}"
            for name, value in self.settings.items()
            if name not in ("steps", "minutes") and saved.get(name) != value
        ]
        if differing:
            raise TrainingError(
                f"{self.output} was begun with other settings ({'; '.join(differing)}); resume with the same ones, or "
                "start afresh in another folder."
            )

    def _load(self, folder: Path) -> None:
        names = ("net", "optimizer", *(("average",) if self.average is not None else ()))
        tensors, state = read_checkpoint(folder, names)
        try:
            progress = parse_progress(state["progress"])
            check_tensors(tensors["net"], self.raw_net.state_dict())
            if self.average is not None:
                check_tensors(tensors["average"], self.average.state_dict())
            load_optimizer_tensors(self.optimizer, tensors["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: does not fit the run ({one_line(error)[:200]}).") from error
        self._fit_schedule(progress)
        self.raw_net.load_state_dict(tensors["net"])
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])
        self.progress = progress

    def _fit_schedule(self, progress: Progress) -> None:
        """Place what was trained within a run of this one's length."""
        if self.minutes is None:
            length, taken, option = self.steps or 1, progress.step, f"--steps {self.steps}"
        else:
            length, taken, option = self.minutes * 60, progress.seconds, f"--minutes {self.minutes:g}"
        if self.minutes is None or progress.minutes != self.minutes:
            if taken > length:
                raise TrainingError(
                    f"{self.output}: has been trained for {progress.step} steps, {progress.seconds / 60:.1f} minutes, "
                    f"which {option} would cut off; give more to go on."
                )
            progress.fraction = taken / length
        progress.minutes = self.minutes

    def _learning_rate(self) -> float:
        number, fraction = self.recipe.locate(self.progress.fraction)
        return self.recipe.stages[number].learning_rate(fraction)

    def _plan(self, deadline: Deadline) -> None:
        """Count anew how many steps fit into the time that is left."""
        stage = self.recipe.stages[0]
        trained = stage.batch_size * (stage.patch_size // self.sampler.scale) ** 2
        validated = sum(pair.lr[0].numel() for pairs in self.held_out.values() for pair in pairs)
        left = deadline.steps_left(validated / trained)
        if left is not None:
            self.steps = self.progress.step + self._agreed(left)

    def _advance(self) -> None:
        """Move the schedule on by the step that was taken."""
        progress = self.progress
        if self.minutes is None:
            progress.fraction = progress.step / (self.steps or 1)
        elif self.steps is not None:
            # What is left of the schedule is laid over the steps that are left.
            left = self.steps - progress.step
            progress.fraction = 1.0 if left <= 0 else progress.fraction + (1 - progress.fraction) / (left + 1)

    def _step(self) -> Tensor:
        step = self.progress.step
        timed = step % self.check_every == self.check_every - 1  # the step after which the loss is looked at
        clock = [self._clock()] if timed else []
        number, fraction = self.recipe.locate(self.progress.fraction)
        stage = self.recipe.stages[number]
        patch_size = stage.patch_size // self.sampler.scale * self.sampler.scale
        if (self.sampler.batch_size, self.sampler.side * self.sampler.scale) != (stage.batch_size, patch_size):
            self.sampler = self.sampler.with_patches(patch_size=patch_size, batch_size=stage.batch_size)
        lr_patches, hr_patches = self.sampler.batch(
            step, rank=self.accelerator.process_index, world_size=self.accelerator.num_processes
        )
        if timed:
            clock.append(self._clock())
        warming_up = self._freeze(step)
        if self.cuda_graph:
            self._record(lr_patches, warming_up)
        losses: list[Tensor] = []
        for lr_part, hr_part in zip(lr_patches.chunk(self.parts), hr_patches.chunk(self.parts), strict=True):
            with self.accelerator.accumulate(self.net):
                loss = LOSSES[stage.loss](self.net(lr_part).float(), hr_part)
                self.accelerator.backward(loss)
                losses.append(loss.detach())
        if timed:
            clock.append(self._clock())
        if self.recipe.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self._parameters, self.recipe.clip_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = stage.learning_rate(fraction)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            get_ema_multi_avg_fn(ema_decay_at(self.recipe, step))(self._averaged, self._parameters, None)
        if timed:
            clock.append(self._clock())
            for name, begun, ended in zip(("input", "network", "update"), clock, clock[1:], strict=False):
                setattr(self.timing, name, getattr(self.timing, name) + ended - begun)
            self.timing.steps += 1
        return torch.stack(losses).mean()

    def _freeze(self, step: int) -> bool:
        """Train only what the initial weights did not have, at first; return whether that is so now."""
        if not (self.warm_up_new and self.untouched):
            return False
        warming_up = step < self.warm_up_new
        for name, parameter in self.raw_net.named_parameters():
            parameter.requires_grad_(not warming_up or name in self.untouched)
        return warming_up

    def _record(self, lr_patches: Tensor, warming_up: bool) -> None:
        """Record forward and backward as CUDA graphs, anew where the shape or what is trained has changed."""
        wanted = (lr_patches.shape, warming_up)
        if self._graphed == wanted:
            return
        if self._graphed is not None:
            raise TrainingError("--cuda-graph needs a recipe of one batch shape and --warm-up-new 0; leave it out.")
        torch.cuda.make_graphed_callables(self.net, (torch.rand_like(lr_patches),), allow_unused_input=True)
        self._graphed = wanted

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def _clock(self) -> float:
        self._synchronize()
        return time.monotonic()

    def _finite(self, losses: list[Tensor]) -> list[float]:
        """The losses since the last look as numbers, the mean over processes; raise at the first that is not finite."""
        values = self.accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
        for value, step in zip(values, range(self.progress.step - len(values), self.progress.step), strict=True):
            if not math.isfinite(value):
                files = ", ".join(sorted({path.name for path in self.sampler.files(step)}))
                raise TrainingError(
                    f"the loss is {value} at step {step} (learning rate {self._learning_rate():.2e}, "
                    f"batch of {files}). {self._last_good()} Try a lower --lr or --precision no."
                )
        return values

    def _last_good(self) -> str:
        kept = checkpoints(self.output)
        return f"Last good checkpoint: {kept[-1] if kept else 'none yet'}."

    def _any_process(self, flag: bool) -> bool:
        """Whether a flag is set in any process: all must stop at the same step, and their clocks differ."""
        if self.accelerator.num_processes == 1:
            return flag
        raised = torch.tensor(float(flag), device=self.device)
        return self.accelerator.reduce(raised, reduction="sum").item() > 0

    def _agreed(self, steps: int) -> int:
        """The mean of a number of steps over all processes."""
        if self.accelerator.num_processes == 1:
            return steps
        return max(1, int(self.accelerator.reduce(torch.tensor(float(steps), device=self.device), "mean").item()))

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean PSNR over the held-out images, in float32: clean and degraded ones count the same."""
        # A network of its own: the one that trains computes in mixed precision and is compiled for one size.
        trained = self.raw_net if self.average is None else self.average
        self.validated.load_state_dict(trained.state_dict())
        means = {name: self._mean_psnr(pairs) for name, pairs in self.held_out.items()}
        return {"psnr": sum(means.values()) / len(means)} | means

    def _mean_psnr(self, pairs: list[ImagePair]) -> float:
        mine = pairs[self.accelerator.process_index :: self.accelerator.num_processes]
        total = torch.zeros((), device=self.device)
        for pair in mine:
            sr = self.validated(pair.lr.to(self.device).unsqueeze(0).float() / 255).squeeze(0)
            if not sr.isfinite().all():
                raise TrainingError(
                    f"the network's result for {pair.path.name} is not finite after step {self.progress.step}. "
                    f"{self._last_good()} Try a lower --lr or --precision no."
                )
            total += psnr(to_uint8(sr.cpu()), pair.hr.cpu(), self.config["scale"])
        return self.accelerator.reduce(total, reduction="sum").item() / len(pairs)

    def _save(self, *, best: bool) -> None:
        """Write the weights if they are the best so far, the log, and a checkpoint; each whole or not at all."""
        progress = self.progress
        # A finite loss says nothing of the update after it.
        if not all(parameter.isfinite().all() for parameter in self.raw_net.parameters()):
            raise TrainingError(
                f"the network is not finite after step {progress.step}. {self._last_good()} Try a lower --lr or "
                "--precision no."
            )
        if best:
            progress.best_psnr = progress.history[-1]["psnr"]
        if not self.accelerator.is_main_process:
            return
        try:
            self._write(best=best)
        except OSError as error:
            raise TrainingError(f"{describe(error)} {self._last_good()} Go on from there with --resume.") from error

    def _write(self, *, best: bool) -> None:
        progress = self.progress
        # Before the checkpoint: a run that is cut off here resumes from the one before and writes them again.
        if best:
            file = self.output / f"{self.variant}_x{self.config['scale']}.safetensors"
            save_weights(self.validated, file, self.config, degrade=self.degrade)
        if progress.history:
            table = io.StringIO()
            writer = csv.DictWriter(table, fieldnames=list(progress.history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(progress.history)
            write_text(self.output / "log.csv", table.getvalue())
        tensors = {"net": self.raw_net.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        scaler = self.accelerator.scaler
        state = {
            "progress": dataclasses.asdict(progress),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        write_checkpoint(self.output, progress.step, tensors, state)


def _degraded(pairs: list[ImagePair]) -> list[ImagePair]:
    """Images to validate on, each degraded in a way of its own, the same in all runs."""
    degraded: list[ImagePair] = []
    for number, pair in enumerate(pairs):
        generator = make_generator(number)
        lr = degrade_image(pair.lr.cpu(), draw_degradation(generator), generator)
        degraded.append(dataclasses.replace(pair, lr=lr))
    return degraded


def _fingerprint(pairs: list[ImagePair]) -> int:
    """A checksum of the names and the contents of images."""
    checksum = 0
    for pair in pairs:
        checksum = zlib.crc32(pair.lr.cpu().numpy().tobytes(), zlib.crc32(pair.path.name.encode(), checksum))
    return checksum
