"""One training run of ``compare``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from examples.drop_in.tasks import Task
from examples.drop_in.variants import Row, build
from examples.mren.data import PatchSampler
from examples.mren.recipes import Recipe, ema_decay_at, make_optimizer

CHECK_EVERY = 50  # steps between looks at the loss


def train(row: Row, seed: int, sampler: PatchSampler, task: Task, recipe: Recipe, host: str) -> nn.Module:
    """Train one network and return the average of its weights; nothing is chosen by a score on the way.

    Args:
        row: What to build.
        seed: Of the initial weights; the sampler has its own.
        sampler: Where patches come from.
        task: What is done to them.
        recipe: How it is trained.
        host: Name of the host.

    Raises:
        ValueError: If the loss or the network is not finite.
    """
    torch.manual_seed(seed)
    device = sampler.device
    net = build(host, row.blocks, row.channels, task.scale).to(device, memory_format=torch.channels_last)
    (stage,) = recipe.stages
    optimizer = make_optimizer(net, stage.lr)
    steps = recipe.steps or 0
    step = 0
    average = AveragedModel(net, multi_avg_fn=lambda *parts: get_ema_multi_avg_fn(ema_decay_at(recipe, step))(*parts))
    for step in tqdm(range(steps), desc=f"{row.blocks}, seed {seed}", unit="step"):
        damaged, clean = task.batch(sampler, step)
        loss = F.l1_loss(net(damaged), clean)
        if step % CHECK_EVERY == 0 and not loss.isfinite():
            raise ValueError(f"{row.blocks}, seed {seed}: the loss is {loss.item()} at step {step}; try a lower --lr.")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_grad_norm or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate(step / steps)
        optimizer.step()
        average.update_parameters(net)
    # A finite loss says nothing of the update after it.
    if not all(parameter.isfinite().all() for parameter in average.module.parameters()):
        raise ValueError(f"{row.blocks}, seed {seed}: the network is not finite after step {steps}; try a lower --lr.")
    return average.module.eval()
