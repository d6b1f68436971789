"""The figures of the documentation: written by their script, shown on a page, readable in both themes, true to code."""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from sc_blocks import DRACB, MREB, RBWA, SCACB, WSILB, WSILBV

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
FILES = sorted(FIGURES.glob("*.svg"))
LIGHT = [file for file in FILES if ".light." in file.name]
COLUMN = 736  # px: the width of furo's column of text, 46em
PAGE = {"light": "#ffffff", "dark": "#131416"}  # furo's backgrounds
SVG = "{http://www.w3.org/2000/svg}"

Box = tuple[float, float, float, float]  # left, top, right, bottom


def load_script() -> ModuleType:
    sys.path.insert(0, str(FIGURES))  # where a script finds the modules beside it
    spec = importlib.util.spec_from_file_location("draw", FIGURES / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["draw"] = module  # where dataclasses look up the module of a class
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FIGURES))
    return module


draw = load_script()


@cache
def drawing(file: Path) -> ET.Element:
    return ET.parse(file).getroot()


@cache
def elements(file: Path, name: str, kind: str = "") -> list[ET.Element]:
    return [e for e in drawing(file).iter(SVG + name) if kind in e.get("class", "").split() or not kind]


def number(element: ET.Element, *names: str) -> list[float]:
    return [float(element.get(name, "nan")) for name in names]


def extent(element: ET.Element) -> Box:
    if element.tag == SVG + "circle":
        cx, cy, r = number(element, "cx", "cy", "r")
        return cx - r, cy - r, cx + r, cy + r
    if element.tag == SVG + "text":
        x, y, size = number(element, "x", "y", "font-size")
        width = draw.text_width(element.text, size) * (1.06 if element.get("font-weight") else 1)
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[element.get("text-anchor", "start")] * width
        return left, y - 0.74 * size, left + width, y + 0.2 * size
    x, y, width, height = number(element, "x", "y", "width", "height")
    return x, y, x + width, y + height


@cache
def boxes(file: Path) -> list[Box]:
    return [extent(e) for name in ("rect", "circle") for e in elements(file, name, "box")]


def points(arrow: ET.Element) -> list[tuple[float, float]]:
    """Points along an arrow, a pixel apart, through the corners that its bends cut."""
    values = [float(value) for value in re.findall(r"-?[\d.]+", arrow.get("d", ""))]
    found = []
    for start, end in itertools.pairwise(list(zip(values[::2], values[1::2], strict=True))):
        steps = max(1, round(math.dist(start, end)))
        found += [tuple(a + (b - a) * step / steps for a, b in zip(start, end, strict=True)) for step in range(steps)]
    return found


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def inside(a: Box, b: Box) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


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
        for element in [*elements(file, "rect", kind), *elements(file, "circle", kind)]:
            left, top, right, bottom = extent(element)
            if left < x < right and top < y < bottom:
                return element.get("fill", "")
    return PAGE[file.name.split(".")[1]]


def test_the_script_writes_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FIGURES / "draw.py", "--out", tmp_path], check=True, capture_output=True)
    written = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert written.keys() == {file.name for file in FILES}
    for file in FILES:
        assert written[file.name] == file.read_bytes(), f"{file.name}: run python -m docs.figures.draw"


def test_every_figure_is_on_a_page_in_both_themes() -> None:
    shown: dict[str, set[str]] = {}
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
            assert len(alternative) > 80, first
            shown.setdefault(name, set()).add(page.name)
    assert all("blocks.md" in pages for pages in shown.values())
    assert shown.keys() == {file.name.split(".")[0] for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
class TestFile:
    def test_says_what_it_shows(self, file: Path) -> None:
        root = drawing(file)
        title, description = list(root)[:2]
        assert (title.tag, description.tag) == (SVG + "title", SVG + "desc")
        assert (title.text or "").strip()
        assert len(description.text or "") > 100
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"

    def test_text_is_legible(self, file: Path) -> None:
        for text in elements(file, "text"):
            left, top, right, bottom = extent(text)
            under = background(file, (left + right) / 2, (top + bottom) / 2)
            assert contrast(text.get("fill", ""), under) >= 4.5, text.text
            assert float(text.get("font-size", 0)) >= 12

    def test_lines_stand_out(self, file: Path) -> None:
        for arrow in elements(file, "path", "arrow"):
            for x, y in points(arrow)[::5]:
                if not any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes(file)):
                    assert contrast(arrow.get("stroke", ""), background(file, x, y)) >= 3
        for element in [*elements(file, "rect"), *elements(file, "circle", "box")]:
            if "panel" not in element.get("class", ""):  # only groups what is named and drawn otherwise
                left, top, _, _ = extent(element)
                assert contrast(element.get("stroke", ""), background(file, left - 1, top - 1)) >= 3
        for sign in elements(file, "path", "sign"):
            x, y = (float(value) for value in re.findall(r"[\d.]+", sign.get("d", ""))[:2])
            assert contrast(sign.get("stroke", ""), background(file, x, y)) >= 3


@pytest.mark.parametrize("file", LIGHT, ids=lambda file: file.name)
class TestGeometry:
    def test_is_the_same_in_both_themes(self, file: Path) -> None:
        shapes = [
            re.sub("#[0-9a-f]{6}", "", each.read_text())
            for each in (file, file.with_name(file.name.replace("light", "dark")))
        ]
        assert shapes[0] == shapes[1]

    def test_fits_the_page(self, file: Path) -> None:
        root = drawing(file)
        width, height = number(root, "width", "height")
        assert width <= COLUMN
        assert root.get("viewBox") == f"0 0 {width:g} {height:g}"
        for name in ("rect", "circle", "text"):
            for element in elements(file, name):
                assert inside(extent(element), (0, 0, width, height)), element.text

    def test_text_stays_in_its_box_and_clear_of_others(self, file: Path) -> None:
        texts = [(text.text, extent(text)) for text in elements(file, "text")]
        for (first, a), (second, b) in itertools.combinations(texts, 2):
            assert not overlap(a, b), (first, second)
        for text, area in texts:
            for box in boxes(file):
                assert inside(area, box) or not overlap(area, box), text

    def test_boxes_do_not_overlap(self, file: Path) -> None:
        for a, b in itertools.combinations(boxes(file), 2):
            assert not overlap(a, b), (a, b)

    def test_arrows_run_round_boxes_and_text(self, file: Path) -> None:
        texts = [(text.text, extent(text)) for text in elements(file, "text")]
        for arrow in elements(file, "path", "arrow"):
            for x, y in points(arrow):
                for left, top, right, bottom in boxes(file):
                    assert not (left + 1 < x < right - 1 and top + 1 < y < bottom - 1), (x, y)
                for text, (left, top, right, bottom) in texts:
                    assert not (left < x < right and top < y < bottom), text


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
        link.communication.__class__.__name__ == "LinearCommunication" for link in block.refine.links
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
