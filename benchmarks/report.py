"""Write the tables and plots of the documentation from the committed results: ``python -m benchmarks.report``.

It reads ``benchmarks/results`` and writes ``docs/results/benchmarks/*.md`` and ``*.svg``, tables of
``docs/results/engines``, and the one in ``README.md``. Ratios are computed within rounds. A table of several machines
has one part for each.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import cells, plots
from benchmarks.candidates import CONVOLUTION, ENGINES, REFERENCE_NET
from benchmarks.columns import COLUMNS
from benchmarks.comparisons import NOISE, OURS, Comparison, comparisons, is_worse, to_reference
from benchmarks.precision import read_current as read_precision
from benchmarks.results import Results, Row, Suite, load
from benchmarks.runner import BACKWARD, FORWARD
from benchmarks.suites import CONVERTED
from examples import markdown
from examples.markdown import digits, mib, signed, spread, with_part
from examples.mren.arguments import command_parser
from examples.mren.cli import run_command
from examples.mren.files import write_text

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "results" / "benchmarks"
README = ROOT / "README.md"
COMMAND = "benchmarks.report"
NOT_MEASURED = "Not measured.\n"
MODES = (FORWARD, BACKWARD)
# Text columns; all others hold numbers.
table = partial(markdown.table, text=("", "form", "code", "machine", "engine", "pass"))

# The choices of a user: network, form, and name in the table.
CHOICES = (
    (OURS, "eager", "MREN ×4"),
    (OURS, "folded", "MREN ×4, folded"),
    (OURS, "folded, compiled", "MREN ×4, folded, compiled"),
    (OURS, "padded, folded, openvino", "MREN ×4, folded, in OpenVINO"),
    ("MREN-S ×4", "folded", "MREN-S ×4, folded"),
    ("MREN-S ×4", "padded, folded, openvino", "MREN-S ×4, folded, in OpenVINO"),
    (REFERENCE_NET, "eager", "IMDN ×4"),
    (REFERENCE_NET, "openvino", "IMDN ×4, in OpenVINO"),
    ("SPAN ×4", "eager", "SPAN ×4"),
    ("SAFMN ×4", "eager", "SAFMN ×4"),
    ("SwinIR-light ×4", "eager", "SwinIR-light ×4"),
)


def comparison_table(found: Iterable[Comparison]) -> str:
    """Format comparisons as a table without duplicates: the best form may also be compared by name."""
    lines = [[what, place, spread(vars(times))] for what, place, times in dict.fromkeys(found)]
    return table(["", "machine", "times"], lines) or NOT_MEASURED


def choices_table(results: Results, *, memory: bool = True) -> str:
    """Time, ratio to IMDN in the same engine, and memory of what a user chooses between, on the first machine."""
    suite = next(iter(results.get("nets", [])), None)
    if suite is None:
        return NOT_MEASURED
    # OpenVINO is timed in the engines suite, at the same size.
    suites = [suite, *(each for each in results.get("engines", []) if each.place == suite.place)]
    peaks = {(row["name"], row["form"]): row.get("peak_bytes") for row in _rows(results, "memory", suite.place)}
    lines = [
        [
            label,
            cells.parameters(row),
            cells.milliseconds(row),
            cells.times_reference(row, found),
            mib(peaks.get((name, form))) if memory else "",
        ]
        for name, form, label in CHOICES
        for found in [each for each in suites if (each.row(name, form) or {}).get("rounds")][:1]
        if (row := found.row(name, form))
    ]
    title = f"An image of {cells.size(suite.row(OURS, 'eager') or suite.rows[0])}. {suite.title}"
    if len(suites) > 1:
        title += " OpenVINO: another run on that machine."
    return f"{title}\n\n{table(['', 'parameters', 'ms', 'times IMDN, same engine', 'peak, MiB'], lines)}"


def costs_table(suite: Suite, results: Results) -> str:
    """Time of each block relative to a plain convolution, with saved memory, parameters and MACs."""
    counts = {row["name"]: row for row in _rows(results, "counts") if "skipped" not in row}
    lines = []
    for row in suite.rows:
        name, form = row["name"], row["form"]
        if row["mode"] == FORWARD and "skipped" not in row and form in ("eager", "folded"):
            counted = counts.get(name, row) if form == "eager" else {}
            numbers = [
                cells.ratio_median(row),
                cells.ratio_median(suite.row(name, form, BACKWARD)),
                mib(counted.get("kept_bytes")),
            ]
            numbers += [cells.parameters(counted), cells.gmacs(counted, 3)]
            lines.append([name if form == "eager" else f"{name}, {form}", *numbers])
    plain = {mode.replace("+", " and "): suite.row(CONVOLUTION, "eager", mode) for mode in MODES}
    times = ", ".join(f"{cells.milliseconds(row)} ms {mode}" for mode, row in plain.items() if row)
    header = ["", "forward", "forward + backward", "saved, MiB", "parameters", "GMACs"]
    return f"Times are relative to the convolution's: {times}.\n\n{table(header, lines)}"


def forms_tables(results: Results) -> str:
    """Time of each form relative to the same network or block in eager mode: MREN first, then the blocks."""
    parts = []
    for suite in results.get("nets", []):
        if (eager := suite.row(OURS, "eager")) is None:
            continue
        memory = {row["form"]: row for row in _rows(results, "memory", suite.place) if row["name"] == OURS}
        lines = [
            [
                row["form"],
                cells.milliseconds(row),
                cells.times(row, eager),
                mib(memory.get(row["form"], {}).get("peak_bytes")),
            ]
            for row in suite.rows
            if row["name"] == OURS and "rounds" in row
        ]
        sizes = f"{OURS} on an image of {cells.size(eager)}"
        sizes += f", its memory of {cells.size(memory['eager'])}" if "eager" in memory else ""
        parts.append(f"{sizes}. {suite.title}\n\n{table(['form', 'ms', 'times eager', 'peak, MiB'], lines)}")
    for suite in results.get("blocks", []):
        lines = []
        for row in suite.rows:
            if row["mode"] == FORWARD and row["form"] != "eager" and "rounds" in row:
                pairs = [[suite.row(row["name"], form, mode) for form in (row["form"], "eager")] for mode in MODES]
                lines.append([row["name"], row["form"], *(cells.times(*pair) for pair in pairs)])
        text = table(["", "form", "forward", "forward + backward"], lines)
        parts.append(f"Blocks, times the same block eager. {suite.title}\n\n{text}")
    return "\n".join(parts) or NOT_MEASURED


def fold_table(suite: Suite, _: Results) -> str:
    """Folded against unfolded, and whether anything folded is slower."""
    found = [each for row in suite.rows for each in to_reference(row, suite)]
    slower = sum(map(is_worse, found))
    text = f"**{f'{slower} of {len(found)}' if slower else 'Nothing'} folded is slower**"
    text += f" by more than {100 * (NOISE - 1):.0f} % in at least three of four rounds."
    worst = max(found, key=lambda each: each[2].median, default=None)
    text += f" The highest ratio: {worst[0]}, {spread(vars(worst[2]))}." if worst else ""
    peaks = {(row["name"], *row["size"]): row.get("peak_bytes") for row in suite.rows if row["form"] == "eager"}
    lines = []
    for row in suite.rows:
        before = peaks.get((row["name"], *row["size"]))
        if row["form"] == "folded":
            memory = digits(row["peak_bytes"] / before) if row.get("peak_bytes") and before else ""
            lines.append(
                [row["name"], cells.size(row), cells.spread_milliseconds(row), cells.ratio_spread(row), memory]
            )
    return f"{text}\n\n{table(['', 'input', 'ms, folded', 'times unfolded', 'memory, times unfolded'], lines)}"


def precision_table() -> str:
    """Errors of each PyTorch precision relative to float64."""
    rows = [row for row in read_precision() if row["network"] == OURS and row["form"] not in ENGINES]
    lines = [
        [row["form"], *(cells.small(float(row[key])) for key in ("largest", "rms")),
         f"{100 * float(row['bytes_changed']):.1f} %", f"{float(row['psnr']):.3f}"]
        for row in rows
    ]  # fmt: skip
    return table(["form", "largest error", "root mean square", "bytes that differ", "PSNR, dB"], lines) or NOT_MEASURED


def engine_precision_table(results: Results) -> str:
    """PSNR loss and time of each precision in other engines."""
    rows = read_precision()
    exact = {row["network"]: float(row["psnr"]) for row in rows if row["form"] == "float64"}
    # All times come from one run, so they are comparable.
    timed = next((suite.rows for suite in results.get("engines", []) if suite.row(OURS, "openvino int8")), [])
    times = {(row["name"], row["engine"]): cells.milliseconds(row) for row in timed if "seconds" in row}
    lines = []
    for row in rows:
        key, psnr = (row["network"], row["form"]), float(row["psnr"])
        if row["form"] in ENGINES:
            lines.append([*key, times.get(key, ""), f"{psnr:.3f}", signed(psnr - exact[row["network"]], 3)])
    return table(["", "engine", "ms", "PSNR, dB", "difference from float64, dB"], lines) or NOT_MEASURED


def pivot_table(suite: Suite, rows: Iterable[Row], column: str) -> str:
    """Milliseconds of networks, one table column each, with a line for each value of ``column`` in their rows."""
    found = {(row["name"], row[column]): cells.milliseconds(row) for row in rows if "seconds" in row}
    if not found:
        return f"{suite.title}\n\n{NOT_MEASURED}"
    names, values = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
    lines = [[value, *(found.get((name, value), "") for name in names)] for value in values]
    return f"{suite.title}\n\n{table([column, *names], lines)}"


def engine_tables(results: Results) -> dict[str, str]:
    """The tables of the engine pages; those with times only if they were measured."""
    texts = {"precision.md": engine_precision_table(results)}
    for suite in results.get("engines", [])[:1]:
        texts["times.md"] = pivot_table(suite, filter(_is_upscale_form, suite.rows), "engine")
        if all(suite.row(OURS, form) for form in CONVERTED):
            ours = [row for row in suite.rows if row["name"].startswith("MREN") and row["engine"] in CONVERTED]
            texts["folded.md"] = pivot_table(suite, ours, "form")
    return texts


def _is_upscale_form(row: Row) -> bool:
    """Whether ``upscale --engine`` runs a row's form; of two such rows, a table keeps the last."""
    return row["engine"] != "onnx" or "folded" not in row["form"].split(", ")


def _rows(results: Results, suite: str, place: str | None = None) -> list[Row]:
    return [row for each in results.get(suite, []) if place in (None, each.place) for row in each.rows]


def rows_table(name: str, suite: Suite, _: Results) -> str:
    """The table of a suite with the columns of :data:`~benchmarks.columns.COLUMNS`."""
    columns = COLUMNS[name]
    rows = [row for row in suite.rows if row.get("mode") != BACKWARD]
    return table(list(columns), [[cell(row, suite) for cell in columns.values()] for row in rows])


def gpu_table(suite: Suite, results: Results) -> str:
    """The rows that ran on a GPU, and the number that did not, for lack of time or of a package."""
    ran = replace(suite, rows=[row for row in suite.rows if "rounds" in row])
    budget = suite.settings.get("budget")  # not in older files
    late = f" did not fit into the {budget:g} seconds" if budget else " did not fit into the time"
    short = ("no time was left", "not prepared within")
    why = [row["skipped"] for row in suite.rows if "skipped" in row]
    counts = Counter(late if reason.startswith(short) else f", because {reason}" for reason in why)
    others = "; ".join(f"{count}{reason}" for reason, count in counts.items())
    return rows_table("gpu", ran, results) + (f"\nForms that were not run: {others}.\n" if others else "")


def tables(results: Results) -> dict[str, str]:
    """Name and text of every generated Markdown file."""
    texts = {
        "choices.md": choices_table(results),
        "losses.md": comparison_table(filter(is_worse, comparisons(results))),
        "summary.md": comparison_table(comparisons(results)),
        "forms.md": forms_tables(results),
        "precision.md": precision_table(),
    }
    drawn: dict[str, Callable[[Suite, Results], str]] = {name: partial(rows_table, name) for name in COLUMNS}
    drawn |= {"fold": fold_table, "costs": costs_table, "gpu": gpu_table}
    for name, draw in drawn.items():
        suites = results.get("blocks" if name == "costs" else name, [])
        texts[f"{name}.md"] = "\n".join(f"{each.title}\n\n{draw(each, results)}" for each in suites) or NOT_MEASURED
    return texts


def pages(results: Results) -> dict[Path, str]:
    """Path and text of every Markdown file that is written, in whole or in part."""
    return {
        **{DOCS / name: text for name, text in tables(results).items()},
        **{DOCS.parent / "engines" / name: text for name, text in engine_tables(results).items()},
        README: with_part(README.read_text(encoding="utf-8"), COMMAND, choices_table(results, memory=False)),
    }


def run(_: argparse.Namespace) -> None:
    """Run the command."""
    results = load()
    for file, text in pages(results).items():
        write_text(file, text)
        print(file)
    for name, draw in plots.PLOTS.items():
        draw(results, DOCS / name)
        print(DOCS / name)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = command_parser("benchmarks.report", __doc__)
    return run_command(run, parser.parse_args, argv)


if __name__ == "__main__":
    sys.exit(main())
