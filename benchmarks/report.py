"""Write the tables and plots of the documentation from the committed results.

Run as ``python -m benchmarks.report``: it reads ``benchmarks/results/*.json`` and writes
``docs/results/benchmarks/*.md`` and ``*.svg``, and the table in ``README.md``. Ratios are taken within the rounds here,
too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import guide, plots, precision
from benchmarks.candidates import CONVOLUTION, REFERENCE_NET
from benchmarks.run import read
from benchmarks.suites import BACKWARD, FORWARD
from benchmarks.timing import Summary, ratio
from examples.mren.files import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs" / "results" / "benchmarks"
OURS = "MREN ×4"
NOT_MEASURED = "Not measured.\n"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- written by python -m benchmarks.report -->", "<!-- until here -->"

Row = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """What one run of a suite found."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]

    def row(self, name: str, form: str, mode: str | None = None) -> Row | None:
        """The row of a candidate that ran."""
        for row in self.rows:
            if (row["name"], row["form"], row.get("mode")) == (name, form, mode) and "skipped" not in row:
                return row
        return None

    def best(self, name: str, *, onnx: bool = False) -> Row | None:
        """The fastest form of a network in single precision, in PyTorch or in ONNX Runtime."""
        ran = [
            row
            for row in self.rows
            if row["name"] == name and "rounds" in row and ("onnx" in row["form"]) == onnx and "bf16" not in row["form"]
        ]
        return min(ran, key=lambda row: row["seconds"]["median"], default=None)

    @property
    def title(self) -> str:
        """What it ran on, in a line."""
        threads = self.settings["threads"]
        where = self.machine["gpu"] or f"{threads} thread{'s' if threads > 1 else ''} of {self.machine['cpu']}"
        rounds = max((len(row["rounds"]) for row in self.rows if "rounds" in row), default=0)
        count = f", {rounds} round{'s' if rounds > 1 else ''}" if rounds else ""
        return (
            f"**{where}**, {self.machine['instructions']}, torch {self.machine['versions']['torch']}, "
            f"code {self.machine['revision']}{count}, load {self.machine['load']} before."
        )


def load(folder: Path = RESULTS) -> dict[str, list[Suite]]:
    """All committed results: name of the suite, then one entry for each file that has it.

    Raises:
        ValueError: If a file is not one of results, or was made with ``--quick``.
    """
    found: dict[str, list[Suite]] = {}
    for file in sorted(folder.glob("*.json")):
        for name, suite in read(file)["suites"].items():
            if suite["settings"]["quick"]:
                raise ValueError(
                    f"{file}: its {name} were run with --quick, which measures nothing; run it again without."
                )
            found.setdefault(name, []).append(Suite(**suite))
    return found


def spread(summary: Summary | dict[str, float], unit: float = 1) -> str:
    """Median and quartiles to three digits, such as ``1.23 (1.20–1.31)``."""
    values = summary if isinstance(summary, dict) else vars(summary)
    median, low, high = (digits(values[name] * unit) for name in ("median", "q1", "q3"))
    return f"{median} ({low}–{high})"


def digits(value: float) -> str:
    """Three digits where there are decimals; whole numbers in full."""
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):.{2 if value >= 1 else 3}f}" if value < 10 else f"{float(text):.1f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first two of words are numbers."""
    rules = ["---" if column in ("", "form", "pass", "code", "what") else "---:" for column in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rules, *rows]) + "\n"


def blocks_table(suite: Suite) -> str:
    """Milliseconds of every block, and times the convolution's."""
    lines = []
    for row in suite.rows:
        if row["mode"] != FORWARD:
            continue
        cells = [row["name"], row["form"], _macs(row), f"{row['parameters']:,}" if "parameters" in row else ""]
        for mode in (FORWARD, BACKWARD):
            other = suite.row(row["name"], row["form"], mode)
            if other is None:
                cells += [f"skipped: {row.get('skipped')}", ""]
            else:
                cells += [spread(other["seconds"], 1000), spread(other["ratio"])]
        lines.append(cells)
    header = ["", "form", "GMACs", "parameters", "forward, ms", "ratio", "forward + backward, ms", "ratio"]
    return table(header, lines)


def nets_table(suite: Suite) -> str:
    """Milliseconds of every network, times IMDN's, and its arithmetic rate."""
    lines = []
    for row in suite.rows:
        cells = [row["name"], row["form"], f"{row['parameters']:,}" if "parameters" in row else "", _macs(row)]
        if "seconds" not in row:
            lines.append([*cells, f"skipped: {row['skipped']}", "", ""])
            continue
        rate = arithmetic_rate(suite, row)
        cells += [spread(row["seconds"], 1000), spread(row["ratio"]), spread(rate) if rate else ""]
        lines.append(cells)
    return table(["", "form", "parameters", "GMACs", "ms", f"times {REFERENCE_NET} eager", "rate"], lines)


def memory_table(suite: Suite) -> str:
    """MiB of every network."""
    reference = suite.row(REFERENCE_NET, "eager")
    lines = []
    for row in suite.rows:
        if row.get("peak_bytes") is None:
            lines.append([row["name"], row["form"], f"skipped: {row.get('skipped', 'no such counter here')}", "", ""])
            continue
        other = row.get("peak_bytes_with_default_allocator")
        times = digits(row["peak_bytes"] / reference["peak_bytes"]) if reference else ""
        lines.append([row["name"], row["form"], _mib(row["peak_bytes"]), times, _mib(other) if other else ""])
    return table(["", "form", "MiB", f"times {REFERENCE_NET} eager", "MiB, allocator as it comes"], lines)


def growth_table(suite: Suite) -> str:
    """Latency and memory over the size of the input."""
    lines = []
    for row in suite.rows:
        height, width = row["size"][-2:]
        form = row["form"] + (f", tiles of {row['tile']}" if row["tile"] else "")
        cells = [row["name"], form, f"{width} × {height}"]
        if "seconds" in row:
            cells += [spread(row["seconds"]), _mib(row["peak_bytes"]) if row["peak_bytes"] is not None else ""]
        else:
            cells += [f"skipped: {row['skipped']}", ""]
        lines.append(cells)
    return table(["", "form", "input", "s", "MiB"], lines)


def training_table(suite: Suite) -> str:
    """Milliseconds of a training step."""
    lines = []
    for row in suite.rows:
        cells = [_patches(row), row["code"], row["form"]]
        if "seconds" not in row:
            lines.append([*cells, f"skipped: {row['skipped']}", "", ""])
            continue
        lines.append([*cells, spread(row["seconds"], 1000), spread(row["ratio"]), f"{row['first_loss']:.5f}"])
    to = next((_code_and_form(row["ratio"]["to"]) for row in suite.rows if "ratio" in row), "")
    return table(["patches", "code", "form", "ms", f"times {to}", "first loss"], lines)


def _patches(row: Row) -> str:
    number, side = row["patches"]
    return f"{number} of {side} × {side}"


def _code_and_form(key: str) -> str:
    return ", ".join(key.split(" | ")[:2])


def gpu_table(suite: Suite) -> str:
    """Frames per second."""
    lines = []
    for row in suite.rows:
        cells = [row["name"], row["form"], str(row["size"][0])]
        if "seconds" not in row:
            lines.append([*cells, f"skipped: {row['skipped']}", "", ""])
            continue
        numbers = [spread(row["seconds"], 1000), digits(row["frames_per_second"]), digits(row["fraction_of_bound"])]
        lines.append([*cells, *numbers])
    return table(["", "form", "frames at a time", "ms", "frames/s", "fraction of the bound"], lines)


TABLES: dict[str, Callable[[Suite], str]] = {
    "blocks": blocks_table,
    "nets": nets_table,
    "memory": memory_table,
    "growth": growth_table,
    "training": training_table,
    "gpu": gpu_table,
}


def arithmetic_rate(suite: Suite, row: Row) -> Summary | None:
    """MACs per second beside those of a plain convolution in the same rounds; MACs of the network as it was written."""
    plain = suite.best(CONVOLUTION)
    if plain is None or not row.get("macs") or row["name"] == CONVOLUTION:
        return None
    return ratio(
        [row["macs"] / seconds for seconds in row["rounds"]], [plain["macs"] / seconds for seconds in plain["rounds"]]
    )


def summary_table(results: dict[str, list[Suite]]) -> str:
    """The ratios that say most, for each file, beside what was aimed at."""
    lines: list[list[str]] = []

    def add(what: str, where: str, mine: Row | None, other: Row | None, aim: str) -> None:
        if mine and other:
            lines.append([what, where, spread(ratio(mine["rounds"], other["rounds"])), aim])

    for suite in results.get("nets", []):
        where = _where(suite)
        for form in ("eager", "channels_last", "compiled", "channels_last, compiled"):
            add(f"{OURS} / {REFERENCE_NET}, both {form}", where, suite.row(OURS, form), suite.row(REFERENCE_NET, form),
                "")  # fmt: skip
        best, theirs = suite.best(OURS), suite.best(REFERENCE_NET)
        if best and theirs:
            add(f"{OURS} {best['form']} / {REFERENCE_NET} eager", where, best, suite.row(REFERENCE_NET, "eager"),
                "≤ 1.8, then 1.3")  # fmt: skip
            add(f"{OURS} {best['form']} / {REFERENCE_NET} {theirs['form']}, the best of both", where, best, theirs, "")
            rate = arithmetic_rate(suite, best)
            if rate:
                lines.append([f"arithmetic rate of {OURS} {best['form']}", where, spread(rate), "≥ 0.55, then 0.8"])
        mine = suite.best(OURS, onnx=True)
        add(f"{OURS} / {REFERENCE_NET}, in ONNX Runtime", where, mine, suite.row(REFERENCE_NET, "onnx"),
            "≤ 1.6, then 1.2")  # fmt: skip
        add(f"{OURS} folded, bf16 / {REFERENCE_NET} channels_last, bf16", where, suite.row(OURS, "folded, bf16"),
            suite.row(REFERENCE_NET, "channels_last, bf16"), "")  # fmt: skip
    for suite in results.get("memory", []):
        rows = [
            row
            for row in suite.rows
            if row["name"] == OURS and row.get("peak_bytes") and not {"onnx", "bf16"} & set(row["form"].split(", "))
        ]
        reference = suite.row(REFERENCE_NET, "eager")
        if rows and reference:
            least = min(rows, key=lambda row: row["peak_bytes"])
            times = digits(least["peak_bytes"] / reference["peak_bytes"])
            what = f"peak memory of {OURS} {least['form']} / {REFERENCE_NET} eager"
            lines.append([what, _where(suite), times, "≤ 1.0, then 0.7"])
    for suite in results.get("training", []):
        ran = [row for row in suite.rows if row["code"] == "this code" and "ratio" in row]
        for row in ran:
            to = _code_and_form(row["ratio"]["to"])
            if f"{row['code']}, {row['form']}" != to:
                what = f"training step of {OURS}, {_patches(row)}, {row['form']} / {to}"
                lines.append([what, _where(suite), spread(row["ratio"]), "≤ 0.75, then 0.5"])
    for suite in results.get("blocks", []):
        for mine, other, aim in BLOCK_AIMS:
            for mode in (FORWARD, BACKWARD):
                add(f"{mine} / {other}, {mode.replace('+', ' + ')}", _where(suite),
                    suite.row(mine, "eager", mode), suite.row(other, "eager", mode), aim)  # fmt: skip
    return table(["what", "threads, vector units", "ratio", "aim"], lines) if lines else NOT_MEASURED


BLOCK_AIMS = (
    ("WSILBV", "CCA of IMDN", "≤ 1"),
    ("SCACB", CONVOLUTION, "≤ 1.5, then 1.0"),
    ("DRACB", CONVOLUTION, "≤ 0.5"),
    ("MREB", "RFDB of RFDN", "≤ 1"),
    ("MREB", "IMDB of IMDN", "≤ 1, later"),
)


def tables(results: dict[str, list[Suite]]) -> dict[str, str]:
    """Every generated Markdown file: its name and its text."""
    texts = {
        "summary.md": summary_table(results),
        "costs.md": guide.costs_tables(results) or NOT_MEASURED,
        "forms.md": guide.forms_tables(results) or NOT_MEASURED,
        "precision.md": precision.table() or NOT_MEASURED,
    }
    for name, draw in TABLES.items():
        parts = [f"{suite.title}\n\n{draw(suite)}" for suite in results.get(name, [])]
        texts[f"{name}.md"] = "\n".join(parts) or NOT_MEASURED
    return texts


def with_table(readme: str, results: dict[str, list[Suite]]) -> str:
    """The text of README with its table made anew.

    Raises:
        ValueError: If the two comments between which it stands are not there.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md: the table stands between {BEGIN} and {END}, and they are not both there.")
    return f"{before}{begin}\n{guide.readme_table(results)}{end}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0]).parse_args(argv)
    try:
        results = load()
        readme = with_table(README.read_text(), results)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name, text in tables(results).items():
        write_text(DOCS / name, text)
        print(DOCS / name)
    for name, draw in plots.PLOTS.items():
        draw(results, DOCS / name)
        print(DOCS / name)
    write_text(README, readme)
    print(README)
    return 0


def _where(suite: Suite) -> str:
    return "GPU" if suite.machine["gpu"] else f"{suite.settings['threads']}, {suite.machine['instructions']}"


def _macs(row: Row) -> str:
    return digits(row["macs"] / 1e9) if row.get("macs") else ""


def _mib(size: int) -> str:
    return digits(size / 2**20)


if __name__ == "__main__":
    sys.exit(main())
