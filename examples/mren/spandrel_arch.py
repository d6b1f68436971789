"""MREN for spandrel, which detects a network from the tensors of a file.

After :func:`register_spandrel`, ``spandrel.ModelLoader`` loads MREN like its built-in networks.

spandrel passes on the tensors of a file and drops its metadata. Tensors reveal widths, depth, ``parts``, and channels
with parameters. They do not distinguish ×3 from ×4, whose tensors have the same names and shapes, nor reveal options
without parameters: ``exchange``, ``residual``, ``gate``, ``relay``, the weight of a fixed channel, and whether a chain
of such channels ends with its block. These have the defaults of :class:`~examples.mren.model.MREN`, and the scale is
×4, unless :func:`write_for_spandrel` has stored them in a tensor of the file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelTiling,
    SizeRequirements,
    StateDict,
)
from spandrel.util import KeyCondition, get_seq_len
from torch import Tensor

from examples.mren.model import MREN, read_weights
from examples.mren.weightfile import KEY, parse_arguments, write_tensors

# The tensor of the constructor's arguments: JSON, one character per element. ASCII survives a cast to fp16.
ARGUMENTS = "mren_arguments"
ID = "MREN"


class MRENArch(Architecture[MREN]):
    """Detects and builds MREN for spandrel.

    Example:
        >>> from examples.mren.model import mren
        >>> MRENArch().detect(mren(2).state_dict())
        True
    """

    def __init__(self) -> None:
        super().__init__(
            id=ID,
            detect=KeyCondition.has_all(
                "head.weight",
                "body.0.stages.0.compress.weight",
                "body.0.refine.links.0.distill.weight",
                "body.0.attention.shared.squeeze.weight",
                "reconstruct.0.expand.weight",
                "reconstruct.0.attention.shared.squeeze.weight",
                "tail.weight",
            ),
        )

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[MREN]:
        """Build the network of a state dict.

        Args:
            state_dict: Tensors by name; not changed.

        Returns:
            The network in eval mode, in spandrel's descriptor.

        Raises:
            ValueError: If the tensors do not fit the detected network.
        """
        arguments = read_arguments(state_dict)
        try:
            _check_shapes(state_dict, MREN(**arguments, device="meta"))  # a small file must not allocate much
            net = MREN(**arguments).eval()
            return ImageModelDescriptor(
                net,
                {name: tensor for name, tensor in state_dict.items() if name != ARGUMENTS},
                architecture=self,
                purpose="SR",
                tags=_tags(state_dict, arguments),
                # Largest difference of the shipped weights from float32 on photographs, in steps of 1 / 255: below 1 in
                # float16, about 3 in bfloat16, which costs at most 0.02 dB.
                supports_half=True,
                supports_bfloat16=True,
                scale=net.scale,
                input_channels=3,
                output_channels=3,
                size_requirements=SizeRequirements(),  # any size from 1 x 1, at every scale
                # The attention pools over whole tiles, but was trained on small patches, so tiles score no worse.
                tiling=ModelTiling.SUPPORTED,
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"MREN: the tensors do not fit their arguments, {arguments}: {error}") from error


def _check_shapes(state_dict: Mapping[str, Tensor], net: MREN) -> None:
    for name, tensor in net.state_dict().items():
        if name not in state_dict:
            raise ValueError(f"missing key {name}")
        expected, found = tuple(tensor.shape), tuple(state_dict[name].shape)
        if found != expected:
            raise ValueError(f"size mismatch for {name}: {found} instead of {expected}")


def read_arguments(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Find the constructor's arguments in a state dict of MREN.

    Args:
        state_dict: Tensors by name.

    Returns:
        All arguments if the state dict holds them; otherwise those that the tensors reveal, and a scale.

    Warns:
        UserWarning: If the scale could be 3 or 4; 4 is returned.

    Raises:
        ValueError: If the arguments that the state dict holds are not readable.

    Example:
        >>> from examples.mren.model import MREN
        >>> read_arguments(MREN(2, channels=12, num_blocks=1, communication="gated").state_dict())
        {'scale': 2, 'channels': 12, 'num_blocks': 1, 'parts': 'both', 'communication': 'gated'}
    """
    if ARGUMENTS in state_dict:
        try:
            return parse_arguments(bytes(state_dict[ARGUMENTS].to(torch.uint8).tolist()).decode())
        except (TypeError, ValueError) as error:  # TypeError: a tensor of several dimensions
            raise ValueError(f"MREN: {ARGUMENTS} must hold the constructor's arguments as JSON ({error}).") from error

    if "reconstruct.1.expand.weight" in state_dict:
        scale = 4
        warnings.warn(
            "MREN: the tensors of x3 and x4 are alike; x4 is assumed. For x3, load a copy of the file written by "
            "examples.mren.spandrel_arch.write_for_spandrel(file, copy).",
            stacklevel=2,
        )
    else:
        scale = 2
    parts = [part for part in ("spatial", "channel") if f"body.0.stages.0.{part}.conv1.weight" in state_dict]
    arguments = {
        "scale": scale,
        "channels": state_dict["head.weight"].shape[0],
        "num_blocks": get_seq_len(state_dict, "body"),
        "parts": parts[0] if len(parts) == 1 else "both",
    }
    if "reduce.weight" in state_dict:  # the narrow reconstruction of MREN-S
        arguments["reconstruct_channels"] = [state_dict["reduce.weight"].shape[0], state_dict["tail.weight"].shape[1]]
    channel = "body.0.refine.links.1.communication."
    if f"{channel}weight" in state_dict:
        arguments["communication"] = "learnable"
    elif f"{channel}weigh.weight" in state_dict:
        arguments["communication"] = "gated"
    if any(name.startswith("body.1.refine.links.0.communication.") for name in state_dict):
        arguments["chain"] = "network"  # the first link of a block has a channel only then
    return arguments


def write_for_spandrel(weights: str | Path, copy: str | Path) -> None:
    """Copy a weight file and store its constructor's arguments in a tensor, where spandrel finds them.

    Args:
        weights: A weight file, as written by :mod:`examples.mren.train`.
        copy: The ``.safetensors`` file to write; it is for spandrel only.

    Raises:
        ValueError: If ``weights`` is not one of ours, or ``copy`` has another suffix or is the same file.
    """
    weights, copy = Path(weights), Path(copy)
    if copy.suffix != ".safetensors":
        raise ValueError(f"write_for_spandrel: copy must end in .safetensors, got {str(copy)!r}.")
    if copy.resolve() == weights.resolve():
        raise ValueError(f"write_for_spandrel: copy must be another file than weights, got {str(copy)!r} for both.")
    arguments, state = read_weights(weights)
    text = json.dumps(arguments)
    state[ARGUMENTS] = torch.tensor(list(text.encode("ascii")), dtype=torch.uint8)
    write_tensors(copy, state, {"format": "pt", KEY: text})


def register_spandrel(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Register MREN with spandrel. Calling it again has no effect.

    Args:
        registry: The registry; the default is that of every ``spandrel.ModelLoader()``.

    Raises:
        spandrel.DuplicateArchitectureError: If the registry has another network of that name.

    Example:
        >>> import spandrel
        >>> from examples.mren.model import mren
        >>> registry = spandrel.MAIN_REGISTRY.copy()  # leave it out to change spandrel's own
        >>> register_spandrel(registry)
        >>> loaded = spandrel.ModelLoader(registry=registry).load_from_state_dict(mren(2).state_dict())
        >>> loaded.architecture.name, loaded.scale, loaded.tags
        ('MREN', 2, ['60ch', '6nb'])
    """
    known = registry.get(ID)
    if known is None or not isinstance(known.architecture, MRENArch):
        registry.add(ArchSupport.from_architecture(MRENArch()))


def _tags(state_dict: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> list[str]:
    """Width and depth in the style of spandrel, and each option that differs from MREN's default."""
    tags = [f"{state_dict['head.weight'].shape[0]}ch", f"{get_seq_len(state_dict, 'body')}nb"]
    for name, value in arguments.items():
        if name not in ("scale", "channels", "num_blocks") and value != MREN.__init__.__kwdefaults__[name]:
            tags.append(f"{name}={value}")
    return tags
