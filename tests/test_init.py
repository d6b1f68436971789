"""Fresh weights: they keep the variance of what passes, and change nothing that they should not."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from examples.mren.model import MREN
from sc_blocks import DRACB, MREB, RBWA, SCACB, WSILBV, DRACBChain, GatedCommunication
from sc_blocks.init import init_weights
from tests.blocks import Case, each_case


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def spread(map_: Tensor) -> float:
    """How far the pixels of a channel lie apart."""
    return map_.std(dim=(2, 3)).mean().item()


def test_maps_and_branches_keep_the_spread_of_their_input() -> None:
    torch.manual_seed(0)
    x = noise(1, 240, 32, 32)
    for block, of in ((SCACB(240), lambda block: block(x) - x), (DRACB(240, 60), lambda block: block(x)[1])):
        before = spread(of(block))
        init_weights(block, branch_scale=1)
        assert before < 0.65
        assert 0.7 < spread(of(block)) < 1.8


def test_biases_are_zero_and_weights_have_the_variance_of_kaiming() -> None:
    torch.manual_seed(0)
    block, without_shortcut = MREB(240), SCACB(240, residual=False)
    init_weights(block)
    init_weights(without_shortcut)
    stage = block.stages[0]
    for conv, gain in (
        (stage.compress, 2),
        (stage.channel["weighing"], 2),
        (stage.fuse, 0.3**2),
        (without_shortcut.fuse, 1),
        (block.refine.links[0].distill, 1),
        (block.fuse, 1),
    ):
        fan_in = math.prod(conv.weight.shape[1:])
        assert conv.weight.var().item() * fan_in == pytest.approx(gain, rel=0.1)
        assert not conv.bias.any()


@pytest.mark.parametrize("parts", ["both", "spatial", "channel"])
def test_a_branch_of_scale_0_returns_its_input(parts: str) -> None:
    x = noise(2, 12, 9, 7)
    with_shortcut, without = SCACB(12, parts=parts), SCACB(12, parts=parts, residual=False, bias=False)
    for block in (with_shortcut, without):
        init_weights(block, branch_scale=0)
    assert torch.equal(with_shortcut(x), x)
    assert without(x).any()


def test_other_modules_keep_their_weights() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        RBWA(12),
        WSILBV(12),
        DRACBChain(12, 3, 2, communication=GatedCommunication),
        nn.Linear(3, 3),
    )
    before = copy.deepcopy(net.state_dict())
    init_weights(net)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"3.links.{link}.distill.{name}" for link in (0, 1) for name in ("weight", "bias")}


@each_case
def test_every_block_can_be_initialised_and_trained(case: Case) -> None:
    torch.manual_seed(0)
    module = case.build(perturbed=False)
    names = {name: (parameter.shape, parameter.dtype) for name, parameter in module.named_parameters()}
    init_weights(module)
    assert {name: (parameter.shape, parameter.dtype) for name, parameter in module.named_parameters()} == names
    module(noise(2, case.channels, 12, 12)).square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad.isfinite().all(), name


def test_the_seed_decides_the_weights() -> None:
    blocks = [MREB(12) for _ in range(3)]
    for block, seed in zip(blocks, (3, 3, 4), strict=True):
        torch.manual_seed(seed)
        init_weights(block)
    ours, theirs, others = (
        {name: p for name, p in block.named_parameters() if "attention" not in name} for block in blocks
    )
    drawn = [name for name in ours if name.endswith("weight")]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(torch.equal(ours[name], others[name]) for name in drawn)
    first, second, *_ = blocks[0].stages
    assert not torch.equal(first.compress.weight, second.compress.weight)


def test_an_activation_keeps_its_weights() -> None:
    class Convolved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.conv.weight

    block = SCACB(12, act_layer=Convolved)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items() if "act." in name}
    assert before
    init_weights(block)
    assert all(torch.equal(block.state_dict()[name], tensor) for name, tensor in before.items())


def replaced(block: MREB) -> None:
    block.stages[1].fuse = nn.Sequential(block.stages[1].fuse)


def normalised(block: MREB) -> None:
    parametrizations.weight_norm(block.stages[1].fuse)


def pruned(block: MREB) -> None:
    prune.l1_unstructured(block.stages[1].fuse, "weight", 0.5)


@pytest.mark.parametrize("change", [replaced, normalised, pruned])
def test_a_convolution_whose_weight_is_not_its_own_is_named_and_nothing_changes(change) -> None:
    block = MREB(12)
    change(block)
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(
        ValueError, match=r"init_weights: stages\.1\.fuse must be a convolution with a weight of its own"
    ):
        init_weights(block)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_a_fresh_mren_returns_the_bicubic_image() -> None:
    net = MREN(4, channels=12, num_blocks=1, reconstruct_channels=(8, 6))
    x = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    enlarged = F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)
    assert not torch.allclose(net(x), enlarged, atol=1e-4)
    net.init_weights()
    torch.testing.assert_close(net(x), enlarged)
    assert not any(parameter.any() for name, parameter in net.body.named_parameters() if name.endswith("fuse.bias"))


@pytest.mark.parametrize(
    ("arguments", "error", "wanted"),
    [
        (("SCACB",), TypeError, "module"),
        ((SCACB(12), True), TypeError, "branch_scale"),
        ((SCACB(12), -1), ValueError, "branch_scale"),
        ((SCACB(12), math.nan), ValueError, "branch_scale"),
        ((SCACB(12), 1e39), ValueError, "branch_scale must fit torch.float32"),
        ((SCACB(12, dtype=torch.float16), 1e6), ValueError, "branch_scale must fit torch.float16"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, error: type[Exception], wanted: str) -> None:
    module, *scale = arguments
    with pytest.raises(error, match=f"init_weights: {wanted}"):
        init_weights(module, **({"branch_scale": scale[0]} if scale else {}))
