"""Large images in bounded memory: a network runs tile by tile, and the results are blended.

Neighbouring tiles overlap. Near its own border a tile sees the network's padding instead of the image, so in the outer
third of the overlap on either side only the other tile counts. In the middle third the weights change linearly, so that
remaining differences leave no seam.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks._checks import check_feature_map, check_positive_int

# Smaller tiles cost more in overlaps and calls than they save in memory.
SMALLEST_TILE = 16

Span = tuple[int, int]


def tiled(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    scale: int = 1,
    tile: int = 256,
    overlap: int = 32,
    size_multiple: int = 1,
    on_tile: Callable[[int, int], object] | None = None,
) -> Tensor:
    r"""Run an image-to-image network over an image of any size, one tile at a time.

    Input and result stay on the input's device; only the current tile moves to the model's. An image that fits into one
    tile takes a single plain call. If memory runs out, the run starts again with tiles of half the size, as long as
    they are larger than the overlaps. No gradient is recorded. The model's mode does not change: call ``model.eval()``
    first where that matters.

    A network whose output depends on input at most :math:`r` pixels away gives the same result as in one call if
    ``overlap`` is at least :math:`3r`. One that pools over the whole map, as :class:`~sc_blocks.WSILB` does, pools over
    the tile instead; :func:`~sc_blocks.to_local` makes it nearly independent of the tiles.

    Args:
        model: The network, or any callable. One without parameters and buffers runs on the input's device.
        x: The image or batch; each tile holds the whole batch.
        scale: Factor by which the model enlarges height and width.
        tile: Height and width of a tile in input pixels. The last tile of a row or column moves inwards and keeps its
            size.
        overlap: Number of input pixels that neighbouring tiles share at least.
        size_multiple: Number that heights and widths must be multiples of for the model. The image is padded with
            copies of its last row and column where necessary, and the result cropped. Every tile starts at a multiple.
        on_tile: Called after each tile with the number of tiles done and the total, for a progress bar. After an
            out-of-memory error both start again. An exception that it raises ends the run.

    Returns:
        The model's result for the whole image, in the type that the model returns. Tiles are blended in float32 or
        better, and rounded where that type is an integer.

    Shape:
        - x: :math:`(N, C, H, W)`, any :math:`N`, :math:`H, W \ge 1`;
        - result: :math:`(N, C', sH, sW)` with :math:`s` = ``scale`` and :math:`C'` as the model returns.

    Raises:
        ValueError: If an argument is out of range, or the model's result is not ``scale`` times as large as its tile.
        TypeError: If an argument is of another type.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sc_blocks.tiling import tiled
        >>> net = torch.nn.Upsample(scale_factor=2)
        >>> image = torch.rand(1, 3, 50, 83)
        >>> result = tiled(net, image, scale=2, tile=32, overlap=6)
        >>> result.shape, torch.allclose(result, net(image), atol=1e-6)
        (torch.Size([1, 3, 100, 166]), True)
    """
    _check_arguments(model, x, scale, tile, overlap, size_multiple, on_tile)
    device = _device_of(model, x)
    # The first halvings of a tile larger than the image would change nothing.
    tile = min(tile, _round_up(max(x.shape[2:]), size_multiple))
    smallest = max(2 * overlap, overlap + size_multiple, SMALLEST_TILE)
    with torch.no_grad():
        while True:
            try:
                return _run(model, x, device, scale, tile, overlap, size_multiple, on_tile)
            except (RuntimeError, MemoryError) as error:
                halved = tile // 2 // size_multiple * size_multiple
                if not _is_out_of_memory(error) or halved < smallest:
                    raise
            # Not in the except clause, where the error's traceback keeps the failed run's tensors alive.
            tile = halved
            _release_cached_memory(device)


def _run(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    device: torch.device,
    scale: int,
    tile: int,
    overlap: int,
    size_multiple: int,
    on_tile: Callable[[int, int], object] | None,
) -> Tensor:
    height, width = x.shape[2:]
    rows, columns = (_spans(length, tile, overlap, size_multiple) for length in (height, width))
    row_weights, column_weights = (_weights(spans, overlap, scale) for spans in (rows, columns))
    total = len(rows) * len(columns)
    result, dtype = torch.empty(0), x.dtype
    for done, (row, column) in enumerate(product(range(len(rows)), range(len(columns))), start=1):
        (top, bottom), (left, right) = rows[row], columns[column]
        part = x[:, :, top:bottom, left:right] if total > 1 else x
        output = _forward(model, part.to(device), scale, size_multiple)
        dtype = output.dtype
        if total == 1:
            result = output.to(x.device)
        else:
            weighted = output.to(torch.promote_types(dtype, torch.float32))
            weighted = weighted * row_weights[row].to(weighted)[:, None] * column_weights[column].to(weighted)
            if done == 1:
                shape = (*output.shape[:2], height * scale, width * scale)
                result = torch.zeros(shape, dtype=weighted.dtype, device=x.device)
            result[:, :, top * scale : bottom * scale, left * scale : right * scale] += weighted.to(x.device)
        if on_tile is not None:
            on_tile(done, total)
    if total > 1 and not (dtype.is_floating_point or dtype.is_complex):
        result.round_()  # weights that sum to 1 up to rounding would make 254 of 255
    return result.to(dtype)


def _forward(model: Callable[[Tensor], Tensor], part: Tensor, scale: int, size_multiple: int) -> Tensor:
    """The model's result for one tile, which is padded to a size that the model takes, and the result cropped."""
    height, width = part.shape[2:]
    below, beside = (_round_up(length, size_multiple) - length for length in (height, width))
    if below or beside:
        part = F.pad(part, (0, beside, 0, below), mode="replicate")
    output: Any = model(part)
    if not isinstance(output, Tensor):
        raise TypeError(f"tiled: model must return a tensor, got {type(output).__name__}; wrap it to pick one.")
    expected = (part.shape[2] * scale, part.shape[3] * scale)
    if output.ndim != 4 or output.shape[0] != part.shape[0] or tuple(output.shape[2:]) != expected:
        raise ValueError(
            f"tiled: scale={scale} must be what the model multiplies height and width by, got {tuple(output.shape)} "
            f"from a tile of {tuple(part.shape)}; it should end in {expected[0]} x {expected[1]}."
        )
    return output[:, :, : height * scale, : width * scale] if below or beside else output


def _spans(length: int, tile: int, overlap: int, size_multiple: int) -> list[Span]:
    """First pixel of each tile along one axis, and the one after its last."""
    padded = _round_up(length, size_multiple)
    if padded <= tile:
        return [(0, length)]
    step = (tile - overlap) // size_multiple * size_multiple
    starts = [*range(0, padded - tile, step), padded - tile]
    return [(start, min(start + tile, length)) for start in starts]


def _weights(spans: list[Span], overlap: int, scale: int) -> list[Tensor]:
    """Weights of each tile along one axis, at each pixel of its result. At every pixel of the image they sum to 1.

    The weight of a pixel is the product of those of its row and column, so no map of weights is needed.
    """
    end = spans[-1][1]
    third = max(overlap * scale / 3, 1e-6)  # any positive number will do without an overlap
    total = torch.zeros(end * scale, dtype=torch.float64)
    weights: list[Tensor] = []
    for start, stop in spans:
        size = (stop - start) * scale
        centre = torch.arange(size, dtype=torch.float64) + 0.5
        weight = torch.ones(size, dtype=torch.float64)
        if start > 0:
            weight = weight * ((centre - third) / third).clamp(0, 1)
        if stop < end:
            weight = weight * ((size - centre - third) / third).clamp(0, 1)
        total[start * scale : stop * scale] += weight
        weights.append(weight)
    return [weight / total[start * scale : stop * scale] for weight, (start, stop) in zip(weights, spans, strict=True)]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _device_of(model: Callable[[Tensor], Tensor], x: Tensor) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return x.device


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # Plain RuntimeErrors come from the CPU's allocator, from that of Apple's GPUs and from NVIDIA's libraries.
    signs = ("DefaultCPUAllocator", "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in signs)


def _release_cached_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _check_arguments(model: Any, x: Any, scale: Any, tile: Any, overlap: Any, size_multiple: Any, on_tile: Any) -> None:
    if not callable(model):
        raise TypeError(f"tiled: model must be a module or another callable, got {type(model).__name__}.")
    if not isinstance(x, Tensor):
        raise TypeError(f"tiled: x must be a tensor, got {type(x).__name__}; pass torch.as_tensor(x).")
    if x.ndim != 4:
        hint = "; for a single image pass x.unsqueeze(0)" if x.ndim == 3 else ""
        raise ValueError(
            f"tiled: x must have 4 dimensions (batch, channels, height, width), got shape {tuple(x.shape)}{hint}."
        )
    check_feature_map("tiled", x, x.shape[1])
    for name, value in {"scale": scale, "tile": tile, "size_multiple": size_multiple}.items():
        check_positive_int("tiled", name, value)
    if isinstance(overlap, bool) or not isinstance(overlap, int):
        raise TypeError(f"tiled: overlap must be an integer, got {overlap!r} ({type(overlap).__name__}).")
    if tile % size_multiple:
        nearest = _round_up(tile, size_multiple)
        raise ValueError(f"tiled: tile must be a multiple of size_multiple={size_multiple}, got {tile}; use {nearest}.")
    if not 0 <= overlap <= tile - size_multiple:
        raise ValueError(
            f"tiled: overlap must be at least 0 and at most tile - size_multiple = {tile - size_multiple}, got "
            f"{overlap}; an eighth of the tile is usual."
        )
    if on_tile is not None and not callable(on_tile):
        raise TypeError(f"tiled: on_tile must be callable or None, got {type(on_tile).__name__}.")
