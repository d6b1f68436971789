"""Every parameter takes part in every step, as DistributedDataParallel demands, and the processes agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sc_blocks import MREB, LearnableCommunication


def build() -> nn.Module:
    torch.manual_seed(0)
    return MREB(12, num_stages=2, communication=LearnableCommunication)


def batches(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(2, 12, 6, 6, generator=generator) for _ in range(2)]


def train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # A file, not a port: nothing to collide with.
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = DistributedDataParallel(build(), find_unused_parameters=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x in batches(rank):  # the second step is the one that fails when a parameter was left out of the first
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    torch.save(model.module.state_dict(), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    mp.spawn(train, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))

    alone = build()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for pair in zip(batches(0), batches(1), strict=True):
        optimizer.zero_grad()
        alone(torch.cat(pair)).square().mean().backward()
        optimizer.step()

    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)
