"""Ablations: rows that are different networks, at one budget, in tables with the figures of the paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from examples.compare.tables import Run, read_runs
from examples.mren.ablate import TABLES, Table, Variant, main
from examples.mren.model import MREN, VARIANTS, load_mren
from examples.mren.training.recipes import Training
from tests.blocks import count_parameters
from tests.images import write_photos

PAPER_KILOPARAMETERS = {
    "1": {"6 MREBs": 298, "3 MREBs": 196, "4 MREBs": 230, "5 MREBs": 264, "7 MREBs": 332, "8 MREBs": 366},
    "3": {"SCACB": 298, "OSA": 245, "OCA": 375, "SCNC": 298},
}
TINY = '{"channels": 32, "reconstruct_channels": [8, 6]}'


@pytest.mark.parametrize("name", PAPER_KILOPARAMETERS)
def test_rows_have_the_parameters_that_the_paper_prints(name: str) -> None:
    for variant in TABLES[name].variants:
        (published,) = (count for row, count in PAPER_KILOPARAMETERS[name].items() if row in variant.title)
        assert round(count_parameters(MREN(4, **variant.config, device="meta")) / 1000) == published, variant.title


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ("init", "recipe", "training", "trunk")])
def test_rows_are_different_functions_and_the_first_is_the_default(name: str) -> None:
    variants = TABLES[name].variants
    assert variants[0].config == {}
    assert len({variant.key for variant in variants}) == len(variants)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for variant in variants:
        net = MREN(2, **{"num_blocks": 2, "channels": 12, **variant.config})
        for parameter in net.parameters():  # the same values wherever the shapes are the same
            torch.nn.init.trunc_normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
        outputs.append(net(image))
    for i, ours in enumerate(outputs):
        for theirs in outputs[:i]:
            assert not torch.allclose(ours, theirs, atol=1e-6)


def test_trunks_have_equal_parameters_between_one_head_and_tail() -> None:
    config = {**VARIANTS["mren_s"], "num_blocks": 6}
    mrebs, *others = (variant.row(4, config).make for variant in TABLES["trunk"].variants)
    reference = mrebs()
    for make in others:
        net = make()
        assert abs(count_parameters(net) / count_parameters(reference) - 1) < 0.04
        assert len(net.body) == len(reference.body)
        for part in ("head", "reduce", "reconstruct", "tail"):
            ours, theirs = getattr(net, part), getattr(reference, part)
            assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
        assert net(torch.rand(1, 3, 16, 16)).shape == (1, 3, 64, 64)


def test_trunks_that_cannot_be_equal_are_refused() -> None:
    with pytest.raises(ValueError, match=r"trunk=IMDB: the closest to the .* parameters of MREBs is"):
        TABLES["trunk"].variants[1].row(4, {"channels": 12, "num_blocks": 1, "reconstruct_channels": [8, 6]})


def command(tmp_path: Path, *more: str) -> list[str]:
    write_photos(tmp_path / "train", [(64, 68), (68, 64), (64, 70)])
    write_photos(tmp_path / "Test", [(64, 68)])
    given = ["--data", str(tmp_path / "train"), "--test", str(tmp_path / "Test"), "-o", str(tmp_path / "out")]
    given += ["--config", TINY, "--num-blocks", "1", "--held-out", "1", "--cpu", "--batch-size", "1"]
    return [*given, "--patch-size", "64", "--recipe", "short", "--steps", "2", "--seeds", "1", *more]


def test_rows_are_trained_scored_and_tabulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["default", "exchange=None", "trunk=IMDB", "trunk=RFDB"]
    assert main(command(tmp_path, "--table", "exchange", "trunk", "--only", *rows)) == 0
    found = read_runs(tmp_path / "out" / "runs.csv")
    assert [(run.name, run.dataset) for run in found] == [
        (row, dataset) for row in rows for dataset in ("Test", "held out")
    ]
    assert len({run.psnr for run in found}) == len(found)
    shown = capsys.readouterr().out
    for name, titles in {"exchange": ["at the outputs", "nowhere"], "trunk": ["MREBs", "IMDBs", "RFDBs"]}.items():
        text = (tmp_path / "out" / f"table_{name}.md").read_text()
        assert text == TABLES[name].tabulate(found)
        assert text in shown
        assert all(title in text for title in titles)
    # What was trained can be used as any weights.
    load_mren(4, path=tmp_path / "out" / "exchange=None" / "seed_0" / "weights.safetensors")


def test_rows_that_tables_share_are_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "--table", "3", "exchange", "--seeds", "2", "--dry-run")) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = ["default", "parts=spatial", "parts=channel", "exchange=None", "exchange=inputs"]
    assert [line.partition(":")[0] for line in lines[:-1]] == rows
    assert lines[-1] == "10 of 10 runs to train, 2 steps each"
    assert not (tmp_path / "out").exists()


def test_the_number_of_threads_is_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    assert main(command(tmp_path, "--table", "3", "--dry-run", "--threads", "3")) == 0
    assert found == [3]


def test_the_rows_on_first_weights_start_from_their_own() -> None:
    ours, torchs = (variant.row(4, {"channels": 12, "num_blocks": 1}) for variant in TABLES["init"].variants)
    assert (ours.begins_alike, torchs.begins_alike) == (True, False)
    assert not ours.make().tail.weight.any()
    assert torchs.make().tail.weight.all()


def test_rows_about_the_training_differ_in_it() -> None:
    names = [variant.key for variant in TABLES["recipe"].variants]
    assert names == ["default", "ema-decay=0", "recipe=paper", "init=mren_x2"]
    assert all(not variant.config for name in ("recipe", "training") for variant in TABLES[name].variants)


def test_rows_on_loss_and_patches_are_what_their_titles_say_whatever_the_recipe_has() -> None:
    given = Training(recipe="modern", textured=True)
    found = []
    for variant in TABLES["training"].variants:
        settings = dataclasses.replace(given, **variant.options).settings(1, 4)
        found.append((variant.title, settings["loss"], bool(settings["textured"])))
    assert found == [
        ("L1", ["l1"], False),
        ("L1, textured patches", ["l1"], True),
        ("L1 of pixels and spectrum", ["l1+fft"], False),
        ("both", ["l1+fft"], True),
    ]


@pytest.mark.parametrize(("recipe", "code"), [("short", 0), ("paper", 2)])
def test_rows_about_the_training_are_what_their_titles_say(tmp_path: Path, capsys, recipe: str, code: int) -> None:
    arguments = ["--table", "recipe", "--recipe", recipe, "--dry-run", "--config", "{}"]  # 60 channels, as weights have
    assert main(command(tmp_path, *arguments)) == code
    assert ("add --recipe short, and --steps or" in capsys.readouterr().err) == bool(code)


def test_weights_that_a_row_cannot_begin_from_are_named_before_others_are_trained(tmp_path: Path, capsys) -> None:
    assert main(command(tmp_path, "--table", "recipe")) == 1  # the last row begins from weights of 60 channels
    assert "mren_x2.safetensors: has 60 channels, the network 32; start from one that is not wider." in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_rows_of_several_calls_come_into_one_file(tmp_path: Path) -> None:
    for row in ("parts=spatial", "default"):
        assert main(command(tmp_path, "--table", "3", "4", "--only", row)) == 0
        if row == "parts=spatial":
            assert not (tmp_path / "out" / "table_4.md").exists()  # which has no such row
    assert {run.name for run in read_runs(tmp_path / "out" / "runs.csv")} == {"parts=spatial", "default"}
    assert "spatial part only" in (tmp_path / "out" / "table_3.md").read_text()


def test_runs_of_one_table_stay_in_the_file_when_another_is_made(tmp_path: Path) -> None:
    file = tmp_path / "out" / "runs.csv"
    assert main(command(tmp_path, "--table", "exchange", "--only", "exchange=inputs")) == 0
    before = read_runs(file)
    assert main(command(tmp_path, "--table", "3", "--only", "parts=spatial")) == 0
    after = read_runs(file)
    assert before == [run for run in after if run.name == "exchange=inputs"]
    assert {run.name for run in after} == {"exchange=inputs", "parts=spatial"}
    assert main(command(tmp_path, "--table", "3", "--only", "parts=spatial")) == 0
    assert read_runs(file) == after


def test_what_the_paper_prints_stands_beside_its_scale_alone() -> None:
    runs = [Run("default", seed, 1, 1, 1, 1, 1.0, "Set5", 30.0 + seed) for seed in range(2)]
    assert "32.24" in TABLES["3"].tabulate(runs)
    assert "paper" not in TABLES["3"].tabulate(runs, scale=2)


def test_a_table_is_made_of_the_rows_that_there_are() -> None:
    with pytest.raises(ValueError, match="no runs of default, a=1"):
        Table("", Variant("first"), Variant("second", {"a": 1})).tabulate([])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--only", "gate=False"], "no row 'gate=False'; there are default, exchange=None, exchange=inputs"),
        (["--config", "[1]"], "--config: must be a JSON object, got '[1]'"),
        (["--seeds", "0"], "--seeds: must be a whole number of at least 1, got 0"),
        (["--num-blocks", "0"], "--num-blocks: must be a whole number of at least 1, got 0"),
        (["--scale", "8"], "--scale: must be one of 2, 3, 4, got 8"),
        (["--ema-decay", "1"], "--ema-decay: must be at least 0 and below 1, got 1"),
        (["--minutes", "9"], "--minutes: not allowed with argument --steps"),
        (["--warm-up-new", "5"], "--warm-up-new: needs --init"),
        (["--patch-size", "3"], "--patch-size: must be at least --scale, 4, got 3"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, capsys, more: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command(tmp_path, "--table", "exchange", *more))
    assert words in capsys.readouterr().err


def test_a_damaged_table_of_results_is_named_before_any_work(tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs.csv").write_text("name,seed\nx,1\n")
    assert main(command(tmp_path, "--table", "exchange", "--only", "default")) == 1
    shown = capsys.readouterr()
    assert "runs.csv: is not a table written by this program, or is damaged" in shown.err
    assert "runs to train" not in shown.out
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["runs.csv"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--test", "nowhere"], "no folder at"),
        (["--config", '{"exchange": null}'], "exchange: is compared by --table exchange; leave it out"),
        (["--config", '{"exchanges": null}'], "--config: MREN.__init__() got an unexpected keyword argument"),
        (["--patch-size", "128"], "less than the patch of 128 x 128"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, capsys, more: list[str], words: str) -> None:
    assert main(command(tmp_path, "--table", "exchange", "--only", "default", *more)) in (1, 2)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
