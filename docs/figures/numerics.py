"""Measure rounding errors: of the statistics by several formulas, of half precision, and of folding.

``python -m docs.figures.numerics`` draws from ``measured/numerics.json``; ``--measure`` first regenerates that file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from docs.figures.plotting import KINDS, LINESTYLES, WIDTH, command, line, pair, read_numbers, write, write_numbers
from examples.mren.fold import fold_mren
from examples.mren.model import load_mren
from sc_blocks.deploy import fold
from sc_blocks.wsilb import map_statistics

NAME = "numerics"
MEANS = [0.0, *(float(10**exponent) for exponent in range(6))]


def one_pass(x: Tensor) -> Tensor:
    """Mean of the squares minus square of the mean."""
    return (x.square().mean((2, 3)) - x.mean((2, 3)).square()).clamp_min(0).sqrt()


def two_pass(x: Tensor) -> Tensor:
    """Root of the mean squared deviation."""
    return (x - x.mean((2, 3), keepdim=True)).square().mean((2, 3)).sqrt()


FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype]] = {
    "one pass, float32": (one_pass, torch.float32),
    "two passes, float32": (two_pass, torch.float32),
    "two passes, float16": (two_pass, torch.float16),
    "two passes in float32 of a float16 map": (lambda x: two_pass(x.float()), torch.float16),
}


def statistics() -> dict[str, list[float | None]]:
    """Relative error of the standard deviation, by the mean in units of the standard deviation."""
    torch.manual_seed(0)
    noise = torch.randn(1, 64, 48, 48, dtype=torch.float64)
    table: dict[str, list[float | None]] = {}
    for name, (formula, dtype) in FORMULAS.items():
        table[name] = []
        for mean in MEANS:
            x = (noise + mean).to(dtype)  # rounding of the map itself does not count as an error
            exact = two_pass(x.double())
            error = ((formula(x).double() - exact).abs() / exact).mean().item()
            table[name].append(error if error == error and error != float("inf") else None)
    return table


def overflow() -> list[dict[str, float | None]]:
    """Contrast, mean plus standard deviation, of float16 maps with growing spread."""
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 256, 256, dtype=torch.float64)
    rows = []
    for spread in (10.0, 100.0, 200.0, 300.0, 1000.0):
        x = (noise * spread).half()
        contrast, _ = map_statistics(x, 1e-6)
        naive = x.mean((2, 3)) + two_pass(x)
        rows.append({"spread": spread, "naive": naive.item() if naive.isfinite() else None, "ours": contrast.item()})
    return rows


def levels(actual: Tensor, expected: Tensor) -> dict[str, float]:
    """Differences in levels of 8-bit images."""
    difference = (actual.double() - expected.double()).abs() * 255
    rounded = (actual.float() * 255).round() != (expected.float() * 255).round()
    return {
        "largest": difference.max().item(),
        "mean": difference.mean().item(),
        "other level": rounded.double().mean().item(),
    }


def network() -> dict[str, dict[str, float]]:
    """Errors of MREN ×4 by how it is run: relative to float64, or to float32 for batching and block folding."""
    net = load_mren(4)
    image = pair("chelsea", 4)[0][:, :, 14:62, 30:94]
    with torch.inference_mode():
        exact = load_mren(4).double()(image.double())
        table = {
            "float32": levels(net(image), exact),
            "float32, folded": levels(fold_mren(net)(image), exact),
            "bfloat16": levels(load_mren(4).bfloat16()(image.bfloat16()), exact),
            "float16": levels(load_mren(4).half()(image.half()), exact),
            "bfloat16 autocast": {},
        }
        with torch.autocast("cpu", dtype=torch.bfloat16):
            table["bfloat16 autocast"] = levels(net(image), exact)
        batch = torch.cat([image, image.flip(3)])
        table["batch of 2"] = levels(net(batch)[:1], net(image))
        table["folded from unfolded"] = levels(fold(net)(image), net(image))
    return table


def measure() -> None:
    write_numbers(
        NAME,
        {"means": MEANS, "statistics": statistics(), "overflow": overflow(), "network": network()},
    )


def draw_statistics(theme: str) -> Figure:
    numbers = read_numbers(NAME)
    figure = Figure((WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    for kind, dashes, (name, errors) in zip(KINDS, LINESTYLES, numbers["statistics"].items(), strict=False):
        shown = [(max(mean, 0.3), error) for mean, error in zip(numbers["means"], errors, strict=True) if error]
        axes.plot(
            *zip(*shown, strict=True), color=line(theme, kind), linestyle=dashes, marker="o", markersize=4, label=name
        )
    axes.set(xscale="log", yscale="log", xlabel="mean of the map, in standard deviations", ylabel="relative error")
    axes.set_xticks([0.3, 1, 10, 100, 1e3, 1e4, 1e5], ["0", "1", "10", "100", "10³", "10⁴", "10⁵"])
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw() -> None:
    write(
        "numerics_statistics",
        "Error of the standard deviation by formula and type",
        "Relative error of the standard deviation over the mean of the map. In one pass in float32 the error grows "
        "with the square of the mean; in two passes it stays near the rounding of float32 until the mean itself is "
        "far away; in float16 it is a thousand times as large from the start.",
        draw_statistics,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    command(arguments, __doc__, measure, draw)


if __name__ == "__main__":
    main()
