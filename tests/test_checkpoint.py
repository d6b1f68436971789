"""Checkpoints from anybody: what they hold is compared with the run before any of it is used."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from examples.mren.training.checkpoint import (
    CheckpointError,
    Progress,
    check_tensors,
    checkpoints,
    load_optimizer_tensors,
    optimizer_tensors,
    parse_progress,
    read_checkpoint,
    write_checkpoint,
)

ROW = {"step": 3, "loss": 0.1, "psnr": math.inf, "lr": 1e-3, "seconds": 2.5}


def test_progress_comes_back_as_it_was() -> None:
    for progress in (Progress(), Progress(3, 0.5, 2.0, 7.5, 31.0, 0.25, 1, [ROW])):
        assert parse_progress(dataclasses.asdict(progress)) == progress


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -1),
        ("step", True),
        ("step", 1.5),
        ("step", 2**70),
        ("fraction", 1.1),
        ("fraction", math.nan),
        ("minutes", 0),
        ("seconds", math.inf),
        ("best_psnr", None),
        pytest.param("best_psnr", 10**400, id="more than a float holds"),
        ("interval_steps", "1"),
        ("history", {}),
        ("history", [{}]),
        ("history", [ROW | {"psnr": math.nan}]),
        pytest.param("history", [ROW | {"psnr": 10**400}], id="more than a float holds in a row"),
        ("history", [ROW | {"more": 1}]),
    ],
)
def test_progress_of_other_types_and_ranges_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"its {name} has an invalid type or value"):
        parse_progress(dataclasses.asdict(Progress()) | {name: value})


@pytest.mark.parametrize("values", [None, [], {"step": 1}, dataclasses.asdict(Progress()) | {"more": 1}])
def test_progress_that_lacks_a_value_or_has_one_more_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="lacks a value, or has an unknown one"):
        parse_progress(values)


@pytest.fixture
def optimizer() -> torch.optim.Adam:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_the_state_of_an_optimizer_comes_back(optimizer: torch.optim.Adam) -> None:
    kept = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    optimizer.step()
    load_optimizer_tensors(optimizer, kept)
    check_tensors(optimizer_tensors(optimizer), kept)
    assert all(torch.equal(value, kept[name]) for name, value in optimizer_tensors(optimizer).items())
    # What is read from a checkpoint maps its file, which not every system deletes while it is mapped.
    assert all(value.data_ptr() != kept[name].data_ptr() for name, value in optimizer_tensors(optimizer).items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"9.step": torch.zeros(())}, "belongs to no parameter"),
        ({"x.step": torch.zeros(())}, "belongs to no parameter"),
        ({"0.more": torch.zeros(())}, "holds 7 tensors, of which 6 are the run's"),
        ({"0.exp_avg": torch.zeros(3, 2)}, r"0.exp_avg is \(3, 2\)"),
        ({"0.exp_avg": torch.zeros(2, 3, dtype=torch.int32)}, "of torch.int32"),
        ({"1.exp_avg_sq": torch.full((2,), math.nan)}, "NaN or infinite"),
    ],
)
def test_the_state_of_another_optimizer_is_refused(optimizer: torch.optim.Adam, change, words: str) -> None:
    before = {name: value.clone() for name, value in optimizer_tensors(optimizer).items()}
    with pytest.raises(ValueError, match=words):
        load_optimizer_tensors(optimizer, before | change)
    assert all(torch.equal(value, before[name]) for name, value in optimizer_tensors(optimizer).items())


def test_the_newest_is_that_of_the_highest_step(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_0000003 mine").mkdir(parents=True)
    for step in (9_999_999, 10_000_000, 10_000_001):
        write_checkpoint(tmp_path, step, {"net": {"a": torch.ones(1)}}, {})
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_10000000", "step_10000001"]
    assert (tmp_path / "checkpoints" / "step_0000003 mine").is_dir()


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, {"net": {"a": torch.ones(2)}}, {"step": step})
    folders = checkpoints(tmp_path)
    assert [folder.name for folder in folders] == ["step_0000002", "step_0000003"]
    tensors, state = read_checkpoint(folders[0], ("net",))
    assert (tensors["net"]["a"].tolist(), state) == ([1, 1], {"step": 2})
    (folders[0] / "state.json").unlink()
    os.truncate(folders[1] / "net.safetensors", 20)
    for folder in folders:
        with pytest.raises(CheckpointError, match=f"{folder.name}: not a readable checkpoint"):
            read_checkpoint(folder, ("net",))


def test_too_little_memory_is_not_the_checkpoints_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, 1, {"net": {}}, {})

    def no_memory(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("examples.mren.training.checkpoint.load_file", no_memory)
    with pytest.raises(MemoryError):
        read_checkpoint(checkpoints(tmp_path)[0], ("net",))
