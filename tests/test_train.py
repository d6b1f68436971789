"""Training: it learns, it resumes exactly, it stops with a reason."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from examples.mren import train as training
from examples.mren import trainer
from examples.mren.model import MREN, load_mren, save_weights
from examples.mren.recipes import RECIPES, make_schedule
from examples.mren.train import main
from tests.images import write_photos

SMALL = [
    "--num-blocks",
    "1",
    "--batch-size",
    "2",
    "--patch-size",
    "32",
    "--held-out",
    "1",
    "--recipe",
    "short",
    "--cpu",
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_photos(tmp_path / "images", [(40, 48), (48, 40), (36, 44)])
    return tmp_path / "images"


def run(images: Path, output: Path, *arguments: str) -> int:
    return main(["--data", str(images), "-o", str(output), *SMALL, *arguments])


def history(output: Path) -> list[list[str]]:
    """The log without its last column, which is time."""
    return [line.split(",")[:-1] for line in (output / "log.csv").read_text().splitlines()]


def test_it_learns(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "run", "--steps", "40", "--validate-every", "20", "--lr", "2e-3") == 0
    losses = [float(line[1]) for line in history(tmp_path / "run")[1:]]
    assert losses[1] < losses[0]
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["steps"], settings["lr"], settings["schedule"]) == (40, 2e-3, "one-cycle")


def test_a_resumed_run_ends_where_one_that_never_stopped_does(images: Path, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    arguments = ["--steps", "30", "--validate-every", "6"]
    assert run(images, straight, *arguments) == 0

    # Stopped by the clock at its first look, at step 10, and at the next; every stop leaves a checkpoint.
    assert run(images, resumed, *arguments, "--max-minutes", "1e-9") == 0
    assert [line[0] for line in history(resumed)] == ["step", "6"]
    assert sorted(path.name for path in (resumed / "checkpoints").iterdir()) == ["step_0000006", "step_0000010"]
    assert run(images, resumed, *arguments, "--max-minutes", "1e-9", "--resume") == 0
    assert [line[0] for line in history(resumed)] == ["step", "6", "12", "18"]
    assert run(images, resumed, *arguments, "--resume") == 0
    assert history(resumed) == history(straight)  # losses, PSNR and learning rates, to the last digit
    nets = [load_mren(4, path=folder / "mren_x4.safetensors") for folder in (straight, resumed)]
    for ours, theirs in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_saved_is_the_average_of_the_weights(images: Path, tmp_path: Path) -> None:
    # Followed by hand: the network after each step, averaged with the rate that grows towards the recipe's.
    followed: list[dict[str, torch.Tensor]] = []
    step = trainer.Trainer._step

    def follow(self: trainer.Trainer, number: int) -> torch.Tensor:
        loss = step(self, number)
        followed.append({name: value.clone() for name, value in self.parameters_of.state_dict().items()})
        return loss

    arguments = ["--steps", "12", "--validate-every", "12", "--lr", "1e-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", follow)
        assert run(images, tmp_path / "run", *arguments) == 0
    saved = load_mren(4, path=tmp_path / "run" / "mren_x4.safetensors").state_dict()
    for name, value in saved.items():
        expected = followed[0][name].double()
        for number, state in enumerate(followed[1:], start=1):
            keep = min(0.999, (1 + number) / (10 + number))
            expected = keep * expected + (1 - keep) * state[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    assert not all(torch.equal(value, followed[-1][name]) for name, value in saved.items())
    assert run(images, tmp_path / "last", *arguments, "--ema-decay", "0") == 0
    for name, value in load_mren(4, path=tmp_path / "last" / "mren_x4.safetensors").state_dict().items():
        assert torch.equal(value, followed[-1][name])


def test_a_batch_worked_off_in_parts_teaches_the_same(images: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--steps", "12", "--validate-every", "4", "--batch-size", "4"]
    assert run(images, tmp_path / "whole", *arguments) == 0
    assert run(images, tmp_path / "parts", *arguments, "--accumulate", "2") == 0
    for ours, theirs in zip(history(tmp_path / "parts")[1:], history(tmp_path / "whole")[1:], strict=True):
        assert [float(value) for value in ours] == pytest.approx([float(value) for value in theirs], rel=1e-4)
    assert run(images, tmp_path / "odd", *arguments, "--accumulate", "3") == 1
    assert "a batch of 4 does not divide among 1 processes with 3 parts each" in capsys.readouterr().err


def test_another_scale_is_begun_from(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "x4", "--steps", "1", "--lr", "1e-9") == 0
    weights = tmp_path / "x4" / "mren_x4.safetensors"
    begin = ["--scale", "2", "--init", str(weights), "--steps", "1", "--lr", "1e-9", "--seed", "5"]
    capsys.readouterr()
    assert run(images, tmp_path / "x2", *begin) == 0
    # Two stages of reconstruction there, the last one half as wide; one here.
    assert f"begun from {weights}; nothing there for tail.weight\n" in capsys.readouterr().out
    given = load_mren(4, path=weights).state_dict()
    taken = load_mren(2, path=tmp_path / "x2" / "mren_x2.safetensors").state_dict()
    same = {name for name, value in taken.items() if name in given and value.shape == given[name].shape}
    assert same == taken.keys() - {"tail.weight"}
    for name in same:
        torch.testing.assert_close(taken[name], given[name], rtol=0, atol=1e-7)


def test_a_file_of_which_nothing_fits_is_not_begun_from(images: Path, tmp_path: Path, capsys) -> None:
    weights = tmp_path / "narrow.safetensors"
    save_weights(MREN(4, channels=12, num_blocks=1), weights, {"scale": 4, "channels": 12, "num_blocks": 1})
    state = load_mren(4, path=weights).state_dict()
    wide = MREN(4, channels=24, num_blocks=1)
    fitting = [name for name, value in wide.state_dict().items() if state[name].shape == value.shape]
    assert fitting == ["tail.bias"]  # as wide as the picture
    assert run(images, tmp_path / "run", "--init", str(weights)) == 1
    assert "has 12 channels, the network 60; begin from one that is as wide" in capsys.readouterr().err
    save_file({"other": torch.zeros(1)}, weights, metadata={"mren": '{"scale": 4}'})
    assert run(images, tmp_path / "run", "--init", str(weights)) == 1
    assert "its weights do not fit its constructor arguments" in capsys.readouterr().err
    assert run(images, tmp_path / "run", "--init", str(tmp_path / "none")) == 1
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_arguments_of_the_network_are_passed_on_and_saved(images: Path, tmp_path: Path, capsys) -> None:
    config = '{"exchange": null, "communication": "learnable"}'
    assert run(images, tmp_path / "run", "--steps", "1", "--config", config) == 0
    net = load_mren(4, path=tmp_path / "run" / "mren_x4.safetensors")
    assert net.body[0].stages[0].exchange is None
    assert any("communication" in name for name, _ in net.named_parameters())
    assert run(images, tmp_path / "other", "--config", '{"exchang": null}') == 1
    assert "--config: MREN.__init__() got an unexpected keyword argument 'exchang'" in capsys.readouterr().err
    assert run(images, tmp_path / "other", "--config", '{"exchange": "sideways"}') == 1
    assert "exchange must be one of 'outputs', 'inputs', None" in capsys.readouterr().err
    for text in ("[1]", "{"):
        with pytest.raises(SystemExit, match="2"):
            run(images, tmp_path / "other", "--config", text)
        assert "must be a JSON object" in capsys.readouterr().err


def test_it_says_where_the_time_goes(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "20") == 0
    (line,) = re.findall(r"([\d.]+) steps/s, ([\d.]+) images/s; of a step: (.*)", capsys.readouterr().out)
    assert float(line[1]) == pytest.approx(2 * float(line[0]), rel=0.01)
    shares = {name: float(share) for name, share in re.findall(r"(\w+) ([\d.]+) %", line[2])}
    assert list(shares) == ["input", "network", "update"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    assert shares["network"] > 50


@pytest.mark.slow
def test_two_processes_learn_what_one_does(images: Path, tmp_path: Path) -> None:
    arguments = ["--steps", "12", "--validate-every", "4"]
    assert run(images, tmp_path / "one", *arguments) == 0
    # torch's launcher: without MPI that of accelerate starts one process on a CPU, however many are asked for.
    launch = "torch.distributed.run --nproc_per_node 2 --master_addr 127.0.0.1"
    command = [sys.executable, "-m", *launch.split(), "--master_port", str(free_port()), "-m"]
    command += ["examples.mren.train", "--data", str(images), "-o", str(tmp_path / "two"), *SMALL, *arguments]
    # Where the name of the host leads nowhere, gloo would wait for ever.
    environment = os.environ | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    for ours, theirs in zip(history(tmp_path / "two")[1:], history(tmp_path / "one")[1:], strict=True):
        assert [float(value) for value in ours] == pytest.approx([float(value) for value in theirs], rel=1e-4)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_a_run_is_not_overwritten(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "1") == 0
    assert run(images, tmp_path / "run", "--steps", "1") == 1
    assert "holds a run already; add --resume" in capsys.readouterr().err


def test_resuming_with_other_settings_names_them(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "1") == 0
    assert run(images, tmp_path / "run", "--steps", "1", "--lr", "0.5", "--resume") == 1
    assert "other settings (lr was 0.001, is 0.5)" in capsys.readouterr().err
    assert run(images, tmp_path / "run", "--steps", "1", "--scale", "2", "--variant", "mren_l", "--resume") == 1
    assert "other settings (scale was 4, is 2; channels was 60, is 84)" in capsys.readouterr().err


def test_resuming_nothing_says_so(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--resume") == 1
    assert "no checkpoint to resume from" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_and_names_the_step_and_its_images(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "30", "--lr", "1e30", "--validate-every", "30") == 1
    message = capsys.readouterr().err
    assert "the loss is" in message
    assert "at step" in message
    assert ".png" in message
    assert "none yet" in message
    assert not (tmp_path / "run" / "mren_x4.safetensors").exists()


def test_a_network_whose_result_is_not_finite_is_not_saved(images: Path, tmp_path: Path, capsys) -> None:
    # The loss of the first step is finite; what its update makes of the network is not.
    assert run(images, tmp_path / "run", "--steps", "30", "--lr", "1e30", "--validate-every", "1") == 1
    message = capsys.readouterr().err
    assert "the network's result for" in message
    assert "after step 1. Last good checkpoint: none yet" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_network_that_broke_is_not_saved_when_time_is_up(
    images: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer._step

    def break_the_last_one(self: trainer.Trainer, number: int) -> torch.Tensor:
        loss = step(self, number)
        if number == 9:  # the first look at loss and clock comes after it
            with torch.no_grad():
                self.parameters_of.tail.bias.fill_(torch.nan)
        return loss

    monkeypatch.setattr(trainer.Trainer, "_step", break_the_last_one)
    assert run(images, tmp_path / "run", "--steps", "30", "--max-minutes", "1e-9") == 1
    assert "the network is not finite after step 10. Last good checkpoint: none yet" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_unfinished_checkpoint_is_not_resumed_from(images: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "run"
    assert run(images, output, "--steps", "2", "--validate-every", "1") == 0
    (output / "checkpoints" / "step_0000009.part").mkdir()
    assert run(images, output, "--steps", "2", "--validate-every", "1", "--resume") == 0
    assert "resumed at step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch-size", "64"], "less than the patch of 64 x 64"),
        (["--held-out", "3"], "3 of 3 images"),
    ],
)
def test_data_that_does_not_fit_is_named(images: Path, tmp_path: Path, capsys, arguments, message) -> None:
    assert run(images, tmp_path / "run", *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "run") == 1
    assert "empty: no images" in capsys.readouterr().err


def test_numbers_that_are_not_positive_are_usage_errors(images: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(images, tmp_path / "run", "--lr", "-1")
    assert "--lr: must be positive, got -1" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--dry-run") == 0
    assert "first batch: low resolution (2, 3, 8, 8), high resolution (2, 3, 32, 32)" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_default_recipe_is_the_papers() -> None:
    args = training._parse(["--data", "."])
    paper = training._recipe(args)
    assert (paper.batch_size, paper.patch_size, paper.lr, paper.epochs) == (16, 192, 5e-4, 3000)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=paper.lr)
    schedule = make_schedule(optimizer, paper, steps=150_000)
    rates = [schedule.lr_lambdas[0](step) for step in (0, 29_999, 30_000, 60_000, 149_999)]
    assert rates == [1, 1, 0.5, 0.25, 0.0625]
    assert RECIPES["short"].schedule == "one-cycle"
