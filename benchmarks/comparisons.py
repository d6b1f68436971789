"""Comparisons of our networks and blocks with others, within the rounds of one run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from benchmarks import cells
from benchmarks.candidates import CONVOLUTION, FOLDED_BLOCKS, LOCAL, REFERENCE_NET
from benchmarks.results import Results, Row, Suite
from benchmarks.runner import BACKWARD, FORWARD
from examples.timing import Summary, ratio

OURS = "MREN ×4"
NOISE = 1.02  # slower: a ratio is above this in at least three of four rounds
BLOCK_PAIRS = (
    ("WSILBV", "CCA of IMDN"),
    ("SCACB", CONVOLUTION),
    ("DRACB", CONVOLUTION),
    ("MREB", "RFDB of RFDN"),
    ("MREB", "IMDB of IMDN"),
)

Comparison = tuple[str, str, Summary]
"""The two candidates, ours first; the machine; and the ratio of their times or memory."""


def comparisons(results: Results) -> Iterator[Comparison]:
    """Yield the time and memory of ours relative to something else, suite by suite."""
    for suite in results.get("nets", []):
        best, theirs = suite.best(OURS), suite.best(REFERENCE_NET)
        for form in ("eager", "channels_last", "compiled", "channels_last, compiled"):
            yield from _compare(suite, suite.row(OURS, form), suite.row(REFERENCE_NET, form))
        yield from _compare(suite, best, theirs)
        yield from _compare(suite, suite.best(OURS, onnx=True), suite.row(REFERENCE_NET, "onnx"))
        yield from _compare(suite, suite.row(OURS, "folded, bf16"), suite.row(REFERENCE_NET, "channels_last, bf16"))
        for whole_map, local in LOCAL.items():
            yield from _compare(suite, suite.row(OURS, local), suite.row(OURS, whole_map))
        for row in suite.rows:
            if row["form"] == "eager" and row["name"].endswith("×4") and not row["name"].startswith("MREN"):
                yield from _compare(suite, best, row)
    for suite in results.get("memory", []):
        ran = [
            row for row in suite.rows if row.get("peak_bytes") and not {"onnx", "bf16"} & set(row["form"].split(", "))
        ]
        mine, theirs = ([row for row in ran if row["name"] == name] for name in (OURS, REFERENCE_NET))
        if mine and theirs:
            least, reference = (min(rows, key=lambda row: row["peak_bytes"]) for rows in (mine, theirs))
            times = least["peak_bytes"] / reference["peak_bytes"]
            label = f"peak memory: {cells.label(least)} / {cells.label(reference)}"
            yield label, suite.place, Summary(times, times, times)
    for suite in results.get("blocks", []):
        for mode, (mine, other) in product((FORWARD, BACKWARD), BLOCK_PAIRS):
            yield from _compare(suite, suite.row(mine, "eager", mode), suite.row(other, "eager", mode))
        for name in FOLDED_BLOCKS:
            yield from _compare(suite, suite.row(name, "folded", FORWARD), suite.row(name, "eager", FORWARD))
    for suite in results.get("gpu", []):
        names = (OURS, REFERENCE_NET)
        single = [row for row in suite.rows if row["name"] in names and row["size"][0] == 1 and "rounds" in row]
        fastest = [
            min((row for row in single if row["name"] == name), key=cells.seconds, default=None) for name in names
        ]
        yield from _compare(suite, *fastest)
    for name in ("training", "engines", "fold"):
        for suite in results.get(name, []):
            for row in suite.rows:
                if name != "engines" or row["name"].startswith("MREN"):
                    yield from to_reference(row, suite)


def _compare(suite: Suite, mine: Row | None, other: Row | None) -> Iterator[Comparison]:
    if mine and other and mine is not other and "rounds" in mine and "rounds" in other:
        yield f"{cells.label(mine)} / {cells.label(other)}", suite.place, ratio(mine["rounds"], other["rounds"])


def to_reference(row: Row, suite: Suite) -> Iterator[Comparison]:
    """Yield a row of ours relative to its reference; nothing for the reference itself or for other code."""
    times = dict(row.get("ratio", {"to": "", "q1": 1, "q3": 1}))
    to = ", ".join(map(cells.shown_code, times.pop("to").split(" | ")[:2]))
    if not times["q1"] == times["q3"] == 1 and row.get("code", "this code") == "this code":
        size = f" at {cells.size(row)}" if "size" in row else ""
        yield f"{cells.label(row)}{size} / {to}", suite.place, Summary(**times)


def is_worse(comparison: Comparison) -> bool:
    """Whether ours takes more time or memory, beyond noise."""
    return comparison[2].q1 > NOISE
