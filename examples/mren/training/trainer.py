"""One training run of any network: the network, its data, and its progress.

:mod:`examples.mren.train` runs one from the command line, :mod:`examples.compare.runner` many.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from examples.mren.data import ImagePair
from examples.mren.messages import describe, note, one_line
from examples.mren.metrics import psnr, to_uint8
from examples.mren.training.checkpoint import (
    CheckpointError,
    Progress,
    checkpoints,
    parse_progress,
    read_checkpoint,
    write_checkpoint,
)
from examples.mren.training.clock import SAVE_EVERY, VALIDATION_SHARE, Deadline, Timing
from examples.mren.training.learner import Learner, TrainingError
from examples.mren.training.patches import PatchSampler
from examples.mren.training.recipes import Training
from examples.records import write_rows

COLLAPSE = 1.0  # drop in dB below the best validation from which a network seldom recovers
CHECK_EVERY = {"cpu": 10, "cuda": 100}  # steps between checks of loss and clock, each of which waits for the device


class Trainer:
    """One run: the network, its data, and its progress.

    Args:
        net: The network with its initial weights, on any device; it is trained in place.
        training: How it is trained.
        sampler: Draws the patches; training runs on its device.
        output: Output folder.
        label: Name of the run in messages.
        draw: Called with a sampler, a step and the ``rank`` and ``world_size`` of the process; returns inputs and
            targets.
        accelerator: The processes that share each batch.
        untouched: Names of the parameters that ``training.init`` lacks.
        held_out: Images to validate on, by the log column of their mean PSNR. The best weights are chosen by the mean
            of these columns. Without any, the final EMA of the weights is the result.
        keep: Called with the averaged network whenever it is the best so far.
        time_steps_alone: Whether the minutes of the run count only its steps, except the first, which may compile; on a
            single CPU thread in processor time, which other programs disturb less. Otherwise, they count from the start
            of the run to its last file.

    Attributes:
        learner: The network, its optimizer, and the exponential moving average (EMA) of its weights.
        progress: How far the run has come.

    Raises:
        TrainingError: If a batch does not divide among processes, or the options contradict each other.
    """

    def __init__(
        self,
        net: nn.Module,
        training: Training,
        sampler: PatchSampler,
        output: Path,
        *,
        label: str,
        draw: Callable[..., tuple[Tensor, Tensor]] = PatchSampler.batch,
        accelerator: Accelerator | None = None,
        untouched: Sequence[str] = (),
        held_out: Mapping[str, list[ImagePair]] = {},
        keep: Callable[[nn.Module], object] = lambda net: None,
        time_steps_alone: bool = False,
    ) -> None:
        self.training = training
        self.recipe = training.plan(len(sampler.paths), sampler.scale)
        self.minutes = training.minutes
        self.steps = self.recipe.steps if training.minutes is None else None  # unknown until steps are timed
        self.output = output
        self.label = label
        self.draw = draw
        self.accelerator = accelerator or Accelerator()
        self.untouched = untouched
        self.held_out = held_out
        self.keep = keep
        self.time_steps_alone = time_steps_alone
        self.device = sampler.device
        self.check_every = CHECK_EVERY.get(self.device.type, 10)
        self.interrupted = False
        self.samplers = [
            sampler.with_patches(patch_size=stage.patch_size, batch_size=stage.batch_size)
            for stage in self.recipe.stages
        ]
        processes = self.accelerator.num_processes
        for stage in self.recipe.stages:
            if stage.batch_size % processes:
                raise TrainingError(
                    f"a batch of {stage.batch_size} does not divide among {processes} processes; choose a multiple of "
                    f"{processes} as --batch-size."
                )
        self.learner = Learner(net, training, self.recipe, self.device, self.accelerator, untouched=untouched)
        self.timing = Timing()
        self.progress = Progress(minutes=self.minutes)

    def run(
        self, *, validate_every: int | None = None, stop_at: float = math.inf, started: float | None = None
    ) -> Progress:
        """Train to the end of the recipe, or until it is time to stop.

        Args:
            validate_every: Steps between validations and checkpoints; ``None`` for about a minute.
            stop_at: When to stop with a checkpoint, to be resumed, on the clock of ``time.monotonic``.
            started: When the run began on that clock, if before this call.
        """
        progress = self.progress
        self.learner.net.train()
        started = time.monotonic() if started is None else started
        before, first_step = progress.seconds, progress.step
        one_thread = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if one_thread else time.perf_counter
        deadline = None
        if self.minutes is not None and not self.time_steps_alone:
            deadline = Deadline(started + self.minutes * 60 - before)
        saved = time.monotonic()
        losses: list[Tensor] = []
        bar = tqdm(
            initial=progress.step,
            total=self.steps,
            desc=self.label,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        shown = {"loss": "-", "PSNR": f"{progress.history[-1]['psnr']:.2f}" if progress.history else "-"}
        with bar:
            while progress.fraction < 1:
                since = clock()
                losses.append(self.step())
                progress.step += 1
                bar.update()
                checking = self._is_check_due(deadline)
                if not self.time_steps_alone:
                    progress.seconds = before + time.monotonic() - started
                elif progress.step > first_step + 1:
                    if checking:
                        self._synchronize()
                    progress.seconds += clock() - since
                self._advance()
                out_of_time = checking and self._any_process(self.interrupted or time.monotonic() > stop_at)
                if validate_every is not None:
                    due = progress.step % validate_every == 0
                else:
                    due = checking and self._any_process(time.monotonic() - saved > _seconds_between_saves(deadline))
                due = due or progress.fraction >= 1
                if checking or due:
                    shown["loss"] = f"{self._record(losses):.4f}"
                    losses.clear()
                if deadline is not None and checking:
                    deadline.measure(progress.step, short=self._any_process(deadline.is_short(progress.step)))
                    self._plan(deadline)
                    bar.total = self.steps
                if due and self.held_out:
                    shown["PSNR"] = f"{self._log():.2f}"
                    # Of equal validations, the later weights, which were trained for longer.
                    self._save(best=progress.history[-1]["psnr"] >= progress.best_psnr)
                elif due or out_of_time:
                    # Not validated: an interruption must not change the result of a run.
                    self._save(best=False)
                if due:
                    saved = time.monotonic()
                    if deadline is not None:
                        deadline.validated(progress.step, saved - started + before - progress.seconds)
                bar.set_postfix(shown, refresh=False)
                if out_of_time:
                    break
        return progress

    def _is_check_due(self, deadline: Deadline | None) -> bool:
        """Whether the loss and the clock are checked after this step."""
        # Whoever interrupted the run is waiting, or will kill the process.
        is_ending = self.interrupted and self.accelerator.num_processes == 1
        # With long steps, the next regular check could come after the end.
        is_unmeasured = deadline is not None and not deadline.is_measured
        return is_ending or is_unmeasured or self.progress.step % self.check_every == 0

    def validate_start(self) -> float:
        """Validate the initial weights, and keep them as the best so far; returns their PSNR."""
        means = self._validate()
        self.progress.best_psnr = sum(means.values()) / len(means)
        if self.accelerator.is_main_process:
            self.keep(self.learner.average)
        return self.progress.best_psnr

    def interrupt(self) -> None:
        """Make a run stop with a checkpoint at its next check of the clock. Safe to call from signal handlers."""
        self.interrupted = True

    def resume(self) -> int:
        """Resume from the newest readable checkpoint and return its step; 0 if none was written yet.

        A run may have a new length: its schedule is then stretched over it, as if the run had been started with that
        length.

        Raises:
            TrainingError: If the run was already trained for longer than that, or no checkpoint is readable.
        """
        found = checkpoints(self.output)
        if not found:
            return 0
        for folder in reversed(found):
            try:
                self._load(folder)
            except CheckpointError as error:
                if self.accelerator.is_main_process:
                    note(f"{error} Trying the one before.")
            else:
                return self.progress.step
        raise TrainingError(f"{self.output / 'checkpoints'}: no readable checkpoint; start afresh in another folder.")

    def _load(self, folder: Path) -> None:
        tensors, state = read_checkpoint(folder, Learner.TENSORS)
        try:
            progress = parse_progress(state["progress"])
            self.learner.load(tensors, state["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: does not fit the run ({one_line(error)[:200]}).") from error
        self._fit_schedule(progress)
        self.progress = progress

    def _fit_schedule(self, progress: Progress) -> None:
        """Set the fraction of the schedule that is completed, for the length of this run."""
        if self.minutes is None:
            length, completed, option = self.steps or 1, progress.step, f"--steps {self.steps}"
        else:
            length, completed, option = self.minutes * 60, progress.seconds, f"--minutes {self.minutes:g}"
        if self.minutes is None or progress.minutes != self.minutes:
            if completed > length:
                raise TrainingError(
                    f"{self.output}: has been trained for {progress.step} steps, {progress.seconds / 60:.1f} minutes, "
                    f"which is more than {option}; pass a larger value to continue."
                )
            progress.fraction = completed / length
        progress.minutes = self.minutes

    def _learning_rate(self) -> float:
        number, fraction = self.recipe.locate(self.progress.fraction)
        return self.recipe.stages[number].learning_rate(fraction)

    def _plan(self, deadline: Deadline) -> None:
        """Re-estimate how many steps fit into the remaining time."""
        first = self.samplers[0]
        trained = first.batch_size * first.side**2
        validated = sum(pair.lr[0].numel() for pairs in self.held_out.values() for pair in pairs)
        left = deadline.steps_left(validated / trained)
        if left is not None:
            # All processes must stop at the same step.
            agreed = self.accelerator.reduce(torch.tensor(float(left), device=self.device), reduction="mean")
            self.steps = self.progress.step + max(1, int(agreed.item()))

    def _advance(self) -> None:
        """Advance the schedule by one step."""
        progress = self.progress
        if self.minutes is None:
            progress.fraction = progress.step / (self.steps or 1)
        elif self.time_steps_alone:
            progress.fraction = min(1.0, progress.seconds / (60 * self.minutes))
        elif self.steps is not None:
            # Spread the rest of the schedule over the remaining steps.
            left = self.steps - progress.step
            progress.fraction = 1.0 if left <= 0 else progress.fraction + (1 - progress.fraction) / (left + 1)

    def step(self) -> Tensor:
        """Train on the batch of the next step; returns its loss."""
        step = self.progress.step
        number, fraction = self.recipe.locate(self.progress.fraction)
        stage = self.recipe.stages[number]
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        is_timed = step % self.check_every == self.check_every - 1  # the step after which the loss is checked
        clock = [self._clock()] if is_timed else []
        x, target = self.draw(self.samplers[number], step, rank=rank, world_size=processes)
        clock += [self._clock()] if is_timed else []
        loss = self.learner.backward(x, target, stage.loss, step=step)
        clock += [self._clock()] if is_timed else []
        self.learner.update(stage.learning_rate(fraction), step=step)
        if is_timed:
            self.timing.add([*clock, self._clock()])
        return loss

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def _clock(self) -> float:
        self._synchronize()
        return time.monotonic()

    def _record(self, losses: list[Tensor]) -> float:
        """Add the losses since the last check, averaged over the processes, to the log; returns the last one.

        Raises:
            TrainingError: If a loss is not finite.
        """
        values = self.accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
        for value, step in zip(values, range(self.progress.step - len(values), self.progress.step), strict=True):
            if not math.isfinite(value):
                sampler = self.samplers[self.recipe.locate(self.progress.fraction)[0]]
                files = ", ".join(sorted({path.name for path in sampler.files(step)}))
                raise self._failure(
                    f"the loss is {value} at step {step} (learning rate {self._learning_rate():.2e}, batch of {files})"
                )
        self.progress.interval_loss += sum(values)
        self.progress.interval_steps += len(values)
        return values[-1]

    def _failure(self, what: str) -> TrainingError:
        return TrainingError(f"{self.label}: {what}. {self._last_good()} Try a lower --lr or --precision no.")

    def _last_good(self) -> str:
        kept = checkpoints(self.output)
        return f"Last good checkpoint: {kept[-1] if kept else 'none yet'}."

    def _any_process(self, flag: bool) -> bool:
        """Whether a flag is set in any process: all must stop at the same step, and their clocks differ."""
        raised = torch.tensor(float(flag), device=self.device)
        return self.accelerator.reduce(raised, reduction="sum").item() > 0

    def _log(self) -> float:
        """Validate, and add a row to the log; returns the PSNR by which the best weights are chosen."""
        progress, means = self.progress, self._validate()
        row = {"step": progress.step, "loss": progress.interval_loss / progress.interval_steps}
        row |= {"psnr": sum(means.values()) / len(means)} | means
        progress.history.append(row | {"lr": self._learning_rate(), "seconds": round(progress.seconds, 1)})
        progress.interval_loss, progress.interval_steps = 0.0, 0
        if row["psnr"] < progress.best_psnr - COLLAPSE and self.accelerator.is_main_process:
            note(
                f"{self.label}: validation fell to {row['psnr']:.2f} dB at step {progress.step}, from "
                f"{progress.best_psnr:.2f} dB. The best weights are kept; if it does not recover, stop, and start from "
                "them with --init and a lower --lr."
            )
        return row["psnr"]

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        return {name: self._mean_psnr(pairs) for name, pairs in self.held_out.items()}

    def _mean_psnr(self, pairs: list[ImagePair]) -> float:
        """Mean PSNR of the averaged network over images, in float32."""
        mine = pairs[self.accelerator.process_index :: self.accelerator.num_processes]
        total = torch.zeros((), device=self.device)
        for pair in mine:
            sr = self.learner.average(pair.lr.to(self.device).unsqueeze(0).float() / 255).squeeze(0)
            if not sr.isfinite().all():
                raise self._failure(
                    f"the network's output for {pair.path.name} is not finite after step {self.progress.step}"
                )
            total += psnr(to_uint8(sr.cpu()), pair.hr.cpu(), self.samplers[0].scale)
        return self.accelerator.reduce(total, reduction="sum").item() / len(pairs)

    def _save(self, *, best: bool) -> None:
        """Write the weights if they are the best so far, the log, and a checkpoint; each atomically."""
        progress = self.progress
        # A finite loss does not imply finite weights after the update.
        if not self.learner.is_finite():
            raise self._failure(f"the weights are not finite after step {progress.step}")
        if best:
            progress.best_psnr = progress.history[-1]["psnr"]
        if not self.accelerator.is_main_process:
            return
        state = {"progress": dataclasses.asdict(progress), "scaler": self.learner.scaler.state_dict()}
        try:
            # Before the checkpoint: a run interrupted here resumes from the previous one and writes them again.
            if best:
                self.keep(self.learner.average)
            if progress.history:
                write_rows(self.output / "log.csv", progress.history, list(progress.history[0]))
            write_checkpoint(self.output, progress.step, self.learner.tensors(), state)
        except OSError as error:
            raise TrainingError(f"{describe(error)} {self._last_good()} Continue from there with --resume.") from error


def _seconds_between_saves(deadline: Deadline | None) -> float:
    """At least a minute, and long enough that validations take no more than their share of the time."""
    validation = None if deadline is None else deadline.validation
    return max(SAVE_EVERY, (validation or 0.0) / VALIDATION_SHARE)


def check_settings(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check the settings of a run in a folder before it is resumed or its result is used.

    Raises:
        TrainingError: If settings differ; the message names all that do.
    """
    differing = [
        f"{name} was {one_line(repr(found.get(name)))[:80]}, is {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise TrainingError(
            f"{folder} holds a run with other settings ({'; '.join(differing)}); choose another --output, or use the "
            "same options and images."
        )
