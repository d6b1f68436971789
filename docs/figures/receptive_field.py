"""Measure the effective receptive field of SCACB's parts and of MREN by gradients of the centre.

``python -m docs.figures.receptive_field`` draws from ``measured/receptive_field.json`` and ``.npz``; ``--measure``
first regenerates these, in a few minutes on one core.

``gradients.py`` defines energy and distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from docs.figures.gradients import energy, hold_gates, radii, rings, support
from docs.figures.plotting import (
    KINDS,
    LINESTYLES,
    MEASURED,
    PHOTOGRAPHS,
    WIDTH,
    command,
    line,
    read_numbers,
    write,
    write_numbers,
)
from docs.figures.theme import THEMES
from examples.mren.data import imresize, mod_crop, photograph
from examples.mren.model import MREN, load_mren
from sc_blocks import MREB, SCACB

NAME = "receptive_field"
SIDE = 129  # of the crops, in pixels; the theoretical field of MREN at ×4 is 81
CROPS = 2  # of each photograph
BLOCKS = 20  # fresh SCACBs of each kind
FORMS = {
    "outputs": {},
    "inputs": {"exchange": "inputs"},
    "none": {"exchange": None},
    "spatial": {"parts": "spatial"},
    "channel": {"parts": "channel"},
}


def crops() -> list[Tensor]:
    """Crops of the photographs, downscaled by 2 so that they are as sharp as the network's usual inputs."""
    found = []
    for name in PHOTOGRAPHS:
        small = imresize(mod_crop(photograph(name), 2), 1 / 2)
        height, width = small.shape[1:]
        for number in range(CROPS):
            top, left = (height - SIDE) * number // max(1, CROPS - 1), (width - SIDE) * number // max(1, CROPS - 1)
            found.append(small[None, :, top : top + SIDE, left : left + SIDE].float() / 255)
    return found


def correction(net: MREN) -> Callable[[Tensor], Tensor]:
    """What MREN adds to the bicubic enlargement."""
    return lambda x: net(x) - F.interpolate(x, scale_factor=net.scale, mode="bicubic", align_corners=False)


def fresh(scale: int, seed: int) -> MREN:
    torch.manual_seed(seed)
    return MREN(scale).eval()


def mean_field(network: Callable[[int], Callable[[Tensor], Tensor]], images: Sequence[Tensor]) -> Tensor:
    """Mean of the fields of several images, with equal weights."""
    fields = [energy(network(number), image, number) for number, image in enumerate(images)]
    return torch.stack([field / field.sum() for field in fields]).mean(0)


def blocks(features: list[Tensor], trained: MREN) -> dict[str, dict[str, list[float]]]:
    """Share of the energy of SCACB's correction at the distances 0, 1 and 2."""
    table: dict[str, dict[str, list[float]]] = {"random": {}, "trained": {}}

    def shares(fields: list[Tensor]) -> list[float]:
        total = torch.stack([rings(field)[:4] for field in fields]).sum(0)
        return (total / total.sum()).tolist()

    for form, options in FORMS.items():
        fields = []
        for seed in range(BLOCKS):
            torch.manual_seed(seed)
            block = SCACB(60, residual=False, **options)
            fields.append(energy(block, torch.randn(1, 60, 11, 11), seed))
        table["random"][form] = shares(fields)

    stages = [stage for module in trained.body for stage in module.stages]
    for kind in ("both", "spatial", "channel"):
        fields = []
        for number, (stage, seen) in enumerate(zip(stages, features, strict=True)):
            other = {"spatial": stage.channel, "channel": stage.spatial}.get(kind)
            hooks = [
                other[name].register_forward_hook(lambda *args: args[2].detach())
                for name in (("conv1", "conv3", "conv5") if other else ())
            ]
            for seed in range(4):
                top, left = 8 + 20 * seed, 12 + 16 * seed
                piece = seen[:, :, top : top + 11, left : left + 11]
                fields.append(energy(lambda x, stage=stage: stage(x) - x, piece, 10 * number + seed))
            for hook in hooks:
                hook.remove()
        table["trained"][kind] = shares(fields)
        table["trained"][f"{kind}, energy"] = [float(torch.stack(fields).sum())]
    return table


def mixing(trained: MREN) -> dict[str, list[float]]:
    """Share of the energy that each level of a part reads from its own channel of the compressed features."""
    own: dict[str, list[list[float]]] = {"spatial": [], "channel": []}
    for module in trained.body:
        for stage in module.stages:
            for name, shares in own.items():
                part, x = getattr(stage, name), torch.randn(1, 10, 11, 11, requires_grad=True)
                levels = []
                level3 = part["act"](part["conv3"](x))
                for level in (part["act"](part["conv1"](x)), level3, part["act"](part["conv5"](level3))):
                    table = torch.stack(
                        [
                            torch.autograd.grad(level[0, c, 5, 5], x, retain_graph=True)[0][0].square().sum((1, 2))
                            for c in range(10)
                        ]
                    )
                    levels.append((table.diagonal().sum() / table.sum()).item())
                shares.append(levels)
    return {name: torch.tensor(shares).mean(0).tolist() for name, shares in own.items()}


def seen_by_stages(net: MREN, image: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    hooks = [
        stage.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        for module in net.body
        if isinstance(module, MREB)
        for stage in module.stages
    ]
    with torch.no_grad():
        net.body(net.head(image))
    for hook in hooks:
        hook.remove()
    return seen


def measure() -> None:
    images = crops()
    torch.manual_seed(0)
    noise = [torch.rand(1, 3, SIDE, SIDE) for _ in range(4)]
    trained = {scale: load_mren(scale).requires_grad_(False) for scale in (4, 2)}
    numbers: dict = {"side": SIDE, "images": len(images), "networks": {}}
    numbers["blocks"] = blocks(seen_by_stages(trained[4], images[0]), trained[4])
    numbers["mixing"] = mixing(trained[4])
    rows: dict[str, tuple[int, Callable, list[Tensor]]] = {}
    for scale, net in trained.items():
        rows[f"x{scale}, trained"] = scale, lambda _, net=net: net, images
        rows[f"x{scale}, trained, correction"] = scale, lambda _, net=net: correction(net), images
    rows["x4, trained, correction, noise"] = 4, lambda _: correction(trained[4]), noise
    rows["x4, random, correction"] = 4, lambda seed: correction(fresh(4, seed)), images
    rows["x2, random, correction"] = 2, lambda seed: correction(fresh(2, seed)), images
    maps = {}
    reach = {scale: support(load_mren(scale), images[0]) for scale in trained}
    for name, (scale, network, inputs) in rows.items():
        field = mean_field(network, inputs)
        outside = rings(field)[reach[scale] + 1 :].sum()
        count = SIDE**2 - (2 * reach[scale] + 1) ** 2
        numbers["networks"][name] = {
            "radii": radii(field),
            "support": reach[scale],
            "outside": float(outside),
            "per pixel outside, of the centre": float((outside / count / field[SIDE // 2, SIDE // 2]).sqrt()),
            "rings": rings(field).tolist(),
        }
        maps[name] = field
        print(name, numbers["networks"][name]["radii"], float(outside), flush=True)
    held = hold_gates(load_mren(4).requires_grad_(False))
    numbers["networks"]["x4, trained, correction, gates held"] = {
        "radii": radii(field := mean_field(lambda _: correction(held), images[::2])),
        "support": reach[4],
        "outside": float(rings(field)[reach[4] + 1 :].sum()),
        "rings": rings(field).tolist(),
    }
    write_numbers(NAME, numbers)
    shown = {name: maps[f"{name}, correction"] for name in ("x4, trained", "x4, random", "x2, trained")}
    # Powers of ten in steps of 1/20, 0 for 1e-12 and below: enough for a picture.
    steps = {name: (20 * (field.clamp_min(1e-12).log10() + 12)).round().byte().numpy() for name, field in shown.items()}
    np.savez_compressed(MEASURED / f"{NAME}.npz", **steps)


def per_pixel(energies: Sequence[float]) -> np.ndarray:
    """Mean energy of a pixel at each distance, 1 at the centre."""
    energies = np.array(energies)
    counts = np.array([1] + [8 * distance for distance in range(1, len(energies))])
    return energies / counts / energies[0]


def draw_maps(theme: str) -> Figure:
    numbers = read_numbers(NAME)["networks"]
    figure = Figure((WIDTH, 2.9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)  # otherwise titles are cut in fonts with taller letters
    with np.load(MEASURED / f"{NAME}.npz") as maps:
        titles = dict(zip(maps.files, ("×4, trained", "×4, random weights", "×2, trained"), strict=True))
        for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
            logs = maps[name] / 20 - 12
            image = axes.imshow(logs - logs.max(), cmap="magma", norm=Normalize(-8, 0), interpolation="nearest")
            half = SIDE // 2
            reach = numbers[f"{name}, correction"]["support"]
            corner = half - reach - 0.5
            frame = {"width": 2 * reach + 1, "height": 2 * reach + 1, "fill": False, "linewidth": 1.2}
            axes.add_patch(Rectangle((corner, corner), edgecolor="#ffffff", linestyle="--", **frame))
            axes.set(title=title, xticks=[0, half, SIDE - 1], yticks=[])
            axes.set_xticklabels([f"−{half}", "0", f"{half}"])
            axes.grid(visible=False)
    bar = figure.colorbar(image, ax=figure.axes, location="bottom", aspect=40, shrink=0.7)
    bar.set_label("energy of a pixel, of the largest, powers of ten")
    return figure


def draw_profile(theme: str) -> Figure:
    numbers = read_numbers(NAME)["networks"]
    figure = Figure((WIDTH, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = {
        "x4, trained, correction": "×4, trained",
        "x2, trained, correction": "×2, trained",
        "x4, random, correction": "×4, random weights",
        "x4, trained, correction, gates held": "×4, trained, gates held",
    }
    for kind, dashes, (name, label) in zip(KINDS, LINESTYLES, shown.items(), strict=False):
        energies = np.array(numbers[name]["rings"])
        profile = per_pixel(energies)
        options = {"color": line(theme, kind), "linestyle": dashes, "label": label}
        left.plot(np.where(profile > 0, profile, np.nan), **options)
        right.plot(energies.cumsum() / energies.sum(), **options)
    reach = numbers["x4, trained, correction"]["support"]
    left.axvline(reach, color=line(theme, "quiet"), linewidth=1)
    left.annotate(
        "convolutions end", (reach, 1), (-4, -2), textcoords="offset points", ha="right", va="top", fontsize=8.5
    )
    # The line with the gates held keeps falling, by a power of ten every one or two pixels.
    left.set(yscale="log", xlim=(0, 64), ylim=(1e-14, 3))
    left.set(xlabel="distance, pixels of the input", ylabel="energy of a pixel, centre = 1")
    right.set(xlabel="distance, pixels of the input", ylabel="share of the energy within")
    right.set(xlim=(0, 12), xticks=(0, 4, 8, 12), ylim=(0, 1.02))
    right.legend(loc="lower right")
    return figure


def draw_blocks(theme: str) -> Figure:
    table = read_numbers(NAME)["blocks"]["random"]
    labels = ["both, outputs", "both, inputs", "both, none", "spatial only", "channel only"]
    figure = Figure((WIDTH, 2.5), layout="constrained")
    axes = figure.subplots()
    start = np.zeros(len(labels))
    for distance, kind in enumerate(("conv", "depthwise", "gate")):
        share = np.array([row[distance] for row in table.values()])
        fill, edge = THEMES[theme][kind]
        label = ("distance 0", "distance 1", "distance 2")[distance]
        axes.barh(labels, share, left=start, color=fill, edgecolor=edge, linewidth=1.5, height=0.62, label=label)
        for row, (begin, width) in enumerate(zip(start, share, strict=True)):
            if width > 0.05:
                axes.text(begin + width / 2, row, f"{100 * width:.0f} %", ha="center", va="center")
        start += share
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlim=(0, 1), xticks=[])
    axes.spines[:].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw() -> None:
    write(
        "receptive_blocks",
        "What the correction of a fresh SCACB reads",
        "Bars for five kinds of SCACB: the exchange at the outputs, at the inputs and nowhere, the spatial part "
        "alone and the channel part alone. Each is divided into the shares of the energy at the distances 0, 1 and "
        "2.",
        draw_blocks,
    )
    write(
        "receptive_maps",
        "What MREN's correction of one pixel reads",
        "Three maps of the energy around the centre, on a scale of powers of ten: the weights of ×4, random weights "
        "at ×4 and the weights of ×2. A dashed square marks how far the convolutions reach. Outside of it the "
        "energy is small and nowhere zero.",
        draw_maps,
    )
    write(
        "receptive_profile",
        "Energy over the distance from the centre",
        "Left, energy of a pixel over its distance, on a scale of powers of ten: it falls steeply over the first "
        "pixels, then slowly, and levels off at a floor. With the gates held it ends where the convolutions end. "
        "Right, the share of the energy within a distance.",
        draw_profile,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    command(arguments, __doc__, measure, draw)


if __name__ == "__main__":
    main()
