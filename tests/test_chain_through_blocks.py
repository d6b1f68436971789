"""One chain through several blocks: what `takes_map` and `returns_map` do, in MREN and outside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples.mren.model import MREN, load_mren, save_weights
from sc_blocks import MREB, DRACBChain, GatedCommunication, LearnableCommunication
from sc_blocks.communication import AdaptedCommunication
from sc_blocks.deploy import fold
from sc_blocks.introspect import capture_attention, complexity
from tests.blocks import count_parameters, perturb


def image() -> Tensor:
    return torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(3))


def small(**options) -> MREN:
    torch.manual_seed(0)
    return perturb(MREN(2, channels=12, num_blocks=3, **options)).eval()


def test_a_block_returns_the_map_of_its_last_stage() -> None:
    block, x = MREB(12, returns_map=True), torch.rand(2, 12, 5, 6)
    plain = MREB(12)
    plain.load_state_dict(block.state_dict())
    with capture_attention(block, ["refine.links.3.map"]) as captured:
        out, attention_map = block(x)
    assert torch.equal(out, plain(x))
    assert torch.equal(attention_map, captured["refine.links.3.map"])


def test_two_chains_are_one_longer_chain() -> None:
    whole = DRACBChain(12, 4, 4)
    halves = [DRACBChain(12, 4, 2, returns_map=True), DRACBChain(12, 4, 2, takes_map=True)]
    halves[0].load_state_dict({f"links.{i}.{n}": t for i in (0, 1) for n, t in whole.links[i].state_dict().items()})
    halves[1].load_state_dict({f"links.{i}.{n}": t for i in (0, 1) for n, t in whole.links[2 + i].state_dict().items()})
    features = [torch.rand(1, 12, 5, 6) for _ in range(4)]
    first, attention_map = halves[0](features[:2])
    joined = [*first, *halves[1](features[2:], attention_map)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(joined, whole(features), strict=True))


def test_the_first_link_of_a_chain_that_takes_a_map_has_a_channel_of_its_own() -> None:
    channels = [link.communication for link in DRACBChain(12, 4, 3, communication=LearnableCommunication).links]
    second = DRACBChain(12, 4, 3, communication=LearnableCommunication, takes_map=True)
    assert [type(channel).__name__ for channel in channels] == ["NoCommunication", *["LearnableCommunication"] * 2]
    assert len({id(link.communication) for link in second.links}) == 3
    assert all(isinstance(link.communication, LearnableCommunication) for link in second.links)
    # The chain before may have ended at another size.
    resampled = DRACBChain(12, 4, 2, resample="bilinear", takes_map=True)
    assert isinstance(resampled.links[0].communication, AdaptedCommunication)
    refined = resampled([torch.rand(1, 12, 6, 6), torch.rand(1, 12, 6, 6)], torch.rand(1, 4, 3, 3))
    assert refined[0].shape == (1, 4, 6, 6)


def test_the_map_that_a_chain_of_several_widths_takes_is_as_wide_as_that_of_its_first_stage() -> None:
    chain = DRACBChain(12, [4, 6], takes_map=True)
    features = [torch.rand(1, 12, 5, 6)] * 2
    assert [map_.shape[1] for map_ in chain(features, torch.rand(1, 4, 5, 6))] == [4, 6]


def test_the_chain_of_the_network_is_its_blocks_called_by_hand() -> None:
    net, x = small(chain="network"), image()
    first, second, third = net.body
    features, attention_map = first(net.head(x))
    features, attention_map = second(features, attention_map)
    assert torch.equal(net.body(net.head(x)), third(features, attention_map))
    # Chains that end with their blocks are another function of the same weights.
    apart = MREN(2, channels=12, num_blocks=3).eval()
    apart.load_state_dict(net.state_dict())
    assert not torch.allclose(net(x), apart(x), atol=1e-6)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_short_networks(num_blocks: int) -> None:
    net = MREN(2, channels=12, num_blocks=num_blocks, chain="network")
    assert net(image()).shape == (1, 3, 14, 18)


def test_without_communication_the_two_are_one() -> None:
    ends, goes_on = (small(chain=chain, communication=0) for chain in ("block", "network"))
    assert torch.equal(ends(image()), goes_on(image()))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_what_it_costs(scale: int) -> None:
    with torch.device("meta"):
        ends, goes_on = (MREN(scale, num_blocks=2, chain=chain) for chain in ("block", "network"))
        paper, network = (complexity(net, (1, 3, 24, 24)) for net in (ends, goes_on))
    assert paper.parameters == network.parameters
    assert paper.macs == network.macs
    assert list(ends.state_dict()) == list(goes_on.state_dict())


def test_channels_with_parameters_get_one_for_each_block_but_the_first() -> None:
    for communication, one in (("learnable", 1), ("gated", count_parameters(GatedCommunication(15)))):
        paper, network = (MREN(4, chain=chain, communication=communication) for chain in ("block", "network"))
        assert count_parameters(network) - count_parameters(paper) == 5 * one


def test_a_block_learns_from_what_the_next_one_makes_of_its_map() -> None:
    first, second = perturb(MREB(12, returns_map=True)), perturb(MREB(12, takes_map=True))
    _, attention_map = first(torch.rand(1, 12, 5, 6))
    second(torch.rand(1, 12, 5, 6), attention_map).sum().backward()
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
    second, chain = MREB(12, takes_map=True), DRACBChain(12, 3, 2, takes_map=True)
    for call in (lambda: second(x), lambda: chain([x, x]), lambda: chain.step(0, x)):
        with pytest.raises(ValueError, match=r"previous must be the last .* map .*, got None; .*takes_map=False"):
            call()
    with pytest.raises(ValueError, match=r"previous must be the map that step\(0, ...\) returned, got None"):
        chain.step(1, x)
    for call in (
        lambda: MREB(12)(x, attention_map),
        lambda: DRACBChain(12, 3, 2)([x, x], attention_map),
        lambda: DRACBChain(12, 3, 2).step(0, x, attention_map),
    ):
        with pytest.raises(ValueError, match=r"takes no previous attention map, got one; .*takes_map=True"):
            call()
    with pytest.raises(ValueError, match="previous must have the shape of current"):
        second(x, torch.rand(1, 4, 5, 6))
    with pytest.raises(ValueError, match="MREN: chain must be one of 'block', 'network'"):
        MREN(2, chain="all")


@pytest.mark.slow
def test_it_compiles_and_exports() -> None:
    net, x = small(chain="network"), image()
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(torch.compile(net, backend="aot_eager", fullgraph=True)(x), expected)
        torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
