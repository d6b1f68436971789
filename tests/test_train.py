"""Training: it learns, it resumes exactly, it stops with a reason."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.mren import train
from examples.mren.data import ImagePair, imresize
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import MREN, load_mren, save_weights
from examples.mren.train import main
from examples.mren.training import trainer
from examples.mren.training.clock import Deadline
from examples.mren.training.options import configure_torch, parse, training_of
from examples.mren.training.patches import PatchSampler
from examples.mren.training.recipes import LOSSES, RECIPES, Mixed, Recipe, Stage, Training
from tests.images import photo, rename_to_bytes, write_photos

SMALL = [
    *("--num-blocks", "1", "--config", '{"channels": 12}', "--recipe", "short", "--batch-size", "2"),
    *("--patch-size", "32", "--held-out", "1", "--cpu"),
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
    assert run(images, tmp_path / "run", "--steps", "60", "--validate-every", "20", "--lr", "5e-3") == 0
    scores = [float(line[2]) for line in history(tmp_path / "run")[1:]]
    assert scores[-1] > scores[0] + 0.1
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["steps"], settings["lr"], settings["schedule"]) == (60, [5e-3], ["one-cycle"])


def test_a_resumed_run_ends_where_one_that_never_stopped_does(images: Path, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    arguments = ["--steps", "30", "--validate-every", "6"]
    assert run(images, straight, *arguments) == 0

    # Stopped by the clock at its first look, at step 10, and at the next; every stop leaves a checkpoint.
    assert run(images, resumed, *arguments, "--max-minutes", "1e-9") == 0
    assert [line[0] for line in history(resumed)] == ["step", "6"]
    assert sorted(path.name for path in (resumed / "checkpoints").glob("step*")) == ["step_0000006", "step_0000010"]
    assert run(images, resumed, *arguments, "--max-minutes", "1e-9", "--resume") == 0
    assert [line[0] for line in history(resumed)] == ["step", "6", "12", "18"]
    assert resume(resumed) == 0  # its options need not be repeated
    assert history(resumed) == history(straight)  # losses, PSNR and learning rates, to the last digit
    nets = [load_mren(4, path=folder / "mren_x4.safetensors") for folder in (straight, resumed)]
    for ours, theirs in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_that_was_stopped_before_a_validation_names_no_weights(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "30", "--max-minutes", "1e-9") == 0
    said = capsys.readouterr().out
    assert f"stopped at step 10; continue with --resume -o {tmp_path / 'run'}" in said
    assert "best validation" not in said


def test_a_folder_whose_name_is_not_utf_8_is_resumed(images: Path, tmp_path: Path) -> None:
    rename_to_bytes(images / "0.png")
    assert run(rename_to_bytes(images), tmp_path / "run", "--steps", "20", "--max-minutes", "1e-9") == 0
    assert resume(tmp_path / "run") == 0


@pytest.mark.parametrize("option", ["--textured", "--loss=l1+fft"])
def test_textured_patches_and_another_loss_train_other_weights(images: Path, tmp_path: Path, option: str) -> None:
    found = []
    for more in ([], [option]):
        folder = tmp_path / f"run{len(found)}"
        assert run(images, folder, "--steps", "10", "--patch-size", "16", *more) == 0
        found.append([line[2] for line in history(folder)])
    assert found[0] != found[1]


@pytest.mark.skipif(os.name == "nt", reason="there, ./ is another name")
def test_a_folder_whose_name_begins_with_a_dash_is_resumed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images.rename("-x")
    assert main(["--data", "./-x", "-o", "run", *SMALL, "--steps", "20", "--max-minutes", "1e-9"]) == 0
    assert resume(tmp_path / "run") == 0


def test_what_is_saved_is_the_average_of_the_weights(images: Path, tmp_path: Path) -> None:
    # Followed by hand: the network after each step, averaged with a decay that grows towards the recipe's.
    torch.manual_seed(0)
    net = MREN(4, num_blocks=1, channels=12)
    net.init_weights()
    start = net.state_dict()
    followed: list[dict[str, torch.Tensor]] = []
    step = trainer.Trainer.step

    def follow(self: trainer.Trainer) -> torch.Tensor:
        loss = step(self)
        followed.append({name: value.clone() for name, value in self.learner.net.state_dict().items()})
        return loss

    arguments = ["--steps", "12", "--validate-every", "12", "--lr", "1e-2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", follow)
        assert run(images, tmp_path / "run", *arguments) == 0
    saved = load_mren(4, path=tmp_path / "run" / "mren_x4.safetensors").state_dict()
    for name, value in saved.items():
        expected = start[name].double()
        for number, state in enumerate(followed):
            keep = min(0.999, (1 + number) / (10 + number))
            expected = keep * expected + (1 - keep) * state[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    assert not all(torch.equal(value, followed[-1][name]) for name, value in saved.items())
    assert run(images, tmp_path / "last", *arguments, "--ema-decay", "0") == 0
    for name, value in load_mren(4, path=tmp_path / "last" / "mren_x4.safetensors").state_dict().items():
        assert torch.equal(value, followed[-1][name])


@pytest.mark.parametrize("loss", ["l1", "l1+fft"])
def test_a_batch_worked_off_in_parts_teaches_the_same(images: Path, tmp_path: Path, loss: str) -> None:
    arguments = ["--steps", "4", "--validate-every", "2", "--batch-size", "5", "--loss", loss]
    assert run(images, tmp_path / "whole", *arguments) == 0
    for parts in ("2", "3"):  # equal ones, and others: of five patches two, two and one
        assert run(images, tmp_path / parts, *arguments, "--accumulate", parts) == 0
        for ours, theirs in zip(history(tmp_path / parts)[1:], history(tmp_path / "whole")[1:], strict=True):
            assert [float(value) for value in ours] == pytest.approx([float(value) for value in theirs], rel=1e-4)


def test_another_scale_is_begun_from(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "x4", "--steps", "1", "--lr", "1e-9") == 0
    weights = tmp_path / "x4" / "mren_x4.safetensors"
    begin = ["--scale", "2", "--init", str(weights), "--steps", "1", "--lr", "1e-9", "--seed", "5"]
    capsys.readouterr()
    assert run(images, tmp_path / "x2", *begin) == 0
    # Two stages of reconstruction there, the last one half as wide; one here.
    assert f"started from {weights}; newly initialised: tail.weight\n" in capsys.readouterr().out
    given = load_mren(4, path=weights).state_dict()
    taken = load_mren(2, path=tmp_path / "x2" / "mren_x2.safetensors").state_dict()
    same = {name for name, value in taken.items() if name in given and value.shape == given[name].shape}
    assert same == taken.keys() - {"tail.weight"}
    for name in same:
        torch.testing.assert_close(taken[name], given[name], rtol=0, atol=1e-7)


def test_the_weights_begun_from_are_kept_where_training_made_them_worse(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "run", "--steps", "10") == 0
    weights = tmp_path / "run" / "mren_x4.safetensors"
    arguments = ["--init", str(weights), "--steps", "4", "--lr", "0.1", "--ema-decay", "0", "--warm-up-new", "2"]
    assert run(images, tmp_path / "worse", *arguments) == 0
    assert "--warm-up-new has no effect" in capsys.readouterr().out
    given, kept = (
        load_mren(4, path=file / "mren_x4.safetensors").state_dict() for file in (weights.parent, tmp_path / "worse")
    )
    assert all(torch.equal(kept[name], value) for name, value in given.items())
    before = (tmp_path / "worse" / "mren_x4.safetensors").read_bytes()
    assert resume(tmp_path / "worse", "--steps", "5") == 0
    assert (tmp_path / "worse" / "mren_x4.safetensors").read_bytes() == before


def test_the_seed_decides_the_first_weights_and_the_patches(images: Path, tmp_path: Path) -> None:
    tiny = ["--steps", "1", "--lr", "1e-9"]
    weights = {seed: tmp_path / seed / "mren_x4.safetensors" for seed in ("0", "1")}
    for seed, file in weights.items():
        assert run(images, file.parent, *tiny, "--seed", seed) == 0
    first, other = (load_file(file) for file in weights.values())
    assert (first["head.weight"] - other["head.weight"]).abs().max() > 0.01
    assert run(images, tmp_path / "same", *tiny, "--seed", "1", "--init", str(weights["0"])) == 0
    losses = [float(history(tmp_path / name)[1][1]) for name in ("0", "same")]
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)


def test_of_equal_validations_the_later_weights_are_kept(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    # Too small a step to change an eight-bit result, but not the biases, which start at zero.
    tiny = ["--steps", "2", "--validate-every", "1", "--lr", "1e-9", "--ema-decay", "0"]
    assert run(images, output, *tiny) == 0
    first, second = history(output)[1:]
    assert first[2] == second[2]
    kept = load_file(output / "mren_x4.safetensors")
    earlier, later = (load_file(output / "checkpoints" / f"step_000000{i}" / "average.safetensors") for i in (1, 2))
    assert any(not torch.equal(earlier[name], value) for name, value in later.items())
    assert all(torch.equal(kept[name], value) for name, value in later.items())


def test_a_file_of_which_nothing_fits_is_not_begun_from(images: Path, tmp_path: Path, capsys) -> None:
    weights = tmp_path / "narrow.safetensors"
    save_weights(MREN(4, channels=24, num_blocks=1), weights, {"scale": 4, "channels": 24, "num_blocks": 1})
    state = load_mren(4, path=weights).state_dict()
    narrow = MREN(4, channels=12, num_blocks=1)
    fitting = [name for name, value in narrow.state_dict().items() if state[name].shape == value.shape]
    assert fitting == ["tail.bias"]  # as wide as the picture
    assert run(images, tmp_path / "run", "--init", str(weights)) == 1
    assert "has 24 channels, the network 12; start from one that is not wider" in capsys.readouterr().err
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
    for config, words in {
        '{"exchang": null}': "--config: unexpected keyword argument 'exchang'; MREN takes scale, channels",
        '{"exchange": "sideways"}': "exchange must be one of 'outputs', 'inputs', None",
        '{"channels": -3}': "--config: channels must be a whole number from 1 to 1024; got -3",
        '{"scale": 2}': "--config: the scale is set by --scale",
    }.items():
        assert run(images, tmp_path / "other", "--config", config) == 2
        assert words in capsys.readouterr().err
    for text in ("[1]", "{"):
        with pytest.raises(SystemExit, match="2"):
            run(images, tmp_path / "other", "--config", text)
        assert "must be a JSON object" in capsys.readouterr().err


def test_it_says_where_the_time_goes(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "20") == 0
    (line,) = re.findall(r"([\d.]+) steps/s, ([\d.]+) images/s; time per step: (.*)", capsys.readouterr().out)
    assert float(line[1]) == pytest.approx(2 * float(line[0]), rel=0.01)
    shares = {name: float(share) for name, share in re.findall(r"(\w+) ([\d.]+) %", line[2])}
    assert list(shares) == ["input", "network", "update"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    assert all(share > 0 for share in shares.values())


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


@pytest.mark.parametrize("left", ["checkpoints", "mren_x4.safetensors", "log.csv", "run.json"])
def test_a_run_is_not_overwritten(images: Path, tmp_path: Path, capsys, left: str) -> None:
    output = tmp_path / "run"
    assert run(images, output, "--steps", "1") == 0
    for path in output.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run(images, output, "--steps", "1") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == [left]


def test_two_trainings_do_not_share_a_folder(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "1") == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    with FileLock(tmp_path / "run" / "checkpoints" / ".lock"):
        assert run(images, tmp_path / "run", "--steps", "1", "--resume") == 2
    assert "another run is writing to it" in capsys.readouterr().err
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert run(images, tmp_path / "run", "--steps", "1", "--resume") == 0


def test_a_run_that_ended_while_images_were_loaded_is_not_overwritten(
    images: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        assert run(images, tmp_path / "run", "--steps", "2") == 0
        return train.load_pairs(*arguments, **options)

    monkeypatch.setattr(train, "load_pairs", overtaken)
    assert run(images, tmp_path / "run", "--steps", "1") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert history(tmp_path / "run")[-1][0] == "2"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_with_a_checkpoint(
    images: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)
    arguments = ["--steps", "14", "--validate-every", "7"]
    assert run(images, tmp_path / "straight", *arguments) == 0
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    step = trainer.Trainer.step

    def struck(self: trainer.Trainer) -> torch.Tensor:
        if self.progress.step == 8:
            os.kill(os.getpid(), number)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", struck)
        assert run(images, tmp_path / "run", *arguments) == 128 + number
    assert "stopped at step 9; continue with --resume -o" in capsys.readouterr().out
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert run(images, tmp_path / "run", *arguments, "--resume") == 0
    assert history(tmp_path / "run") == history(tmp_path / "straight")


@pytest.mark.parametrize(("ignored", "code"), [(False, 129), (True, 0)], ids=["once", "under nohup"])
def test_a_second_signal_ends_a_run_at_once_and_one_that_is_ignored_does_not(
    images: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, ignored: bool, code: int
) -> None:
    step = trainer.Trainer.step

    def struck(self: trainer.Trainer) -> torch.Tensor:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        return step(self)

    monkeypatch.setattr(trainer.Trainer, "step", struck)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert run(images, tmp_path / "run", "--steps", "1") == code
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ("error: interrupted" in capsys.readouterr().err) == (not ignored)
    assert len(list((tmp_path / "run" / "checkpoints").glob("step_*"))) == ignored


def resume(output: Path, *arguments: str) -> int:
    return main(["--resume", "-o", str(output), *arguments])


def test_an_option_that_contradicts_the_run_is_refused_by_name(images: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "run"
    assert run(images, output, "--steps", "1") == 0
    before = {path: path.read_bytes() for path in output.rglob("*.safetensors")}
    for options, words in {
        ("--lr", "0.5"): "--lr [0.001], not [0.5];",
        ("--scale", "2", "--variant", "mren_l"): "--scale 4, not 2; --variant mren, not mren_l;",
        ("--config", '{"exchange": null}'): "--config {'channels': 12}, not {'exchange': None};",
        ("--compile",): "--compile False, not True;",
        ("--textured",): "--textured False, not True;",
        ("--loss", "l1+fft"): "--loss ['l1'], not ['l1+fft'];",
        ("--seed", "5"): "--seed 0, not 5;",
    }.items():
        assert resume(output, *options) == 2
        assert f"was started with {words}" in capsys.readouterr().err
    # What says the same is none: the options, and what the recipe has.
    assert run(images, output, "--steps", "1", "--resume", "--lr", "1e-3", "--ema-decay", "0.999", "--loss", "l1") == 0
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_a_run_goes_on_whose_recipe_has_changed_since(images: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "run"
    assert run(images, output, "--steps", "2") == 0
    (stage,) = RECIPES["short"].stages
    changed = dataclasses.replace(RECIPES["short"], stages=(dataclasses.replace(stage, loss="l1+fft", lr=5e-4),))
    monkeypatch.setitem(RECIPES, "short", changed)
    assert resume(output) == 1
    assert "loss was ['l1'], is ['l1+fft']" in capsys.readouterr().err
    assert resume(output, "--loss", "mse", "--lr", "1e-3") == 2
    assert "was started with --loss ['l1'], not ['mse'];" in capsys.readouterr().err
    assert resume(output, "--loss", "l1", "--lr", "1e-3", "--steps", "3") == 0


def test_resuming_nothing_says_so(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--resume") == 2
    assert "holds no run to resume" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["-o", str(tmp_path / "run")])
    assert "required: --data" in capsys.readouterr().err


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "1") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert resume(tmp_path / "run") == 0
    assert "resumed at step 0" in capsys.readouterr().out
    assert [line[0] for line in history(tmp_path / "run")] == ["step", "1"]


def test_a_run_whose_checkpoints_are_gone_keeps_its_weights(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "4", "--validate-every", "2") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    weights = tmp_path / "run" / "mren_x4.safetensors"
    before = weights.read_bytes(), history(tmp_path / "run")
    assert resume(tmp_path / "run", "--steps", "6") == 2
    assert f"another folder with --init {weights}" in capsys.readouterr().err
    assert (weights.read_bytes(), history(tmp_path / "run")) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        "{}",
        '{"options": [1]}',
        '{"options": {"help": true, "data": ["x"]}}',
        '{"options": {"lr": "x"}}',
        '{"options": {"lr": -1}}',
        '{"options": {"config": [[]]}}',
        '{"options": {"seed": {}}}',
        '{"options": {"cpu": 7}}',
    ],
)
def test_a_run_whose_options_are_damaged_is_named(images: Path, tmp_path: Path, capsys, text: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    assert resume(tmp_path) == 2
    assert f"{file}: does not hold the options of a run" in capsys.readouterr().err


def test_a_finished_run_is_made_longer(images: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--validate-every", "4", "--num-blocks", "1"]
    assert run(images, tmp_path / "long", *arguments, "--steps", "12") == 0
    assert run(images, tmp_path / "run", *arguments, "--steps", "8") == 0
    assert resume(tmp_path / "run", "--steps", "7") == 1
    assert "has been trained for 8 steps" in capsys.readouterr().err
    assert resume(tmp_path / "run", "--steps", "12") == 0
    rows, straight = history(tmp_path / "run"), history(tmp_path / "long")
    assert [row[0] for row in rows] == ["step", "4", "8", "12"]
    # The learning rate ended once, and then again where that of a run of 12 steps does.
    column = rows[0].index("lr")
    assert float(rows[2][column]) == pytest.approx(0, abs=1e-12)
    assert rows[3][column] == straight[3][column]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 12
    assert resume(tmp_path / "run") == 0  # it is finished
    assert history(tmp_path / "run") == rows


def test_a_loss_that_is_no_number_stops_and_names_the_step_and_its_images(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "30", "--lr", "1e38", "--validate-every", "30") == 1
    message = capsys.readouterr().err
    assert "the loss is" in message
    assert "at step" in message
    assert ".png" in message
    assert "none yet" in message
    assert not (tmp_path / "run" / "mren_x4.safetensors").exists()


def test_a_loss_that_is_no_number_names_the_images_of_its_step_alone(tmp_path: Path) -> None:
    pairs = [ImagePair(Path(f"{number}.png"), photo(32, 32), photo(16, 16)) for number in range(8)]
    sampler = PatchSampler(pairs, 2, patch_size=16, batch_size=2, seed=0)

    def draw(sampler: PatchSampler, step: int, **processes: int) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = sampler.batch(step, **processes)
        return low, high * torch.nan if step == 3 else high

    training = Training(steps=10, batch_size=2, patch_size=16)
    run = trainer.Trainer(Convolution(), training, sampler, tmp_path, label="small", draw=draw)
    with pytest.raises(trainer.TrainingError, match="the loss is nan at step 3 ") as caught:
        run.run()
    named = re.findall(r"\d\.png", str(caught.value))
    assert sorted(named) == sorted({path.name for path in sampler.files(3)})


def test_a_network_whose_result_is_not_finite_is_not_saved(images: Path, tmp_path: Path, capsys) -> None:
    # The loss of the first step is finite; what its update makes of the network is not.
    assert run(images, tmp_path / "run", "--steps", "30", "--lr", "1e39", "--validate-every", "1") == 1
    message = capsys.readouterr().err
    assert "the network's output for" in message
    assert "after step 1. Last good checkpoint: none yet" in message
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*"))


def test_a_network_that_broke_is_not_saved_when_time_is_up(
    images: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer.step

    def break_the_last_one(self: trainer.Trainer) -> torch.Tensor:
        loss = step(self)
        if self.progress.step == 9:  # the first look at loss and clock comes after it
            with torch.no_grad():
                self.learner.net.tail.bias.fill_(torch.nan)
        return loss

    monkeypatch.setattr(trainer.Trainer, "step", break_the_last_one)
    assert run(images, tmp_path / "run", "--steps", "30", "--max-minutes", "1e-9") == 1
    assert "the weights are not finite after step 10. Last good checkpoint: none yet" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*"))


def test_a_network_that_falls_far_below_its_best_is_named(
    images: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer.step

    def spoil(self: trainer.Trainer) -> torch.Tensor:
        loss = step(self)
        if self.progress.step >= 2:
            with torch.no_grad():
                self.learner.net.tail.bias.fill_(0.06)
        return loss

    monkeypatch.setattr(trainer.Trainer, "step", spoil)
    assert run(images, tmp_path / "run", "--steps", "8", "--validate-every", "2", "--ema-decay", "0") == 0
    fallen = [line for line in capsys.readouterr().err.splitlines() if "validation fell" in line]
    assert [int(line.split(" at step ")[1].split(",")[0]) for line in fallen] == [4, 6, 8]
    best = load_mren(4, path=tmp_path / "run" / "mren_x4.safetensors")
    assert best.tail.bias.abs().max() < 0.03
    highest, *others = (float(line[2]) for line in history(tmp_path / "run")[1:])
    assert highest - min(others) < 5  # which is far enough


def test_an_unfinished_checkpoint_is_not_resumed_from(images: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "run"
    assert run(images, output, "--steps", "2", "--validate-every", "1") == 0
    (output / "checkpoints" / "step_0000009.part").mkdir()
    assert run(images, output, "--steps", "2", "--validate-every", "1", "--resume") == 0
    assert "resumed at step 2" in capsys.readouterr().out


def test_bad_images_are_all_named_before_it_starts(images: Path, tmp_path: Path, capsys) -> None:
    write_photos(images, [(40, 48), (48, 40), (36, 44), (20, 44), (44, 40)])
    (images / "4.png").write_bytes(b"no picture")
    assert run(images, tmp_path / "run") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "3.png: 44 x 20 pixels, less than the patch of 32 x 32" in errors[0]
    assert "4.png: not a readable image" in errors[1]
    assert "2 of 5 images cannot be used" in errors[2]
    assert "--skip-bad" in errors[2]
    assert not (tmp_path / "run").exists()
    assert run(images, tmp_path / "run", "--skip-bad", "--steps", "1") == 0
    output = capsys.readouterr()
    assert [line.split(":")[0] for line in output.err.splitlines() if line.startswith("skipped")] == ["skipped"] * 2
    assert output.out.startswith("2 images to train on, 1 to validate on")
    assert resume(tmp_path / "run") == 0
    write_photos(images, [(18, 18)])  # large enough for a patch, and too small if it is held out
    assert run(images, tmp_path / "small", "--patch-size", "16") == 1
    assert "0.png: 18 x 18 pixels, less than the 19 x 19 that scoring needs" in capsys.readouterr().err


def test_few_images_are_said(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--dry-run", "--held-out", "2") == 0
    assert "1 of 3 images remain to train on after --held-out 2" in capsys.readouterr().err
    write_photos(images, [(36, 36)] * 22)
    assert run(images, tmp_path / "run", "--dry-run", "--held-out", "2") == 0
    assert "remain to train on" not in capsys.readouterr().err
    assert run(images, tmp_path / "run", "--held-out", "22") == 1
    assert "--held-out 22 of 22 images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_validation_on_images_of_another_folder(images: Path, tmp_path: Path, capsys) -> None:
    write_photos(tmp_path / "val", [(20, 24), (24, 20)])  # smaller than a patch, and large enough to be scored
    small = [word for word in SMALL if word not in ("--held-out", "1")] + ["--num-blocks=1", "--steps=1"]
    small.remove("--num-blocks")
    folders = ["--data", str(images), "--val-data", str(tmp_path / "val"), "-o", str(tmp_path / "run")]
    assert main([*folders, *small]) == 0
    assert capsys.readouterr().out.startswith("3 images to train on, 2 to validate on")
    assert resume(tmp_path / "run", "--steps", "2") == 0
    assert main([*folders[:3], str(images), "-o", str(tmp_path / "twice"), *small]) == 1
    assert "is given twice" in capsys.readouterr().err
    (tmp_path / "val" / "0.png").write_bytes(b"no picture")
    (tmp_path / "val" / "1.png").write_bytes(b"no picture")
    assert main([*folders[:5], str(tmp_path / "none"), *small, "--skip-bad"]) == 1
    assert "--val-data: no images remain" in capsys.readouterr().err
    for number in ("2", "10"):
        with pytest.raises(SystemExit):
            main([*folders, *small, "--held-out", number])


def test_a_folder_is_no_learning_rate(images: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        run(images, tmp_path / "run", "--lr", str(images))
    assert "this is the learning rate; low-resolution images are made by the command" in capsys.readouterr().err


def test_another_size_of_patches_than_the_one_asked_for_is_said(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--dry-run", "--patch-size", "30") == 0
    output = capsys.readouterr().out
    assert "--patch-size 30: is not a multiple of the scale; using 28" in output
    assert run(images, tmp_path / "run", "--dry-run") == 0
    assert "multiple of the scale" not in capsys.readouterr().out


def test_images_of_one_colour_are_not_validated_on(images: Path, tmp_path: Path, capsys) -> None:
    Image.new("RGB", (48, 40)).save(images / "3.png")
    assert run(images, tmp_path / "run", "--steps", "1", "--held-out", "2") == 0
    output = capsys.readouterr()
    assert "1 of 2 images to validate on are of a single colour, and left out" in output.err
    assert "2 images to train on, 1 to validate on" in output.out
    assert float(history(tmp_path / "run")[1][2]) < 60
    for name in ("1", "2"):
        Image.new("RGB", (48, 40)).save(images / f"{name}.png")
    assert run(images, tmp_path / "none") == 1
    assert "all 1 images to validate on are of a single colour; choose another --held-out" in capsys.readouterr().err


def test_an_empty_folder_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "run") == 1
    assert "empty: no images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "-1"], "--lr: must be a number above 0, got -1"),
        (["--lr", "nan"], "--lr: must be a number above 0, got nan"),
        (["--seed", "-1"], "--seed: must be a whole number of at least 0"),
        (["--ema-decay", "1"], "--ema-decay: must be at least 0 and below 1"),
        (["--patch-size", "3"], "--patch-size: must be at least --scale, 4, got 3"),
        (["--warm-up-new", "5"], "--warm-up-new: needs --init"),
        (["--steps", "5", "--minutes", "1"], "--minutes: not allowed with argument --steps"),
    ],
)
def test_options_out_of_range_are_usage_errors(tmp_path: Path, capsys, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, tmp_path / "run", *arguments)
    assert words in capsys.readouterr().err


def test_an_output_that_takes_no_files_is_found_before_images_are_read(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("n" * 300)):
        assert run(tmp_path / "no images", output) == 2
        assert "choose another output" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--dry-run", "--channels-last", "--threads", "1") == 0
    assert "first batch: low resolution (2, 3, 8, 8), high resolution (2, 3, 32, 32)" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_run_is_deterministic_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for more in (["--deterministic"], []):
        configure_torch(parse(["--data", ".", *more]), same_shapes=True)
        assert torch.are_deterministic_algorithms_enabled() == bool(more)
        assert torch.backends.cudnn.benchmark != bool(more)
    configure_torch(parse(["--data", "."]))
    assert not torch.backends.cudnn.benchmark


def test_threads_are_set_once_and_not_by_reading_the_options(images: Path, tmp_path: Path, monkeypatch) -> None:
    assert run(images, tmp_path / "run", "--steps", "2") == 0
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    arguments = ["--resume", "-o", str(tmp_path / "run"), "--threads", "3"]
    training_of(parse(arguments))
    assert found == []
    assert main([*arguments, "--dry-run"]) == 0
    assert found == [3]


def test_the_default_recipe_is_the_papers() -> None:
    paper = training_of(parse(["--data", "."])).plan(800, 4)
    (stage,) = paper.stages
    assert (stage.batch_size, stage.patch_size, stage.lr, stage.loss, paper.steps) == (16, 192, 5e-4, "l1", 150_000)
    # Halved after every 600 of the 3000 epochs.
    rates = [stage.learning_rate(epoch / 3000) / 5e-4 for epoch in (0, 599, 600, 1200, 2999)]
    assert rates == [1, 1, 0.5, 0.25, 0.0625]
    # The last batch of a pass is as large as the others, and a patch holds whole low-resolution pixels.
    more = training_of(parse(["--data", ".", "--patch-size", "128"])).plan(801, 3)
    assert (more.steps, more.stages[0].patch_size) == (3000 * 51, 126)


def test_one_cycle_is_torchs() -> None:
    steps, stage = 200, Stage(1, 4, 2e-3, "one-cycle", final_lr=2e-3 / 25 / 100)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # One step more than is taken, and its peak a step before pct_start.
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=steps + 1, pct_start=21 / 201, cycle_momentum=False, final_div_factor=100
    )
    for step in range(steps):
        assert stage.learning_rate(step / steps) == pytest.approx(oracle.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        oracle.step()


def test_stages_take_their_share() -> None:
    first, last = Stage(4, 64, 1e-3, "one-cycle", share=0.75), Stage(2, 96, 2e-5, "cosine", share=0.25, loss="mse")
    recipe = Recipe((first, last))
    assert recipe.locate(0) == (0, 0)
    assert recipe.locate(0.375) == (0, 0.5)
    assert recipe.locate(0.75) == (1, 0)
    assert recipe.locate(1.0) == (1, 1)
    assert last.learning_rate(0) == 2e-5
    assert last.learning_rate(1) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"must sum to 1, got 0\.75"):
        Recipe((first,))
    for recipe in RECIPES.values():
        assert sum(stage.share for stage in recipe.stages) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 5, 7), (3, 2, 1, 4)])
def test_the_loss_of_the_spectrum_is_numpys(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    output, target = generator.random((2, *shape))
    # Of real images, the transform over the last axis alone is half of the whole one.
    spectrum = np.fft.fft2(output - target)[..., : shape[-1] // 2 + 1]
    expected = np.abs(output - target).mean() + 0.05 * (np.abs(spectrum.real) + np.abs(spectrum.imag)).mean() / 2
    found = LOSSES["l1+fft"](torch.from_numpy(output), torch.from_numpy(target))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert LOSSES["l1+fft"](torch.from_numpy(output), torch.from_numpy(output)).item() == 0


def test_the_gradient_of_the_loss_of_the_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.rand(2, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 2, 4, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: LOSSES["l1+fft"](x, target), output)


def test_recipes_have_the_losses_that_their_table_lists() -> None:
    table = (Path(trainer.__file__).parents[1] / "README.md").read_text()
    for name, recipe in RECIPES.items():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{name}`"))
        assert re.findall(r"`([^`]*)`", row.split("|")[5]) == [stage.loss for stage in recipe.stages]


def test_another_loss_and_learning_rate_are_those_of_the_first_stage() -> None:
    recipe = training_of(parse(["--data", ".", "--recipe", "ten-minutes", "--lr", "1e-5"])).plan(1, 4)
    assert [stage.lr for stage in recipe.stages] == [1e-5, 2e-5]
    for loss in LOSSES:
        recipe = training_of(parse(["--data", ".", "--recipe", "ten-minutes", "--loss", loss])).plan(1, 4)
        assert [stage.loss for stage in recipe.stages] == [loss, "mse"]


@pytest.mark.parametrize(
    "changes",
    [
        {"minutes": 2.0},
        {"warm_up_new": 3},
        {"precision": "bf16"},
        {"compile": True},
        {"channels_last": False},
        {"accumulate": 2},
        {"textured": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_option_that_decides_the_numbers_of_a_run_is_a_setting(changes: dict[str, Any]) -> None:
    start = Training(minutes=1.0)
    assert dataclasses.replace(start, **changes).settings(10, 2) != start.settings(10, 2)


def test_weights_begun_from_are_told_apart_by_their_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    (tmp_path / "copy").write_bytes(b"a")
    first, second, copied = (Training(init=tmp_path / name).settings(3, 4) for name in ("a", "b", "copy"))
    assert first == copied
    assert len({str(settings) for settings in (first, second, Training().settings(3, 4))}) == 3


def test_mixed_precision_is_in_between_only() -> None:
    conv, x = torch.nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    result = Mixed(conv, torch.bfloat16)(x)
    assert (result.dtype, conv.weight.dtype) == (torch.float32, torch.float32)
    assert torch.equal(result, result.bfloat16().float())  # of the lower type
    assert not torch.equal(result, conv(x))
    torch.testing.assert_close(result, conv(x), rtol=0, atol=0.02)
    assert torch.equal(Mixed(conv, torch.float32)(x), conv(x))


def test_a_stage_of_another_shape_and_loss(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (
        Stage(2, 32, 1e-3, "one-cycle", share=0.5),
        Stage(1, 36, 1e-4, "cosine", share=0.5, loss="mse"),
    )
    monkeypatch.setitem(RECIPES, "short", Recipe(stages, ema_decay=0.9))
    arguments = ["--num-blocks", "1", "--held-out", "1", "--recipe", "short", "--cpu", "--steps", "8"]
    arguments += ["--data", str(images), "-o", str(tmp_path / "run"), "--validate-every", "4"]
    assert main(arguments) == 0
    first, last = ([float(value) for value in line] for line in history(tmp_path / "run")[1:])
    assert last[1] < 0.5 * first[1]  # a squared error
    assert first[3] == pytest.approx(1e-4)  # at the beginning of the second stage
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (settings["batch_size"], settings["patch_size"], settings["loss"]) == ([2, 1], [32, 36], ["l1", "mse"])


def test_what_the_initial_weights_lack_is_trained_alone_first(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "x4", "--steps", "1") == 0
    weights = tmp_path / "x4" / "mren_x4.safetensors"
    given = load_mren(4, path=weights).state_dict()
    arguments = ["--variant", "mren_s", "--init", str(weights), "--ema-decay", "0", "--warm-up-new", "4"]
    for steps, moves in (("4", False), ("5", True)):
        assert run(images, tmp_path / steps, "--steps", steps, *arguments) == 0
        net = load_mren(4, path=tmp_path / steps / "mren_s_x4.safetensors")
        trunk = {name: value for name, value in net.state_dict().items() if name.startswith(("head.", "body."))}
        assert len(trunk) > 50
        assert any(not torch.equal(value, given[name]) for name, value in trunk.items()) == moves
        assert not any(torch.equal(p, torch.zeros_like(p)) for p in net.reconstruct.parameters())
    assert run(images, tmp_path / "5", "--steps", "5", *arguments, "--resume") == 0


@dataclasses.dataclass
class Clock:
    now: float = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that a step moves by 0.1 s and nothing else: 12 s are 100 steps and 2 s for the last files."""
    clock = Clock()
    step = trainer.Trainer.step

    def counted(self: trainer.Trainer) -> torch.Tensor:
        clock.now += 0.1
        return step(self)

    monkeypatch.setattr(trainer.Trainer, "step", counted)
    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock.now)
    return clock


def test_a_run_that_goes_on_for_minutes_is_validated_by_the_clock(images: Path, tmp_path: Path) -> None:
    assert run(images, tmp_path / "run", "--steps", "1") == 0
    assert parse(["--resume", "-o", str(tmp_path / "run"), "--minutes", "9"]).validate_every is None
    assert run(images, tmp_path / "other", "--steps", "1", "--validate-every", "7") == 0
    assert parse(["--resume", "-o", str(tmp_path / "other"), "--minutes", "9"]).validate_every == 7


@pytest.mark.slow
def test_a_run_of_given_minutes_ends_on_time_with_its_schedule_complete(
    images: Path, tmp_path: Path, clock: Clock
) -> None:
    assert run(images, tmp_path / "run", "--minutes", "0.2") == 0
    assert 85 <= int(last(tmp_path / "run")[0]) <= 100
    assert float(last(tmp_path / "run")[3]) == pytest.approx(0, abs=1e-5)
    assert 8 < clock.now <= 12
    # Made longer: half of the schedule is behind it, and the other half takes as long again.
    started = clock.now
    assert resume(tmp_path / "run", "--minutes", "0.1") == 1
    assert resume(tmp_path / "run", "--minutes", "0.35") == 0
    assert 7 < clock.now - started <= 21 - started
    assert 150 <= int(last(tmp_path / "run")[0]) <= 195
    assert float(last(tmp_path / "run")[3]) == pytest.approx(0, abs=1e-5)


class Convolution(torch.nn.Module):
    """A small network to twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, padding=1)))
        self.norm = torch.nn.BatchNorm2d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(self.norm(self.body(x)), 2)


def trainer_of(output: Path, **changes: Any) -> trainer.Trainer:
    pair = ImagePair(Path("photo.png"), photo(40, 48), imresize(photo(40, 48), 1 / 2))
    options = {"accelerator": None, "held_out": {"psnr": [pair]}, "label": "small"} | changes
    training = options.pop("training", Training(steps=30, batch_size=2, patch_size=16))
    sampler = PatchSampler([pair], 2, patch_size=16, batch_size=2, seed=0)
    return trainer.Trainer(Convolution(), training, sampler, output, **options)


def test_minutes_are_kept_and_the_schedule_ends(tmp_path: Path, clock: Clock) -> None:
    progress = trainer_of(tmp_path, training=Training(minutes=0.2, batch_size=2, patch_size=16)).run()
    assert 85 <= progress.step <= 100
    assert 8 < clock.now <= 12
    assert progress.history[-1]["lr"] == pytest.approx(0, abs=1e-5)
    resumed = trainer_of(tmp_path, training=Training(minutes=0.1, batch_size=2, patch_size=16))
    with pytest.raises(trainer.TrainingError, match=r"more than --minutes 0\.1"):
        resumed.resume()
    longer = trainer_of(tmp_path, training=Training(minutes=0.4, batch_size=2, patch_size=16))
    longer.resume()
    assert longer.progress.fraction == pytest.approx(progress.seconds / 24)
    assert longer.progress.minutes == 0.4  # what it is a fraction of, for the next time


# A validation is assumed to take as long as four steps. Of the longest steps, one is measured, and one ends the run.
@pytest.mark.parametrize(("seconds", "least", "most"), [(1.0, 50, 60), (5.0, 30, 60), (45.0, 90, 140)])
def test_minutes_are_kept_with_long_steps(
    seconds: float, least: float, most: float, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer.step

    def slow(self: trainer.Trainer) -> torch.Tensor:
        clock.now += seconds - 0.1
        return step(self)

    monkeypatch.setattr(trainer.Trainer, "step", slow)
    progress = trainer_of(tmp_path, training=Training(minutes=1, batch_size=2, patch_size=16)).run()
    assert progress.fraction == 1
    assert least < clock.now <= most
    assert progress.history[-1]["lr"] == pytest.approx(0, abs=1e-5)


def test_one_slow_step_at_the_start_does_not_end_a_run(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer.step

    def slow_once(self: trainer.Trainer) -> torch.Tensor:
        clock.now += 3.0 if self.progress.step == 1 else 0.0
        return step(self)

    monkeypatch.setattr(trainer.Trainer, "step", slow_once)
    run = trainer_of(tmp_path, training=Training(minutes=1, batch_size=2, patch_size=16))
    run.check_every = 100  # as on a GPU
    assert 400 < run.run().step <= 600
    assert 50 < clock.now <= 60


def test_the_first_of_the_steps_that_are_timed_alone_takes_no_time(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer.step

    def compiling(self: trainer.Trainer) -> torch.Tensor:
        clock.now += 100 if self.progress.step == 0 else 0
        return step(self)

    monkeypatch.setattr(trainer.Trainer, "step", compiling)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(trainer.time, name, lambda: clock.now)
    training = Training(minutes=0.1, batch_size=2, patch_size=16)
    progress = trainer_of(tmp_path, held_out={}, time_steps_alone=True, training=training).run()
    assert progress.step == pytest.approx(61, abs=1)
    assert progress.seconds == pytest.approx(6, abs=0.11)


def test_the_time_of_a_run_is_that_of_all_its_parts(tmp_path: Path, clock: Clock) -> None:
    for steps in (30, 50):
        run = trainer_of(tmp_path, training=Training(steps=steps, batch_size=2, patch_size=16))
        run.resume()
        assert run.run().seconds == pytest.approx(steps / 10)
        clock.now += 1000  # before it is gone on with


def test_steps_are_measured_from_the_last_validation_on(clock: Clock) -> None:
    deadline = Deadline(end=1000.0)
    deadline.measure(0)
    clock.now += 100
    deadline.validated(0, 100.0)
    clock.now += 5
    deadline.measure(50)
    assert deadline.seconds_per_step == pytest.approx(0.1)


@pytest.mark.parametrize(("end", "short"), [(95.0, True), (105.0, False)])
def test_time_is_short_if_the_rest_of_the_steps_to_measure_does_not_fit(clock: Clock, end: float, short: bool) -> None:
    deadline = Deadline(end)
    deadline.measure(0)
    clock.now += 50
    assert deadline.is_short(25) == short  # the other 25 of 50 take until 100 s


# Three of a hundred seconds, and at most one a minute, at nine seconds a step.
@pytest.mark.parametrize(("seconds", "steps"), [(0.6, 7), (6.0, 23)])
def test_validations_take_no_more_than_their_share_of_the_time(
    seconds: float, steps: int, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer.step

    def slow(self: trainer.Trainer) -> torch.Tensor:
        clock.now += 8.9
        return step(self)

    def scored(*_: object) -> float:
        clock.now += seconds
        return 20.0

    monkeypatch.setattr(trainer.Trainer, "step", slow)
    monkeypatch.setattr(trainer, "psnr", scored)
    run = trainer_of(tmp_path, training=Training(minutes=9, batch_size=2, patch_size=16))
    run.check_every = 1
    validated = [row["step"] for row in run.run().history][:-1]  # the last one is at the end of the run
    assert validated == list(range(7, validated[-1] + 1, steps))
    assert len(validated) > 2


class OneOfTwo:
    """A process whose twin does the same: a sum is twice what it has, and a mean the same."""

    num_processes, process_index, is_main_process = 2, 1, False

    def prepare_model(self, net: torch.nn.Module, **_: object) -> torch.nn.Module:
        return net

    def no_sync(self, net: torch.nn.Module) -> nullcontext[None]:
        return nullcontext()

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return 2 * tensor if reduction == "sum" else tensor


def test_the_second_of_two_processes_stops_with_the_first_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_0000001").mkdir(parents=True)  # damaged, which the first process says
    second = trainer_of(tmp_path, accelerator=OneOfTwo())
    with pytest.raises(trainer.TrainingError, match="no readable checkpoint"):
        second.resume()
    second.interrupt()
    assert second.run().step == 10
    assert len(list(tmp_path.rglob("*.*"))) == 0
    timed = trainer_of(tmp_path, accelerator=OneOfTwo(), training=Training(minutes=0.04, batch_size=2, patch_size=16))
    assert timed.run().fraction == 1
    with pytest.raises(trainer.TrainingError, match="a batch of 3 does not divide among 2 processes"):
        trainer_of(tmp_path, accelerator=OneOfTwo(), training=Training(steps=1, batch_size=3, patch_size=16))


def test_statistics_of_a_batch_norm_are_those_of_the_network(tmp_path: Path) -> None:
    run = trainer_of(tmp_path, held_out={})
    run.run()
    assert run.learner.net.norm.num_batches_tracked == 30
    assert torch.equal(run.learner.average.norm.running_mean, run.learner.net.norm.running_mean)
    assert not torch.equal(run.learner.average.body[0][0].weight, run.learner.net.body[0][0].weight)


def test_the_log_has_the_mean_loss_of_all_steps_and_the_score_of_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    step = trainer.Trainer.step

    def follow(self: trainer.Trainer) -> torch.Tensor:
        loss = step(self)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(trainer.Trainer, "step", follow)
    run = trainer_of(tmp_path)
    first, last = run.run(validate_every=15).history  # the loss is looked at after every ten steps, too
    assert (first["loss"], last["loss"]) == pytest.approx((np.mean(losses[:15]), np.mean(losses[15:])))
    (pair,) = run.held_out["psnr"]
    with torch.no_grad():
        sr = run.learner.average.eval()(pair.lr[None] / 255)[0]
    assert last["psnr"] == pytest.approx(psnr(to_uint8(sr), pair.hr, 2), abs=1e-3)


@pytest.mark.parametrize("name", ["net", "average", "optimizer"])
def test_a_checkpoint_that_holds_no_numbers_is_not_gone_on_from(name: str, tmp_path: Path) -> None:
    trainer_of(tmp_path).run(validate_every=15)
    file = tmp_path / "checkpoints" / "step_0000030" / f"{name}.safetensors"
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    next(value for value in tensors.values() if value.dim() == 4)[0, 0] = torch.nan
    save_file(tensors, file)
    assert trainer_of(tmp_path).resume() == 15


def test_a_resumed_run_in_half_precision_goes_on_with_the_scale_of_its_loss(tmp_path: Path) -> None:
    training = Training(steps=30, batch_size=2, patch_size=16, precision="fp16")
    stopped, resumed = (trainer_of(tmp_path, held_out={}, training=training) for _ in range(2))
    stopped.interrupt()
    assert stopped.run().step == resumed.resume() > 0
    assert resumed.learner.scaler.state_dict() == stopped.learner.scaler.state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"scale": math.nan},
        {"scale": math.inf},
        {"scale": 0.0},
        {"scale": "big"},
        {"growth_interval": None},
        {"growth_factor": 3.0},
        {"_growth_tracker": -1},
        {"more": 1},
        {},
    ],
    ids=repr,
)
def test_a_damaged_scale_of_the_loss_is_not_gone_on_from(change: dict, tmp_path: Path) -> None:
    training = Training(steps=30, batch_size=2, patch_size=16, precision="fp16")
    trainer_of(tmp_path, training=training).run(validate_every=15)
    file = tmp_path / "checkpoints" / "step_0000030" / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {"scaler": state["scaler"] | change if change else change}))
    assert trainer_of(tmp_path, training=training).resume() == 15


@pytest.mark.parametrize("broken", ["net", "average", "optimizer", "scaler"])
def test_a_state_that_does_not_fit_leaves_the_weights(broken: str, tmp_path: Path) -> None:
    training = Training(steps=1, batch_size=2, patch_size=16, precision="fp16")
    trained, fresh = (trainer_of(tmp_path, held_out={}, training=training).learner for _ in range(2))
    for parameter in [*trained.net.parameters(), *trained.average.parameters()]:
        parameter.data += 1
    state = trained.tensors() | {"scaler": trained.scaler.state_dict()}
    state[broken] = {"0.other": torch.zeros(1)}
    before = {name: value.clone() for name, value in fresh.net.state_dict().items()}
    with pytest.raises(ValueError, match=r"holds 1 tensors|its loss scaler state"):
        fresh.load(state, state["scaler"])
    for net in (fresh.net, fresh.average):
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_each_stage_has_its_own_patches_and_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (Stage(2, 16, 1e-3, "one-cycle", share=0.5), Stage(1, 24, 0.0, "cosine", share=0.5))
    monkeypatch.setitem(RECIPES, "short", Recipe(stages))
    shapes, weights = [], []

    def draw(sampler: PatchSampler, step: int, **processes: int) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = sampler.batch(step, **processes)
        shapes.append((low.shape[0], high.shape[2]))
        weights.append(run.learner.net.body[0][0].weight.detach().clone())
        return low, high

    run = trainer_of(tmp_path, held_out={}, draw=draw, training=Training(steps=8))
    run.run()
    assert shapes == [(2, 16)] * 4 + [(1, 24)] * 4
    moved = [
        not torch.equal(*pair) for pair in zip(weights, [*weights[1:], run.learner.net.body[0][0].weight], strict=True)
    ]
    assert moved == [True] * 4 + [False] * 4


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_the_gradient_is_clipped_to_the_norm_of_the_recipe(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "short", Recipe((Stage(2, 16, 1e-3, "cosine"),), clip_grad_norm=1e-3))
    run = trainer_of(tmp_path, held_out={}, training=Training(steps=1, precision=precision))
    run.run()
    # After its first step, Adam's average of the gradient is a tenth of that.
    squares = [state["exp_avg"].square().sum() for state in run.learner.optimizer.state.values()]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(1e-4, rel=0.01)


def test_blocks_are_compiled_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    training = Training(steps=1, batch_size=2, patch_size=16, compile=True)
    assert compiled == [trainer_of(tmp_path, training=training).learner.net.body[0]]


def test_cuda_graphs_need_a_gpu(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--cuda-graph") == 1
    assert "--cuda-graph needs one GPU" in capsys.readouterr().err


def last(output: Path) -> list[str]:
    return history(output)[-1]


def test_nothing_of_a_checkpoint_is_executed(images: Path, tmp_path: Path, capsys) -> None:
    output, trace = tmp_path / "run", tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (trace,)

    assert run(images, output, "--steps", "2", "--validate-every", "1") == 0
    (newest,) = (output / "checkpoints").glob("step_0000002")
    written = sorted(path.name for path in newest.iterdir())
    assert written == ["average.safetensors", "net.safetensors", "optimizer.safetensors", "state.json"]
    for name in [*written, "custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"]:
        before = (newest / name).read_bytes() if name in written else None
        torch.save(Payload(), newest / name)
        assert run(images, output, "--steps", "2", "--validate-every", "1", "--resume") == 0
        assert not trace.exists()
        if before is not None:
            (newest / name).write_bytes(before)
            assert "not a readable checkpoint" in capsys.readouterr().err  # and the one before was taken


def test_a_damaged_checkpoint_gives_way_to_the_one_before(images: Path, tmp_path: Path, capsys) -> None:
    output, arguments = tmp_path / "run", ["--steps", "4", "--validate-every", "1"]
    assert run(images, output, *arguments) == 0
    expected = history(output)
    file = output / "checkpoints" / "step_0000004" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert run(images, output, *arguments, "--resume") == 0
    said = capsys.readouterr()
    assert "step_0000004: not a readable checkpoint" in said.err
    assert "resumed at step 3" in said.out
    assert history(output) == expected
    for folder in (output / "checkpoints").glob("step_*"):
        (folder / "state.json").write_text("[]")
    assert run(images, output, *arguments, "--resume") == 1
    assert "no readable checkpoint; start afresh" in capsys.readouterr().err


def test_images_that_changed_their_names_or_behind_them_are_noticed(images: Path, tmp_path: Path, capsys) -> None:
    assert run(images, tmp_path / "run", "--steps", "1") == 0
    (images / "2.png").rename(images / "3.png")
    assert resume(tmp_path / "run") == 1
    assert "other settings (files was" in capsys.readouterr().err
    (images / "3.png").unlink()
    write_photos(images, [(40, 48), (48, 44), (36, 44)])
    assert resume(tmp_path / "run") == 1
    assert "other settings (files was" in capsys.readouterr().err


def test_a_full_disk_leaves_the_checkpoint_before(images: Path, tmp_path: Path, capsys) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limits on the size of a file")
    output, arguments = tmp_path / "run", ["--steps", "3", "--validate-every", "1"]
    assert run(images, tmp_path / "straight", *arguments) == 0
    step = trainer.Trainer.step
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(self: trainer.Trainer) -> torch.Tensor:
        if self.progress.step == 2:  # large enough for the weights and the log, too small for the optimizer's state
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        return step(self)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.Trainer, "step", fill_disk)
            assert run(images, output, *arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"{output / 'checkpoints' / 'step_0000003'}: File too large" in errors[0]
    assert f"Last good checkpoint: {output / 'checkpoints' / 'step_0000002'}" in errors[0]
    kept = sorted(path.name for path in (output / "checkpoints").iterdir() if not path.name.startswith("."))
    assert kept == ["step_0000001", "step_0000002"]
    assert resume(output) == 0
    assert history(output) == history(tmp_path / "straight")
