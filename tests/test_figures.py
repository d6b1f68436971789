"""The figures of the documentation: written by their script, shown on a page, readable in both themes, true to code."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from sc_blocks import DRACB, MREB, RBWA, SCACB, WSILB, WSILBV

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
FILES = sorted(FIGURES.glob("*.svg"))
PAGE = {"light": "#ffffff", "dark": "#131416"}  # furo's backgrounds
SVG = "{http://www.w3.org/2000/svg}"


@cache
def drawing(file: Path) -> ET.Element:
    return ET.parse(file).getroot()


@cache
def elements(file: Path, name: str, kind: str = "") -> list[ET.Element]:
    return [e for e in drawing(file).iter(SVG + name) if kind in e.get("class", "").split() or not kind]


def number(element: ET.Element, *names: str) -> list[float]:
    return [float(element.get(name, "nan")) for name in names]


def contrast(first: str, second: str) -> float:
    """Ratio of WCAG 2: from 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


def background(file: Path, x: float, y: float) -> str:
    """Colour under a point: of the box there, or else the panel, or else the page."""
    for kind in ("box", "panel"):
        for each in elements(file, "rect", kind):
            left, top, width, height = number(each, "x", "y", "width", "height")
            if left < x < left + width and top < y < top + height:
                return each.get("fill", "")
        for each in elements(file, "circle", kind):
            cx, cy, r = number(each, "cx", "cy", "r")
            if math.dist((x, y), (cx, cy)) < r:
                return each.get("fill", "")
    return PAGE[file.name.split(".")[1]]


def test_the_script_writes_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FIGURES / "draw.py", "--out", tmp_path], check=True, capture_output=True)
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert written.keys() == {file.name for file in FILES}
    for file in FILES:
        assert written[file.name] == file.read_bytes(), f"{file.name}: run python -m docs.figures.draw"


def test_every_figure_is_on_a_page_in_both_themes() -> None:
    shown = set()
    for page in (ROOT / "docs").glob("**/*.md"):
        text = page.read_text()
        images = re.findall(r"```\{image\} (\S+)/([\w.]+\.svg)\n(.*?)```", text, re.DOTALL)
        found = [(file, rest) for folder, file, rest in images if folder.endswith("figures")]
        for (first, first_rest), (second, second_rest) in zip(found[::2], found[1::2], strict=True):
            name = first.removesuffix(".light.svg")
            assert (first, second) == (f"{name}.light.svg", f"{name}.dark.svg"), page
            assert (FIGURES / first).exists(), first
            # What differs is which theme shows it; the text for those who cannot see it is the same.
            assert ":class: only-light\n" in first_rest
            assert first_rest.replace("only-light", "only-dark") == second_rest, first
            (alternative,) = re.findall(r'^:alt: "?(.*?)"?$', first_rest, re.MULTILINE)
            assert alternative
            shown.add(name)
    assert shown == {file.name.split(".")[0] for file in FILES}


def check_readable(file: Path) -> None:
    """Hold a figure to the contrasts of WCAG 2 and to a description for those who do not see it."""
    root = drawing(file)
    title, description = list(root)[:2]
    assert (title.tag, description.tag) == (SVG + "title", SVG + "desc")
    assert (title.text or "").strip()
    assert (description.text or "").strip()
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    for text in elements(file, "text"):
        x, y, size = number(text, "x", "y", "font-size")
        assert contrast(text.get("fill", ""), background(file, x, y - size / 3)) >= 4.5, text.text
        assert size >= 12, text.text
    grounds = {PAGE[file.name.split(".")[1]], *(panel.get("fill", "") for panel in elements(file, "rect", "panel"))}
    for line in elements(file, "path", "arrow"):
        assert all(contrast(line.get("stroke", ""), ground) >= 3 for ground in grounds)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_figure_is_readable(file: Path) -> None:
    check_readable(file)


def words(name: str) -> list[str]:
    return [text.text or "" for text in elements(FIGURES / f"{name}.light.svg", "text")]


def widths(name: str) -> set[int]:
    """Numbers of channels in a figure."""
    pattern = r"(?:z, )?(\d+)(?: channels.*|, \w+ map| weights)?|(\d+) → (\d+)"
    matches = [match for match in (re.fullmatch(pattern, word) for word in words(name)) if match]
    return {int(group) for match in matches for group in match.groups() if group}


@pytest.mark.parametrize(
    ("name", "block"),
    [("scacb", SCACB(60)), ("dracb", DRACB(60, 15)), ("wsilb", WSILBV(60)), ("rbwa", RBWA(60, 30))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_widths_are_those_of_the_layers(name: str, block: nn.Module) -> None:
    counted = {
        c for layer in block.modules() if isinstance(layer, nn.Conv2d) for c in (layer.in_channels, layer.out_channels)
    }
    inner = {7} if name == "rbwa" else set()  # inside the attention, which has a figure of its own
    assert widths(name) == counted - inner


def test_convolutions_are_as_many_as_in_the_code() -> None:
    def convolutions(block: nn.Module) -> int:
        return sum(isinstance(layer, nn.Conv2d) for layer in block.modules())

    def drawn(name: str) -> int:
        return sum(word.startswith(("conv ", "depthwise ")) and word[-1].isdigit() for word in words(name))

    assert drawn("scacb") == convolutions(SCACB(60))
    assert drawn("dracb") == convolutions(DRACB(60, 15))
    assert drawn("wsilb") == convolutions(WSILB(60)) + convolutions(WSILBV(60))
    assert drawn("rbwa") == convolutions(RBWA(60, 30)) - convolutions(WSILBV(30))
    block = MREB(60)
    assert words("mreb").count("SCACB") == len(block.stages)
    assert words("mreb").count("DRACB") == len(block.refine.links)
    assert words("mreb").count("map") == sum(
        link.communication.__class__.__name__ == "FixedCommunication" for link in block.refine.links
    )


def test_the_exchange_is_the_one_that_is_drawn() -> None:
    """The figure's sums, computed by hand, give what the block gives."""
    torch.manual_seed(0)
    block = SCACB(12).eval()
    x = torch.rand(1, 12, 9, 7)
    assert block.spatial is not None
    assert block.channel is not None
    act = nn.GELU()
    z = act(block.compress(x))
    s1, c1 = act(block.spatial.conv1(z)), act(block.channel.conv1(z))
    s3, c3 = act(block.spatial.conv3(z)), act(block.channel.conv3(z))
    s5, c5 = act(block.spatial.conv5(s3)), act(block.channel.conv5(c3))
    joined = torch.cat([s1 + c1, s3 + c3, s5 + c5], dim=1)
    assert block.spatial.weighing is not None
    assert block.channel.weighing is not None
    weighed = torch.cat([act(block.spatial.weighing(joined)), act(block.channel.weighing(joined))], dim=1)
    torch.testing.assert_close(block(x), x + block.fuse(weighed))
    assert [word for word in words("scacb") if "+" in word] == ["s₁ + c₁", "s₃ + c₃", "s₅ + c₅"]


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#ffffff", "#ffffff") == 1
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known near miss
