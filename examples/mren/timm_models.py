"""MREN for timm: ``timm.create_model("mren", scale=4, pretrained=True)``.

Importing this module registers ``mren``, ``mren_s`` and ``mren_l``, as importing timm registers its own networks. They
take the arguments of timm and of :class:`~examples.mren.model.MREN`, and no others.

``timm.create_model`` drops arguments that are ``None`` before a network sees them, so ``exchange=None`` and
``communication=None`` have no effect there. Call the functions below, or ``MREN``, for those.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from timm.models import PretrainedCfg, generate_default_cfgs, register_model, resolve_pretrained_cfg

from examples.mren.model import KINDS, MREN, VARIANTS, Scale, Variant, load_mren, weights_path

__all__ = ["mren", "mren_l", "mren_s"]


# For timm's data pipeline: RGB between 0 and 1 without normalisation, and no classes.
_CFG = PretrainedCfg(
    input_size=(3, 48, 48),  # the paper's training patches at x4; any size will do
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    crop_pct=1.0,
    num_classes=0,
    first_conv="head",
    license="mit",
)
# The x4 file tells timm that there are weights. A network gets the file of its scale.
default_cfgs = generate_default_cfgs(
    {variant: dataclasses.replace(_CFG, file=str(weights_path(4, variant))) for variant in VARIANTS}
)


@register_model
def mren(pretrained: bool = False, **options: Any) -> MREN:
    """The paper's MREN, 60 channels wide.

    Args:
        pretrained: Whether to load trained weights: the shipped ones of that scale, or the file given by
            ``pretrained_cfg_overlay={"file": ...}``. The file determines the other arguments.
        **options: The arguments of :class:`~examples.mren.model.MREN`, with ``scale=4`` by default; timm's
            ``pretrained_cfg``, of whose sources only ``file`` is supported, and ``pretrained_cfg_overlay``, which
            overrides its entries; and ``cache_dir``, which timm passes and which is ignored.

    Returns:
        The network; with trained weights in eval mode.

    Raises:
        FileNotFoundError: If there are no such weights; the message lists the available ones.
        TypeError: If MREN has no such argument.
        ValueError: If an argument is out of range or conflicts with ``pretrained``, or the file is of another scale or
            is not a weight file of MREN.

    Example:
        >>> import timm
        >>> import torch
        >>> import examples.mren.timm_models
        >>> timm.create_model("mren", scale=3, num_blocks=1)(torch.rand(1, 3, 12, 17)).shape
        torch.Size([1, 3, 36, 51])
    """
    return _build("mren", pretrained, **options)


@register_model
def mren_s(pretrained: bool = False, **options: Any) -> MREN:
    """Our MREN-S, MREN with a narrow reconstruction; see :func:`mren`."""
    return _build("mren_s", pretrained, **options)


@register_model
def mren_l(pretrained: bool = False, **options: Any) -> MREN:
    """The paper's MREN-L, 84 channels wide; see :func:`mren`."""
    return _build("mren_l", pretrained, **options)


def _build(
    variant: Variant,
    pretrained: bool,
    /,
    *,
    scale: Scale = 4,
    pretrained_cfg: PretrainedCfg | dict[str, Any] | str | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> MREN:
    accepted = inspect.signature(MREN).parameters.keys() - {"scale", "channels", "reconstruct_channels"}
    unknown = options.keys() - accepted
    if unknown:
        raise TypeError(
            f"{variant}: no argument {', '.join(sorted(unknown))}; MREN takes scale, {', '.join(sorted(accepted))}. "
            f"The widths are those of the name: {variant} has {VARIANTS[variant]}."
        )
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=pretrained_cfg_overlay)
    if "file" not in (pretrained_cfg_overlay or {}) and not isinstance(pretrained_cfg, (PretrainedCfg, dict)):
        shipped = weights_path(scale, variant)
        cfg = dataclasses.replace(cfg, file=str(shipped) if shipped.exists() else None)
    if pretrained:
        net, cfg = _load(variant, scale, cfg, options)
    else:
        net = MREN(scale, **VARIANTS[variant], **options)
    # timm's tools look for it under both names.
    net.pretrained_cfg = net.default_cfg = cfg.to_dict()
    return net


def _load(variant: Variant, scale: Scale, cfg: PretrainedCfg, options: dict[str, Any]) -> tuple[MREN, PretrainedCfg]:
    placement = {name: options[name] for name in ("device", "dtype") if name in options}
    refused = options.keys() - placement.keys()
    if refused:
        raise ValueError(
            f"{variant}: with pretrained=True the weight file determines the network; got "
            f"{', '.join(sorted(refused))} too. Leave that out, or pass pretrained=False."
        )
    elsewhere = [name for name in ("url", "hf_hub_id", "state_dict") if getattr(cfg, name)]
    if elsewhere:
        raise ValueError(
            f"{variant}: pretrained weights are read from a file, got {', '.join(elsewhere)}; pass "
            'pretrained_cfg_overlay={"file": ...}, or pretrained=True alone for the shipped ones.'
        )
    own = cfg.file is not None and cfg.file not in KINDS
    net = load_mren(scale, None if own else variant, path=cfg.file)
    file = cfg.file or str(weights_path(scale, variant))
    return net.to(**placement), dataclasses.replace(cfg, file=file)
