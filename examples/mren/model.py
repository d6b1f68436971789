"""MREN, built from the blocks and loaded from its weight files (:mod:`examples.mren.weightfile`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.mren.files import missing_path_hint
from examples.mren.weightfile import read_network, unwrapped_name, write_network
from sc_blocks import MREB, RBWA, GatedCommunication, LearnableCommunication, _checks
from sc_blocks.communication import CommunicationLike
from sc_blocks.dracb import Relay
from sc_blocks.init import init_weights
from sc_blocks.scacb import Exchange, Parts

Scale = Literal[2, 3, 4]
Variant = Literal["mren", "mren_s", "mren_l"]
Chain = Literal["block", "network"]

WEIGHTS = Path(__file__).parent / "weights"
# Names of the shipped weights that were trained differently.
PHOTO = "photo"  # with `--degrade photo`
FREE = "free"  # only on images whose terms allow commercial use
KINDS = {PHOTO: "for photographs", FREE: "from freely licensed images"}

# The factors of the reconstruction stages at each scale; the second stage halves the width.
STAGES: dict[int, tuple[float, ...]] = {2: (2,), 3: (2, 1.5), 4: (2, 2)}
# Arguments of each variant. MREN-S is ours: the trunk of MREN with a narrow reconstruction.
VARIANTS: dict[Variant, dict[str, Any]] = {
    "mren": {"channels": 60},
    "mren_s": {"channels": 60, "reconstruct_channels": [24, 16]},
    "mren_l": {"channels": 84},
}
NETWORKS: dict[Variant, str] = {"mren": "MREN", "mren_s": "MREN-S", "mren_l": "MREN-L"}  # display names
# Communication channels that a weight file can name.
COMMUNICATIONS = {"learnable": LearnableCommunication, "gated": GatedCommunication}


class Bicubic(nn.Module):
    """Bicubic upsampling by a whole factor."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor  # nn.Upsample would turn it into a float

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.factor, mode="bicubic", align_corners=False)


class ChainedMREBs(nn.Sequential):
    """MREBs with one chain of DRACBs through all of them: each block receives the last map of the previous one."""

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
        scale: 2, 3 or 4; the stages upscale by 2, by 2 and 1.5, or by 2 and 2.
        channels: Width of the features, at least 8, or 6 for ×2 or with ``reconstruct_channels``; 60 is MREN, 84
            MREN-L.
        num_blocks: Number of MREBs; the paper tries 3 to 8 and settles on 6.
        reconstruct_channels: Widths of the reconstruction: that of an additional 1x1 convolution before it, and that of
            its second stage, which only ×3 and ×4 have; each at least 4. ``None`` for the paper's ``channels`` and
            ``channels // 2``, without the convolution. ``(24, 16)`` is our MREN-S: most of MREN's cost lies in its
            reconstruction.
        parts: See :class:`sc_blocks.SCACB`.
        exchange: See :class:`sc_blocks.SCACB`.
        residual: See :class:`sc_blocks.SCACB`.
        communication: See :class:`sc_blocks.DRACB`; also ``"learnable"`` and ``"gated"``, the names of the channels
            that a weight file can hold.
        chain: How far attention maps are passed on: within each MREB (``"block"``, the paper's), or through all MREBs
            (``"network"``).
        gate: See :class:`sc_blocks.DRACB`.
        relay: See :class:`sc_blocks.DRACB`.
        device: Where the parameters are created.
        dtype: Type of the parameters.

    Shape:
        - input: :math:`(N, 3, H, W)`, RGB between 0 and 1, any :math:`H, W \ge 1`;
        - output: :math:`(N, 3, sH, sW)`, RGB, not clamped: training needs gradients outside the range too.

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
        reconstruct_channels: tuple[int, int] | None = None,
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
        _checks.check_choice("MREN", "scale", scale, tuple(STAGES))
        scale = _checks.check_int("MREN", "scale", scale)  # 2.0 equals 2, but is not an index
        halved = reconstruct_channels is None and len(STAGES[scale]) > 1  # an RBWA needs 4 channels, an MREB 6 or 4
        _checks.check_int("MREN", "channels", channels, least=8 if halved else 6 if parts == "both" else 4)
        _checks.check_int("MREN", "num_blocks", num_blocks)
        if isinstance(communication, str):
            _checks.check_choice("MREN", "communication", communication, tuple(COMMUNICATIONS))
            communication = COMMUNICATIONS[communication]
        _checks.check_choice("MREN", "chain", chain, get_args(Chain))
        if reconstruct_channels is not None:
            if not isinstance(reconstruct_channels, (tuple, list)) or len(reconstruct_channels) != 2:
                raise ValueError(
                    "MREN: reconstruct_channels must be two widths, or None for the paper's; got "
                    f"{reconstruct_channels!r}; MREN-S has (24, 16)."
                )
            for width in reconstruct_channels[: len(STAGES[scale])]:  # ×2 has no second stage
                _checks.check_int("MREN", "reconstruct_channels", width, least=4)
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

        first, last = (channels, channels // 2) if reconstruct_channels is None else reconstruct_channels
        widths = [first, first, last][: len(STAGES[scale]) + 1]
        self.head = conv(3, channels)
        if chain == "network" and num_blocks > 1:
            self.body = ChainedMREBs(
                *(block(takes_map=n > 0, returns_map=n < num_blocks - 1) for n in range(num_blocks))
            )
        else:
            self.body = nn.Sequential(*(block() for _ in range(num_blocks)))
        if reconstruct_channels is None:
            self.reduce = nn.Identity()
        else:
            self.reduce = nn.Conv2d(channels, first, 1, device=device, dtype=dtype)
        self.reconstruct = nn.Sequential(
            *(
                RBWA(width_in, width_out, scale_factor=factor, device=device, dtype=dtype)
                for width_in, width_out, factor in zip(widths, widths[1:], STAGES[scale], strict=False)
            )
        )
        self.tail = conv(widths[-1], 3)
        self.enlarge = Bicubic(scale)

    def forward(self, x: Tensor) -> Tensor:
        _checks.check_feature_map("MREN", x, 3)
        shallow = self.head(x)
        deep = self.body(shallow) + shallow
        return self.tail(self.reconstruct(self.reduce(deep))) + self.enlarge(x)

    def init_weights(self) -> None:
        """Initialise the weights for training: the MREBs by :func:`sc_blocks.init.init_weights`.

        The last convolution is set to zero, so that the network initially returns the bicubic image.

        Example:
            >>> net = MREN(4)
            >>> net.init_weights()
            >>> net.tail.weight.abs().max().item()
            0.0
        """
        init_weights(self.body)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def extra_repr(self) -> str:
        return f"{self.scale}"


def mren(scale: Scale = 4) -> MREN:
    """The paper's MREN, 60 channels wide, with new weights."""
    return MREN(scale)


def mren_s(scale: Scale = 4) -> MREN:
    """Our MREN-S, MREN's trunk with a narrow reconstruction, with new weights."""
    return MREN(scale, **VARIANTS["mren_s"])


def mren_l(scale: Scale = 4) -> MREN:
    """The paper's MREN-L, 84 channels wide, with new weights."""
    return MREN(scale, **VARIANTS["mren_l"])


def weights_path(scale: Scale, variant: Variant = "mren", *, kind: str | None = None) -> Path:
    """The path of the shipped weights of a network, existing or not; ``kind`` is ``"photo"`` or ``"free"``."""
    return WEIGHTS / f"{variant}_x{scale}{f'_{kind}' if kind else ''}.safetensors"


def parse_weights_name(file: Path) -> tuple[str, str, str]:
    """Variant, scale and kind (or ``""``) of shipped weights, from the name of their file or of a file beside it.

    Example:
        >>> parse_weights_name(Path("mren_s_x2_photo.log.csv")), parse_weights_name(weights_path(4))
        (('mren_s', '2', 'photo'), ('mren', '4', ''))
    """
    variant, _, rest = file.name.partition(".")[0].rpartition("_x")
    scale, _, kind = rest.partition("_")
    return variant, scale, kind


def find_weights(scale: Scale | None, variant: Variant | None = None, path: str | Path | None = None) -> Path:
    """The file that :func:`load_mren` reads with these arguments.

    Example:
        >>> find_weights(2, "mren_s", "photo").name, find_weights(None, path="runs/my.safetensors").name
        ('mren_s_x2_photo.safetensors', 'my.safetensors')
    """
    kind = None if path is None else str(path)
    if kind is None or kind in KINDS:
        return weights_path(scale or 4, variant or "mren", kind=kind)
    return Path(kind)


def variant_of(config: dict[str, Any]) -> Variant | None:
    """The variant with the widths in a network's arguments, if there is one.

    Example:
        >>> variant_of({"scale": 4, "channels": 84}), variant_of({"scale": 4, "channels": 12})
        ('mren_l', None)
    """
    defaults: dict[str, Any] = {"channels": 60, "reconstruct_channels": None}
    widths = {name: config.get(name, default) for name, default in defaults.items()}
    return next((variant for variant, given in VARIANTS.items() if defaults | given == widths), None)


def load_mren(
    scale: Scale | None = None,
    variant: Variant | None = None,
    *,
    device: torch.device | str = "cpu",
    path: str | Path | None = None,
) -> MREN:
    """Load a trained network, ready to upscale.

    Args:
        scale: 2, 3 or 4; ``None`` for that of the weight file at ``path``, or 4.
        variant: ``"mren"``, ``"mren_s"`` or ``"mren_l"``; ``None`` for that of the weight file at ``path``, or
            ``"mren"``.
        device: The device of the network.
        path: A weight file of any width, as written by :mod:`examples.mren.train`; ``None`` for the shipped one;
            ``"photo"`` for the shipped one for JPEGs and noisy photographs; ``"free"`` for the one trained only on
            images whose terms allow commercial use.

    Returns:
        The network in eval mode.

    Raises:
        FileNotFoundError: If there are no such weights; the message lists the available ones.
        ValueError: If the file holds another scale or variant, or is not one of ours.
    """
    if scale is not None:
        _checks.check_choice("load_mren", "scale", scale, tuple(STAGES))
        _checks.check_int("load_mren", "scale", scale)  # 2.0 equals 2, but not in a file name
    _checks.check_choice("load_mren", "variant", variant, (*VARIANTS, None))
    file = find_weights(scale, variant, path)
    own = path is not None and str(path) not in KINDS
    if not file.exists():
        shipped = ", ".join(sorted(found.stem for found in WEIGHTS.glob("*.safetensors"))) or "none"
        choose = "choose by scale and variant" + ("" if path is None or own else _where_shipped(str(path)))
        options = f"--scale {scale or 4}" + f" --variant {variant}" * (variant not in (None, "mren"))
        options += " --degrade photo" * (str(path) == PHOTO)
        raise FileNotFoundError(
            f"no weights at {file}{'; ' + missing_path_hint(file) if own else '.'} Shipped: {shipped}; {choose}. Train "
            f"your own with python -m examples.mren.train --data FOLDER {options}, then pass path= "
            "(or --weights)."
        )
    config, state = read_weights(file)
    if scale is not None and config["scale"] != scale:
        remedy = "leave out scale= (or --scale)"
        raise ValueError(f"{file}: was saved with scale={config['scale']!r}, asked for scale={scale!r}; {remedy}.")
    wanted = variant if own else variant or "mren"
    if wanted is not None and variant_of(config) != wanted:
        remedy = "; leave out variant= (or --variant)" if own else ""
        raise ValueError(f"{file}: was saved with {config}, which are not the arguments of {wanted}{remedy}.")
    net = MREN(**config)
    net.load_state_dict(state)
    return net.to(device).eval()


def _where_shipped(kind: str) -> str:
    """The variants and scales with shipped weights of a kind, for a message."""
    found = sorted(WEIGHTS.glob(f"*_{kind}.safetensors"))
    names = map(parse_weights_name, found)
    there = " or ".join(f"{variant} x{scale}" for variant, scale, _ in names)
    return f", for {kind} {there}" if there else ""


def read_weights(file: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the constructor's arguments and the tensors of a weight file, checking that they fit each other.

    Raises:
        ValueError: If the file is unreadable, is not one of ours, or its tensors do not fit its arguments.
        OSError: If it does not exist.
    """
    return read_network(file, MREN)


def save_weights(net: nn.Module, file: str | Path, config: dict[str, Any], *, degrade: str | None = None) -> None:
    """Write weights and constructor arguments to a ``.safetensors`` file, atomically.

    The file is the same if the network is compiled or wrapped for several processes.

    Args:
        net: The network.
        file: The file to write.
        config: The arguments that ``net`` was built with. Those that change neither the scale nor the tensors, such as
            ``exchange``, are not checked.
        degrade: How its training images were degraded, for readers of the file; no code uses it.

    Raises:
        ValueError: If ``config`` builds no network, or one of another scale or with other tensors.
        OSError: If the file cannot be written.
    """
    try:
        built = MREN(**config, device="meta")
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_weights: config must hold the arguments of net, got {config}: {error}") from error
    scale = next((part.scale for part in net.modules() if isinstance(part, MREN)), built.scale)
    if scale != built.scale:
        raise ValueError(f"save_weights: config must have the scale of net, {scale}, got {built.scale}.")
    shapes = {unwrapped_name(name): tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    if shapes != wanted:
        name = min(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        has, needs = (f"of {found[name]}" if name in found else "missing" for found in (shapes, wanted))
        raise ValueError(
            f"save_weights: config must hold the arguments of net, got {config}; with these, {name} would be {needs}, "
            f"but in net it is {has}."
        )
    write_network(net, file, config, degrade=degrade)
