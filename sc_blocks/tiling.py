"""Tiled inference for large images: a network runs on one tile at a time, and the results are blended.

Near the border of a tile, the network sees padding instead of the image. In the outer thirds of an overlap, only the
tile whose border is farther away is used; in the middle third, the weights change linearly, which avoids seams.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sc_blocks._checks import check_feature_map, check_int

# Smaller tiles cost more in overlaps and calls than they save in memory.
SMALLEST_TILE = 16

Network = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], object]
Spans = list[tuple[int, int, Tensor]]  # tiles along one axis: start, stop, blending weights


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

    Input and result stay on the input's device; only the current tile moves to the model's. An image that fits into
    one tile takes a single call. If memory runs out, the run restarts with tiles of half the size, but not below twice
    the overlap or 16 pixels. Tiles are blended in float32 or higher precision. No gradients are recorded, and the
    model's train/eval mode does not change.

    A network whose output depends on input at most :math:`r` pixels away gives the same result as in one call if
    ``overlap`` is at least :math:`3r`. A network that pools over the whole map, as :class:`~sc_blocks.WSILB` does,
    pools over the tile instead; :func:`~sc_blocks.to_local` makes it nearly independent of the tiles.

    Args:
        model: A network or any callable; without parameters and buffers it runs on the input's device.
        x: The image or batch, of any floating-point values; each tile holds the whole batch.
        scale: Factor by which the model enlarges height and width.
        tile: Height and width of a tile in input pixels. The last tile of a row or column is shifted inwards to fit.
        overlap: Minimum number of input pixels that neighbouring tiles share.
        size_multiple: The model needs heights and widths that are multiples of this number. The image is padded with
            copies of its last row and column, and the result cropped. Every tile starts at a multiple.
        on_tile: Called after each tile with the number of tiles done and the total; both restart when memory runs out.
            An exception that it raises ends the run.

    Shape:
        - x: :math:`(N, C, H, W)`, any :math:`N`, :math:`H, W \ge 1`;
        - result: :math:`(N, C', sH, sW)` with :math:`s` = ``scale``, :math:`C'` and the type as the model returns.

    Raises:
        ValueError: If an argument is out of range, or the model's result is not ``scale`` times as large as its tile.
        TypeError: If an argument has the wrong type.

    Example:
        >>> import torch
        >>> from sc_blocks.tiling import tiled
        >>> net = torch.nn.Upsample(scale_factor=2)
        >>> image = torch.rand(1, 3, 50, 83)
        >>> result = tiled(net, image, scale=2, tile=32, overlap=6)
        >>> result.shape, torch.allclose(result, net(image), atol=1e-6)
        (torch.Size([1, 3, 100, 166]), True)
    """
    if not callable(model):
        raise TypeError(f"tiled: model must be a module or another callable, got {type(model).__name__}.")
    check_feature_map("tiled", x, None)
    for name, value in {"scale": scale, "tile": tile, "size_multiple": size_multiple}.items():
        check_int("tiled", name, value)
    check_int("tiled", "overlap", overlap, least=0)
    if tile % size_multiple:
        nearest = _round_up(tile, size_multiple)
        raise ValueError(f"tiled: tile must be a multiple of size_multiple={size_multiple}, got {tile}; use {nearest}.")
    if overlap > tile - size_multiple:
        most = f"tile - size_multiple = {tile - size_multiple}"
        raise ValueError(f"tiled: overlap must be at most {most}, got {overlap}; an eighth of the tile is usual.")
    if on_tile is not None and not callable(on_tile):
        raise TypeError(f"tiled: on_tile must be callable or None, got {type(on_tile).__name__}.")

    tensors = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    # Offloaded weights may be on the meta device, which no tile can move to.
    device = next((tensor.device for tensor in tensors if not tensor.is_meta), x.device)
    # Halving a tile larger than the image would change nothing at first.
    tile = min(tile, _round_up(max(x.shape[2:]), size_multiple))
    smallest = max(2 * overlap, overlap + size_multiple, SMALLEST_TILE)
    run = partial(_run_tile, model, device=device, scale=scale, size_multiple=size_multiple)
    with torch.no_grad():
        while True:
            rows, columns = (_weighted_spans(side, scale, tile, overlap, size_multiple) for side in x.shape[2:])
            try:
                return _blend(run, x, scale, rows, columns, on_tile)
            except (RuntimeError, MemoryError) as error:
                halved = tile // 2 // size_multiple * size_multiple
                if not _is_out_of_memory(error) or halved < smallest:
                    raise
            # Not in the except clause, where the error's traceback keeps the failed run's tensors alive.
            tile = halved
            if device.type in ("cuda", "mps"):
                torch.get_device_module(device).empty_cache()


def _blend(run: Network, x: Tensor, scale: int, rows: Spans, columns: Spans, on_tile: Progress | None) -> Tensor:
    total = len(rows) * len(columns)
    result, dtype = torch.empty(0), x.dtype
    for done, ((top, bottom, row_weights), (left, right, column_weights)) in enumerate(product(rows, columns), start=1):
        output = run(x[:, :, top:bottom, left:right])
        dtype = output.dtype
        if total == 1:
            result = output.to(x.device)
        else:
            weighted = output.to(torch.promote_types(dtype, torch.float32))
            weights = row_weights.to(weighted.real)[:, None] * column_weights.to(weighted.real)
            # torch.where: 0 times an infinity, which may occur only near this tile's border, would be NaN.
            weighted = torch.where(weights != 0, weighted * weights, 0)
            if done == 1:
                shape = (*output.shape[:2], x.shape[2] * scale, x.shape[3] * scale)
                result = torch.zeros(shape, dtype=weighted.dtype, device=x.device)
            result[:, :, top * scale : bottom * scale, left * scale : right * scale] += weighted.to(x.device)
        if on_tile is not None:
            on_tile(done, total)
    if total > 1 and not (dtype.is_floating_point or dtype.is_complex):
        result.round_()  # weights sum to 1 only up to rounding, and 254.999 would become 254
    return result.to(dtype)


def _run_tile(model: Network, x: Tensor, *, device: torch.device, scale: int, size_multiple: int) -> Tensor:
    """Run the model on one tile, padded to a size that the model accepts, and crop the result."""
    height, width = x.shape[2:]
    bottom, right = (_round_up(side, size_multiple) - side for side in (height, width))  # padding
    x = x.to(device, copy=True)  # an in-place network would change pixels that the next tile shares
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    output: Any = model(x)
    if not isinstance(output, Tensor):
        raise TypeError(f"tiled: model must return a tensor, got {type(output).__name__}; wrap it to return one.")
    expected = (x.shape[2] * scale, x.shape[3] * scale)
    if output.ndim != 4 or output.shape[0] != x.shape[0] or tuple(output.shape[2:]) != expected:
        got = f"{tuple(output.shape)} from a tile of {tuple(x.shape)}; expected {expected[0]} x {expected[1]}"
        raise ValueError(f"tiled: scale={scale} must be the factor by which the model enlarges, got {got}.")
    return output[:, :, : height * scale, : width * scale]


def _weighted_spans(length: int, scale: int, tile: int, overlap: int, size_multiple: int) -> Spans:
    """Return the tiles along one axis, with weights for their output rows or columns that sum to 1 everywhere."""
    padded = _round_up(length, size_multiple)
    step = max((tile - overlap) // size_multiple, 1) * size_multiple
    starts = [*range(0, padded - tile, step), max(padded - tile, 0)]
    third = max(overlap * scale / 3, 1e-6)  # without an overlap, any positive number works
    total = torch.zeros(length * scale, dtype=torch.float64, device="cpu")
    spans: Spans = []
    for start in starts:
        stop = min(start + tile, length)
        size = (stop - start) * scale
        centre = torch.arange(size, dtype=torch.float64, device="cpu") + 0.5
        weight = torch.ones_like(centre)
        if start > 0:
            weight = weight * ((centre - third) / third).clamp(0, 1)
        if stop < length:
            weight = weight * ((size - centre - third) / third).clamp(0, 1)
        total[start * scale : stop * scale] += weight
        spans.append((start, stop, weight))
    return [(start, stop, weight / total[start * scale : stop * scale]) for start, stop, weight in spans]


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # Plain RuntimeErrors come from the CPU's allocator, from that of Apple's GPUs and from NVIDIA's libraries.
    signs = ("DefaultCPUAllocator", "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error) for sign in signs)
