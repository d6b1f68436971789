"""The folders of runs: which settings a run has, whether it is finished, and what it recorded."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.compare.setup import Row, Setup
from examples.mren.training.trainer import check_settings
from examples.records import read_json

# The entries of a record besides its settings, and their types.
_RECORD = {"parameters": (int,), "macs": (int,), "steps": (int,), "minutes": (int, float), "scores": (dict,)}


def _is_record(value: object) -> bool:
    """Whether a value has the structure of a run's record."""
    if not isinstance(value, dict) or any(type(value.get(key)) not in types for key, types in _RECORD.items()):
        return False
    kept = [value["scores"], value.get("local_scores", {})]
    return all(isinstance(scores, dict) and all(map(_is_score, scores.values())) for scores in kept)


def _is_score(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"psnr"} <= set(value) <= {"psnr", "ssim"}
        and all(type(number) in (int, float) for number in value.values())
    )


@dataclass(frozen=True)
class RunFolder:
    """A row with a seed, and the folder of its run."""

    row: Row
    seed: int
    folder: Path
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        """The name of the run in messages."""
        return f"{self.row.name}, seed {self.seed}"

    @property
    def record(self) -> Path:
        """The file with the settings and the results, which is written last."""
        return self.folder / "run.json"

    def finished(self) -> bool:
        """Whether the run is finished; raises if its record is that of another run."""
        if self.record.exists():
            self.read_record()
        return self.record.exists()

    def read_record(self) -> dict[str, Any]:
        """The record of the finished run.

        Raises:
            ValueError: If the file is damaged, or the record of another run.
        """
        record = read_json(self.record)
        if isinstance(record, dict):
            self.check(record.get("settings"))
        if not _is_record(record):
            raise ValueError(f"{self.record}: is not the record of a run; delete the file to train the run again.")
        return record

    def check(self, found: Any) -> None:
        """Raise if the settings in the folder are of another run. Those of earlier versions lack ``contents``."""
        known = found if isinstance(found, dict) else {}
        check_settings(self.folder, {"contents": self.settings["contents"], **known}, self.settings)


def list_runs(rows: Sequence[Row], setup: Setup, files: Sequence[Path]) -> list[RunFolder]:
    """Every row with one seed, then with the next, so that what is finished when time is up can be compared."""
    trained_on = {
        "images": len(files),
        "files": zlib.crc32(os.fsencode("/".join(path.name for path in files))),
        "contents": checksum(files),
    }
    return [
        RunFolder(
            row, seed, setup.output / row.folder / f"seed_{seed}", _settings(setup, row, rows[0], seed, trained_on)
        )
        for seed in range(setup.seeds)
        for row in rows
    ]


def _settings(setup: Setup, row: Row, first: Row, seed: int, trained_on: Mapping[str, int]) -> dict[str, Any]:
    """The settings that determine the results of a run, in the form that JSON returns."""
    training = dataclasses.replace(setup.training, **row.options)
    settings = {
        "row": row.folder,
        "channels": row.channels,
        "config": row.config,
        "begins_as": first.name if row.begins_alike else row.folder,
        "task": dataclasses.asdict(setup.task),
        "seed": seed,
        **training.settings(trained_on["images"], setup.task.scale),
        **trained_on,
    }
    return json.loads(json.dumps(settings))


def checksum(files: Sequence[Path]) -> int:
    """A checksum of the contents of images, as different folders may share a name."""
    return functools.reduce(lambda total, file: zlib.crc32(file.read_bytes(), total), files, 0)
