"""Draw the pictures of the tutorials next to this script: figures in both themes, and maps of the trained network.

    python -m docs.figures.tutorials.draw

The maps need scikit-image and Pillow; ``--figures`` skips them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from docs.figures.draw import THEMES, Figure

HERE = Path(__file__).parent
GAP = 8  # px between pictures in a row


def draw_shapes() -> Figure:
    """Inputs and outputs of four blocks."""
    fig = Figure(
        "Shapes",
        "Inputs and outputs of four blocks. SCACB(60) and WSILBV(60) take and return 60 channels of H × W. "
        "RBWA(60, 30) takes 60 channels of H × W and returns 30 channels of 2H × 2W. DRACB(60, 15) takes 60 "
        "channels of H × W and the previous attention map of 15 channels, and returns refined features and its own "
        "attention map, both of 15 channels of H × W.",
        620,
        392,
    )
    left, middle, right = 90.0, 310.0, 530.0
    rows = (("block", "SCACB(60)", 26.0, "60 channels"), ("gate", "WSILBV(60)", 92.0, "60 channels"))
    for kind, name, y, channels in rows:
        source = fig.box("op", left, y, "60 channels", "H × W", width=120)
        block = fig.box(kind, middle, y, name, width=130)
        fig.arrow(source.right, block.left)
        fig.arrow(block.right, fig.box("op", right, y, channels, "H × W", width=120).left)

    source = fig.box("op", left, 184, "60 channels", "H × W", width=120)
    block = fig.box("conv", middle, 184, "RBWA(60, 30)", width=130)
    fig.arrow(source.right, block.left)
    fig.arrow(block.right, fig.box("op", right, 184, "30 channels", "2H × 2W", width=160, height=88).left)

    block = fig.box("block", middle, 321, "DRACB(60, 15)", width=130, height=134)
    for y, incoming, outgoing, kind in (
        (280.0, "60 channels", "15 channels", "op"),
        (362.0, "15 channels", "15 channels", "exchange"),
    ):
        line = "line" if kind == "op" else kind
        source = fig.box(kind, left, y, incoming, "H × W", width=120)
        fig.arrow(source.right, (block.left[0], y), kind=line)
        fig.arrow((block.right[0], y), fig.box(kind, right, y, outgoing, "H × W", width=120).left, kind=line)
    fig.note(left, 332, "the previous map", anchor="middle")
    fig.note(right, 250, "refined features", anchor="middle")
    fig.note(right, 332, "attention map", anchor="middle")
    return fig


def draw_distillation() -> Figure:
    """Stages distilled separately and by a chain."""
    fig = Figure(
        "Distillation with and without a chain",
        "Two rows of three stages. Above, each stage has its own 1×1 convolution that distils it, and the three "
        "narrow maps are concatenated and fused. Below, each stage has a DRACB instead, and the attention map of each "
        "DRACB goes to the next one.",
        640,
        440,
    )
    for top, title, kind, name in ((0.0, "no chain", "conv", "conv 1×1"), (222.0, "a chain", "block", "DRACB")):
        fig.panel(4, top + 4, 632, 208, title)
        x = 24.0
        joined = fig.box("op", 560, top + 160, "concat", "and fuse", width=110)
        before = None
        for number in range(3):
            cx = 100 + 150.0 * number
            stage = fig.box("op", cx, top + 62, f"stage {number + 1}", width=100)
            fig.arrow((x, top + 62), stage.left)
            x = stage.right[0]
            distilled = fig.box(kind, cx, top + 118, name, width=100)
            fig.arrow(stage.bottom, distilled.top)
            if before is not None and kind == "block":
                fig.arrow(before, distilled.left, kind="exchange")
            before = distilled.right
            if number == 0:
                fig.arrow(distilled.bottom, (cx, top + 160), joined.left)
            else:  # onto the line of the first
                fig.arrow(distilled.bottom, fig.dot(cx, top + 160), head=False)
        if kind == "block":
            fig.note(175, top + 104, "map", anchor="middle", kind="exchange")
            fig.note(325, top + 104, "map", anchor="middle", kind="exchange")
    fig.legend(exchange="attention map passed on", op="the network's own", block="block of this library")
    return fig


def draw_export() -> Figure:
    """Export to another runtime."""
    fig = Figure(
        "Export",
        "The network with its weights in torch is rewritten and exported to an ONNX file of float32, float16 or int8. "
        "onnxruntime runs the file on a picture of any height and width and returns one four times as high and wide; "
        "the file is kept only if the result agrees with torch.",
        660,
        196,
    )
    top, low = 32.0, 156.0
    net = fig.box("block", 80, top, "MREN", "weights, torch", width=140)
    rewritten = fig.box("conv", 246, top, "rewrite", "the same function", width=140)
    exported = fig.box("conv", 412, top, "export", "any H and W", width=130)
    file = fig.box("op", 575, top, "mren_x4.onnx", "float32, 16, int8", width=150)
    for a, b in ((net, rewritten), (rewritten, exported), (exported, file)):
        fig.arrow(a.right, b.left)
    fig.note(10, 99, "kept only if onnxruntime agrees with torch")
    runtime = fig.box("op", 412, low, "onnxruntime", width=130)
    photo = fig.box("op", 246, low, "picture", "3, H × W", width=120)
    result = fig.box("op", 575, low, "result", "3, 4H × 4W", width=120)
    fig.arrow(file.bottom, (575, 94), (412, 94), runtime.top)
    fig.arrow(photo.right, runtime.left)
    fig.arrow(runtime.right, result.left)
    return fig


FIGURES: dict[str, Callable[[], Figure]] = {
    "shapes": draw_shapes,
    "distillation": draw_distillation,
    "export": draw_export,
}


def write_figures(folder: Path) -> list[Path]:
    """Write every figure in both themes, and return the files."""
    files: list[Path] = []
    for name, draw in FIGURES.items():
        figure = draw()
        for theme in THEMES:
            files.append(folder / f"{name}.{theme}.svg")
            files[-1].write_bytes(figure.svg(theme).encode())
    return files


def write_maps(folder: Path) -> list[Path]:
    """Write pictures of what the trained network attends to, and return the files."""
    from examples.mren.data import photograph
    from examples.mren.model import load_mren
    from sc_blocks.introspect import capture_attention

    photo = photograph("chelsea") / 255
    net = load_mren(4)
    with torch.inference_mode(), capture_attention(net.body[0]) as attention:
        net.body(net.head(photo[None]))
    links = [f"refine.links.{number}" for number in range(4)]
    masks = [_stretch(attention[f"{link}.gate"][0].mean(0)) for link in links]

    previous, current = (attention[f"{link}.map"][0, 11, 60:230, 90:320] for link in links[:2])
    maps = torch.stack([previous, current, 0.2 * previous + current, torch.maximum(previous, current)])
    return [
        _write_row(folder / "first_block_masks.jpg", [photo, *masks], width=300),
        _write_row(folder / "channel_maps.jpg", list(_stretch(maps)), width=370),
    ]


def _stretch(image: Tensor) -> Tensor:
    # Clip the extremes: a handful of pixels would take up most of the scale.
    low, high = np.quantile(image.numpy(), (0.005, 0.995))
    return ((image - low) / (high - low)).clamp(0, 1)


def _write_row(file: Path, images: list[Tensor], *, width: int) -> Path:
    """Write pictures side by side, on a grey that suits light and dark pages."""
    from PIL import Image

    tiles = []
    for image in images:
        pixels = (image * 255).round().byte().numpy()
        tile = Image.fromarray(pixels if image.ndim == 2 else pixels.transpose(1, 2, 0)).convert("RGB")
        tiles.append(tile.resize((width, round(width * tile.height / tile.width)), Image.Resampling.LANCZOS))
    row = Image.new("RGB", (len(tiles) * (width + GAP) - GAP, tiles[0].height), (128, 128, 128))
    for number, tile in enumerate(tiles):
        row.paste(tile, (number * (width + GAP), 0))
    row.save(file, quality=85)
    return file


def main() -> None:
    """Write the pictures to the folder given on the command line."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the tutorials.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder; default: next to this script")
    parser.add_argument("--figures", action="store_true", help="draw only the figures")
    args = parser.parse_args()
    for file in [*write_figures(args.out), *([] if args.figures else write_maps(args.out))]:
        print(file)


if __name__ == "__main__":
    main()
