"""Draw the figures of the documentation, each as ``NAME.light.svg`` and ``NAME.dark.svg`` with the same geometry.

Run as ``python -m docs.figures.draw``; its output is next to this script. Widths in the figures are those at
60 channels. Two files, because an adaptive image would follow the system's preference and not the page's own switch.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from docs.figures.theme import FONT, SIZE, SMALL, THEMES

Point = tuple[float, float]

LEGEND = {
    "conv": "convolution",
    "depthwise": "depthwise convolution",
    "gate": "attention or gate",
    "exchange": "communication",
    "op": "without parameters",
    "block": "another block",
}

HEAD = 8  # px: length of an arrow's head
CORNER = 6  # px: radius of an arrow's bends


@dataclass(frozen=True)
class Shape:
    """A box or a circle, with connection points for arrows."""

    cx: float
    cy: float
    width: float
    height: float

    @property
    def top(self) -> Point:
        return self.cx, self.cy - self.height / 2

    @property
    def bottom(self) -> Point:
        return self.cx, self.cy + self.height / 2

    @property
    def left(self) -> Point:
        return self.cx - self.width / 2, self.cy

    @property
    def right(self) -> Point:
        return self.cx + self.width / 2, self.cy


class Figure:
    """A figure under construction.

    Elements are kept as text with the names of colours in braces, ``{conv.fill}``, so that one drawing gives both
    themes. Panels are below arrows and arrows below boxes, regardless of the drawing order.

    Args:
        title: What the figure shows, in a few words.
        description: Text alternative, for those who cannot see it.
        width: Width in px, at most that of the page's column.
        height: Height in px, without the legend.
    """

    def __init__(self, title: str, description: str, width: float, height: float) -> None:
        self.title = title
        self.description = description
        self.width = width
        self.height = height
        self._layers: dict[str, list[str]] = {"panel": [], "arrow": [], "box": [], "text": []}
        self._kinds: set[str] = set()

    def panel(self, x: float, y: float, width: float, height: float, title: str = "", kind: str = "panel") -> None:
        """Draw a panel that groups elements, with its title at the top."""
        self._layers["panel"].append(
            f'<rect class="panel" x="{_px(x)}" y="{_px(y)}" width="{_px(width)}" height="{_px(height)}" rx="10" '
            f'fill="{{panel.fill}}" stroke="{{{kind}.line}}"/>'
        )
        if title:
            self.text(x + width / 2, y + 22, title, bold=True, kind="text" if kind == "panel" else kind)

    def box(self, kind: str, cx: float, cy: float, *lines: str, width: float = 136, height: float = 0) -> Shape:
        """Draw a box around a centre; the first line is its name."""
        self._kinds.add(kind)
        shape = Shape(cx, cy, width, height or (44 if len(lines) > 1 else 32))
        x, y = shape.left[0], shape.top[1]
        self._layers["box"].append(
            f'<rect class="box {kind}" x="{_px(x)}" y="{_px(y)}" width="{_px(width)}" height="{_px(shape.height)}" '
            f'rx="6" fill="{{{kind}.fill}}" stroke="{{{kind}.line}}" stroke-width="1.5"/>'
        )
        for number, line in enumerate(lines):
            middle = cy + 18 * (number - (len(lines) - 1) / 2)
            self.text(cx, middle + 5, line, small=number > 0)
        return shape

    def sign(self, kind: str, cx: float, cy: float, sign: str) -> Shape:
        """Draw a circle that adds ("+") or multiplies ("×") its inputs."""
        self._kinds.add(kind)
        radius, arm = 11.0, 5.0
        # Strokes instead of text: fonts differ in the position of a sign.
        if sign == "×":
            arm *= 0.8
            strokes = f"M{_px(cx - arm)} {_px(cy - arm)}L{_px(cx + arm)} {_px(cy + arm)}"
            strokes += f"M{_px(cx - arm)} {_px(cy + arm)}L{_px(cx + arm)} {_px(cy - arm)}"
        else:
            strokes = f"M{_px(cx - arm)} {_px(cy)}L{_px(cx + arm)} {_px(cy)}"
            strokes += f"M{_px(cx)} {_px(cy - arm)}L{_px(cx)} {_px(cy + arm)}"
        self._layers["box"].append(
            f'<circle class="box {kind}" cx="{_px(cx)}" cy="{_px(cy)}" r="{_px(radius)}" fill="{{{kind}.fill}}" '
            f'stroke="{{{kind}.line}}" stroke-width="1.5"/>'
            f'<path class="sign" d="{strokes}" fill="none" stroke="{{text.line}}" stroke-width="1.8" '
            f'stroke-linecap="round"/>'
        )
        return Shape(cx, cy, 2 * radius, 2 * radius)

    def arrow(self, *points: Point, kind: str = "line", head: bool = True, dashed: bool = False) -> None:
        """Draw an arrow along points; bends are rounded, and only an arrow of two points may be diagonal."""
        if kind != "line":
            self._kinds.add(kind)
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if len(points) > 2 and x0 != x1 and y0 != y1:
                raise ValueError(f"{self.title}: a bent arrow is diagonal between {x0, y0} and {x1, y1}")
        tip = points[-1]
        length = math.dist(points[-2], tip)
        ux, uy = (tip[0] - points[-2][0]) / length, (tip[1] - points[-2][1]) / length
        end = (tip[0] - HEAD * ux, tip[1] - HEAD * uy) if head else tip
        way = [*points[:-1], end]
        path = f"M{_px(way[0][0])} {_px(way[0][1])}"
        for before, bend, after in zip(way, way[1:], way[2:], strict=False):
            start, stop = _towards(bend, before, CORNER), _towards(bend, after, CORNER)
            path += f"L{_px(start[0])} {_px(start[1])}Q{_px(bend[0])} {_px(bend[1])} {_px(stop[0])} {_px(stop[1])}"
        path += f"L{_px(way[-1][0])} {_px(way[-1][1])}"
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._layers["arrow"].append(
            f'<path class="arrow" d="{path}" fill="none" stroke="{{{kind}.line}}" '
            f'stroke-width="{1.5 if kind == "line" else 2}"{dashes}/>'
        )
        if head:
            corners = [tip, (end[0] - 4 * uy, end[1] + 4 * ux), (end[0] + 4 * uy, end[1] - 4 * ux)]
            shape = " ".join(f"{_px(x)},{_px(y)}" for x, y in corners)
            self._layers["arrow"].append(f'<polygon class="head" points="{shape}" fill="{{{kind}.line}}"/>')

    def dot(self, x: float, y: float, kind: str = "line") -> Point:
        """Mark a fork of a line."""
        self._layers["arrow"].append(f'<circle class="dot" cx="{_px(x)}" cy="{_px(y)}" r="3" fill="{{{kind}.line}}"/>')
        return x, y

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "middle",
        kind: str = "text",
        small: bool = False,
        bold: bool = False,
    ) -> None:
        """Write a line of text; ``y`` is its baseline."""
        weight = ' font-weight="600"' if bold else ""
        colour = f"{{{kind}.line}}"
        self._layers["text"].append(
            f'<text x="{_px(x)}" y="{_px(y)}" font-size="{SMALL if small else SIZE}" text-anchor="{anchor}"{weight} '
            f'fill="{colour}">{escape(text)}</text>'
        )

    def note(self, x: float, y: float, text: str, *, anchor: str = "start", kind: str = "quiet") -> None:
        """Label an arrow."""
        self.text(x, y, text, anchor=anchor, kind=kind, small=True)

    def legend(self, **meanings: str) -> None:
        """Add a legend of the kinds that the figure uses; ``meanings`` overrides their default names."""
        entries = [(kind, meanings.get(kind, meaning)) for kind, meaning in LEGEND.items() if kind in self._kinds]
        rows: list[list[tuple[str, str, float]]] = [[]]
        for kind, meaning in entries:
            length = 20 + text_width(meaning, SMALL) + 18
            if sum(width for *_, width in rows[-1]) + length > self.width:
                rows.append([])
            rows[-1].append((kind, meaning, length))
        for row in rows:
            self.height += 24
            x = (self.width - sum(width for *_, width in row) + 18) / 2
            for kind, meaning, length in row:
                self._layers["box"].append(
                    f'<rect class="swatch {kind}" x="{_px(x)}" y="{_px(self.height - 16)}" width="14" height="12" '
                    f'rx="3" fill="{{{kind}.fill}}" stroke="{{{kind}.line}}" stroke-width="1.5"/>'
                )
                self.note(x + 20, self.height - 5.5, meaning)
                x += length
        self.height += 10  # space before the following text

    def svg(self, theme: str) -> str:
        """Return the drawing in the colours of a theme."""
        size = f'width="{_px(self.width)}" height="{_px(self.height)}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {_px(self.width)} {_px(self.height)}" '
            f'role="img" aria-labelledby="title desc" font-family="{FONT}">',
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="desc">{escape(self.description)}</desc>',
            *(element for layer in self._layers.values() for element in layer),
            "</svg>",
        ]
        text = "\n".join(lines) + "\n"
        for name, (fill, line) in THEMES[theme].items():
            text = text.replace(f"{{{name}.fill}}", fill).replace(f"{{{name}.line}}", line)
        return text


def text_width(text: str, size: float) -> float:
    """Estimate the width of a text in a wide font such as Verdana, because the reader's font is unknown."""
    narrow, wide = "iljft.,:;'()[]| ", "mwMW—"
    return size * sum(0.36 if letter in narrow else 0.95 if letter in wide else 0.63 for letter in text)


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _towards(start: Point, end: Point, distance: float) -> Point:
    """The point at a distance along a line, but not past its middle: two bends may share a line."""
    part = min(distance / math.dist(start, end), 0.5)
    return start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part


def draw_scacb() -> Figure:
    """SCACB: two parts of three levels; both weigh their sums."""
    fig = Figure(
        "SCACB",
        "A 1×1 convolution compresses the input from 60 to 10 channels. The spatial part, of depthwise "
        "convolutions, and the channel part, of ordinary ones, each compute three levels with receptive fields of "
        "1×1, 3×3 and 5×5 pixels; the third reads the second. The levels of the two parts are added pair by pair and "
        "concatenated. Each part weights the 30 channels with its own 1×1 convolution; the two results are "
        "concatenated, passed through a final 1×1 convolution and added to the input.",
        620,
        676,
    )
    middle, left, right = 300.0, 120.0, 480.0
    rows = {1: 206.0, 3: 270.0, 5: 346.0}

    fig.text(middle, 18, "input", bold=True)
    compress = fig.box("conv", middle, 86, "conv 1×1", "GELU")
    split = fig.dot(middle, 42)
    fig.arrow((middle, 26), compress.top)
    fig.note(middle + 8, 59, "60")

    fig.panel(8, 154, 204, 334, "spatial part")
    fig.panel(388, 154, 204, 334, "channel part")
    fork = fig.dot(middle, 136)
    fig.arrow(compress.bottom, fork, head=False)
    fig.note(middle + 8, 128, "z, 10")
    for kind, name, column, trunk in (("depthwise", "depthwise", left, 28.0), ("conv", "conv", right, 572.0)):
        level1 = fig.box(kind, column, rows[1], f"{name} 1×1", "GELU, sees 1×1")
        level3 = fig.box(kind, column, rows[3], f"{name} 3×3", "GELU, sees 3×3")
        level5 = fig.box(kind, column, rows[5], f"{name} 3×3", "GELU, sees 5×5")
        outer = (level1.left, level3.left) if column == left else (level1.right, level3.right)
        fig.arrow(fork, (trunk, 136), (trunk, rows[3]), outer[1])
        fig.arrow(fig.dot(trunk, rows[1]), outer[0])
        fig.arrow(level3.bottom, level5.top)

    fig.panel(240, 154, 120, 222, "exchange", kind="exchange")
    for level, subscript in ((1, "₁"), (3, "₃"), (5, "₅")):
        total = fig.box("exchange", middle, rows[level], f"s{subscript} + c{subscript}", width=88, height=36)
        fig.arrow((left + 68, rows[level]), total.left, kind="exchange")
        fig.arrow((right - 68, rows[level]), total.right, kind="exchange")
        fig.note(left + 76, rows[level] - 6, f"s{subscript}", kind="exchange")
        fig.note(right - 76, rows[level] - 6, f"c{subscript}", kind="exchange", anchor="end")
    # From the panel and not from its last box: all three are joined.
    join = fig.box("op", middle, 412, "concat", width=88)
    fig.arrow((middle, 376), join.top)

    fork = fig.dot(middle, 452)
    fig.arrow(join.bottom, fork, head=False)
    fig.note(middle + 8, 444, "30")
    both = fig.box("op", middle, 526, "concat", width=88)
    for column, into, out in ((left, 1, -1), (right, -1, 1)):
        weigh = fig.box("conv", column, 452, "conv 1×1", "GELU")
        fig.arrow(fork, (column + into * weigh.width / 2, 452))
        fig.arrow(weigh.bottom, (column, 526), (middle + out * 44, 526))
        fig.note(column - out * 10, 519, "30", anchor="start" if out < 0 else "end")

    fuse = fig.box("conv", middle, 584, "conv 1×1")
    fig.arrow(both.bottom, fuse.top)
    fig.note(middle + 8, 558, "60")
    add = fig.sign("op", middle, 632, "+")
    fig.arrow(fuse.bottom, add.top)
    fig.arrow(split, (608, 42), (608, 632), add.right)
    fig.arrow(add.bottom, (middle, 662))
    fig.text(middle, 676, "output", bold=True)
    fig.height = 684
    fig.legend(exchange="exchange")
    return fig


def draw_exchange() -> Figure:
    """SCACB's options for the exchange, side by side."""
    fig = Figure(
        "Forms of the exchange in SCACB",
        "Three forms. With outputs, the default, the two parts compute their levels independently, and "
        "these are added pair by pair. With inputs, the 3×3 convolution of each part reads the compressed features "
        "plus the other part's first level, and its last convolution reads its own second level plus the other's. "
        "With None there are no lines between the parts.",
        600,
        356,
    )
    for number, (option, remark) in enumerate(
        (('"outputs"', "the default"), ('"inputs"', "an option"), ("None", "SCNC in table 3"))
    ):
        x = 204.0 * number
        fig.panel(x + 0.5, 0.5, 191, 350, f"exchange={option}")
        fig.note(x + 96, 40, remark, anchor="middle")
        fig.note(x + 96, 340, "both weight the sums" if number == 0 else "each weights its own", anchor="middle")
        z = fig.box("op", x + 96, 70, "z", width=40, height=28)
        rows = (128.0, 212.0, 296.0) if option == '"inputs"' else (128.0, 204.0, 296.0)
        columns = {"s": x + 46, "c": x + 146}
        outer = {"s": x + 10, "c": x + 182}
        boxes = {}
        for part, kind in (("s", "depthwise"), ("c", "conv")):
            boxes[part] = [
                fig.box(kind, columns[part], y, part + subscript, width=40)
                for y, subscript in zip(rows, "₁₃₅", strict=True)
            ]
        for part, other in (("s", "c"), ("c", "s")):
            first, second, third = boxes[part]
            from_z = z.left if part == "s" else z.right
            side = first.left if part == "s" else first.right
            trunk = outer[part]
            if option == '"inputs"':
                sums = [fig.sign("exchange", columns[part], y, "+") for y in (172.0, 256.0)]
                into = sums[0].left if part == "s" else sums[0].right
                fig.arrow(from_z, (trunk, z.cy), (trunk, into[1]), into)
                fig.arrow(fig.dot(trunk, first.cy), side)
                fig.arrow(sums[0].bottom, second.top)
                fig.arrow(second.bottom, sums[1].top)
                fig.arrow(sums[1].bottom, third.top)
                for before, total in zip(boxes[other], sums, strict=False):
                    start = before.right if other == "s" else before.left
                    # Ends on the circle's upper inner side, clear of the line that comes from above.
                    aside = 9.5 if part == "s" else -9.5
                    fig.arrow(start, (total.cx + aside, total.cy - 5.5), kind="exchange")
            else:
                into = second.left if part == "s" else second.right
                fig.arrow(from_z, (trunk, z.cy), (trunk, into[1]), into)
                fig.arrow(fig.dot(trunk, first.cy), side)
                fig.arrow(second.bottom, third.top)
        if option == '"outputs"':
            for y in rows:
                total = fig.sign("exchange", x + 96, y, "+")
                fig.arrow((columns["s"] + 20, y), total.left, kind="exchange")
                fig.arrow((columns["c"] - 20, y), total.right, kind="exchange")
    fig.legend(exchange="exchange")
    return fig


def draw_dracb() -> Figure:
    """DRACB: one convolution, the channel, the gate."""
    fig = Figure(
        "DRACB",
        "A 1×1 convolution distils the features from 60 to 15 channels; its result is the block's own attention "
        "map. The channel fuses it with the map of the previous DRACB: 0.2 times the previous map is added. The "
        "fused map, multiplied by its own sigmoid, is the refined output. The block passes its own map to the next "
        "DRACB, or optionally the fused one.",
        600,
        420,
    )
    middle, side = 270.0, 132.0
    fig.text(middle, 18, "features", bold=True)
    distil = fig.box("conv", middle, 76, "conv 1×1")
    fig.arrow((middle, 26), distil.top)
    fig.note(middle + 8, 46, "60")

    channel = fig.box("exchange", middle, 186, "channel", "0.2 · previous + own", width=172)
    own = fig.dot(middle, 124)
    fig.arrow(distil.bottom, channel.top)
    fig.note(middle + 8, 114, "15, own map")
    fig.arrow(own, (392, 124), kind="exchange")
    fig.text(400, 122, "to the next DRACB", anchor="start", bold=True)
    fig.note(400, 139, 'relay="raw", the default')

    fig.text(8, 174, "map of the", anchor="start", bold=True)
    fig.text(8, 192, "previous DRACB", anchor="start", bold=True)
    fig.note(8, 210, "none in the first")
    fig.arrow((144, 186), channel.left, kind="exchange")

    fused = fig.dot(middle, 240)
    gate = fig.box("gate", side, 282, "sigmoid", width=100)
    product = fig.sign("gate", middle, 330, "×")
    fig.arrow(channel.bottom, product.top)
    fig.note(middle + 8, 260, "15, fused map")
    fig.arrow(fused, (392, 240), kind="exchange", dashed=True)
    fig.text(400, 238, "or the fused map", anchor="start", bold=True)
    fig.note(400, 255, 'relay="fused"')
    fig.arrow(fused, (side, 240), gate.top)
    fig.arrow(gate.bottom, (side, 330), product.left)
    fig.arrow(product.bottom, (middle, 376))
    fig.note(middle + 8, 362, "15")
    fig.text(middle, 392, "refined features", bold=True)
    fig.height = 402
    fig.legend()
    return fig


def draw_communication() -> Figure:
    """The communication channels."""
    fig = Figure(
        "Communication channels",
        "Three rows. Fixed and learned: the previous map times a weight W, a number or a parameter, plus the "
        "current map. Gated: a 1×1 convolution and a sigmoid compute a gate from both maps, concatenated, and the "
        "previous map times that gate is added to the current one. Adapted: a previous map of another width or size "
        "passes a 1×1 convolution and is resampled before it enters any of these channels with the current map.",
        600,
        484,
    )

    def ends(y0: float, y1: float) -> None:
        fig.text(14, y0 + 5, "previous", anchor="start")
        fig.text(14, y1 + 5, "current", anchor="start")

    def fused(x: float, y: float) -> None:
        fig.arrow((x, y), (536, y))
        fig.text(542, y + 5, "fused", anchor="start")

    fig.panel(0.5, 0.5, 599, 124, "FixedCommunication, LearnableCommunication")
    ends(56, 98)
    scale = fig.box("exchange", 260, 56, "× W", width=80)
    add = fig.sign("exchange", 490, 56, "+")
    fig.arrow((84, 56), scale.left, kind="exchange")
    fig.arrow(scale.right, add.left, kind="exchange")
    fig.arrow((84, 98), (490, 98), add.bottom)
    fig.note(310, 44, "a number, or learned")
    fused(501, 56)

    fig.panel(0.5, 136.5, 599, 182, "GatedCommunication")
    ends(188, 288)
    join = fig.box("op", 150, 238, "concat", width=76)
    weigh = fig.box("conv", 262, 238, "conv 1×1", width=92)
    gate = fig.box("gate", 370, 238, "sigmoid", width=82)
    times = fig.sign("gate", 440, 188, "×")
    add = fig.sign("exchange", 490, 188, "+")
    fig.arrow((84, 188), times.left, kind="exchange")
    fig.arrow(fig.dot(150, 188, "exchange"), join.top)
    fig.arrow(fig.dot(150, 288), join.bottom)
    fig.arrow(join.right, weigh.left)
    fig.arrow(weigh.right, gate.left)
    fig.arrow(gate.right, (440, 238), times.bottom)
    fig.arrow(times.right, add.left, kind="exchange")
    fig.arrow((84, 288), (490, 288), add.bottom)
    fused(501, 188)

    fig.panel(0.5, 330.5, 599, 150, "AdaptedCommunication")
    ends(392, 452)
    project = fig.box("conv", 170, 392, "conv 1×1", "if widths differ", width=116)
    resample = fig.box("op", 320, 392, "resample", "to current's size", width=128)
    channel = fig.box("exchange", 464, 392, "any channel", width=104)
    fig.arrow((84, 392), project.left, kind="exchange")
    fig.arrow(project.right, resample.left, kind="exchange")
    fig.arrow(resample.right, channel.left, kind="exchange")
    fig.arrow((84, 452), (464, 452), channel.bottom)
    fused(516, 392)
    fig.height = 486
    fig.legend()
    return fig


def draw_chain() -> Figure:
    """DRACBChain: maps are passed along the chain, features through each block."""
    fig = Figure(
        "DRACBChain",
        "Four DRACBs side by side, one for each stage. Each takes the features of its stage and returns refined "
        "features. Its map goes to the channel of the next DRACB; the first has no channel.",
        600,
        366,
    )
    for stage in range(4):
        cx = 75.0 + 150 * stage
        fig.text(cx, 18, f"features {stage}", bold=True)
        fig.panel(cx - 60, 52, 120, 250)
        distil = fig.box("conv", cx, 92, "conv 1×1", width=92)
        gate = fig.box("gate", cx, 262, "gate", width=92)
        fig.arrow((cx, 26), distil.top)
        fig.note(cx + 8, 44, "60")
        if stage:
            channel = fig.box("exchange", cx, 186, "channel", width=92)
            fig.arrow(distil.bottom, channel.top)
            fig.arrow(channel.bottom, gate.top)
            fig.arrow((cx - 150, 134), (cx - 75, 134), (cx - 75, 186), channel.left, kind="exchange")
        else:
            fig.arrow(distil.bottom, gate.top)
        if stage < 3:
            fig.dot(cx, 134, "exchange")
            fig.note(cx + 8, 128, "map", kind="exchange")
        fig.arrow(gate.bottom, (cx, 336))
        fig.note(cx + 8, 324, "15")
        fig.text(cx, 352, f"refined {stage}", bold=True)
    fig.height = 362
    fig.legend()
    return fig


def draw_wsilb() -> Figure:
    """WSILB and WSILB-V: two statistics, one layer."""
    fig = Figure(
        "WSILB and WSILB-V",
        "Each input channel has two statistics: the contrast, mean plus standard deviation, and the peak, the "
        "maximum. Both pass through the same layer f; the results are added, a sigmoid turns the sum into a weight "
        "for each channel, and the input is multiplied by it. In WSILB, f is one 1×1 convolution, 60 to 60; "
        "in WSILB-V, it is a 1×1 convolution from 60 to 15, GELU and a 1×1 convolution back to 60.",
        620,
        440,
    )
    middle, left, right = 180.0, 78.0, 282.0
    fig.text(middle, 18, "input", bold=True)
    start = fig.dot(middle, 42)
    contrast = fig.box("op", left, 110, "contrast", "mean + std", width=112)
    peak = fig.box("op", right, 110, "peak", "maximum", width=112)
    fig.arrow((middle, 26), (middle, 64), head=False)
    fig.note(middle + 8, 36, "60")
    fork = fig.dot(middle, 64)
    fig.panel(6.5, 150, 347, 96)
    fig.text(middle, 172, "one layer, used twice", bold=True)
    add = fig.sign("op", middle, 278, "+")
    for statistic, column in ((contrast, left), (peak, right)):
        layer = fig.box("conv", column, 208, "f", width=112)
        fig.arrow(fork, (column, 64), statistic.top)
        fig.arrow(statistic.bottom, layer.top)
        fig.arrow(layer.bottom, (column, 278), add.left if column == left else add.right)
    gate = fig.box("gate", middle, 330, "sigmoid", width=112)
    times = fig.sign("gate", middle, 384, "×")
    fig.arrow(add.bottom, gate.top)
    fig.arrow(gate.bottom, times.top)
    fig.note(middle + 8, 366, "60 weights")
    fig.arrow(start, (370, 42), (370, 384), times.right)
    fig.arrow(times.bottom, (middle, 420))
    fig.text(middle, 436, "output", bold=True)

    fig.panel(396.5, 64, 221, 104, "f of WSILB")
    layer = fig.box("conv", 507, 126, "conv 1×1", "60 → 60", width=120)
    fig.arrow((412, 126), layer.left)
    fig.arrow(layer.right, (602, 126))
    fig.panel(396.5, 184, 221, 216, "f of WSILB-V")
    squeeze = fig.box("conv", 507, 246, "conv 1×1", "60 → 15", width=120)
    act = fig.box("op", 507, 304, "GELU", width=120)
    expand = fig.box("conv", 507, 362, "conv 1×1", "15 → 60", width=120)
    fig.arrow((412, 246), squeeze.left)
    fig.arrow(squeeze.bottom, act.top)
    fig.arrow(act.bottom, expand.top)
    fig.arrow(expand.right, (602, 362))
    fig.height = 446
    fig.legend()
    return fig


def draw_rbwa() -> Figure:
    """RBWA: resize, convolve, attend, convolve."""
    fig = Figure(
        "RBWA",
        "From top to bottom: bilinear enlargement by 2, a 3×3 convolution, WSILB-V, GELU and a second 3×3 "
        "convolution. In the second stage of MREN at ×4 the first convolution goes from 60 to 30 channels.",
        480,
        440,
    )
    cx = 200.0
    fig.text(cx, 18, "input", bold=True)
    boxes = [
        fig.box("op", cx, 80, "bilinear × 2"),
        fig.box("conv", cx, 148, "conv 3×3"),
        fig.box("gate", cx, 216, "WSILB-V"),
        fig.box("op", cx, 284, "GELU"),
        fig.box("conv", cx, 352, "conv 3×3"),
    ]
    fig.arrow((cx, 26), boxes[0].top)
    for above, below in itertools.pairwise(boxes):
        fig.arrow(above.bottom, below.top)
    fig.arrow(boxes[-1].bottom, (cx, 406))
    fig.text(cx, 422, "output", bold=True)
    for y, size in ((50, "60 channels, H × W"), (117, "60 channels, 2H × 2W"), (186, "30 channels, 2H × 2W")):
        fig.note(cx + 8, y, size)
    fig.note(cx + 8, 389, "30 channels, 2H × 2W")
    fig.height = 432
    fig.legend()
    return fig


def draw_mreb() -> Figure:
    """MREB: a row of SCACBs, tapped by a chain of DRACBs."""
    fig = Figure(
        "MREB",
        "Three SCACBs in sequence. Four DRACBs distil the input and the output of each SCACB from 60 to 15 channels; "
        "every DRACB passes its attention map to the next. The four results are concatenated to 60 channels, passed "
        "through a 1×1 convolution and WSILB-V, and added to the input.",
        620,
        380,
    )
    stages, taps, bar, end = 70.0, 246.0, 392.0, 520.0
    fig.text(stages, 18, "input", bold=True)
    shortcut = fig.dot(stages, 40)
    join = fig.box("op", bar, 210, "concat", width=76, height=324)
    point = (stages, 26.0)
    previous: Shape | None = None
    for number in range(4):
        y = 78 + 88.0 * number
        tap = fig.box("gate", taps, y, "DRACB", width=100, height=40)
        if number < 3:
            stage = fig.box("block", stages, y + 44, "SCACB", width=100)
            fig.arrow(point, stage.top)
            fig.arrow(fig.dot(stages, y), tap.left)
            point = stage.bottom
        else:
            fig.arrow(point, (stages, y), tap.left)
        fig.note(136, y - 6, "60")
        if previous:
            fig.arrow(previous.bottom, tap.top, kind="exchange")
            fig.note(taps + 9, y - 40, "map", kind="exchange")
        fig.arrow(tap.right, (join.left[0], y))
        fig.note(316, y - 6, "15")
        previous = tap
    fuse = fig.box("conv", end, 166, "conv 1×1", width=104)
    attention = fig.box("gate", end, 236, "WSILB-V", width=104)
    add = fig.sign("op", end, 298, "+")
    fig.arrow((join.right[0], 166), fuse.left)
    fig.note(438, 160, "60")
    fig.arrow(fuse.bottom, attention.top)
    fig.arrow(attention.bottom, add.top)
    fig.arrow(shortcut, (604, 40), (604, 298), add.right)
    fig.arrow(add.bottom, (end, 344))
    fig.text(end, 360, "output", bold=True)
    fig.height = 386
    fig.legend()
    return fig


def draw_mren() -> Figure:
    """MREN at ×4."""
    fig = Figure(
        "MREN at ×4",
        "A 3×3 convolution takes the image from 3 to 60 channels. Six MREBs follow; the input of the first is added "
        "to the output of the last. Two RBWAs enlarge by 2 each, the second to 30 channels. A 3×3 convolution "
        "reduces these to 3 channels, which are added to the input, enlarged by 4 with bicubic interpolation.",
        520,
        700,
    )
    cx, bicubic_x, skip = 270.0, 80.0, 404.0
    fig.text(cx, 18, "low-resolution image", bold=True)
    head = fig.box("conv", cx, 90, "conv 3×3")
    start = fig.dot(cx, 44)
    fig.arrow((cx, 26), head.top)
    fig.note(cx + 8, 62, "3 channels, H × W")
    fig.panel(170.5, 160, 199, 190)
    first = fig.box("block", cx, 196, "MREB")
    last = fig.box("block", cx, 314, "MREB")
    shallow = fig.dot(cx, 138)
    fig.arrow(head.bottom, first.top)
    fig.note(cx + 8, 128, "60 channels, H × W")
    for y in (247, 255, 263):
        fig.dot(cx, y)
    fig.note(cx + 12, 259.5, "6 in a row")
    fig.arrow(first.bottom, (cx, 238), head=False)
    fig.arrow((cx, 272), last.top)
    add = fig.sign("op", cx, 380, "+")
    fig.arrow(last.bottom, add.top)
    fig.arrow(shallow, (skip, 138), (skip, 380), add.right)

    enlarge = [fig.box("block", cx, y, "RBWA × 2", f"60 → {width}") for y, width in ((438, 60), (516, 30))]
    tail = fig.box("conv", cx, 588, "conv 3×3")
    total = fig.sign("op", cx, 640, "+")
    fig.arrow(add.bottom, enlarge[0].top)
    fig.arrow(enlarge[0].bottom, enlarge[1].top)
    fig.note(cx + 8, 481, "60 channels, 2H × 2W")
    fig.arrow(enlarge[1].bottom, tail.top)
    fig.note(cx + 8, 559, "30 channels, 4H × 4W")
    fig.arrow(tail.bottom, total.top)
    fig.note(cx + 8, 621, "3 channels")
    bicubic = fig.box("op", bicubic_x, 340, "bicubic × 4", width=128)
    fig.arrow(start, (bicubic_x, 44), bicubic.top)
    fig.arrow(bicubic.bottom, (bicubic_x, 640), total.left)
    fig.arrow(total.bottom, (cx, 676))
    fig.text(cx, 692, "high-resolution image", bold=True)
    fig.height = 702
    fig.legend()
    return fig


FIGURES: dict[str, Callable[[], Figure]] = {
    "scacb": draw_scacb,
    "exchange": draw_exchange,
    "dracb": draw_dracb,
    "communication": draw_communication,
    "chain": draw_chain,
    "wsilb": draw_wsilb,
    "rbwa": draw_rbwa,
    "mreb": draw_mreb,
    "mren": draw_mren,
}


def write(folder: Path) -> list[Path]:
    """Write every figure in both themes.

    Args:
        folder: Existing folder to write to.

    Returns:
        The written files.
    """
    files = []
    for name, draw in FIGURES.items():
        figure = draw()
        for theme in THEMES:
            file = folder / f"{name}.{theme}.svg"
            file.write_bytes(figure.svg(theme).encode())  # bytes: the same line ends on every system
            files.append(file)
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figures to the folder given on the command line."""
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder; default: next to this script")
    for file in write(parser.parse_args(arguments).out):
        print(file)


if __name__ == "__main__":
    main()
