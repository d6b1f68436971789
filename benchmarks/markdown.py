"""Tables in Markdown, and the numbers in them."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from benchmarks.timing import Summary

# Columns of words; all others hold numbers.
WORDS = frozenset({"", "form", "code", "machine", "engine", "pass"})


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; empty if it has no rows. Columns that are empty throughout are left out."""
    kept = [n for n, _ in enumerate(header) if any(row[n] for row in rows)]
    if not kept:
        return ""
    names = [header[n] for n in kept]
    cells = [[row[n] for n in kept] for row in rows]
    align = ["left" if name in WORDS else "right" for name in names]
    return tabulate(cells, names, tablefmt="pipe", disable_numparse=True, colalign=align) + "\n"


def spread(summary: Summary | dict[str, float], unit: float = 1) -> str:
    """Median and quartiles to three digits, such as ``1.23 (1.20–1.31)``."""
    values = summary if isinstance(summary, dict) else vars(summary)
    median, low, high = (digits(values[name] * unit) for name in ("median", "q1", "q3"))
    return f"{median} ({low}–{high})"


def digits(value: float) -> str:
    """Three digits where there are decimals; whole numbers in full.

    Example:
        >>> digits(0.03512), digits(1.5), digits(1234.5)
        ('0.035', '1.50', '1,234')
    """
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):.{2 if value >= 1 else 3}f}" if value < 10 else f"{float(text):.1f}"


def mib(size: float | None) -> str:
    """Bytes in MiB; nothing where there are none."""
    return "" if size is None else digits(size / 2**20)
