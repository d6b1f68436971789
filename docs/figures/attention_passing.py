"""Measure how similar the maps of neighbouring DRACBs are, and what the channel's weight W does, in shipped weights.

``python -m docs.figures.attention_passing`` draws from ``measured/attention_passing.json``; ``--measure`` first
regenerates that file, in a few minutes on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import mean

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from docs.figures.plotting import (
    KINDS,
    LINESTYLES,
    PHOTOGRAPHS,
    WIDTH,
    command,
    line,
    pair,
    read_numbers,
    write,
    write_numbers,
)
from examples.mren.attention import Attention, collect_attention
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import MREN, load_mren
from sc_blocks import DRACB

NAME = "attention_passing"
SCALES = (4, 2)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SEEDS = 5  # of the networks with random weights
SHOWN = ("astronaut", 1, (slice(0, 80), slice(16, 96)))  # photograph, MREB, rows and columns of the figure with maps

Pairs = list[tuple[Tensor, Tensor]]


def crossed(a: Tensor, b: Tensor) -> Tensor:
    """Correlation over positions between every channel of one map and every channel of another, shape (C, C)."""
    a, b = (F.normalize(m.double().flatten(1) - m.double().flatten(1).mean(1, keepdim=True)) for m in (a, b))
    return a @ b.T


def neighbours(maps: list[list[Tensor]]) -> Pairs:
    """Pairs of maps that a channel connects: each DRACB and the next of the same MREB."""
    return [both for row in maps for both in pairwise(row)]


def across(maps: list[list[Tensor]]) -> Pairs:
    """The last map of each MREB and the first of the next, which no channel connects."""
    return [(row[-1], following[0]) for row, following in pairwise(maps)]


def summary(pairs: Pairs) -> dict[str, float]:
    """Mean correlation of equal channels, and of unequal ones, as for shuffled channels."""
    tables = torch.stack([crossed(*pair) for pair in pairs])
    same = tables.diagonal(dim1=1, dim2=2)
    channels = tables.shape[1]

    def others(values: Tensor) -> float:
        return (
            (values.sum() - values.diagonal(dim1=1, dim2=2).sum()) / (len(values) * channels * (channels - 1))
        ).item()

    return {
        "same": same.mean().item(),
        "same_abs": same.abs().mean().item(),
        "shuffled": others(tables),
        "shuffled_abs": others(tables.abs()),
    }


def averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: mean(row[key] for row in rows) for key in rows[0]}


def look(net: MREN, name: str, scale: int, *, flip: bool = False) -> Attention:
    image = pair(name, scale)[0][0]
    return collect_attention(net, image.flip(2) if flip else image, range(len(net.body)))


def correlations(scale: int) -> dict[str, dict[str, float] | list[list[float]]]:
    net = load_mren(scale)
    seen = {name: look(net, name, scale).maps for name in PHOTOGRAPHS}
    # A control: the two maps come from the same network, but one from the mirrored image.
    mirrored_pairs = []
    for name, maps in seen.items():
        mirrored = look(net, name, scale, flip=True).maps
        mirrored_pairs += [
            (before, after)
            for row, other in zip(maps, mirrored, strict=True)
            for before, after in zip(row, other[1:], strict=False)
        ]
    random = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        fresh = MREN(scale).eval()
        random.append(look(fresh, PHOTOGRAPHS[seed % len(PHOTOGRAPHS)], scale).maps)
    by_pair = torch.stack(
        [torch.stack([crossed(*p).diagonal().mean() for p in neighbours(maps)]) for maps in seen.values()]
    ).mean(0)
    return {
        "neighbours": averaged([summary(neighbours(maps)) for maps in seen.values()]),
        "across MREBs": averaged([summary(across(maps)) for maps in seen.values()]),
        "mirrored": summary(mirrored_pairs),
        "random weights": averaged([summary(neighbours(maps)) for maps in random]),
        "random weights, across MREBs": averaged([summary(across(maps)) for maps in random]),
        "by pair": by_pair.view(6, 3).tolist(),
    }


def reach(scale: int) -> dict[str, float]:
    """Size of the channel's contribution relative to the map, and the change of the masks that it causes."""
    net, share, moved = load_mren(scale), [], []
    for name in PHOTOGRAPHS:
        attention = look(net, name, scale)
        for before, after in neighbours(attention.maps):
            share.append((0.2 * before.square().mean().sqrt() / after.square().mean().sqrt()).item())
        for maps, masks in zip(attention.maps, attention.masks, strict=True):
            moved += [
                (mask - map_.sigmoid()).abs().mean().item() for map_, mask in zip(maps[1:], masks[1:], strict=True)
            ]
    return {"share of the map": mean(share), "change of the mask": mean(moved)}


class Substitute(nn.Module):
    """A channel that adds ``weight`` times a function of the previous map."""

    def __init__(self, make, weight: float = 0.2) -> None:
        super().__init__()
        self.make, self.weight = make, weight

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        return current + self.weight * self.make(previous)


def with_channel(scale: int, channel: nn.Module) -> MREN:
    net = load_mren(scale)
    for block in net.modules():
        if isinstance(block, DRACB):
            block.communication = channel
    return net


@torch.inference_mode()
def fidelity(net: MREN, scale: int) -> dict[str, float]:
    scores = {}
    for name in PHOTOGRAPHS:
        small, original = pair(name, scale)
        scores[name] = psnr(to_uint8(net(small)[0]), original, scale)
    return scores


def measure() -> None:
    numbers: dict = {"photographs": PHOTOGRAPHS, "seeds": SEEDS}
    substitutes = {
        "the map": lambda m: m,
        "nothing": lambda m: 0 * m,
        "its mean per channel": lambda m: m.mean((2, 3), keepdim=True),
        "the map less its mean": lambda m: m - m.mean((2, 3), keepdim=True),
        "the map, mirrored": lambda m: m.flip(3),
        "the map, channels shifted by one": lambda m: m.roll(1, dims=1),
    }
    for scale in SCALES:
        numbers[f"x{scale}"] = {
            "correlation": correlations(scale),
            "reach": reach(scale),
            "psnr by W": {
                f"{weight:g}": fidelity(with_channel(scale, Substitute(substitutes["the map"], weight)), scale)
                for weight in WEIGHTS
            },
            "psnr instead": {
                what: fidelity(with_channel(scale, Substitute(make)), scale) for what, make in substitutes.items()
            },
        }
    write_numbers(NAME, numbers)


def draw_maps(theme: str) -> Figure:
    name, block, window = SHOWN
    image = pair(name, 4)[0][0]
    attention = collect_attention(load_mren(4), image, [block - 1])
    maps, masks = attention.maps[0], attention.masks[0]
    tables = [crossed(*p).diagonal() for p in neighbours([maps])]
    # The channels with the highest, the median and the lowest correlation of neighbours.
    order = torch.stack(tables).mean(0).argsort(descending=True)
    chosen = [int(order[place]) for place in (0, len(order) // 2, -1)]
    figure = Figure((WIDTH, 4.9), layout="constrained")
    grid = figure.subplots(4, 5)
    options = {"interpolation": "none"}  # one pixel in the file per pixel of the map
    signed, magma = (colormaps[name].resampled(24) for name in ("RdBu_r", "magma"))  # few colours, small files
    grid[0, 0].imshow(image[:, window[0], window[1]].permute(1, 2, 0), **options)
    grid[0, 0].set_title("input")
    for row, channel in enumerate(chosen):
        limit = max(m[channel].abs().quantile(0.99).item() for m in maps)
        for column, map_ in enumerate(maps, 1):
            grid[row, column].imshow(map_[channel][window], cmap=signed, clim=(-limit, limit), **options)
            if column > 1:
                grid[row, column].set_xlabel(f"r = {tables[column - 2][channel]:+.2f}".replace("-", "−"))
        grid[row, 1].set_ylabel(f"channel {channel}")
    for column, mask in enumerate(masks, 1):
        grid[3, column].imshow(mask.mean(0)[window], cmap=magma, clim=(0.2, 0.8), **options)
        grid[0, column].set_title(f"DRACB {column}")
    grid[3, 1].set_ylabel("masks, mean")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return figure


def draw_weights(theme: str) -> Figure:
    numbers = read_numbers(NAME)
    figure = Figure((WIDTH, 3.2), layout="constrained")
    for axes, scale in zip(figure.subplots(1, 2, sharey=False), SCALES, strict=True):
        table = numbers[f"x{scale}"]["psnr by W"]
        for kind, dashes, name in zip(KINDS, LINESTYLES, PHOTOGRAPHS, strict=False):
            values = [table[f"{weight:g}"][name] - table["0.2"][name] for weight in WEIGHTS]
            axes.plot(WEIGHTS, values, color=line(theme, kind), linestyle=dashes, label=name)
        axes.axvline(0.2, color=line(theme, "quiet"), linewidth=1)
        axes.set(title=f"×{scale}", xlabel="W at inference", xticks=(0, 0.2, 0.4, 0.6, 0.8, 1))
    figure.axes[0].set_ylabel("PSNR, dB, less that at W = 0.2")
    figure.axes[0].legend()
    return figure


def draw_correlation(theme: str) -> Figure:
    numbers = read_numbers(NAME)
    rows = [("neighbours", "same_abs", "neighbours in a chain")]
    rows += [("neighbours", "shuffled_abs", "the same, channels shuffled")]
    rows += [("across MREBs", "same_abs", "from MREB to MREB"), ("random weights", "same_abs", "random weights")]
    rows += [("mirrored", "same_abs", "one of the two mirrored")]
    figure = Figure((WIDTH, 2.9), layout="constrained")
    for axes, scale in zip(figure.subplots(1, 2, sharey=True), SCALES, strict=True):
        table = numbers[f"x{scale}"]["correlation"]
        for place, (what, key, _) in enumerate(rows):
            kind = "exchange" if place == 0 else "op"
            axes.barh(place, table[what][key], color=line(theme, kind), height=0.6)
            axes.text(table[what][key] + 0.01, place, f"{table[what][key]:.2f}", va="center")
        axes.set(title=f"×{scale}", xlabel="mean of |r|", xlim=(0, 0.75))
        axes.set_yticks(range(len(rows)), [label for *_, label in rows])
        axes.grid(visible=False, axis="y")
    figure.axes[0].invert_yaxis()
    return figure


def draw() -> None:
    write(
        "attention_maps",
        "Maps of the four DRACBs of the first MREB",
        "Three channels of the maps of the four DRACBs of MREB 1, from the weights of ×4, on the photograph "
        "astronaut, and below them the masks, averaged over the channels. Below each map stands its correlation "
        "with the one before.",
        draw_maps,
    )
    write(
        "attention_correlation",
        "Correlation of neighbouring maps beside controls",
        "Bars of the mean absolute correlation between maps: neighbours in a chain, the same with the channels "
        "shuffled, the last of an MREB and the first of the next, neighbours in networks with random weights, and "
        "neighbours of which one saw the photograph mirrored; for the weights of ×4 and of ×2.",
        draw_correlation,
    )
    write(
        "attention_weight",
        "PSNR over the weight W at inference",
        "Two plots, for ×4 and ×2: PSNR on four photographs less that at W = 0.2, over W from 0 to 1. All curves "
        "are flat from 0 to 0.4 and fall towards 1.",
        draw_weights,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    command(arguments, __doc__, measure, draw)


if __name__ == "__main__":
    main()
