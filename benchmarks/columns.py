"""Columns of the tables that have a line for each row of a suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks import cells
from benchmarks.candidates import REFERENCE_NET
from benchmarks.results import Row, Suite
from examples.markdown import digits, mib, spread

Column = Callable[[Row, Suite], str]
NAME: dict[str, Column] = {"": lambda row, _: row["name"]}
FORM: dict[str, Column] = NAME | {"form": lambda row, _: row["form"]}
COUNTED: dict[str, Column] = {
    "parameters": lambda row, _: cells.parameters(row),
    "GMACs": lambda row, _: cells.gmacs(row),
}
MS: dict[str, Column] = {"ms": lambda row, _: cells.spread_milliseconds(row)}
# By suite: column headings and the text of cells. Measurements come first: a phone shows only the first columns.
COLUMNS: dict[str, Mapping[str, Column]] = {
    "blocks": FORM
    | {
        "forward, ms": lambda row, _: cells.spread_milliseconds(row),
        "times": lambda row, _: cells.ratio_spread(row),
        "forward + backward, ms": lambda row, suite: cells.spread_milliseconds(cells.backward(row, suite)),
        "times, with backward": lambda row, suite: cells.ratio_spread(cells.backward(row, suite)),
    },
    "nets": FORM
    | MS
    | {
        f"times {REFERENCE_NET} eager": lambda row, _: cells.ratio_spread(row),
        "rate": lambda row, suite: digits(rate.median) if (rate := cells.arithmetic_rate(row, suite)) else "",
    }
    | COUNTED,
    "memory": FORM
    | {
        "MiB": lambda row, _: mib(row.get("peak_bytes")) or cells.skip_reason(row),
        f"times {REFERENCE_NET} eager": cells.memory_ratio,
        "MiB, default allocator": lambda row, _: mib(row.get("peak_bytes_with_default_allocator")),
    },
    "growth": NAME
    | {
        "form": lambda row, _: ", ".join(filter(None, (row["form"], cells.tiles(row), cells.skip_reason(row)))),
        "input": lambda row, _: cells.size(row),
        "s": lambda row, _: spread(row["seconds"], 1) if "seconds" in row else "",
        "MiB": lambda row, _: mib(row.get("peak_bytes")),
    },
    "training": {"patches": lambda row, _: cells.patches(row), "code": lambda row, _: cells.shown_code(row["code"])}
    | {"form": FORM["form"]}
    | MS
    | {
        "times the reference": lambda row, _: cells.ratio_spread(row),
        "first loss": lambda row, _: f"{row['first_loss']:.5f}" if "first_loss" in row else "",
    },
    "engines": FORM
    | MS
    | {
        "times IMDN, same engine": lambda row, _: cells.ratio_spread(row),
        "times IMDN eager": lambda row, suite: cells.times(row, suite.row(REFERENCE_NET, "eager")),
    },
    "gpu": {"": lambda row, _: row["name"] + (" on {1} × {1}".format(*row["patches"]) if "patches" in row else "")}
    | {"form": FORM["form"]}
    | {"frames/s": cells.number_of("frames_per_second")}
    | MS
    | {
        "steps/s": cells.number_of("steps_per_second"),
        "batch": lambda row, _: cells.batch(row),
        "fraction of measured limit": cells.number_of("fraction_of_measured"),
        "fraction of data-sheet limit": cells.number_of("fraction_of_data_sheet"),
    },
}
