"""Plots of what was measured: pages print the committed numbers, and what is cheap to measure gives them again."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from benchmarks import results
from examples.mren.model import load_mren
from examples.timing import ratio
from sc_blocks import SCACB, WSILBV

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
MEASURED = FIGURES / "measured"
PAGES = ROOT / "docs" / "explanation"
PLOTS = sorted(MEASURED.glob("*.svg"))


def script(name: str):
    sys.path.insert(0, str(FIGURES))  # the scripts find each other there
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FIGURES))


plotting = script("plotting")


def row(page: str, label: str, after: str = "") -> list[str]:
    """Cells of the row of a table that begins with a label, the first behind a piece of text."""
    text = (PAGES / f"{page}.md").read_text()
    text = text[text.index(after) :]
    (cells, *_) = re.findall(rf"^\| {re.escape(label)} \|(.*)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in cells.split("|")]


def same(cell: str, value: float) -> bool:
    """Whether a cell is a number, rounded to as many digits as it shows."""
    shown = cell.replace("−", "-").removesuffix("%").strip().replace(",", "")
    scale = 100 if cell.endswith("%") else 1
    mantissa, _, exponent = shown.partition("e")
    digits = len(mantissa.partition(".")[2])
    step = 10.0 ** (int(exponent or 0) - digits)
    return abs(float(shown) - scale * value) <= 0.51 * step + 1e-12


def alike(cells: Iterable[str], values: Iterable[float]) -> bool:
    """Whether a row shows these values, one in each cell."""
    return all(same(cell, value) for cell, value in zip(cells, values, strict=True))


# The plots


def test_every_plot_is_on_a_page_in_both_themes() -> None:
    shown = {}
    for page in PAGES.glob("*.md"):
        images = re.findall(r"```\{image\} \.\./figures/measured/(\S+)\n(.*?)```", page.read_text(), re.DOTALL)
        for (light, rest), (dark, dark_rest) in zip(images[::2], images[1::2], strict=True):
            assert (light, dark) == (light, light.replace(".light.", ".dark."))
            assert ":class: only-light\n" in rest
            assert rest.replace("only-light", "only-dark") == dark_rest
            shown |= {light: page, dark: page}
    assert shown.keys() == {file.name for file in PLOTS}


# Attention maps


def mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def test_attention_on_the_page_is_the_measured_one() -> None:
    numbers = plotting.read_numbers("attention_passing")
    networks = numbers["x4"], numbers["x2"]
    rows = {
        "neighbours in a chain": ("neighbours", "same"),
        "the same, channels shuffled": ("neighbours", "shuffled"),
        "from MREB to MREB": ("across MREBs", "same"),
        "random weights": ("random weights", "same"),
        "one of the two mirrored": ("mirrored", "same"),
    }
    for label, (what, key) in rows.items():
        values = [network["correlation"][what][name] for network in networks for name in (key, f"{key}_abs")]
        assert alike(row("attention-passing", label), values), label
    for label, key in {
        "added term relative to the map (root mean square)": "share of the map",
        "mean change of the mask (0 to 1)": "change of the mask",
    }.items():
        assert alike(row("attention-passing", label), [network["reach"][key] for network in networks]), label
    for scale, network in zip((4, 2), networks, strict=True):
        for weight in ("0", "0.2", "1"):
            scores = network["psnr by W"][weight]
            cells = row("attention-passing", f"W = {weight}", f"| ×{scale}, PSNR in dB |")
            assert alike(cells, [*scores.values(), mean(scores)]), (scale, weight)
    for what in numbers["x4"]["psnr instead"]:
        cells = row("attention-passing", what, "| PSNR in dB, mean of the four |")
        assert alike(cells, [mean(network["psnr instead"][what]) for network in networks]), what


def test_correlations_are_as_measured() -> None:
    numbers, module = plotting.read_numbers("attention_passing"), script("attention_passing")
    a, b = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = torch.corrcoef(torch.cat([a.flatten(1), b.flatten(1)]))[:3, 3:]
    torch.testing.assert_close(module.crossed(a, b), expected)
    table = module.summary([(a, b)])
    assert table["same"] == pytest.approx(expected.diagonal().mean().item())
    assert table["shuffled"] == pytest.approx(((expected.sum() - expected.trace()) / 6).item())
    net = load_mren(4)
    found = module.averaged(
        [module.summary(module.neighbours(module.look(net, name, 4).maps)) for name in numbers["photographs"]]
    )
    assert found == pytest.approx(numbers["x4"]["correlation"]["neighbours"], abs=2e-3)


# Receptive fields


def test_receptive_fields_on_the_page_are_the_measured_ones() -> None:
    numbers = plotting.read_numbers("receptive_field")
    networks = {
        "MREN ×4, trained": "x4, trained",
        "MREN ×2, trained": "x2, trained",
        "its correction, on uniform noise": "x4, trained, correction, noise",
        "its correction, gates held": "x4, trained, correction, gates held",
        "MREN ×4, random weights, correction": "x4, random, correction",
        "MREN ×2, random weights, correction": "x2, random, correction",
    }
    for label, name in networks.items():
        *radii, outside = row("receptive-field", label)
        assert [int(cell) for cell in radii] == numbers["networks"][name]["radii"], label
        assert same(outside, numbers["networks"][name]["outside"]), label
    for scale in (4, 2):
        *radii, outside = row("receptive-field", "its correction of bicubic", f"MREN ×{scale}, trained |")
        found = numbers["networks"][f"x{scale}, trained, correction"]
        assert [int(cell) for cell in radii] == found["radii"]
        assert same(outside, found["outside"])
    blocks = numbers["blocks"]
    rows = {
        "both parts, exchange at the outputs (default)": blocks["random"]["outputs"],
        "both parts, exchange at the inputs": blocks["random"]["inputs"],
        "both parts, no exchange": blocks["random"]["none"],
        "spatial part only": blocks["random"]["spatial"],
        "channel part only": blocks["random"]["channel"],
        "*trained, MREN ×4*": blocks["trained"]["both"],
        "*trained, through the spatial levels only*": blocks["trained"]["spatial"],
        "*trained, through the channel levels only*": blocks["trained"]["channel"],
    }
    for label, shares in rows.items():
        assert alike(row("receptive-field", label), shares[:3]), label
        assert shares[3] == 0
    assert alike(row("receptive-field", "channel part, trained"), numbers["mixing"]["channel"])
    ratio = blocks["trained"]["channel, energy"][0] / blocks["trained"]["spatial, energy"][0]
    assert round(ratio) == 11


def test_the_parts_of_scacb_look_as_far_as_measured() -> None:
    module = script("receptive_field")
    torch.manual_seed(0)
    for options in module.FORMS.values():
        field = module.energy(SCACB(12, residual=False, **options), torch.randn(1, 12, 11, 11), 0)
        rings = module.rings(field)
        assert rings[2] > 0
        assert not rings[3:].any()
    assert module.radii(field) == [
        int((rings.cumsum(0) / rings.sum() < share).sum()) for share in script("gradients").SHARES
    ]


@pytest.mark.parametrize("scale", [2, 4])
def test_convolutions_of_mren_reach_as_far_as_the_page_says(scale: int) -> None:
    # In float64 and on a strip: deep in the field the derivatives are too small for float32 squared.
    module = script("receptive_field")
    net = load_mren(scale).double()
    reach = plotting.read_numbers("receptive_field")["networks"][f"x{scale}, trained"]["support"]
    image = torch.rand(1, 3, 5, 2 * reach + 7, dtype=torch.float64)
    assert (module.energy(net, image, 0) > 0).all()  # global statistics: everything counts
    assert module.rings(module.energy(module.hold_gates(net), image, 0)).nonzero().max() == reach
    assert sum(isinstance(block, WSILBV) for block in load_mren(4).modules()) == 8


# Numerics


def test_rounding_on_the_page_is_the_measured_one() -> None:
    numbers = plotting.read_numbers("numerics")
    for found in numbers["overflow"]:
        naive, ours = row("numerics", f"{found['spread']:g}")
        assert (naive == "inf") == (found["naive"] is None)
        assert same(ours, found["ours"])
    rows = {
        "in a batch of 2, against alone": "batch of 2",
        "folded, against unfolded": "folded from unfolded",
        "float32": "float32",
        "float32, folded with `fold_mren`": "float32, folded",
        "float16 throughout": "float16",
        "bfloat16 autocast": "bfloat16 autocast",
        "bfloat16 throughout": "bfloat16",
    }
    for label, name in rows.items():
        assert alike(row("numerics", label), numbers["network"][name].values()), label


def test_formulas_of_the_standard_deviation_err_as_measured() -> None:
    numbers, module = plotting.read_numbers("numerics"), script("numerics")
    for name, errors in module.statistics().items():
        for now, then in zip(errors, numbers["statistics"][name], strict=True):
            # Sums are taken in another order by other processors: the size counts.
            assert (now is None) == (then is None)
            assert now is None or then / 10 < now < 10 * then, name
    assert [found["naive"] is None for found in module.overflow()] == [
        found["naive"] is None for found in numbers["overflow"]
    ]


@pytest.mark.parametrize("name", ["scores", "jpeg"])
def test_the_tables_of_shipped_weights_are_the_committed_numbers(name: str) -> None:
    module = importlib.import_module(f"docs.figures.{name}")
    for file, text in module.tables().items():
        assert (module.TABLES / file).read_text() == text, file


def test_what_the_parts_of_trained_blocks_mix() -> None:
    torch.manual_seed(0)
    measured = plotting.read_numbers("receptive_field")["mixing"]
    again = script("receptive_field").mixing(load_mren(4).requires_grad_(False))
    for part, shares in measured.items():
        assert again[part] == pytest.approx(shares, abs=0.03), part


def test_the_times_on_a_gpu_are_those_of_the_results() -> None:
    rows = results.read(results.FOLDER / "cuda.json")["suites"]["gpu"]["rows"]
    by_form = {row["form"]: row for row in rows if row["name"] == "MREN ×4" and "seconds" in row}
    plain = by_form["channels_last, bf16"]["seconds"]["median"]
    graph = by_form["channels_last, bf16, CUDA graph"]["seconds"]["median"]
    best = by_form["channels_last, bf16, compiled blocks, CUDA graph"]
    page = " ".join((ROOT / "docs" / "how-to" / "gpu.md").read_text().split())
    assert f"takes {1e3 * graph:.1f} ms instead of {1e3 * plain:.0f} ms" in page
    assert f"{1e3 * best['seconds']['median']:.1f} ms, {best['frames_per_second']:.0f} frames per second" in page
    readme = (ROOT / "README.md").read_text()
    assert f"[{best['frames_per_second']:.0f} frames](docs/how-to/gpu.md)" in readme
    imdn = [row.get("frames_per_second") for row in rows if row["name"] == "IMDN ×4" and "CUDA graph" in row["form"]]
    (most,) = filter(None, imdn)  # not compiled: the other forms were skipped
    assert f"not compiled, as a CUDA graph: {most:.0f})" in readme


def test_what_local_statistics_cost_is_what_was_timed() -> None:
    rows = results.read(results.FOLDER / "cpu_all.json")["suites"]["nets"]["rows"]
    rounds = {row["form"]: row["rounds"] for row in rows if row["name"] == "MREN ×4"}
    page = " ".join((ROOT / "docs" / "how-to" / "local-statistics.md").read_text().split())
    eager, folded = (
        ratio(rounds[local], rounds[whole_map]).median
        for whole_map, local in {"eager": "local", "folded": "local, folded"}.items()
    )
    assert f"MREN ×4 takes [{eager:.2f} times as long]" in page
    assert f"and folded {folded:.2f} times." in page


def test_every_image_gains_by_self_ensemble_as_said() -> None:
    scores = plotting.read_numbers("scores")["orientations"]
    assert all(found["eight"]["least"] > 0 for found in scores.values())
    gains = {name: found["eight"]["psnr"] - found["one"]["psnr"] for name, found in scores.items()}
    guide = " ".join((ROOT / "examples" / "mren" / "README.md").read_text().split())
    assert f"[{min(gains.values()):.2f} to {max(gains.values()):.2f} dB better](" in guide


def test_what_is_said_of_the_weights_for_photographs_is_measured() -> None:
    numbers = plotting.read_numbers("jpeg")
    losses = [
        found["clean"]["clean"] - found["clean"]["photo"] for scale in numbers.values() for found in scale.values()
    ]
    page = (ROOT / "docs" / "how-to" / "photographs.md").read_text()
    assert f"on clean images they lose {min(losses):.2f} to {max(losses):.2f} dB" in page
