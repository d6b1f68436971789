"""Colours of both themes and fonts, shared by the figures of the documentation."""

from __future__ import annotations

# Fill and line of each kind of box; "page" is furo's background, which the figures leave transparent.
THEMES: dict[str, dict[str, tuple[str, str]]] = {
    "light": {
        "page": ("#ffffff", "#ffffff"),
        "text": ("#1a1d21", "#1a1d21"),
        "quiet": ("#545b64", "#545b64"),
        "line": ("#3f464e", "#3f464e"),
        "panel": ("#f5f6f8", "#b4bac2"),
        "conv": ("#dce9fd", "#2563c9"),
        "depthwise": ("#d3f2e2", "#0b7a53"),
        "gate": ("#ffe8cf", "#b5500c"),
        "exchange": ("#fbe1ee", "#b81464"),
        "op": ("#e9ebee", "#68707a"),
        "block": ("#e9e3fb", "#6741c9"),
    },
    "dark": {
        "page": ("#131416", "#131416"),
        "text": ("#eceef0", "#eceef0"),
        "quiet": ("#a9b0b9", "#a9b0b9"),
        "line": ("#c0c6cd", "#c0c6cd"),
        "panel": ("#1c1e22", "#565d66"),
        "conv": ("#1b3158", "#6fa5f7"),
        "depthwise": ("#123c2d", "#43c793"),
        "gate": ("#46290f", "#f0954a"),
        "exchange": ("#4b1733", "#f27ab4"),
        "op": ("#2d3137", "#99a1ab"),
        "block": ("#322558", "#ab92f5"),
    },
}

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
SIZE, SMALL = 14, 13  # px: names, and everything else
