"""Ablations: rows that differ in what they say, tables that say what the seeds make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from examples.mren import ablate as ablation
from examples.mren.ablate import BUDGET, TABLES, Run, main, read_runs, tabulate
from examples.mren.comparison import check_budget, to_csv
from examples.mren.model import MREN
from tests.images import write_photos

PAPER_KILOPARAMETERS = {
    "1": {"6 MREBs": 298, "3 MREBs": 196, "4 MREBs": 230, "5 MREBs": 264, "7 MREBs": 332, "8 MREBs": 366},
    "3": {"SCACB": 298, "OSA": 245, "OCA": 375, "SCNC": 298},
}


def parameters(config: dict) -> int:
    return sum(p.numel() for p in MREN(4, **config, device="meta").parameters())


@pytest.mark.parametrize("name", PAPER_KILOPARAMETERS)
def test_rows_have_the_parameters_that_the_paper_prints(name: str) -> None:
    for variant in TABLES[name].variants:
        (published,) = (count for row, count in PAPER_KILOPARAMETERS[name].items() if row in variant.name)
        assert round(parameters(variant.config) / 1000) == published, variant.name


@pytest.mark.parametrize("name", [name for name in TABLES if name != "recipe"])
def test_rows_are_different_functions_and_the_first_is_the_default(name: str) -> None:
    variants = TABLES[name].variants
    assert variants[0].config == {}
    assert len({variant.key for variant in variants}) == len(variants)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for variant in variants:
        torch.manual_seed(0)
        net = MREN(2, **{"num_blocks": 2, **variant.config})
        for parameter in net.parameters():  # the same values wherever the shapes are the same
            torch.nn.init.trunc_normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
        outputs.append(net(image))
    for i, ours in enumerate(outputs):
        for theirs in outputs[:i]:
            assert not torch.allclose(ours, theirs, atol=1e-6)


def test_rows_about_the_training_differ_in_its_options(tmp_path: Path, capsys) -> None:
    (image,) = write_photos(tmp_path / "images", [(40, 48)])
    common = ["--data", str(image.parent), "--test", str(image.parent), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main(["--table", "recipe", "--seeds", "1", "--recipe", "short", *common]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["default", "ema-decay=0", "recipe=paper", "init=mren_x2"]
    # The last one given counts.
    assert lines[2].endswith("--recipe short --recipe paper")


def runs(scores: dict[str, list[float]], dataset: str = "Set5") -> list[Run]:
    return [
        Run(variant, seed, 298315, 800, 4, 96, 5.5, dataset, psnr, 0.8)
        for variant, values in scores.items()
        for seed, psnr in enumerate(values)
    ]


def test_the_table_has_means_differences_and_the_papers_figures() -> None:
    found = runs({"default": [30.5, 30.3], "exchange=None": [30.1, 30.2], "parts=spatial": [29.0, 29.1]})
    text = tabulate(TABLES["3"], found)
    assert "| both parts, exchanging (SCACB) | 298,315 | 32.24 | 30.40 | 30.50, 30.30 |  |" in text
    assert "| both parts, no exchange (SCNC) | 298,315 | 32.19 | 30.15 | 30.10, 30.20 | -0.250 |" in text
    assert "| spatial part only (OSA) | 298,315 | 32.15 | 29.05 | 29.00, 29.10 | -1.350 |" in text
    assert "OCA" not in text


def test_what_counts_as_a_difference_is_what_scipy_says() -> None:
    # Two rows: the pooled spread is that of a t-test with equal variances, and so is the smallest difference.
    first, second = [30.51, 30.33, 30.42], [30.20, 30.11, 30.29]
    text = tabulate(TABLES["exchange"], runs({"default": first, "exchange=None": second}))
    pooled = np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / 2)
    assert f"spread by {pooled:.3f} dB (standard deviation, 4 degrees of freedom)" in text
    found = stats.ttest_ind(first, second)
    assert ("1 of the 1 differences" in text) == (found.pvalue < 0.05)
    closer = [score + 0.15 for score in second]
    assert stats.ttest_ind(first, closer).pvalue > 0.05
    assert "0 of the 1 differences" in tabulate(TABLES["exchange"], runs({"default": first, "exchange=None": closer}))


def test_one_seed_says_nothing() -> None:
    text = tabulate(TABLES["exchange"], runs({"default": [30.5], "exchange=None": [30.1]}))
    assert "one seed a row, which says nothing about which differences are real" in text


def test_test_sets_stand_side_by_side() -> None:
    scores = {"default": [30.5], "exchange=None": [30.1]}
    text = tabulate(TABLES["exchange"], runs(scores) + runs(scores, "B100"))
    assert "Set5, dB | seeds | difference | B100, dB | seeds | difference" in text


def test_no_runs_are_no_table() -> None:
    with pytest.raises(ValueError, match="no runs of 'Where the parts"):
        tabulate(TABLES["exchange"], runs({"parts=spatial": [30.0]}))


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = runs({"default": [30.5, 30.3], "communication=0,gate=False": [30.1]})
    (tmp_path / "runs.csv").write_text(to_csv(written, Run))
    assert read_runs(tmp_path / "runs.csv") == written


def test_unequal_budgets_are_not_compared() -> None:
    settings = {"default/seed_0": {"scale": 4, "steps": 800}, "gate=False/seed_0": {"scale": 4, "steps": 400}}
    with pytest.raises(ValueError, match="steps is 800 in default/seed_0, 400 in gate=False/seed_0"):
        check_budget(settings, BUDGET)
    settings["gate=False/seed_0"]["steps"] = 800
    check_budget(settings, BUDGET)
    settings["default/seed_0"]["lr"] = 1.0
    check_budget(settings, BUDGET)
    with pytest.raises(ValueError, match=r"lr is 1\.0 in default/seed_0, None in"):
        check_budget(settings, ablation.RECIPE)


def test_a_dry_run_names_what_would_be_trained(tmp_path: Path, capsys) -> None:
    (image,) = write_photos(tmp_path / "images", [(40, 48)])
    common = ["--data", str(image.parent), "--test", str(image.parent), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main(["--table", "3", "exchange", "--seeds", "2", "--steps", "5", *common]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Rows that the tables share, once; a seed of every row before the next.
    rows = ["default", "parts=spatial", "parts=channel", "exchange=None", "exchange=inputs"]
    assert [line.partition(":")[0] for line in lines] == [f"{row}, seed {seed}" for seed in (0, 1) for row in rows]
    assert all("--steps 5" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_rows_that_do_not_exist_are_usage_errors(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--table", "exchange", "--only", "gate=False", "--data", ".", "--test", "."])
    assert "no row 'gate=False'; there are default, exchange=None, exchange=inputs" in capsys.readouterr().err


def test_a_missing_test_folder_is_named_before_anything_is_trained(tmp_path: Path, capsys) -> None:
    assert main(["--table", "3", "--data", str(tmp_path), "--test", str(tmp_path / "Set5")]) == 1
    assert "no folder at" in capsys.readouterr().err


@pytest.mark.slow
def test_rows_are_trained_scored_and_tabulated(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "train", [(40, 48), (48, 40), (36, 44)])
    write_photos(tmp_path / "Test", [(32, 40)])
    arguments = ["--table", "exchange", "--only", "default", "exchange=None", "--seeds", "1"]
    arguments += ["--data", str(tmp_path / "train"), "--test", str(tmp_path / "Test"), "-o", str(tmp_path / "out")]
    passed_on = [
        "--recipe",
        "short",
        "--steps",
        "2",
        "--batch-size",
        "1",
        "--patch-size",
        "32",
        "--held-out",
        "1",
        "--cpu",
    ]
    assert main([*arguments, *passed_on]) == 0
    found = read_runs(tmp_path / "out" / "runs.csv")
    assert [(run.variant, run.seed, run.steps, run.dataset) for run in found] == [
        ("default", 0, 2, "Test"),
        ("exchange=None", 0, 2, "Test"),
    ]
    assert found[0].psnr != found[1].psnr
    assert (tmp_path / "out" / "table_exchange.md").read_text() == tabulate(TABLES["exchange"], found)

    def refuse(*_: object) -> None:
        raise AssertionError("what is trained is not trained again")

    monkeypatch.setattr(ablation, "_train", refuse)
    assert main([*arguments, *passed_on]) == 0
    settings = tmp_path / "out" / "default" / "seed_0" / "run.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lr": 1.0}))
    assert main([*arguments, *passed_on]) == 1
    assert "not one budget: lr is 1.0 in default/seed_0" in capsys.readouterr().err
