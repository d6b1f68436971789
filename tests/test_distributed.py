"""Two processes train every block as one does, replicated by DistributedDataParallel or sharded by FSDP2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from sc_blocks import DRACB, MREB, RBWA, SCACB, WSILBV, DRACBChain
from tests.blocks import BY_NAME

BLOCKS = (DRACB, DRACBChain, MREB, RBWA, SCACB, WSILBV)

NAMES = [
    "scacb",
    "dracb-gated",
    "chain-learnable",
    "chain-bilinear",
    "wsilbv",
    "rbwa-x2",
    "mreb-gated",
    "mreb-carried",
    "mren-x4-communication",
]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BY_NAME[name].build(dtype=torch.float64)


def batches(name: str, rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    channels = BY_NAME[name].channels
    return [torch.randn(2, channels, 6, 8, generator=generator, dtype=torch.float64) for _ in range(2)]


def replicated(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=False)


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    # Every block on its own, the inner ones first, as users wrap the layers of a network.
    for block in reversed(list(model.modules())):
        if isinstance(block, BLOCKS):
            fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh) if not isinstance(model, BLOCKS) else model


WRAPPERS = {"DDP": replicated, "FSDP2": sharded}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(rank: int, wrapper: str, folder: str) -> None:
    torch.set_num_threads(1)
    # A file, not a port: nothing to collide with.
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    states = {}
    for name in NAMES:
        model = WRAPPERS[wrapper](build(name))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in batches(
            name, rank
        ):  # the second step is the one that fails when a parameter was left out of the first
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        state = {key.removeprefix("module."): whole(tensor) for key, tensor in model.state_dict().items()}
        states[name] = {key: tensor.clone() for key, tensor in state.items()}
    torch.save(states, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_processes_train_as_one(wrapper: str, tmp_path: Path) -> None:
    mp.spawn(train, args=(wrapper, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in NAMES:
        alone = build(name)
        optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
        for pair in zip(batches(name, 0), batches(name, 1), strict=True):
            optimizer.zero_grad()
            alone(torch.cat(pair)).square().mean().backward()
            optimizer.step()
        assert first[name].keys() == second[name].keys() == alone.state_dict().keys()
        for key, tensor in alone.state_dict().items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            torch.testing.assert_close(first[name][key], tensor, rtol=1e-9, atol=1e-11)
