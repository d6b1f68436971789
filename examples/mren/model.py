"""MREN, assembled from the blocks, and its weight files.

A weight file is a ``.safetensors`` file whose metadata holds the constructor's arguments, so that loading it needs no
second source and runs no code of the file's.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.mren.files import whole_file
from sc_blocks import MREB, RBWA, GatedCommunication, LearnableCommunication, _checks
from sc_blocks.communication import CommunicationLike
from sc_blocks.dracb import Relay
from sc_blocks.scacb import Exchange, Parts

Scale = Literal[2, 3, 4]
Variant = Literal["mren", "mren_l"]
Chain = Literal["block", "network"]

WEIGHTS = Path(__file__).parent / "weights"

# Each scale as the factors of its reconstruction stages; a second stage halves the width.
STAGES: dict[int, tuple[float, ...]] = {2: (2,), 3: (2, 1.5), 4: (2, 2)}
DEVICES = ("auto", "cuda", "mps", "cpu")
CHANNELS: dict[str, int] = {"mren": 60, "mren_l": 84}
# Channels that a weight file can name.
COMMUNICATIONS = {"learnable": LearnableCommunication, "gated": GatedCommunication}


class ChainedMREBs(nn.Sequential):
    """MREBs with one chain of DRACBs through all of them: each block takes the last map of the one before."""

    def forward(self, x: Tensor) -> Tensor:
        first, *middle, last = self
        x, attention_map = first(x)
        for block in middle:
            x, attention_map = block(x, attention_map)
        return last(x, attention_map)


class MREN(nn.Module):
    r"""Multilevel refinement enhancement network: equations 1 to 4 of the paper.

    .. math::
        F_0 &= \mathrm{conv}_{3 \times 3}(I_{LR}), \qquad F_l = \mathrm{MREB}_l(F_{l-1}) \\
        I_{SR} &= \mathrm{conv}_{3 \times 3}(\mathrm{RBWA}(F_n + F_0)) + \mathrm{bicubic}(I_{LR})

    Args:
        scale: 2, 3 or 4; the stages enlarge by 2, by 2 and 1.5, or by 2 and 2.
        channels: Width of the features; 60 is MREN, 84 MREN-L.
        num_blocks: Number of MREBs; the paper tries 3 to 8 and settles on 6.
        parts: Of the SCACBs, see :class:`sc_blocks.SCACB`.
        exchange: Of the SCACBs, see there.
        residual: Of the SCACBs, see there.
        communication: Of the DRACBs, see :class:`sc_blocks.DRACB`; also ``"learnable"`` and ``"gated"``, names of the
            channels that a weight file can hold.
        chain: How far attention maps are handed on: from one end of an MREB to the other (``"block"``, the paper's), or
            through all MREBs (``"network"``).
        gate: Of the DRACBs, see there.
        relay: Of the DRACBs, see there.
        device: Where the parameters are created.
        dtype: Type of the parameters.

    Shape:
        - input: :math:`(N, 3, H, W)`, RGB between 0 and 1, any :math:`H, W \ge 1`;
        - output: :math:`(N, 3, sH, sW)`, RGB, not clamped: training wants the gradient outside the range too.

    Raises:
        ValueError: If an argument is out of range or an input has the wrong shape.

    Example:
        >>> net = MREN(4)
        >>> net(torch.rand(1, 3, 12, 17)).shape
        torch.Size([1, 3, 48, 68])
        >>> sum(p.numel() for p in net.parameters())
        298315
    """

    def __init__(
        self,
        scale: Scale,
        *,
        channels: int = 60,
        num_blocks: int = 6,
        parts: Parts = "both",
        exchange: Exchange | None = "outputs",
        residual: bool = True,
        communication: CommunicationLike | Literal["learnable", "gated"] = 0.2,
        chain: Chain = "block",
        gate: bool = True,
        relay: Relay = "raw",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if scale not in STAGES:
            raise ValueError(f"MREN: scale must be one of {', '.join(map(str, STAGES))}; got {scale!r}.")
        _checks.check_positive_int("MREN", "num_blocks", num_blocks)
        if isinstance(communication, str):
            _checks.check_choice("MREN", "communication", communication, tuple(COMMUNICATIONS))
            communication = COMMUNICATIONS[communication]
        _checks.check_choice("MREN", "chain", chain, get_args(Chain))
        self.scale = scale
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, device=device, dtype=dtype)
        block = partial(
            MREB,
            channels,
            parts=parts,
            exchange=exchange,
            residual=residual,
            communication=communication,
            gate=gate,
            relay=relay,
            device=device,
            dtype=dtype,
        )

        widths = [channels, channels, channels // 2][: len(STAGES[scale]) + 1]
        self.head = conv(3, channels)
        if chain == "network" and num_blocks > 1:
            self.body = ChainedMREBs(
                *(block(takes_map=n > 0, returns_map=n < num_blocks - 1) for n in range(num_blocks))
            )
        else:
            self.body = nn.Sequential(*(block() for _ in range(num_blocks)))
        self.reconstruct = nn.Sequential(
            *(
                RBWA(width_in, width_out, scale_factor=factor, device=device, dtype=dtype)
                for width_in, width_out, factor in zip(widths, widths[1:], STAGES[scale], strict=False)
            )
        )
        self.tail = conv(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        _checks.check_feature_map("MREN", x, 3)
        shallow = self.head(x)
        deep = self.body(shallow) + shallow
        residual = self.tail(self.reconstruct(deep))
        enlarged = F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)
        return residual + enlarged

    def extra_repr(self) -> str:
        return f"{self.scale}"


def mren(scale: Scale = 4) -> MREN:
    """The paper's MREN, 60 channels wide, with fresh weights."""
    return MREN(scale)


def mren_l(scale: Scale = 4) -> MREN:
    """The paper's MREN-L, 84 channels wide, with fresh weights."""
    return MREN(scale, channels=CHANNELS["mren_l"])


def weights_path(scale: Scale, variant: Variant = "mren") -> Path:
    """Where the shipped weights of a network are, or would be."""
    return WEIGHTS / f"{variant}_x{scale}.safetensors"


def load_mren(
    scale: Scale = 4,
    variant: Variant = "mren",
    *,
    device: torch.device | str = "cpu",
    path: str | Path | None = None,
) -> MREN:
    """Load a trained network, ready to upscale.

    Args:
        scale: 2, 3 or 4.
        variant: ``"mren"`` or ``"mren_l"``.
        device: Where the network goes.
        path: A weight file of your own, such as :mod:`examples.mren.train` writes, of any width; ``None`` for the
            shipped one.

    Returns:
        The network in eval mode.

    Raises:
        FileNotFoundError: If there are no such weights; the message lists those that are there.
        ValueError: If the file holds another scale, or is not one of ours.
    """
    if scale not in STAGES:
        raise ValueError(f"load_mren: scale must be one of {', '.join(map(str, STAGES))}; got {scale!r}.")
    if variant not in CHANNELS:
        raise ValueError(f"load_mren: variant must be one of {', '.join(CHANNELS)}; got {variant!r}.")
    file = weights_path(scale, variant) if path is None else Path(path)
    if not file.is_file():
        shipped = ", ".join(sorted(found.stem for found in WEIGHTS.glob("*.safetensors"))) or "none"
        raise FileNotFoundError(
            f"no weights at {file}. Shipped: {shipped}. Train your own with "
            f"python -m examples.mren.train --data FOLDER --scale {scale}, then pass path= (or --weights)."
        )
    config, state = read_weights(file)
    expected = {"scale": scale} | ({"channels": CHANNELS[variant]} if path is None else {})
    for name, wanted in expected.items():
        if config.get(name) != wanted:
            raise ValueError(f"{file}: was saved with {name}={config.get(name)!r}, asked for {name}={wanted!r}.")
    try:
        net = MREN(**config)
        net.load_state_dict(state)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{file}: its weights do not fit its constructor arguments, {config}: {error}") from error
    return net.to(device).eval()


def pick_device(name: str) -> torch.device:
    """The device of that name; for ``"auto"`` CUDA, then MPS, then the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[name]:
        there = ", ".join(device for device, is_there in present.items() if is_there)
        raise ValueError(f"--device {name}: this machine or this build of torch has none; there is {there}.")
    return torch.device(name)


def save_weights(net: nn.Module, file: Path, config: dict[str, Any]) -> None:
    """Write weights and constructor arguments to a ``.safetensors`` file, whole or not at all.

    The network may be compiled or wrapped for several processes; its file is the same.
    """
    state = {_own_name(name): tensor.detach().cpu().float().contiguous() for name, tensor in net.state_dict().items()}
    with whole_file(file) as scratch:
        save_file(state, scratch, metadata={"format": "pt", "mren": json.dumps(config)})


def warm_start(net: MREN, file: str | Path) -> list[str]:
    """Begin from the weights of a network of another scale or depth: copy every tensor that fits by name and shape.

    Args:
        net: The network, changed in place.
        file: A weight file.

    Returns:
        The names of the parameters for which the file has nothing that fits: those stay as they were.

    Raises:
        ValueError: If nothing fits, the network of the file has another width, or the file is not one of ours.
    """
    _, given = read_weights(Path(file))
    own = net.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise ValueError(f"{file}: none of its {len(given)} tensors fits a network of {len(own)}; is it as wide?")
    if "head.weight" not in fitting:  # of another width next to nothing fits
        wanted = own["head.weight"].shape[0]
        width = given["head.weight"].shape[0] if "head.weight" in given else "no"
        raise ValueError(f"{file}: has {width} channels, the network {wanted}; begin from one that is as wide.")
    net.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def read_weights(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The constructor's arguments and the tensors that a weight file holds.

    Raises:
        ValueError: If the file is unreadable, or not one of ours.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {_own_name(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
    except Exception as error:
        raise ValueError(f"{file}: not a readable .safetensors file ({error}).") from error
    if "mren" not in metadata:
        raise ValueError(f"{file}: holds no constructor arguments of MREN; was it written by examples.mren.train?")
    return json.loads(metadata["mren"]), state


def _own_name(name: str) -> str:
    """The name of a parameter without what ``torch.compile`` and ``DistributedDataParallel`` put into it."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
