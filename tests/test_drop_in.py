"""The blocks in networks that are not ours: all of it learns, at any size, and a host author's mistakes are named."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from spandrel import ModelLoader, UnsupportedModelError
from spandrel.architectures.RCAN import RCAN
from timm.layers import create_attn
from torch import Tensor, nn

from examples.drop_in.distillation import DistillationBlock, DistillationNet
from examples.drop_in.plain import ChannelAttention, ContrastAttention, Distillation, ShallowResidual, Skips
from examples.drop_in.residual import ResidualNet
from examples.drop_in.spandrel_host import load_rcan, replace_attention
from examples.drop_in.timm_hosts import convnext, resnet
from examples.drop_in.unet import ChainedSkips, UNet
from sc_blocks import MREB, SCACB, WSILB, WSILBV, DRACBChain, GatedCommunication, LearnableCommunication
from sc_blocks.communication import AdaptedCommunication
from sc_blocks.surgery import replace_modules
from tests.blocks import perturb

ROOT = Path(__file__).parents[1]


def small_rcan() -> dict[str, Tensor]:
    return RCAN(scale=2, n_resgroups=1, n_resblocks=2, n_feats=16, reduction=4, norm=False).state_dict()


def attentive_rcan() -> nn.Module:
    descriptor = load_rcan(small_rcan())
    replace_attention(descriptor)
    return descriptor.model


#: Of images: how to build the host, and by how much it enlarges.
RESTORERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "distillation": (partial(DistillationNet, scale=2, channels=12, num_blocks=2), 2),
    "distillation-gated": (
        partial(
            DistillationNet,
            scale=3,
            channels=12,
            num_blocks=1,
            distill=partial(DRACBChain, communication=GatedCommunication),
        ),
        3,
    ),
    "distillation-plain": (
        partial(
            DistillationNet,
            channels=12,
            num_blocks=1,
            block=ShallowResidual,
            distill=Distillation,
            attention=ContrastAttention,
        ),
        4,
    ),
    "residual-wsilbv": (partial(ResidualNet, scale=2, channels=12, num_blocks=2), 2),
    "residual-scacb": (partial(ResidualNet, scale=4, channels=12, num_blocks=2, block=SCACB), 4),
    "unet": (partial(UNet, channels=8, num_levels=2), 1),
    "unet-learnable": (
        partial(
            UNet,
            channels=4,
            num_levels=3,
            num_blocks=2,
            skips=partial(ChainedSkips, communication=LearnableCommunication),
        ),
        1,
    ),
    "unet-apart": (partial(UNet, channels=8, num_levels=2, skips=partial(ChainedSkips, communication=None)), 1),
    "unet-plain": (partial(UNet, channels=8, num_levels=2, attention=ChannelAttention, skips=Skips), 1),
    "spandrel": (attentive_rcan, 2),
}
CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet,
    "convnext_atto": convnext,
}
HOSTS: dict[str, Callable[[], nn.Module]] = {name: build for name, (build, _) in RESTORERS.items()} | CLASSIFIERS

each_host = pytest.mark.parametrize("build", HOSTS.values(), ids=HOSTS)
each_restorer = pytest.mark.parametrize(("build", "scale"), RESTORERS.values(), ids=RESTORERS)


def image(batch: int = 1, height: int = 9, width: int = 14) -> Tensor:
    return torch.rand(batch, 3, height, width)


@each_restorer
@pytest.mark.parametrize("size", [(1, 1), (5, 1), (9, 14), (16, 8), (17, 23)], ids=str)
def test_any_size(build, scale: int, size: tuple[int, int]) -> None:
    out = build()(image(2, *size))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])
    assert out.isfinite().all()


@pytest.mark.parametrize("build", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_classifiers_take_odd_sizes(build) -> None:
    assert build().eval()(image(1, 33, 47)).shape == (1, 1000)


@each_host
def test_every_parameter_learns(build) -> None:
    # Perturbed, because timm starts the last norm of a branch at zero. Two images, for batch norm.
    net = perturb(build())
    x = image(2, 32, 32).requires_grad_() if build in CLASSIFIERS.values() else image(2)
    before = copy.deepcopy(net.state_dict())
    out = net(x.clone())
    (out * torch.randn(out.shape)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, f"{name} took no part"
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, f"{name} has no influence"
    torch.optim.Adam(net.parameters(), lr=1e-3).step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


@each_restorer
def test_it_fits_an_image(build, scale: int) -> None:
    net, x = build(), image()
    target = F.interpolate(x, scale_factor=scale, mode="nearest").flip(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        loss = F.l1_loss(net(x.clone()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses


@each_host
def test_weights_come_back(build) -> None:
    torch.manual_seed(1)
    net = build().eval()
    torch.manual_seed(2)
    again = build().eval()
    x = image(1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(again(x.clone()), net(x.clone()))
        again.load_state_dict(net.state_dict())
        assert torch.equal(again(x.clone()), net(x.clone()))


@pytest.mark.slow
@each_restorer
def test_hosts_compile_and_export(build, scale: int) -> None:
    net, x = build().eval(), image(1, 16, 24)
    with torch.no_grad():
        expected = net(x.clone())
        torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x.clone()), expected)
        torch.testing.assert_close(torch.export.export(net, (x.clone(),)).module()(x.clone()), expected)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("distillation", ["DistillationNet: ", "parameters, (1, 3, 33, 47) -> (1, 3, 132, 188)"]),
        ("residual", ["with WSILBV: ", "with SCACB: ", "(1, 3, 132, 188)"]),
        ("unet", ["UNet: ", "(1, 3, 33, 47) -> (1, 3, 33, 47)"]),
        ("timm_hosts", ["resnet18: 11,689,512 parameters", "resnet18 with WSILBV: 12,040,072", "-> (1, 1000)"]),
        ("spandrel_host", ["RCAN: 6 modules replaced", "CALayer (339) -> WSILBV (339)", "-> (1, 3, 66, 94)"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # because the tests above import it
def test_command(host: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module(f"examples.drop_in.{host}", run_name="__main__")
    shown = capsys.readouterr().out
    assert all(word in shown for word in words), shown


# What each host is


def test_the_blocks_of_the_distillation_network_are_mrebs() -> None:
    host, mreb = DistillationBlock(12), MREB(12, distilled_channels=6)
    renamed = {"blocks": "stages", "distill": "refine"}
    state = {
        ".".join([renamed.get(name.split(".")[0], name.split(".")[0]), *name.split(".")[1:]]): tensor
        for name, tensor in host.state_dict().items()
    }
    mreb.load_state_dict(state)
    x = torch.rand(1, 12, 6, 7)
    torch.testing.assert_close(x + host(x), mreb(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda weight: DistillationNet(channels=12, distill=partial(DRACBChain, communication=weight)),
        lambda weight: UNet(channels=12, skips=partial(ChainedSkips, communication=weight)),
    ],
    ids=["distillation", "unet"],
)
def test_maps_are_handed_on(build) -> None:
    # The same weights, more or less of the previous map: another result.
    nets = [build(weight).eval() for weight in (0.0, 0.2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = image()
    assert not torch.equal(nets[0](x), nets[1](x))


def test_the_chain_spans_the_levels_of_the_unet() -> None:
    net = UNet(channels=8, num_levels=3)
    assert (net.skips.in_channels, net.skips.out_channels) == ((8, 16, 32), (4, 8, 16))
    assert all(isinstance(link.communication, AdaptedCommunication) for link in list(net.skips.links)[1:])
    sizes: list[tuple[int, ...]] = []
    for link in net.skips.links:
        link.register_forward_hook(lambda module, args, output: sizes.append(tuple(output[1].shape)))
    net(image(1, 9, 14))
    assert sizes == [(1, 4, 16, 16), (1, 8, 8, 8), (1, 16, 4, 4)]


def test_the_unet_pads_only_what_it_must_and_does_not_show_it() -> None:
    net = UNet(channels=8, num_levels=2).eval()
    seen: list[tuple[int, ...]] = []
    net.head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[2:])))
    x = image(1, 9, 14)
    by_hand = F.pad(x, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(net(x), net(by_hand)[:, :, :9, :14])
    assert seen == [(12, 16), (12, 16)]


def test_timm_builds_the_blocks_as_attention() -> None:
    net = resnet()
    assert sum(isinstance(module, WSILBV) for module in net.modules()) == 8
    assert [net.layer1[0].se.channels, net.layer4[1].se.channels] == [64, 512]
    for block in (WSILBV, WSILB, SCACB, partial(WSILBV, reduction=8)):
        assert create_attn(block, 16)(torch.rand(1, 16, 5, 6)).shape == (1, 16, 5, 6)
    assert create_attn(WSILBV, 16, reduction=8).reduction == 8


def test_a_fresh_resnet_trains() -> None:
    # timm starts the last norm of each branch at zero, so that all that the attention sees at first is flat.
    net = resnet()
    net(image(2, 32, 32)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_timm_places_the_blocks() -> None:
    net = timm.create_model("resnet18", block_args={"attn_layer": WSILBV}, device="meta", dtype=torch.bfloat16)
    assert {(parameter.device.type, parameter.dtype) for parameter in net.parameters()} == {("meta", torch.bfloat16)}


def test_convnext_keeps_its_own_weights() -> None:
    plain = timm.create_model("convnext_atto", conv_mlp=True)
    missing, unexpected = convnext().load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert missing
    assert all(".mlp.norm." in name for name in missing)
    assert sum(isinstance(module, WSILBV) for module in convnext().modules()) == 12


def test_spandrel_goes_on_working() -> None:
    weights = small_rcan()
    descriptor = ModelLoader().load_from_state_dict(weights).eval()  # finds out by itself that it is RCAN
    x = image()
    before = descriptor(x)
    report = replace_attention(descriptor)
    after = descriptor(x)
    assert after.shape == before.shape == (1, 3, 18, 28)
    assert not torch.equal(after, before)
    assert 0 <= after.min() <= after.max() <= 1
    kept = descriptor.model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items() if "conv_du" not in name)

    again = load_rcan(weights)
    replace_attention(again)
    again.model.load_state_dict(descriptor.model.state_dict())
    assert torch.equal(again(x), after)
    with pytest.raises(UnsupportedModelError):  # as the docstring says
        ModelLoader().load_from_state_dict(descriptor.model.state_dict())

    report.undo()
    assert torch.equal(descriptor(x), before)
    assert list(descriptor.model.state_dict()) == list(weights)


def test_spandrel_moves_what_was_put_in() -> None:
    descriptor = load_rcan(small_rcan())
    replace_attention(descriptor)
    descriptor.to(dtype=torch.bfloat16)
    assert descriptor(image().bfloat16()).dtype == torch.bfloat16


# A host author's mistakes


def test_words_about_a_replacement_of_another_width() -> None:
    net = ResidualNet(channels=12, num_blocks=2)
    replace_modules(net, WSILBV, lambda old, name: SCACB(24))
    with pytest.raises(ValueError, match=r"SCACB: x must have 24 channels .*, got 12 .* or build SCACB for 12"):
        net(image())


def test_words_about_channels_last_in_place_of_first() -> None:
    # ConvNeXt with a perceptron of linear layers: there the channels come last.
    net = timm.create_model("convnext_atto", conv_mlp=False)
    replace_modules(net, "stages.0.*.mlp.norm", lambda old, name: WSILBV(160))
    with pytest.raises(ValueError, match=r"WSILBV: x must have 160 channels .*; for NHWC pass x.permute"):
        net(image(1, 32, 32))


def features() -> Tensor:
    return torch.rand(1, 12, 5, 6)


@pytest.mark.parametrize("stage", [-1, 2, 3])
def test_a_stage_is_checked_in_the_call_of_the_chain_too(stage: int) -> None:
    # Wrappers such as DDP have no step, only the call.
    with pytest.raises(ValueError, match=r"DRACBChain: (stage|previous) must be"):
        DRACBChain(12, 4, 3)(features(), None, stage=stage)
    with pytest.raises(ValueError, match=r"stage must be at least 0, got -1"):
        DRACBChain(12, 4, 3)(features(), torch.rand(1, 4, 5, 6), stage=-1)


@pytest.mark.parametrize("number", [np.int64, np.uint8])
def test_a_stage_may_be_a_number_of_numpy(number: type[np.integer[Any]]) -> None:
    chain, x = DRACBChain(12, 4, 3), features()
    _, attention_map = chain.step(0, x)
    expected = chain.step(1, x, attention_map)
    for result in (chain.step(number(1), x, attention_map), chain(x, attention_map, stage=number(1))):  # type: ignore[arg-type]
        torch.testing.assert_close(result, expected)


def test_words_about_a_level_of_the_wrong_width() -> None:
    # Handed up instead of down.
    chain = DRACBChain([12, 24], [4, 8], resample="bilinear")
    with pytest.raises(ValueError, match=r"DRACBChain: features\[0\] must have 12 channels .*, got 24"):
        chain([torch.rand(1, 24, 4, 4), torch.rand(1, 12, 8, 8)])
