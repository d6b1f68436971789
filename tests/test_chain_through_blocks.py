"""A chain that goes on from another: through the MREBs of MREN, by `carry`, and what that leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from examples.mren.model import MREN, load_mren, save_weights
from sc_blocks import MREB, DRACBChain, GatedCommunication, LearnableCommunication
from sc_blocks.communication import AdaptedCommunication
from sc_blocks.deploy import fold
from sc_blocks.introspect import capture_attention, complexity
from tests.blocks import perturb


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def image() -> Tensor:
    return torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(3))


def small(**options) -> MREN:
    torch.manual_seed(0)
    return perturb(MREN(2, channels=12, num_blocks=3, **options)).eval()


def test_a_block_carries_what_it_returns() -> None:
    block, x = MREB(12), torch.rand(2, 12, 5, 6)
    out, attention_map = block.carry(x)
    assert torch.equal(out, block(x))
    with capture_attention(block, ["refine.links.3.map"]) as captured:
        block(x)
    assert torch.equal(attention_map, captured["refine.links.3.map"])


def test_a_continued_chain_is_the_rest_of_a_longer_one() -> None:
    whole = DRACBChain(12, 4, 4)
    halves = [DRACBChain(12, 4, 2), DRACBChain(12, 4, 2, continued=True)]
    halves[0].load_state_dict({f"links.{i}.{n}": t for i in (0, 1) for n, t in whole.links[i].state_dict().items()})
    halves[1].load_state_dict({f"links.{i}.{n}": t for i in (0, 1) for n, t in whole.links[2 + i].state_dict().items()})
    features = [torch.rand(1, 12, 5, 6) for _ in range(4)]
    first = halves[0](features[:2])
    _, attention_map = halves[0].step(1, features[1], halves[0].step(0, features[0])[1])
    joined = [*first, *halves[1](features[2:], attention_map)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(joined, whole(features), strict=True))


def test_the_first_link_of_a_continued_chain_has_a_channel_of_its_own() -> None:
    channels = [link.communication for link in DRACBChain(12, 4, 3, communication=LearnableCommunication).links]
    continued = DRACBChain(12, 4, 3, communication=LearnableCommunication, continued=True)
    assert [type(channel).__name__ for channel in channels] == ["NoCommunication", *["LearnableCommunication"] * 2]
    assert len({id(link.communication) for link in continued.links}) == 3
    assert all(isinstance(link.communication, LearnableCommunication) for link in continued.links)
    # The chain before may have ended at another size.
    resampled = DRACBChain(12, 4, 2, resample="bilinear", continued=True)
    assert isinstance(resampled.links[0].communication, AdaptedCommunication)
    refined = resampled([torch.rand(1, 12, 6, 6), torch.rand(1, 12, 6, 6)], torch.rand(1, 4, 3, 3))
    assert refined[0].shape == (1, 4, 6, 6)


def test_the_chain_of_the_network_is_the_blocks_stepped_by_hand() -> None:
    net, x = small(chain="network"), image()
    features, attention_map = net.head(x), None
    for block in net.body:
        features, attention_map = block.carry(features, attention_map)
    assert torch.equal(net.body(net.head(x)), features)
    # And it is another function than that of chains which end with their blocks, with the same weights.
    apart = MREN(2, channels=12, num_blocks=3).eval()
    apart.load_state_dict(net.state_dict())
    assert not torch.allclose(net(x), apart(x), atol=1e-6)


def test_without_communication_the_two_are_one() -> None:
    ends, goes_on = (small(chain=chain, communication=0) for chain in ("block", "network"))
    assert torch.equal(ends(image()), goes_on(image()))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_what_it_costs(scale: int) -> None:
    with torch.device("meta"):
        paper, network = (complexity(MREN(scale, chain=chain), (1, 3, 24, 24)) for chain in ("block", "network"))
    assert paper.parameters == network.parameters
    assert paper.macs == network.macs
    assert list(MREN(scale).state_dict()) == list(MREN(scale, chain="network").state_dict())


def test_channels_with_parameters_get_one_for_each_block_but_the_first() -> None:
    for communication, one in (("learnable", 1), ("gated", parameters(GatedCommunication(15)))):
        paper, network = (MREN(4, chain=chain, communication=communication) for chain in ("block", "network"))
        assert parameters(network) - parameters(paper) == 5 * one


def test_a_block_learns_from_what_the_next_one_makes_of_its_map() -> None:
    first, second = perturb(MREB(12, communication=0.2)), perturb(MREB(12, continued=True, communication=0.2))
    _, attention_map = first.carry(torch.rand(1, 12, 5, 6))
    out, _ = second.carry(torch.rand(1, 12, 5, 6), attention_map)
    out.sum().backward()
    gradient = first.refine.links[3].distill.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_weights_come_back_with_their_chain(tmp_path: Path) -> None:
    config = {"scale": 2, "channels": 12, "num_blocks": 3, "chain": "network"}
    net = small(chain="network")
    save_weights(net, tmp_path / "net.safetensors", config)
    again = load_mren(2, path=tmp_path / "net.safetensors")
    assert torch.equal(again(image()), net(image()))


def test_attention_is_captured_throughout() -> None:
    net = small(chain="network")
    with capture_attention(net, ["body.*.refine.links.0.*"]) as captured:
        net(image())
    # At the head of the chain a fused map is the map; further on it holds the one before.
    assert torch.equal(captured["body.0.refine.links.0.fused"], captured["body.0.refine.links.0.map"])
    assert not torch.equal(captured["body.1.refine.links.0.fused"], captured["body.1.refine.links.0.map"])


def test_folding_keeps_the_chain() -> None:
    net = small(chain="network")
    folded = fold(net)
    torch.testing.assert_close(folded(image()), net(image()), atol=1e-5, rtol=1e-5)
    assert type(folded.body[1].stages[0]) is not type(net.body[1].stages[0])


def test_words_about_maps_that_are_missing_or_too_many() -> None:
    x, attention_map = torch.rand(1, 12, 5, 6), torch.rand(1, 3, 5, 6)
    continued = MREB(12, continued=True)
    for call in (lambda: continued(x), lambda: continued.carry(x)):
        with pytest.raises(ValueError, match=r"MREB: .*continued=True needs the attention map .*carry\(x, previous\)"):
            call()
    with pytest.raises(ValueError, match=r"MREB: takes no previous attention map, got one; .*continued=True"):
        MREB(12).carry(x, attention_map)
    chain = DRACBChain(12, 3, 2, continued=True)
    with pytest.raises(ValueError, match=r"DRACBChain: stage 0 of a continued chain needs the last attention map"):
        chain([x, x])
    with pytest.raises(ValueError, match=r"stage 0 takes no previous map, got one; .*continued=True"):
        DRACBChain(12, 3, 2)([x, x], attention_map)
    with pytest.raises(ValueError, match="previous must have the shape of current"):
        continued.carry(x, torch.rand(1, 4, 5, 6))
    with pytest.raises(ValueError, match="MREN: chain must be one of 'block', 'network'"):
        MREN(2, chain="all")


@pytest.mark.slow
def test_it_compiles_and_exports() -> None:
    net, x = small(chain="network"), image()
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x), expected)
        torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
