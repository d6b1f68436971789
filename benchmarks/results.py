"""The committed results: one JSON file for each machine, with its suites and their rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.records import read_json

FORMAT = 1
FOLDER = Path(__file__).parent / "results"

Row = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """The results of one run of a suite."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]

    def row(self, name: str, form: str, mode: str | None = None) -> Row | None:
        """The row of a candidate, unless it was skipped."""
        for row in self.rows:
            if (row["name"], row["form"], row.get("mode")) == (name, form, mode) and "skipped" not in row:
                return row
        return None

    def best(self, name: str, *, onnx: bool = False) -> Row | None:
        """The fastest form of a network in single precision, in PyTorch or in ONNX Runtime.

        Forms with local statistics compute another function and do not count.
        """
        ran = [
            row
            for row in self.rows
            if row["name"] == name and "rounds" in row
            if ("onnx" in row["form"]) == onnx and not {"bf16", "local"} & set(row["form"].split(", "))
        ]
        return min(ran, key=lambda row: row["seconds"]["median"], default=None)

    @property
    def place(self) -> str:
        """Where the suite ran, in a few words."""
        threads = self.settings["threads"]
        return self.machine["gpu"] or f"{threads} thread{'s' if threads > 1 else ''}, {self.machine['instructions']}"

    @property
    def title(self) -> str:
        """Where the suite ran, in one line."""
        rounds = max((len(row["rounds"]) for row in self.rows if "rounds" in row), default=0)
        count = f", {rounds} round{'s' if rounds > 1 else ''}" if rounds else ""
        cpu = "" if self.machine["gpu"] else f" of {self.machine['cpu']}"
        return f"**{self.place}**{cpu}, torch {self.machine['versions']['torch']}{count}."


Results = dict[str, list[Suite]]
"""Name of a suite, then one entry for each file that has it."""


def read(file: Path) -> dict[str, Any]:
    """Return the contents of a results file, or of a new one.

    Raises:
        ValueError: If it is not a results file.
    """
    if not file.exists():
        return {"format": FORMAT, "suites": {}}
    found = read_json(file)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("suites"), dict):
        raise ValueError(f"{file}: not written by benchmarks.run, or by another version; name another file.")
    return found


def dumps(found: dict[str, Any]) -> str:
    """Format results as JSON with one line per row, so that ``diff`` can compare two runs."""
    text = ['{\n "format": ' + json.dumps(found["format"]) + ',\n "suites": {']
    for number, (name, suite) in enumerate(found["suites"].items()):
        head = {key: value for key, value in suite.items() if key != "rows"}
        text.append((",\n  " if number else "\n  ") + json.dumps(name) + ": {")
        text += [f"\n   {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
        lines = (json.dumps(row, ensure_ascii=False) for row in suite["rows"])
        text.append('\n   "rows": [\n    ' + ",\n    ".join(lines) + "\n   ]\n  }")
    return "".join(text) + "\n }\n}\n"


def load(folder: Path = FOLDER) -> Results:
    """Load all suites of all files in a folder.

    Raises:
        ValueError: If a file is not a results file, or was made with ``--quick``.
    """
    found: Results = {}
    for file in sorted(folder.glob("*.json")):
        for name, suite in read(file)["suites"].items():
            if suite["settings"]["quick"]:
                raise ValueError(f"{file}: {name} was run with --quick, which measures nothing; run it without.")
            found.setdefault(name, []).append(Suite(**suite))
    return found
