"""The runner of comparisons: paired runs, equal steps or equal time, statistics as scipy has them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor, nn

from examples.compare import runner
from examples.compare.cost import nearest_width
from examples.compare.runner import compare
from examples.compare.setup import HELD_OUT, Row, Setup
from examples.compare.tables import (
    Difference,
    Run,
    comparison_table,
    paired,
    pooled,
    read_runs,
    significance,
    write_runs,
)
from examples.compare.tasks import Denoising, SuperResolution
from examples.drop_in.report import overview
from examples.markdown import begin, table, with_part
from examples.mren.model import MREN, load_mren, save_weights
from examples.mren.training.checkpoint import load_optimizer_tensors, optimizer_tensors
from examples.mren.training.recipes import Training, make_optimizer
from examples.mren.training.trainer import Progress, Trainer
from examples.records import read_json, read_rows, write_records
from tests.images import rename_to_bytes, write_photos


class Net(nn.Module):
    """A convolution that enlarges; with a further one whose random numbers are drawn before."""

    def __init__(self, *, more: bool = False) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 3, 1) if more else nn.Identity()
        self.up = nn.Conv2d(3, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.up(self.before(x)))


ROWS = [Row("net", Net), Row("more", lambda: Net(more=True))]
SHORT = Training(steps=3, batch_size=2, patch_size=16)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    write_photos(tmp_path / "train", [(24, 28), (28, 24), (26, 30)])
    write_photos(tmp_path / "Test", [(24, 24)])
    return Setup(
        SuperResolution(2), SHORT, data=[tmp_path / "train"], test=[tmp_path / "Test"], output=tmp_path / "out", seeds=2
    )


def weights(setup: Setup, row: str = "net", seed: int = 0) -> dict[str, Tensor]:
    return load_file(setup.output / row / f"seed_{seed}" / "weights.safetensors")


# Runs


def test_what_a_file_holds_of_other_rows_seeds_and_sets_stays_in_it(tmp_path: Path) -> None:
    some = partial(Run, parameters=1, steps=1, batch_size=1, patch_size=8, minutes=1.0, psnr=30.0, ssim=0.9)
    runs = [some(name=n, seed=s, dataset=d) for n in ("a", "b") for s in (0, 1) for d in ("Set5", "B100")]
    write_runs(tmp_path / "runs.csv", runs)
    better = dataclasses.replace(runs[2], psnr=31.0)
    write_runs(tmp_path / "runs.csv", [better])
    assert read_runs(tmp_path / "runs.csv") == [better, *runs[:2], *runs[3:]]


def test_rows_are_trained_scored_and_not_trained_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compare(ROWS, setup)
    assert [(run.name, run.seed, run.steps, run.dataset) for run in found] == [
        ("net", 0, 3, "Test"), ("more", 0, 3, "Test"), ("net", 1, 3, "Test"), ("more", 1, 3, "Test"),
    ]  # fmt: skip
    assert len({run.psnr for run in found}) == 4
    assert all(run.paired and run.parameters in (336, 348) and run.macs > 0 for run in found)
    assert not list(setup.output.glob("*/*/checkpoints"))

    monkeypatch.setattr(runner, "Trainer", None)
    assert compare(ROWS, setup) == found
    # Another test set is scored without training.
    write_photos(setup.output.parent / "More", [(20, 24)])
    more = compare(ROWS, dataclasses.replace(setup, test=[*setup.test, setup.output.parent / "More"]))
    assert [run for run in more if run.dataset == "Test"] == found
    assert len(more) == 8
    with pytest.raises(ValueError, match=r"holds a run with other settings \(steps was 3, is 4\); choose another"):
        compare(ROWS, dataclasses.replace(setup, training=dataclasses.replace(SHORT, steps=4)))


def test_runs_of_one_seed_begin_alike_and_see_the_same(setup: Setup) -> None:
    still = dataclasses.replace(setup, training=dataclasses.replace(SHORT, steps=1, lr=1e-12), seeds=1)
    compare(ROWS, still)
    assert torch.allclose(weights(still)["up.weight"], weights(still, "more")["up.weight"], atol=1e-9)
    found = compare([Row("a", Net), Row("b", Net)], setup)
    assert [run.psnr for run in found if run.name == "a"] == [run.psnr for run in found if run.name == "b"]


def test_a_row_can_begin_from_weights_of_its_own(setup: Setup) -> None:
    def zeros() -> Net:
        net = Net()
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        return net

    still = dataclasses.replace(setup, training=dataclasses.replace(SHORT, steps=1, lr=1e-12), seeds=1)
    compare([ROWS[0], Row("own", zeros, begins_alike=False), Row("alike", zeros)], still)
    assert torch.allclose(weights(still, "own")["up.weight"], torch.zeros(()), atol=1e-9)
    assert torch.allclose(weights(still, "alike")["up.weight"], weights(still)["up.weight"], atol=1e-9)


def test_a_run_that_is_stopped_ends_as_one_that_was_not(setup: Setup, tmp_path: Path) -> None:
    longer = dataclasses.replace(setup, seeds=1, training=dataclasses.replace(SHORT, steps=25))
    whole = compare(ROWS[:1], longer)
    stopped = dataclasses.replace(longer, output=tmp_path / "stopped")
    calls = 1
    while not (found := compare(ROWS[:1], stopped, max_minutes=1e-9)):
        calls += 1
    assert calls == 3  # a look at the clock after every ten steps
    assert [dataclasses.replace(run, minutes=0) for run in found] == [
        dataclasses.replace(run, minutes=0) for run in whole
    ]
    assert all(torch.equal(tensor, weights(stopped)[name]) for name, tensor in weights(longer).items())


def test_a_damaged_checkpoint_is_left_out(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    one = dataclasses.replace(setup, seeds=1, training=dataclasses.replace(SHORT, steps=25))
    for _ in range(2):
        assert not compare(ROWS[:1], one, max_minutes=1e-9)
    (newest,) = setup.output.glob("net/seed_0/checkpoints/step_0000020")
    (newest / "net.safetensors").write_bytes(b"")
    assert compare(ROWS[:1], one)
    assert "Trying the one before" in capsys.readouterr().err


def test_a_checkpoint_of_other_settings_is_refused(setup: Setup) -> None:
    longer = dataclasses.replace(SHORT, steps=25)
    assert not compare(ROWS, dataclasses.replace(setup, training=longer), max_minutes=1e-9)
    with pytest.raises(ValueError, match=r"batch_size was \[2\], is \[1\]"):
        compare(ROWS, dataclasses.replace(setup, training=dataclasses.replace(longer, batch_size=1)))


def test_all_rows_train_for_as_long(setup: Setup) -> None:
    timed = dataclasses.replace(setup, training=dataclasses.replace(SHORT, minutes=0.001), seeds=1)
    found = compare(ROWS, timed)
    assert all(run.steps > 1 for run in found)
    (record, _) = (read_json(timed.output / row.name / "seed_0" / "run.json") for row in ROWS)
    assert record["settings"]["minutes"] == 0.001
    assert record["settings"]["steps"] is None


def test_only_some_rows(setup: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(ROWS, setup, only=["more"])
    assert {run.name for run in found} == {"more"}
    assert "2 of 2 runs to train, 3 steps each" in capsys.readouterr().out
    compare(ROWS, setup, dry_run=True)
    assert "2 of 4 runs to train" in capsys.readouterr().out
    assert not (setup.output / "net").exists()


def test_held_out_images_are_scored_and_not_trained_on(setup: Setup) -> None:
    found = compare(ROWS[:1], dataclasses.replace(setup, held_out=1, seeds=1))
    assert [run.dataset for run in found] == ["Test", HELD_OUT]
    assert read_json(setup.output / "net" / "seed_0" / "run.json")["settings"]["images"] == 2


def test_what_is_not_alike_is_refused(setup: Setup) -> None:
    compare(ROWS, setup)
    with pytest.raises(ValueError, match="begins_as was 'net', is 'more'"):
        compare(ROWS[::-1], setup)
    (setup.output / "net" / "seed_0" / "run.json").write_text('{"steps": 3}')  # of another program
    with pytest.raises(ValueError, match="holds a run with other settings"):
        compare(ROWS, setup)


def test_a_damaged_record_is_named(setup: Setup) -> None:
    one = dataclasses.replace(setup, seeds=1)
    compare(ROWS[:1], one)
    file = setup.output / "net" / "seed_0" / "run.json"
    whole = read_json(file)
    for damaged in (
        [whole],
        whole | {"minutes": None},
        whole | {"scores": []},
        whole | {"scores": {"Test": None}},
        whole | {"scores": {"Test": {"psnr": "30"}}},
        whole | {"local_scores": {"Test": {"psnr": 30.0, "lpips": 0.1}}},
        {**whole, "macs": "1"},
    ):
        file.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"seed_0.run\.json: is not the record of a run; delete the file to train"):
            compare(ROWS[:1], one)
    file.unlink()
    assert len(compare(ROWS[:1], one)) == 1


def test_a_damaged_weight_file_is_named(setup: Setup) -> None:
    one = dataclasses.replace(setup, seeds=1)
    compare(ROWS[:1], one)
    folder = setup.output / "net" / "seed_0"
    record = read_json(folder / "run.json")
    (folder / "run.json").write_text(json.dumps(record | {"scores": {}}))
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"weights\.safetensors: is not the weight file .*run\.json to train the run"):
        compare(ROWS[:1], one)
    (folder / "run.json").unlink()
    assert len(compare(ROWS[:1], one)) == 1


def test_damaged_settings_of_a_run_that_was_stopped_are_named(setup: Setup) -> None:
    one = dataclasses.replace(setup, seeds=1, training=dataclasses.replace(SHORT, steps=25))
    assert compare(ROWS[:1], one, max_minutes=1e-9) == []
    (setup.output / "net" / "seed_0" / "checkpoints" / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a run with other settings"):
        compare(ROWS[:1], one)


@pytest.mark.parametrize("text", ["name,seed\nx,1\n", "name,seed,psnr\nx,1", "\xff", "name,seed\nx,thirty\n"])
def test_a_table_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"runs\.csv: is not a table written by .*, or is damaged \(.*move it away"):
        read_runs(tmp_path / "runs.csv")


def test_two_processes_do_not_train_one_run(setup: Setup) -> None:
    lock = setup.output / "net" / "seed_0" / "checkpoints" / ".lock"
    lock.parent.mkdir(parents=True)
    with (
        FileLock(lock),
        pytest.raises(OSError, match="another process is training it; wait for it, or choose other rows"),
    ):
        compare(ROWS, setup)


def test_a_run_that_another_process_has_finished_meanwhile_is_not_trained_again(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = dataclasses.replace(setup, seeds=1)
    rows = [ROWS[0], dataclasses.replace(ROWS[1], begins_alike=False)]
    trained: list[str] = []

    class Watched(Trainer):
        def run(self, **options) -> Progress:
            trained.append(self.label)
            if len(trained) == 1:
                monkeypatch.setattr(runner, "Trainer", Trainer)
                compare(rows[1:], dataclasses.replace(one, output=setup.output.parent / "other"))
                shutil.copytree(setup.output.parent / "other" / "more", setup.output / "more")
                monkeypatch.setattr(runner, "Trainer", Watched)
            return super().run(**options)

    monkeypatch.setattr(runner, "Trainer", Watched)
    assert {run.name for run in compare(rows, one)} == {"net", "more"}
    assert trained == ["net, seed 0"]


def test_any_memory_format(setup: Setup) -> None:
    training = dataclasses.replace(SHORT, channels_last=False)
    found = compare(ROWS[:1], dataclasses.replace(setup, training=training, seeds=1))
    (other,) = compare(ROWS[:1], dataclasses.replace(setup, seeds=1, output=setup.output.parent / "other"))
    assert found[0].psnr == pytest.approx(other.psnr, abs=1e-2)


def test_options_of_a_row(setup: Setup) -> None:
    rows = [ROWS[0], Row("other", Net, options={"recipe": "paper", "lr": 2e-3})]
    compare(rows, dataclasses.replace(setup, seeds=1))
    settings = [read_json(setup.output / row.name / "seed_0" / "run.json")["settings"] for row in rows]
    assert [each["schedule"] for each in settings] == [["one-cycle"], ["halving"]]
    assert [each["lr"] for each in settings] == [[1e-3], [2e-3]]
    assert [each["ema_decay"] for each in settings] == [0.999, None]


def test_a_batch_in_parts_is_the_same_batch(setup: Setup, tmp_path: Path) -> None:
    parts = dataclasses.replace(
        setup, output=tmp_path / "parts", training=dataclasses.replace(SHORT, steps=1, accumulate=2)
    )
    for each in (dataclasses.replace(setup, training=dataclasses.replace(SHORT, steps=1)), parts):
        compare(ROWS[:1], dataclasses.replace(each, seeds=1))
    assert torch.allclose(weights(setup)["up.weight"], weights(parts)["up.weight"], atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(setup: Setup, precision: str) -> None:
    training = dataclasses.replace(SHORT, precision=precision)
    assert compare(ROWS[:1], dataclasses.replace(setup, training=training, seeds=1))[0].psnr > 0
    assert weights(setup)["up.weight"].dtype == torch.float32


def test_what_the_first_weights_lack_is_trained_first(setup: Setup, tmp_path: Path) -> None:
    config = {"scale": 4, "channels": 12, "num_blocks": 1}
    save_weights(MREN(**config), tmp_path / "init.safetensors", config)
    own = config | {"scale": 2}
    training = dataclasses.replace(SHORT, init=tmp_path / "init.safetensors", warm_up_new=3)
    compare([Row("mren", lambda: MREN(**own), config=own)], dataclasses.replace(setup, training=training, seeds=1))
    given, trained = load_file(tmp_path / "init.safetensors"), weights(setup, "mren")
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, given.get(name, torch.zeros(())))}
    assert "tail.weight" in moved  # the widths of ×2 end elsewhere
    assert not any(name.startswith(("head", "body")) for name in moved)
    load_mren(2, path=setup.output / "mren" / "seed_0" / "weights.safetensors")  # says what it is


@pytest.mark.slow
def test_compiled(setup: Setup) -> None:
    training = dataclasses.replace(SHORT, compile=True)
    (found,) = compare(ROWS[:1], dataclasses.replace(setup, training=training, seeds=1))
    (eager,) = compare(ROWS[:1], dataclasses.replace(setup, seeds=1, output=setup.output.parent / "eager"))
    assert found.psnr == pytest.approx(eager.psnr, abs=1e-3)


def test_noise_has_no_ssim(setup: Setup) -> None:
    (found,) = compare(
        [Row("conv", lambda: nn.Conv2d(3, 3, 3, padding=1))], dataclasses.replace(setup, task=Denoising(), seeds=1)
    )
    assert math.isnan(found.ssim)
    json.loads((setup.output / "conv" / "seed_0" / "run.json").read_text(), parse_constant=pytest.fail)


def test_names_of_images_need_not_be_utf_8(setup: Setup) -> None:
    for file in ("train/0.png", "Test/0.png"):
        rename_to_bytes(setup.output.parent / file)
    denoising = dataclasses.replace(setup, task=Denoising(), seeds=1)
    assert compare([Row("conv", lambda: nn.Conv2d(3, 3, 3, padding=1))], denoising)


def test_test_folders_of_one_name_are_refused(setup: Setup, tmp_path: Path) -> None:
    write_photos(tmp_path / "other" / "Test", [(24, 24)])
    with pytest.raises(ValueError, match="names must differ; got"):
        compare(ROWS, dataclasses.replace(setup, test=[*setup.test, tmp_path / "other" / "Test"]))


def test_training_that_breaks_is_named(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SuperResolution, "batch", lambda *_, **__: (torch.full((1, 3, 8, 8), math.nan), torch.zeros(1, 3, 16, 16))
    )
    with pytest.raises(ValueError, match=r"net, seed 0: the loss is nan at step 0 .* Try a lower --lr"):
        compare(ROWS, setup)


def test_a_network_that_broke_in_the_last_update_is_not_kept(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(torch.optim.Adam):
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                group["params"][0].data.fill_(math.nan)

    monkeypatch.setattr("examples.mren.training.recipes.Adam", Breaking)
    with pytest.raises(ValueError, match="net, seed 0: the weights are not finite after step 1"):
        compare(ROWS, dataclasses.replace(setup, training=dataclasses.replace(SHORT, steps=1)))
    assert not list(setup.output.rglob("*.safetensors"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_optimizer_goes_on_in_any_memory_format(memory_format: torch.memory_format) -> None:
    def trained(*, resumed: bool) -> Tensor:
        torch.manual_seed(0)
        net = nn.Conv2d(3, 8, 3).to(memory_format=memory_format)
        optimizer = make_optimizer(net, 1e-2)
        for _ in range(2):
            net(torch.rand(1, 3, 8, 8)).square().mean().backward()
            optimizer.step()
            if resumed:
                kept = {name: tensor.contiguous() for name, tensor in optimizer_tensors(optimizer).items()}
                optimizer = make_optimizer(net, 1e-2)
                load_optimizer_tensors(optimizer, kept)
        return net.weight

    assert torch.equal(trained(resumed=True), trained(resumed=False))


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        (Row("net", Net, channels=8), {}),
        (Row("net", Net, config={"scale": 2}), {}),
        (Row("net", Net, begins_alike=False), {"rows_before": ROWS[1:]}),
        (ROWS[0], {"task": SuperResolution(4)}),
        (ROWS[0], {"held_out": 1}),
    ],
)
def test_a_run_of_other_settings_is_not_taken_as_done(setup: Setup, row: Row, changes: dict) -> None:
    before = changes.pop("rows_before", [])
    compare([*before, ROWS[0]], setup)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        compare([*before, row], dataclasses.replace(setup, **changes), only=["net"])


def test_a_row_of_other_settings_is_refused_before_another_one_is_trained(setup: Setup) -> None:
    compare(ROWS, setup, only=["net"])
    longer = dataclasses.replace(setup, training=dataclasses.replace(SHORT, steps=4))
    with pytest.raises(ValueError, match=r"net.seed_0 holds a run with other settings \(steps was 3, is 4\)"):
        compare(ROWS, longer, only=["more"])
    assert not (setup.output / "more").exists()


def test_other_images_of_the_same_names_are_not_taken_as_trained_on(setup: Setup) -> None:
    compare(ROWS[:1], setup)
    (moved, *_) = sorted((setup.output.parent / "train").iterdir())
    moved.rename(moved.with_stem("renamed"))
    with pytest.raises(ValueError, match="holds a run with other settings"):
        compare(ROWS[:1], setup)


@pytest.mark.parametrize(
    ("changed", "before", "after"),
    [({"textured": True}, None, True), ({"loss": "l1+fft"}, ["l1"], ["l1+fft"])],
    ids=["textured", "loss"],
)
def test_a_run_of_textured_patches_or_another_loss_is_another_one(
    setup: Setup, changed: dict[str, Any], before: object, after: object
) -> None:
    (option,) = changed
    plain = dataclasses.replace(setup, seeds=1)
    other = dataclasses.replace(plain, training=dataclasses.replace(SHORT, **changed))
    (usual,) = compare(ROWS[:1], plain)
    with pytest.raises(ValueError, match=re.escape(f"other settings ({option} was {before}, is {after})")):
        compare(ROWS[:1], other)
    shutil.rmtree(setup.output)
    (unusual,) = compare(ROWS[:1], other)
    assert unusual.psnr != usual.psnr
    with pytest.raises(ValueError, match=re.escape(f"other settings ({option} was {after}, is {before})")):
        compare(ROWS[:1], plain)


@pytest.mark.parametrize("minutes", [math.inf, 1e-9])
def test_images_that_changed_behind_their_names_are_not_taken_as_trained_on(setup: Setup, minutes: float) -> None:
    longer = dataclasses.replace(setup, training=dataclasses.replace(SHORT, steps=25))
    compare(ROWS[:1], longer, max_minutes=minutes)
    (changed, *_) = sorted((setup.output.parent / "train").iterdir())
    shutil.copy(setup.output.parent / "Test" / "0.png", changed)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(contents was"):
        compare(ROWS[:1], longer)


def test_a_test_set_of_the_same_name_with_other_images_is_scored_anew(setup: Setup) -> None:
    one = dataclasses.replace(setup, seeds=1)
    (before,) = compare(ROWS[:1], one)
    write_photos(setup.output.parent / "other" / "Test", [(28, 24)])
    (other,) = compare(ROWS[:1], dataclasses.replace(one, test=[setup.output.parent / "other" / "Test"]))
    assert other.psnr != before.psnr
    assert compare(ROWS[:1], one) == [before]


def test_a_test_image_that_cannot_be_scored_is_named(setup: Setup) -> None:
    write_photos(setup.output.parent / "Small", [(24, 24), (12, 12)])
    with pytest.raises(ValueError, match=r"Small.1\.png: score: images must be at least 15 x 15"):
        compare(ROWS[:1], dataclasses.replace(setup, test=[setup.output.parent / "Small"]))


def test_a_test_folder_named_as_the_held_out_images_is_refused(setup: Setup) -> None:
    write_photos(setup.output.parent / HELD_OUT, [(24, 24)])
    named = dataclasses.replace(setup, test=[setup.output.parent / HELD_OUT], held_out=1)
    with pytest.raises(ValueError, match="--test: rename the folder 'held out'"):
        compare(ROWS, named)


def test_a_row_that_begins_from_weights_of_its_own_draws_them_from_its_seed(setup: Setup) -> None:
    still = dataclasses.replace(setup, training=dataclasses.replace(SHORT, steps=1, lr=1e-12))
    rows = [ROWS[0], Row("own", Net, begins_alike=False)]
    compare(rows, still)
    torch.rand(7)
    compare(rows, dataclasses.replace(still, output=setup.output.parent / "again"))
    for seed in (0, 1):
        again = load_file(setup.output.parent / "again" / "own" / f"seed_{seed}" / "weights.safetensors")
        assert torch.equal(again["up.weight"], weights(setup, "own", seed)["up.weight"])
    for row in ("net", "own"):
        assert not torch.equal(weights(setup, row, 0)["up.weight"], weights(setup, row, 1)["up.weight"])


def test_each_seed_sees_patches_of_its_own(setup: Setup) -> None:
    def zeros() -> Net:
        net = Net()
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        return net

    compare([Row("zeros", zeros, begins_alike=False)], setup)
    assert not torch.equal(*(weights(setup, "zeros", seed)["up.weight"] for seed in (0, 1)))


def test_networks_are_scored_as_they_are_used(setup: Setup) -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(Net(), nn.Dropout(0.5))

    compare([Row("dropping", dropping)], dataclasses.replace(setup, seeds=1))
    net = dropping()
    net.load_state_dict(weights(setup, "dropping"))
    (run,) = compare([Row("dropping", dropping)], dataclasses.replace(setup, seeds=1))
    (file,) = setup.test[0].iterdir()
    assert run.psnr == pytest.approx(SuperResolution(2).score(net.eval(), file, "cpu").psnr, abs=1e-4)


def test_averaged_weights_are_kept(setup: Setup) -> None:
    longer = dataclasses.replace(setup, seeds=1, training=dataclasses.replace(SHORT, steps=20, ema_decay=0.9))
    last = dataclasses.replace(longer, output=setup.output.parent / "last")
    last = dataclasses.replace(last, training=dataclasses.replace(last.training, ema_decay=0))
    config = {"scale": 2, "channels": 12, "num_blocks": 1}
    rows = [ROWS[0], Row("mren", partial(MREN, **config), config=config)]
    for each in (longer, last):
        compare(rows, each)
    for row, name in (("net", "up.weight"), ("mren", "head.weight")):
        assert not torch.equal(weights(longer, row)[name], weights(last, row)[name])


# Statistics


def by_seed(*rows: list[float]) -> list[dict[int, float]]:
    return [dict(enumerate(row)) for row in rows]


def test_paired_differences_of_two_rows_are_those_of_the_paired_t_test() -> None:
    first, second = [30.51, 30.33, 30.42, 30.2], [30.60, 30.39, 30.55, 30.28]
    found = paired(by_seed(first, second))
    (difference,) = found.differences
    interval = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert difference.mean == pytest.approx((interval.low + interval.high) / 2)
    assert difference.margin == pytest.approx((interval.high - interval.low) / 2)
    assert found.spread == pytest.approx(np.std(np.subtract(second, first), ddof=1) / math.sqrt(2))
    assert (found.seeds, found.freedom, difference.significant) == ((4,), 3, True)
    (closer,) = paired(by_seed(first, [first[0] + 0.1, first[1] - 0.1, *first[2:]])).differences
    assert not closer.significant


def test_paired_differences_share_their_variance_between_rows() -> None:
    scores = np.random.default_rng(0).normal(30, 0.1, (4, 3)) + np.array([0.0, 0.3, 0.7])
    found = paired(by_seed(*scores.tolist()))
    # The residual variance of a two-way analysis of variance, here by least squares.
    rows, seeds = np.indices(scores.shape)
    design = np.column_stack([rows.ravel() == row for row in range(4)] + [seeds.ravel() == seed for seed in (1, 2)])
    _, (rest,), _, _ = np.linalg.lstsq(design.astype(float), scores.ravel(), rcond=None)
    half = stats.t.ppf(0.975, 6) * math.sqrt(2 * rest / 6 / 3)
    assert [difference.margin for difference in found.differences] == pytest.approx([half] * 3)
    assert (found.seeds, found.freedom) == ((3,), 6)


def test_seeds_that_not_all_rows_have_are_left_out_of_differences() -> None:
    with pytest.raises(ValueError, match="2 rows have no seed in common"):
        paired([{0: 30.0}, {1: 30.5}])
    assert paired([{0: 30.0, 1: 31.0}, {0: 30.5}]).differences == [Difference(0.5, None)]
    three = [{0: 30.0, 1: 31.0}, {0: 30.5, 1: 33.0}, {0: 30.25}]
    assert paired(three).differences == [Difference(0.5, None), Difference(0.25, None)]


def test_rows_with_more_seeds_than_others() -> None:
    scores = [[30.0, 30.2], [30.5, 30.7, 30.6], [31.0]]
    spread = math.sqrt((np.var(scores[0], ddof=1) + 2 * np.var(scores[1], ddof=1)) / 3)
    three = stats.t.ppf(0.975, 3) * spread * math.sqrt(1 / 2 + 1 / 3)
    found = pooled(by_seed(*scores))
    assert [difference.margin for difference in found.differences] == [pytest.approx(three), None]
    assert found.spread == pytest.approx(spread)
    assert (found.seeds, found.freedom) == ((1, 2, 3), 3)
    (sentence,) = significance({"Set5": found}, paired=False)
    assert "A row with one seed is not tested." in sentence
    assert (
        f"With 1 or 2 or 3 seeds per row, the smallest significant difference (p < 0.05) is {three:.3f} dB" in sentence
    )


def test_pooled_differences_of_two_rows_are_those_of_the_t_test() -> None:
    first, second = [30.51, 30.33, 30.42], [30.20, 30.11, 30.29]
    for shift in (0.0, 0.15):
        moved = [score + shift for score in second]
        test = stats.ttest_ind(moved, first)
        interval = test.confidence_interval(0.95)
        (difference,) = pooled(by_seed(first, moved)).differences
        assert difference.mean - difference.margin == pytest.approx(interval.low)
        assert difference.mean + difference.margin == pytest.approx(interval.high)
        assert difference.significant == (test.pvalue < 0.05)


@pytest.mark.parametrize("method", [paired, pooled])
def test_one_seed_shows_nothing(method) -> None:
    found = method(by_seed([30.0], [31.0]))
    assert found.differences == [Difference(1.0, None)]
    assert not found.differences[0].significant
    (sentence,) = significance({"Set5": found}, paired=method is paired)
    assert "One seed per row" in sentence
    (sentence,) = significance({"Set5": method(by_seed([30.0, 30.1], [31.0]))}, paired=method is paired)
    assert "One seed per row" in sentence
    (sentence,) = significance({"Set5": method(by_seed([30.0, 30.1]))}, paired=method is paired)
    assert "One row" in sentence


@pytest.mark.parametrize("method", [paired, pooled])
def test_test_sets_with_as_many_seeds_share_a_sentence(method) -> None:
    def rows(shift: float) -> list[dict[int, float]]:
        return by_seed([30.51, 30.33, 30.42], [30.21 + shift, 30.12 + shift, 30.29 + shift])

    found = {"Set5": method(rows(0)), "B100": method(rows(0.2)), "Set14": method(by_seed([30.0, 30.1], [30.1, 30.3]))}
    sentences = significance(found, paired=method is paired)
    assert [[name in sentence for name in found] for sentence in sentences] == [
        [True, True, False],
        [False, False, True],
    ]
    for sentence, some in zip(sentences, (True, False), strict=True):
        assert ("bold" in sentence) is some


# Tables and files


def runs_of(scores: dict[str, list[float]], **changes) -> list[Run]:
    common = {"parameters": 62169, "macs": 3510000000, "channels": 22, "steps": 600, "batch_size": 8, "patch_size": 96}
    common |= {"minutes": 1.5, "dataset": "Set5", "matched": "parameters", "paired": 1}
    return [
        Run(name=name, seed=seed, psnr=psnr, **{**common, **changes})
        for name, values in scores.items()
        for seed, psnr in enumerate(values)
    ]


def test_a_table_has_costs_scores_and_what_was_matched() -> None:
    found = runs_of({"plain": [29.0, 29.2]}) + runs_of({"scacb": [29.3, 29.5]}, parameters=61485, channels=32)
    text = comparison_table(found)
    assert "|  | Set5, dB | difference |\n" in text
    assert "| plain | 29.10 |  |\n" in text
    assert "| scacb | 29.40 | **+0.300** |\n" in text
    assert "|  | seeds, Set5 | channels | parameters | MACs | steps | minutes |\n" in text
    assert "| plain | 29.00, 29.20 | 22 | 62,169 | 3.51 G | 600 | 1.5 |\n" in text
    assert "| scacb | 29.30, 29.50 | 32 | 61,485 | 3.51 G | 600 | 1.5 |\n" in text
    assert "Equal in parameters, to within 1.1 %" in text


def test_a_row_that_was_not_scored_on_a_set_has_an_empty_cell_there() -> None:
    def run(name: str, dataset: str, psnr: float) -> Run:
        return Run(name, 0, 1, 1, 1, 1, 1.0, dataset, psnr, matched="parameters", macs=1, paired=1)

    runs = [run("plain", "Set5", 30), run("more", "Set5", 31), run("more", "Set14", 32), run("other", "Set14", 33)]
    cells = [[cell.strip() for cell in line.split("|")[2:5]] for line in comparison_table(runs).splitlines()[2:5]]
    assert cells == [["30.00", "", ""], ["31.00", "+1.000", "32.00"], ["", "", "33.00"]]
    page = [[cell.strip() for cell in line.split("|")[3:4]] for line in overview({"edsr_sr": runs}).splitlines()[2:]]
    assert page == [["+1.00"], [""]]


def test_means_are_of_the_seeds_that_differences_are_of() -> None:
    text = comparison_table(runs_of({"a": [30.0, 31.0, 32.0], "b": [30.5]}))
    assert "| a | 30.00 |  |\n" in text
    assert "| b | 30.50 | +0.500 |\n" in text
    assert "| a | 30.00, 31.00, 32.00 |" in text
    unpaired = comparison_table(runs_of({"a": [30.0, 31.0, 32.0], "b": [30.5]}, paired=0))
    assert "| a | 31.00 |  |\n" in unpaired
    assert "| b | 30.50 | −0.500 |\n" in unpaired


def test_a_table_has_titles_and_the_figures_of_the_paper() -> None:
    found = runs_of({"b": [30.1], "a": [30.5]}, matched="") + runs_of({"b": [27.1], "a": [27.5]}, dataset="B100")
    text = comparison_table(found, titles={"a": "first", "b": "second", "c": "third"}, paper={"a": 32.24})
    lines = text.splitlines()
    assert lines[0] == "|  | Set5, dB | difference | B100, dB | difference | paper, Set5 |"
    assert lines[2:4] == ["| first | 30.50 |  | 27.50 |  | 32.24 |", "| second | 30.10 | −0.400 | 27.10 | −0.400 |  |"]
    assert lines[-2:] == [
        "| first | 30.50 | 62,169 | 3.51 G | 600 | 1.5 |",
        "| second | 30.10 | 62,169 | 3.51 G | 600 | 1.5 |",
    ]
    assert "third" not in text
    with pytest.raises(ValueError, match="no runs of c"):
        comparison_table(found, titles={"c": "third"})


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = runs_of({"plain": [29.0, 29.2], "scacb,a=b": [29.3]}, ssim=0.8)
    write_records(tmp_path / "runs.csv", written, Run)
    assert read_runs(tmp_path / "runs.csv") == written


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    head = "host,blocks,seed,parameters,steps,batch_size,patch_size,minutes,dataset,psnr"
    (tmp_path / "runs.csv").write_text(f"{head}\nrfdn,plain,1,62169,600,8,96,1.5,Set5,29.25\n")
    (run,) = read_runs(tmp_path / "runs.csv")
    assert (run.name, run.seed, run.psnr, run.paired) == ("plain", 1, 29.25, 0)
    assert read_rows(tmp_path / "runs.csv")[0]["host"] == "rfdn"


def test_files_that_are_no_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: not readable as JSON"):
        read_json(tmp_path / "run.json")


def test_a_part_of_a_page_is_made_anew() -> None:
    part = table(["", "dB"], [["a", "1"]])
    page = with_part(f"before\n{begin('x')}\nold\n<!-- until here -->\nafter\n", "x", part)
    assert page == f"before\n{begin('x')}\n|  | dB |\n| --- | ---: |\n| a | 1 |\n<!-- until here -->\nafter\n"
    assert with_part(page, "x", part) == page
    with pytest.raises(ValueError, match="one is missing"):
        with_part(page, "y", part)


# Widths


@pytest.mark.parametrize(
    ("target", "width"), [(100, 10), (120, 11), (110, 10), (111, 11), (1, 6), (36, 6), (43, 7), (10**6, 1000)]
)
def test_the_nearest_width_of_a_square(target: int, width: int) -> None:
    assert nearest_width(lambda width: width**2, target, lowest=6) == width


def test_of_two_widths_as_close_the_narrower() -> None:
    assert nearest_width(lambda width: 10 * width, 95, lowest=6) == 9
