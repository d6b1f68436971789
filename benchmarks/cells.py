"""Format measured rows as cells of the benchmark tables."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.candidates import CONVOLUTION, REFERENCE_NET
from benchmarks.results import Row, Suite
from benchmarks.runner import BACKWARD
from examples.markdown import digits, spread
from examples.timing import Summary, ratio


def arithmetic_rate(row: Row, suite: Suite) -> Summary | None:
    """MACs per second relative to a plain convolution in the same rounds, with the MACs of the original network."""
    plain = suite.best(CONVOLUTION)
    if plain is None or not row.get("macs") or "rounds" not in row or row["name"] == CONVOLUTION:
        return None
    mine, other = ([each["macs"] / seconds for seconds in each["rounds"]] for each in (row, plain))
    return ratio(mine, other)


def shown_code(code: str) -> str:
    """Display name of the code that a row ran."""
    return "earlier code" if code.startswith("code of") else code


def label(row: Row) -> str:
    """The name of a row in a sentence."""
    parts = [row["name"], row["form"], row.get("mode", "").replace("+", " + ")]
    parts += [patches(row), shown_code(row["code"])] if "code" in row else []
    return ", ".join(filter(None, parts))


def patches(row: Row) -> str:
    """Number and size of the patches of a training step."""
    return "{0} of {1} × {1}".format(*row["patches"])


def batch(row: Row) -> str:
    """Number of patches or frames of a row on a GPU."""
    if "patches" in row:
        return str(row["patches"][0])
    return str(row["size"][0]) if "frames_per_second" in row else ""


def tiles(row: Row) -> str:
    """Size of the tiles; empty for a whole image."""
    return f"tiles of {row['tile']}" if row["tile"] else ""


def size(row: Row) -> str:
    """Width and height of the input."""
    return f"{row['size'][-1]} × {row['size'][-2]}"


def parameters(row: Row) -> str:
    """Number of parameters."""
    return f"{row['parameters']:,}" if "parameters" in row else ""


def gmacs(row: Row, decimals: int | None = None) -> str:
    """Billions of multiply-accumulates."""
    if not row.get("macs"):
        return ""
    return digits(row["macs"] / 1e9) if decimals is None else f"{row['macs'] / 1e9:.{decimals}f}"


def seconds(row: Row) -> float:
    """Median time, as a number."""
    return row["seconds"]["median"]


def milliseconds(row: Row) -> str:
    """Median time."""
    return digits(1000 * seconds(row))


def spread_milliseconds(row: Row) -> str:
    """Milliseconds with quartiles, or why there are none."""
    return spread(row["seconds"], 1000) if "seconds" in row else skip_reason(row)


def skip_reason(row: Row) -> str:
    """Why a row was not run; empty if it was."""
    return f"not run: {row['skipped']}" if row.get("skipped") else ""


def ratio_spread(row: Row) -> str:
    """Time relative to the row's own reference, with quartiles."""
    return spread(row["ratio"]) if "ratio" in row else ""


def ratio_median(row: Row | None) -> str:
    """Median time relative to the row's own reference."""
    return digits(row["ratio"]["median"]) if row and "ratio" in row else ""


def times(row: Row | None, other: Row | None) -> str:
    """Median of the time relative to another row; empty if one of them has none."""
    if not row or not other or "rounds" not in row or "rounds" not in other:
        return ""
    return digits(ratio(row["rounds"], other["rounds"]).median)


def backward(row: Row, suite: Suite) -> Row:
    """The row that times the same block with its backward pass."""
    return suite.row(row["name"], row["form"], BACKWARD) or {}


def memory_ratio(row: Row, suite: Suite) -> str:
    """Peak memory relative to that of the reference network."""
    reference = suite.row(REFERENCE_NET, "eager")
    return digits(row["peak_bytes"] / reference["peak_bytes"]) if row.get("peak_bytes") and reference else ""


def number_of(key: str) -> Callable[[Row, Suite], str]:
    """A column with the number under ``key``."""
    return lambda row, _: digits(row[key]) if key in row else ""


def small(number: float) -> str:
    """A small number with two decimals, or three if it is below 0.1."""
    return "< 0.001" if 0 < number < 0.001 else f"{number:.2f}" if number >= 0.1 else f"{number:.3f}"


def times_reference(row: Row, suite: Suite) -> str:
    """Time relative to the reference network in the same engine: eager or compiled torch, or OpenVINO."""
    engine = next((step for step in ("openvino", "compiled") if step in row["form"].split(", ")), None)
    return times(row, suite.row(REFERENCE_NET, engine)) if engine else ratio_median(row)
