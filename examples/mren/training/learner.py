"""A network in training: forward and backward, the update of its weights, and their moving average (EMA)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from examples.mren.training.checkpoint import check_tensors, load_optimizer_tensors, optimizer_tensors
from examples.mren.training.recipes import (
    LOSSES,
    PRECISIONS,
    Loss,
    Mixed,
    Recipe,
    Training,
    blocks_of,
    ema_decay_at,
    make_optimizer,
)
from examples.mren.weightfile import is_number


class TrainingError(ValueError):
    """Training cannot continue; the message says why and what to do."""


class Learner:
    """A network with its optimizer, loss scaler and EMA: the state that a training step changes.

    Args:
        net: The network with its initial weights, on any device; it is trained in place.
        training: How it is trained.
        recipe: The stages of that training.
        device: Where it is trained.
        accelerator: The processes that share each batch.
        untouched: Names of the parameters that ``training.init`` lacks.

    Attributes:
        net: The network. It is never wrapped for mixed precision, graphs or processes.
        average: The exponential moving average (EMA) of its weights, in eval mode, never compiled.

    Raises:
        TrainingError: If the options contradict each other.
    """

    # Names of the tensor files of a checkpoint.
    TENSORS = ("net", "average", "optimizer")

    def __init__(
        self,
        net: nn.Module,
        training: Training,
        recipe: Recipe,
        device: torch.device,
        accelerator: Accelerator,
        *,
        untouched: Sequence[str] = (),
    ) -> None:
        processes = accelerator.num_processes
        # A replay overwrites the gradients of the previous one, so they cannot be accumulated.
        if training.cuda_graph and (device.type != "cuda" or processes > 1 or training.accumulate > 1):
            raise TrainingError("--cuda-graph needs one GPU and --accumulate 1; leave it out.")
        if training.warm_up_new and untouched and processes > 1:
            raise TrainingError(
                "--warm-up-new needs one process, got several; warm up with one, then pass its weights to --init."
            )
        self.training = training
        self.recipe = recipe
        self.accelerator = accelerator
        self.untouched = untouched
        if training.channels_last:
            net = net.to(memory_format=torch.channels_last)
        self.net = net.to(device)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = make_optimizer(self.net, recipe.stages[0].lr)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        # Listed once: walking through hundreds of modules at every step takes longer than the update itself.
        self._parameters, self._averaged = list(self.net.parameters()), list(self.average.parameters())
        self._buffers = list(zip(self.average.buffers(), self.net.buffers(), strict=True))
        if training.compile:
            torch.compiler.reset()  # forget earlier networks: torch limits the recompilations of a block
            # Block by block: the code of six MREBs is compiled once; the whole network would take six times as long.
            for block in list(blocks_of(self.net)) or [self.net]:
                block.compile(dynamic=False)
        self._prepared = accelerator.prepare_model(self._mixed(), device_placement=False)
        self._graphs: dict[tuple[torch.Size, bool], Callable[[Tensor], Tensor]] = {}

    def backward(self, x: Tensor, target: Tensor, loss: Loss, *, step: int) -> Tensor:
        """Add the gradients of a batch to the parameters, and return its loss."""
        is_warming_up = self._freeze(step)
        parts = self.training.accumulate
        pieces = list(zip(x.chunk(parts), target.chunk(parts), strict=True))
        losses: list[Tensor] = []
        for number, (inputs, targets) in enumerate(pieces, start=1):
            call = self._graph(inputs, is_warming_up) if self.training.cuda_graph else self._prepared
            # The processes exchange their gradients once, when they are complete.
            with nullcontext() if number == len(pieces) else self.accelerator.no_sync(self._prepared):
                share = LOSSES[loss](call(inputs), targets) * (len(targets) / len(target))
                self.scaler.scale(share).backward()
            losses.append(share.detach())
        return torch.stack(losses).sum()

    def update(self, lr: float, *, step: int) -> None:
        """Update the weights from their gradients, clear these, and update the EMA."""
        if self.recipe.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        get_ema_multi_avg_fn(ema_decay_at(self.recipe, step))(self._averaged, self._parameters, None)
        for mine, current in self._buffers:
            mine.copy_(current)

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(bool(parameter.isfinite().all()) for parameter in self._parameters)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor that a checkpoint needs, by the names in :attr:`TENSORS`."""
        return {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], scaler: Mapping[str, Any]) -> None:
        """Restore the tensors returned by :meth:`tensors`, and the state of the scaler.

        Raises:
            ValueError: If they are of another network, optimizer or scaler; the weights are then unchanged.
        """
        check_tensors(tensors["net"], self.net.state_dict())
        check_tensors(tensors["average"], self.average.state_dict())
        load_optimizer_tensors(self.optimizer, tensors["optimizer"])
        if self.scaler.is_enabled():
            self._check_scaler(scaler)
            self.scaler.load_state_dict(dict(scaler))
        self.net.load_state_dict(tensors["net"])
        self.average.load_state_dict(tensors["average"])

    def _check_scaler(self, state: Any) -> None:
        """Check that a state differs from that of the scaler only in the scale and the steps since it last grew."""
        own = self.scaler.state_dict()
        scale, steps = (state.get(name) if isinstance(state, dict) else None for name in ("scale", "_growth_tracker"))
        if (
            not is_number(scale, 1e-37, 1e37)
            or type(steps) is not int
            or not 0 <= steps <= own["growth_interval"]
            or own | {"scale": scale, "_growth_tracker": steps} != state
        ):
            raise ValueError("its loss scaler state is not one of this run")

    def _freeze(self, step: int) -> bool:
        """During the warm-up, train only parameters that the initial weights lack; returns whether it is on."""
        if not (self.training.warm_up_new and self.untouched):
            return False
        is_warming_up = step < self.training.warm_up_new
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(not is_warming_up or name in self.untouched)
        return is_warming_up

    def _mixed(self) -> Mixed:
        return Mixed(self.net, PRECISIONS[self.training.precision])

    def _graph(self, example: Tensor, is_warming_up: bool) -> Callable[[Tensor], Tensor]:
        """Forward and backward as CUDA graphs, for patches of one shape and the parameters that are trained now."""
        recorded = (example.shape, is_warming_up)
        if recorded not in self._graphs:
            self._graphs[recorded] = torch.cuda.make_graphed_callables(
                self._mixed().train(), (torch.rand_like(example),), allow_unused_input=True
            )
        return self._graphs[recorded]
