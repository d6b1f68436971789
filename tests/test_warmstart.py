"""Trainings that begin from the weights of a narrower network."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.mren.model import MREN, save_weights
from examples.mren.training.warmstart import warm_start

OPTIONS: list[dict[str, Any]] = [
    {},
    {"parts": "spatial"},
    {"parts": "channel"},
    {"exchange": "inputs", "chain": "network"},
    {"exchange": None, "residual": False},
    {"communication": "learnable"},
    {"communication": "gated", "relay": "fused"},
    {"reconstruct_channels": [8, 4]},
]


def begun(narrow: dict[str, Any], wide: dict[str, Any], folder: Path) -> tuple[MREN, MREN, list[str]]:
    """A network, one that begins from its weights, and what these do not have for it."""
    given, net = MREN(**narrow), MREN(**wide)
    net.init_weights()
    save_weights(given, folder / "narrow.safetensors", narrow)
    return given, net, warm_start(net, folder / "narrow.safetensors")


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([2, 3, 4]), st.integers(12, 26), st.integers(0, 14), st.integers(1, 2), st.sampled_from(OPTIONS))
def test_a_wider_network_computes_what_the_narrower_does(
    scale: int, width: int, more: int, depth: int, options: dict[str, Any]
) -> None:
    config = {"scale": scale, "num_blocks": depth, **options}
    with TemporaryDirectory() as folder:
        narrow, wide, missing = begun(config | {"channels": width}, config | {"channels": width + more}, Path(folder))
    assert missing == []
    x = torch.rand(2, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(wide.double()(x), narrow.double()(x), rtol=0, atol=1e-9)


def test_channels_that_are_new_learn(tmp_path: Path) -> None:
    config = {"scale": 2, "num_blocks": 2}
    _, net, _ = begun(config | {"channels": 12}, config | {"channels": 24}, tmp_path)
    x, wanted = torch.rand(2, 3, 9, 7), torch.rand(2, 3, 18, 14)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(2):  # at the first step nothing reads them yet, and it learns to
        optimizer.zero_grad()
        torch.nn.functional.l1_loss(net(x), wanted).backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        if len(parameter) > 3:  # the last quarter of the rows: of new channels in every map
            new = parameter.grad.unflatten(0, (3, -1))[:, -1] if ".weighing." in name else parameter.grad[-1]
            assert new.abs().max() > 0, name


def test_a_reconstruction_of_another_kind_is_new(tmp_path: Path) -> None:
    config = {"scale": 4, "num_blocks": 1}
    _, net, missing = begun(
        config | {"channels": 12, "reconstruct_channels": [8, 4]}, config | {"channels": 24}, tmp_path
    )
    names = {name for name in net.state_dict() if name.startswith(("reconstruct.", "tail."))}
    assert set(missing) == names - {"tail.bias"}


def test_weights_of_other_blocks_are_refused_unless_they_are_as_wide(tmp_path: Path) -> None:
    config = {"scale": 4, "num_blocks": 1}
    with pytest.raises(ValueError, match=r"has 12 channels and other blocks, the network 30 channels; start from one"):
        begun(config | {"channels": 12, "parts": "channel"}, config | {"channels": 30}, tmp_path)
    given, net, missing = begun(config | {"channels": 12, "parts": "channel"}, config | {"channels": 12}, tmp_path)
    assert all(".stages." in name for name in missing)
    assert torch.equal(net.head.weight, given.head.weight)


def test_weights_of_a_wider_network_are_refused(tmp_path: Path) -> None:
    config = {"scale": 4, "num_blocks": 1}
    with pytest.raises(ValueError, match=r"has 24 channels, the network 12; start from one that is not wider"):
        begun(config | {"channels": 24}, config | {"channels": 12}, tmp_path)
