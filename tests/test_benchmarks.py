"""The benchmark: what it computes from rounds, the peers it times, a quick run of it, and its committed tables."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, isolated, plots, precision, report, results, run, runner, suites
from benchmarks.candidates import BLOCKS, CONVOLUTION, NETS, STEPS, Unavailable, peer, prepare, reason
from benchmarks.runner import Candidate, Settings, measure
from benchmarks.steps import Request, Worker, own_optimizer
from examples.markdown import END, begin, digits, table
from examples.mren.fold import fold_mren
from examples.mren.model import MREN, load_mren
from examples.mren.training.recipes import blocks_of
from examples.peers import CCA, IMDN, RFDB, srcnn, vdsr
from examples.records import read_rows, write_rows
from examples.timing import OutOfTime, Summary, interleave, ratio, stopwatch, summarise, time_limit
from sc_blocks.introspect import complexity
from tests.blocks import count_parameters

ROOT = Path(__file__).parents[1]
RESULTS = sorted(results.FOLDER.glob("*.json"))


def test_median_and_quartiles_of_known_numbers() -> None:
    assert summarise([5, 1, 4, 2, 3]) == Summary(3, 2, 4)
    assert summarise([1, 2, 3, 4]) == Summary(2.5, 1.75, 3.25)
    assert summarise([7.0]) == Summary(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="at least one number"):
        summarise([])


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine is ten times slower in the second round: no ratio shows it. That of the medians would be 2.
    assert ratio([2, 20, 4], [1, 10, 2]) == Summary(2, 2, 2)
    assert ratio([1, 9, 2], [1, 3, 1]) == Summary(2, 1.5, 2.5)
    with pytest.raises(ValueError, match="got 2 and 1"):
        ratio([1, 2], [1])


def test_rounds_hold_each_candidate_once_in_a_shuffled_order() -> None:
    def order(seed: int) -> list[str]:
        called: list[str] = []

        def turn(name: str) -> float:
            called.append(name)
            return float(len(called))

        rounds = interleave({name: lambda name=name: turn(name) for name in "abc"}, 4, seed=seed)
        assert {name: len(values) for name, values in rounds.items()} == {"a": 4, "b": 4, "c": 4}
        parts = [called[start : start + 3] for start in range(0, 12, 3)]
        assert all(sorted(part) == ["a", "b", "c"] for part in parts)
        assert len({tuple(part) for part in parts}) > 1
        return called

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_a_limit_ends_after_whole_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("examples.timing.time.monotonic", lambda: now[0])

    def turn() -> float:
        now[0] += 1
        return 1.0

    # Rounds of 2 seconds: a third one would end after 6.
    assert interleave({"a": turn, "b": turn}, 9, seed=0, limit=5) == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert interleave({"a": turn}, 9, seed=0, limit=0) == {"a": [1.0]}


def test_a_time_limit_interrupts_what_catches_every_exception() -> None:
    def compile_forever() -> None:
        while True:
            try:
                time.sleep(5)
            except Exception:
                continue

    start = time.monotonic()
    with pytest.raises(OutOfTime), time_limit(0.05):
        compile_forever()
    assert time.monotonic() - start < 5
    with time_limit(0.05):
        pass
    time.sleep(0.1)  # no alarm is left


def test_before_a_deadline_each_candidate_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = ends = 0.0

    @contextmanager
    def time_limit(seconds: float) -> Iterator[None]:
        nonlocal ends
        ends = now + seconds
        yield

    def build(seconds: float) -> Callable[[dict], Callable[[], float]]:
        def slow(row: dict) -> Callable[[], float]:
            nonlocal now
            now = min(now + seconds, ends)
            if now == ends:
                raise OutOfTime
            return lambda: 1.0

        return slow

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(runner, "time_limit", time_limit)
    candidates = {name: Candidate({"name": name}, build(seconds), "b") for name, seconds in
                  {"too long": 9, "b": 0.01, "c": 0.01}.items()}  # fmt: skip
    settings = Settings(torch.device("cpu"), 1, repeats=2, deadline=4, log=lambda line: None)
    rows = measure(candidates, settings)
    assert rows[0]["skipped"] == "not prepared within 2.0 s"  # half of what was left
    assert [row["rounds"] for row in rows[1:]] == [[1.0, 1.0]] * 2
    assert rows[2]["ratio"] == {"to": "b", "median": 1, "q1": 1, "q3": 1}
    late = measure({"a": Candidate({"name": "a"}, build(0))}, Settings(torch.device("cpu"), 1, deadline=now))
    assert late == [{"name": "a", "skipped": "no time was left"}]


def test_one_candidate_that_fails_does_not_end_the_run() -> None:
    def broken(row: dict) -> Callable[[], float]:
        raise RuntimeError("CUDA error: out of memory\nat /home/somebody/x.py")

    rows = measure({"a": Candidate({"name": "a"}, broken), "b": Candidate({"name": "b"}, lambda row: lambda: 2.0)},
                   Settings(torch.device("cpu"), 1, repeats=1, log=lambda line: None))  # fmt: skip
    assert rows[0]["skipped"] == "RuntimeError: CUDA error: out of memory"
    assert rows[1]["rounds"] == [2.0]


def test_short_calls_are_repeated_and_long_ones_are_not() -> None:
    now = [0.0]
    for cost, calls in ((0.02, 4), (0.3, 1)):  # three and one that is not timed
        made = [0]

        def call(made: list[int] = made, cost: float = cost) -> None:
            made[0] += 1
            now[0] += cost

        turn = stopwatch(call, torch.device("cpu"), lambda: now[0])
        made[0] = 0
        assert turn() == pytest.approx(cost)
        assert made[0] == calls


def test_a_call_shorter_than_a_tick_of_the_clock_is_timed() -> None:
    calls = [0]

    def call() -> None:
        calls[0] += 1

    turn = stopwatch(call, torch.device("cpu"), lambda: calls[0] * 0.001 // 0.016 * 0.016)
    assert turn() == pytest.approx(0.001, rel=0.4)


def test_peers_have_the_sizes_of_their_papers() -> None:
    assert count_parameters(IMDN(4)) == 715_176
    assert count_parameters(IMDN(2)) == 694_404  # 694K in table 5
    assert round(count_parameters(srcnn()) / 1000) == 57
    assert round(count_parameters(vdsr()) / 1000) in (665, 666)  # 665K without biases
    with torch.device("meta"):
        assert complexity(IMDN(4), (1, 3, 180, 320)).macs == pytest.approx(40.9e9, rel=2e-3)


@pytest.mark.parametrize("net", [IMDN(4), srcnn(), vdsr()], ids=lambda net: type(net).__name__)
def test_peers_enlarge_by_four(net: torch.nn.Module) -> None:
    assert net(torch.rand(1, 3, 9, 11)).shape[-2:] == (36, 44)


def test_contrast_attention_is_that_of_the_paper() -> None:
    block, x = CCA(32), torch.rand(2, 32, 5, 7)
    statistic = x.mean((2, 3), keepdim=True) + x.std((2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(block(x), x * block.gate(statistic))


def test_blocks_take_a_map_of_60_channels() -> None:
    for name, make in BLOCKS.items():
        out = make()(torch.rand(1, 60, 24, 32))
        first = out if isinstance(out, torch.Tensor) else out[0]
        assert first.shape[0] == 1, name
    assert RFDB(60)(torch.rand(1, 60, 24, 32)).shape == (1, 60, 24, 32)


@pytest.mark.parametrize("form", ["eager", "channels_last", pytest.param("onnx", marks=pytest.mark.slow)])
def test_forms_compute_the_same(form: str) -> None:
    net = MREN(4, num_blocks=1).eval()
    x = torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        wanted = net(x)
        call, given = prepare(net, x, form)
        out = call(given)
    out = out if isinstance(out, torch.Tensor) else torch.from_numpy(out[0])
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_what_cannot_run_says_why() -> None:
    with pytest.raises(ValueError, match=r"form must be made of eager, .*got 'fast'"):
        prepare(MREN(4), torch.rand(1, 3, 8, 8), "fast")
    with pytest.raises(Unavailable, match="no_such_package is not installed"):
        peer("no_such_package.models", "Net")()
    assert reason(OSError("no file /home/somebody/secret/x.py here\nmore")) == "OSError: no file x.py here"


def test_every_form_that_is_listed_has_its_steps() -> None:
    for name, net in NETS.items():
        for form in net.forms + net.memory_forms:
            assert set(form.split(", ")) <= set(STEPS), name


def test_products_and_bytes_of_convolutions() -> None:
    macs = 60 * 60 * 9 * 4 * 6
    assert gpu.convolutions(CONVOLUTION, (4, 6)) == (macs, 2 * (2 * 60 * 4 * 6 + 60 * 60 * 9 + 60))
    with torch.device("meta"):
        counted = complexity(MREN(4, num_blocks=1), (1, 3, 12, 16)).macs
    assert gpu.convolutions("MREN ×4", (12, 16), 1)[0] == counted


@pytest.mark.parametrize("form", ["as it is", "folded"])
def test_blocks_that_are_compiled_one_by_one(form: str) -> None:
    net = MREN(4, num_blocks=2)
    if form == "folded":
        parts = list(blocks_of(fold_mren(net)))
        assert len(parts) == 4, "two MREBs, an RBWA, and an RBWA with the tail"
    else:
        assert list(blocks_of(net)) == [*net.body, *net.reconstruct]  # as the trainer does
    assert len(list(blocks_of(IMDN()))) == 6


def quick(tmp_path: Path, *arguments: str) -> dict:
    file = tmp_path / "results.json"
    assert run.main(["--quick", "--repeats", "2", "-o", str(file), *arguments]) == 0
    return json.loads(file.read_text())["suites"]


def test_a_quick_run_and_a_second_one_into_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick(tmp_path, "--suite", "blocks")
    found = quick(tmp_path, "--suite", "nets", "engines")
    assert list(found) == ["blocks", "nets", "engines"]
    for suite in found.values():
        assert suite["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert suite["settings"]["quick"]
        for row in suite["rows"]:
            if "skipped" not in row:
                assert len(row["rounds"]) == 2
                assert math.isclose(row["seconds"]["median"], sum(row["rounds"]) / 2, rel_tol=1e-3)
    rows = {(row["name"], row["engine"]): row for row in found["engines"]["rows"]}
    assert rows["MREN ×4", "eager"]["form"] == "folded"
    assert rows["MREN ×4", "eager"]["ratio"]["to"] == "IMDN ×4 | eager"
    assert str(Path.home()) not in json.dumps(found)
    assert "SCACB, eager, forward: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="--quick, which measures nothing"):
        results.load(tmp_path)


def test_the_suite_for_gpus_on_a_cpu(tmp_path: Path) -> None:
    rows = {(row["name"], row["form"], row["size"][0] if "size" in row else 0): row
            for row in quick(tmp_path, "--suite", "gpu")["gpu"]["rows"]}  # fmt: skip
    for row in rows.values():
        assert ("skipped" in row) == ("CUDA graph" in row["form"]), row
    frames = rows["MREN ×4", "channels_last, bf16", 1]
    limits = {name: next(row for key, row in rows.items() if key[0] == name) for name in ("matrix product", "copy")}
    macs, bytes_ = (limits[name][key] / limits[name]["seconds"]["median"] for name, key in
                    (("matrix product", "macs"), ("copy", "bytes")))  # fmt: skip
    bound = max(frames["macs"] / macs, frames["bytes"] / bytes_)
    assert frames["frames_per_second"] == pytest.approx(1 / frames["seconds"]["median"], rel=1e-3)
    assert frames["fraction_of_measured"] == pytest.approx(bound / frames["seconds"]["median"], rel=1e-3)
    assert rows["MREN ×4", "channels_last, bf16", 8]["macs"] == 8 * frames["macs"]
    step = rows["MREN ×4, training step", "channels_last, bf16", 0]
    assert step["steps_per_second"] == pytest.approx(1 / step["seconds"]["median"], rel=1e-3)


@pytest.mark.slow
def test_a_budget_holds_for_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.run", "--suite", "nets", "blocks", "--budget", "25",
               "-o", str(tmp_path / "results.json")]  # fmt: skip
    start = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    assert time.monotonic() - start < 30
    found = results.read(tmp_path / "results.json")["suites"]
    assert list(found) == ["nets", "blocks"]
    skipped = [row["skipped"] for suite in found.values() for row in suite["rows"] if "skipped" in row]
    assert any(why.startswith("not prepared within") for why in skipped)


@pytest.mark.skipif(not isolated.CLEAR_REFS.exists(), reason="needs Linux's high-water mark")
def test_memory_is_that_of_one_forward() -> None:
    torch.ones(150_000_000)  # 600 MB that were freed before do not count
    held = torch.ones(50_000_000)  # nor do 200 MB that are still there

    def call() -> torch.Tensor:
        return (torch.ones(20_000_000) + 1)[:1]  # two tensors of 80 MB at a time

    found = isolated.peak(call, torch.device("cpu"))
    assert held.numel()
    # One tensor more or less is 50 %. The system may drop pages of files meanwhile, tens of megabytes at most.
    assert found == pytest.approx(160e6, rel=0.25)


@pytest.mark.slow
def test_a_quick_run_of_what_needs_processes(tmp_path: Path) -> None:
    found = quick(tmp_path, "--suite", "memory", "growth", "training", "fold", "--against", str(ROOT))
    assert all(row["peak_bytes"] > 0 for row in found["memory"]["rows"])
    assert all(row["peak_bytes"] is not None for row in found["fold"]["rows"])  # a small map may fit into held memory
    assert {row["name"] for row in found["fold"]["rows"] if "ratio" in row} == {"SCACB", "MREN ×4"}
    whole, tiled = ([row for row in found["growth"]["rows"] if bool(row["tile"]) == flag] for flag in (False, True))
    assert [row["size"][-2:] for row in whole] == [[12, 12], [16, 24]]
    assert all("rounds" in row for row in whole + tiled)
    rows = found["training"]["rows"]
    assert len({row["first_loss"] for row in rows if row["form"] == "eager"}) == 1
    assert {row["code"].split()[0] for row in rows} == {"this", "code"}


@pytest.mark.slow
def test_a_worker_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"another sc_blocks|No module named"):
        Worker(tmp_path, Request("eager", num_blocks=1, patch_size=8))
    # One that says much before it fails: what it says is read only then.
    (tmp_path / "sc_blocks").mkdir()
    text = "import sys\nsys.stderr.write('words\\n' * 50_000)\nraise ImportError('its own reason')\n"
    (tmp_path / "sc_blocks" / "__init__.py").write_text(text)
    with pytest.raises(RuntimeError, match="its own reason"):
        Worker(tmp_path, Request("eager", num_blocks=1, patch_size=8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads: must be a whole number of at least 1 and at most 4096, got 0"),
        (["--threads", "many"], "got many"),
        (["--repeats", "0"], "--repeats: must be a whole number of at least 1, got 0"),
        (["--limit", "0"], "--limit: must be a number above 0, got 0"),
        (["--budget", "0"], "--budget: must be a number above 0, got 0"),
        (["--suite", "gpu"], "--suite gpu needs --device cuda"),
        (["--against", "."], "--against needs --suite training"),
        (["--suite", "training", "--against", "docs"], "there is no sc_blocks in it"),
        (["--suite", "speed"], "invalid choice: 'speed'"),
        (["-o", "results.csv"], r"--output must be a \.json file, got results\.csv"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["-o", "x.json", *arguments])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("[]", "{", '{"format": 99, "suites": {}}'):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(SystemExit):
            run.main(["--quick", "-o", str(tmp_path / "mine.json")])
        assert re.search("name another file|not readable as JSON", capsys.readouterr().err)
        assert (tmp_path / "mine.json").read_text() == text


def test_a_file_to_write_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main([])
    assert "--output is needed: name a .json file" in capsys.readouterr().err


def made_up() -> dict:
    """Results with known answers: MREN takes 3, 2 and 2.5 times as long as IMDN."""
    machine = {"cpu": "made up", "gpu": None, "instructions": "none", "revision": "abc", "load": 0}
    machine["versions"] = {"torch": "0"}
    settings = {"threads": 1, "quick": False}

    def row(name: str, rounds: list[float], macs: int, size: tuple[int, ...] = (1, 3, 120, 160)) -> dict:
        seconds = summarise(rounds).as_dict()
        return {"name": name, "form": "eager", "size": list(size), "parameters": 1, "macs": macs,
                "rounds": rounds, "seconds": seconds,
                "ratio": {"to": "IMDN ×4 | eager"} | ratio(rounds, [1.0, 2.0, 4.0]).as_dict()}  # fmt: skip

    nets = [row("3×3 convolution", [0.1, 0.2, 0.4], 10**9), row("MREN ×4", [3.0, 4.0, 10.0], 15 * 10**9),
            row("IMDN ×4", [1.0, 2.0, 4.0], 10 * 10**9)]  # fmt: skip
    return {"nets": [results.Suite(machine, settings, nets)]}


def test_local_statistics_are_no_form_to_choose() -> None:
    (suite,) = made_up()["nets"]
    eager = suite.row("MREN ×4", "eager")
    faster = {"seconds": {"median": 1.0}, "rounds": [1.0, 1.0, 1.0]}
    suite.rows.extend(eager | faster | {"form": form} for form in ("local", "local, folded", "folded, bf16"))
    assert suite.best("MREN ×4") is eager


def lines_of(text: str) -> list[list[str]]:
    """The cells of a table in Markdown."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_comparisons_of_made_up_numbers() -> None:
    texts = report.tables(made_up())
    line = ["MREN ×4, eager / IMDN ×4, eager", "1 thread, none", "2.50 (2.25–2.75)"]
    assert line in lines_of(texts["summary.md"])
    assert line in lines_of(texts["losses.md"])
    # 15 GMACs in 3, 4 and 10 s beside 1 in 0.1, 0.2 and 0.4: 0.5, 0.75 and 0.6
    assert any("0.600" in cells for cells in lines_of(texts["nets.md"]))
    assert ["MREN ×4", "1", "4,000", "2.50"] in lines_of(texts["choices.md"])
    assert set(report.tables({}).values()) == {"Not measured.\n", report.precision_table()}


def test_a_form_is_beside_imdn_in_the_same_engine() -> None:
    (nets,) = made_up()["nets"]
    _, ours, imdn = nets.rows
    nets.rows.extend(
        [
            ours | {"form": "padded, folded, openvino"},
            imdn | {"form": "openvino", "rounds": [1.0, 1.0, 2.0]},
            ours | {"form": "folded"},
        ]
    )
    times = {cells[0]: cells[3] for cells in lines_of(report.choices_table({"nets": [nets]}))}
    assert times["MREN ×4, folded, in OpenVINO"] == "4.00"  # 3, 4 and 5
    assert times["MREN ×4, folded"] == "2.50"


def test_only_ours_can_lose_and_each_loss_is_named_once() -> None:
    (nets,) = made_up()["nets"]
    double = {"to": "IMDN ×4 | onnx", "median": 2.0, "q1": 1.9, "q3": 2.1}
    rows = [{"name": name, "form": "onnx", "engine": "onnx", "size": [1, 3, 120, 160], "ratio": double}
            for name in ("MREN ×4", "SAFMN ×4")]  # fmt: skip
    losses = report.tables(made_up() | {"engines": [results.Suite(nets.machine, nets.settings, rows)]})["losses.md"]
    assert [cells[0] for cells in lines_of(losses)[2:]] == [
        "MREN ×4, eager / IMDN ×4, eager", "MREN ×4, onnx at 160 × 120 / IMDN ×4, onnx"
    ]  # fmt: skip


def test_a_folded_block_that_is_slower_is_named() -> None:
    (nets,) = made_up()["nets"]

    def suite(times: float) -> dict:
        rounds = {"eager": [1.0, 1.0, 1.0], "folded": [times, times, 0.9]}
        rows = [
            {"name": "SCACB", "form": form, "size": [1, 60, 12, 16], "rounds": values, "peak_bytes": 2**20,
             "seconds": summarise(values).as_dict(),
             "ratio": {"to": "eager"} | ratio(values, rounds["eager"]).as_dict()}
            for form, values in rounds.items()
        ]  # fmt: skip
        return {"fold": [results.Suite(nets.machine, nets.settings, rows)]}

    even, slower = report.tables(suite(1.01)), report.tables(suite(1.3))
    assert "**Nothing folded is slower**" in even["fold.md"]
    assert even["losses.md"] == "Not measured.\n"
    assert "**1 of 1 folded is slower**" in slower["fold.md"]
    assert "The highest ratio: SCACB, folded at 16 × 12 / eager" in slower["fold.md"]
    assert "SCACB, folded at 16 × 12 / eager" in slower["losses.md"]
    assert ["SCACB", "16 × 12", "1,300 (1,100–1,300)", "1.30 (1.10–1.30)", "1.00"] in lines_of(slower["fold.md"])


def test_what_a_training_step_keeps_is_counted() -> None:
    map_ = 4 * 8 * 6 * 10  # bytes of 8 channels, 6 x 10

    def kept(*layers: torch.nn.Module) -> int:
        return suites.kept_for_backward(torch.nn.Sequential(*layers), (1, 8, 6, 10))

    conv = torch.nn.Conv2d(8, 8, 3, padding=1)
    assert kept(conv) == map_  # its input; the weights do not count
    assert kept(conv, torch.nn.GELU()) == 2 * map_
    assert kept(conv, torch.nn.Sigmoid()) == 2 * map_  # its result
    assert kept(torch.nn.Identity()) == 0


def of_blocks() -> dict:
    """A convolution, and a block of 6 channels in three forms, with known answers."""
    (nets,) = made_up()["nets"]
    rows = []
    for name, form, mode, rounds in [
        (CONVOLUTION, "eager", "forward", [0.1, 0.2]), (CONVOLUTION, "eager", "forward+backward", [0.4, 0.8]),
        ("SCACB", "eager", "forward", [0.2, 0.4]), ("SCACB", "eager", "forward+backward", [0.8, 1.6]),
        ("SCACB", "folded", "forward", [0.1, 0.1]), ("SCACB", "channels_last", "forward", [0.3, 0.6]),
    ]:  # fmt: skip
        plain = {"forward": [0.1, 0.2], "forward+backward": [0.4, 0.8]}[mode]
        rows.append(
            {"name": name, "form": form, "mode": mode, "size": [1, 60, 18, 32], "rounds": rounds,
             "seconds": summarise(rounds).as_dict(), "ratio": {"to": "made up"} | ratio(rounds, plain).as_dict()}
        )  # fmt: skip
    rows.append({"name": "DRACB", "form": "eager", "mode": "forward", "size": [1, 60, 18, 32], "skipped": "made up"})
    return {"blocks": [results.Suite(nets.machine, nets.settings, rows)]}


def test_costs_are_counted_and_timed_beside_the_convolution() -> None:
    found = of_blocks()
    (blocks,) = found["blocks"]
    counted = {"name": "SCACB", "form": "eager", "parameters": 8280, "macs": 4665600, "kept_bytes": 3 * 2**20}
    found["counts"] = [results.Suite(blocks.machine, blocks.settings, [counted])]
    texts = report.tables(found)
    assert "Times are relative to the convolution's: 150 ms forward, 600 ms forward and backward." in texts["costs.md"]
    assert ["SCACB", "2.00", "2.00", "3.00", "8,280", "0.005"] in lines_of(texts["costs.md"])
    assert ["SCACB, folded", "0.750", "", "", "", ""] in lines_of(texts["costs.md"])
    assert "DRACB" not in texts["costs.md"]
    skipped = next(cells for cells in lines_of(texts["blocks.md"]) if cells[0] == "DRACB")
    assert "not run: made up" in skipped
    assert "None" not in texts["blocks.md"], "a folded block has no backward"


def test_forms_are_compared_with_the_same_block_eager() -> None:
    lines = lines_of(report.forms_tables(of_blocks()))
    assert ["SCACB", "channels_last", "1.50"] in lines
    assert ["SCACB", "folded", "0.375"] in lines  # a half and a quarter
    assert ["eager", "4,000", "1.00"] in lines_of(report.forms_tables(made_up()))


def test_errors_of_each_precision_are_in_order() -> None:
    net = load_mren(4)
    measured = precision.measure(net, [torch.rand(3, 48, 52).mul(255).byte()], precision.forms(net))
    rows = {row[0]: [float(value) for value in row[1:]] for row in measured}
    assert rows["float64"][:3] == [0, 0, 0]
    for kind in ("float32", "float16", "bfloat16"):
        assert rows[kind][0] > 0
    assert rows["float32"][1] < rows["float16"][1] < rows["bfloat16"][1] < 3


def test_rows_of_other_weights_are_left_out(tmp_path: Path) -> None:
    rows = precision.read_current()
    assert {(row["network"], row["form"]) for row in rows} >= {
        (network, form) for network in precision.NETWORKS for form in ("float64", "openvino", "onnx int8")
    }, "the weights have changed: python -m benchmarks.precision --calibrate FOLDER"
    assert len(rows) == len(read_rows(precision.FILE))
    for row in rows[::2]:
        row["weights_sha256"] = "0" * 64
    write_rows(tmp_path / "some.csv", rows, precision.HEADER)
    assert precision.read_current(tmp_path / "some.csv") == rows[1::2]


def test_a_suite_of_which_nothing_is_left_replaces_no_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    assert run.main(["--suite", "blocks", "--only", "MREN ×4", "-o", str(file)]) == 1
    assert "--only and --without leave nothing of --suite blocks" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize(
    ("suite", "name"), [("blocks", "SCACB"), ("fold", "SCACB"), ("counts", "SCACB"), ("growth", "IMDN ×4")]
)
def test_only_and_without_hold_in_every_suite(suite: str, name: str) -> None:
    late = time.monotonic() - 1  # nothing is run
    settings = Settings(
        torch.device("cpu"), 1, deadline=late, without=frozenset(["channels_last"]), only=frozenset([name])
    )
    rows = suites.SUITES[suite](settings)
    assert {row["name"] for row in rows} == {name}
    assert {row["form"] for row in rows} <= {"eager", "folded"}


def test_only_holds_on_a_gpu_and_in_training() -> None:
    settings = Settings(torch.device("cpu"), 1, quick=True, deadline=time.monotonic() - 1, only=frozenset(["IMDN ×4"]))
    names = {row["name"] for row in suites.SUITES["gpu"](settings)}
    assert names == {"matrix product", "copy", "IMDN ×4"}
    assert suites.SUITES["training"](settings) == []


def test_a_candidate_that_fails_while_it_is_timed_costs_only_itself() -> None:
    turns = iter([0.5, RuntimeError("out of memory")])

    def failing() -> float:
        value = next(turns)
        if isinstance(value, Exception):
            raise value
        return value

    rows = [{"name": "failing"}, {"name": "good"}]
    candidates = {
        "failing": Candidate(rows[0], lambda _: failing),
        "good": Candidate(rows[1], lambda _: lambda: 0.25, reference="failing"),
    }
    assert measure(candidates, Settings(torch.device("cpu"), 1, repeats=4)) == rows
    assert "out of memory" in rows[0]["skipped"]
    assert "rounds" not in rows[0]
    assert rows[1]["rounds"] == [0.25] * 4
    assert "ratio" not in rows[1]


def test_runs_into_one_file_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--quick", "--repeats", "2", "-o", str(tmp_path / "mine.json"), "--only", "SCACB", "--suite"]
    counts = suites.SUITES["counts"]

    def overtaken(settings: Settings) -> list[dict]:
        assert run.main([*options, "blocks"]) == 0
        return counts(settings)

    monkeypatch.setitem(suites.SUITES, "counts", overtaken)
    assert run.main([*options, "counts"]) == 0
    found = json.loads((tmp_path / "mine.json").read_text())["suites"]
    assert sorted(found) == ["blocks", "counts"]
    assert found["counts"]["settings"]["only"] == ["SCACB"]


def test_what_cannot_be_written_is_named_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        run.main(["--quick", "-o", str(tmp_path / "file" / "mine.json")])
    assert "is a file, not a folder; choose another output" in capsys.readouterr().err


def test_engines_beside_each_other() -> None:
    (nets,) = made_up()["nets"]
    rows = [
        {"name": name, "form": form, "engine": engine, "seconds": {"median": seconds}}
        for name, form, engine, seconds in (
            ("MREN ×4", "onnx", "onnx", 0.25), ("MREN ×4", "folded, onnx", "onnx", 0.5),
            ("MREN ×4", "openvino", "openvino", 1), ("MREN ×4", "openvino int8", "openvino int8", 0.125),
            ("IMDN ×4", "onnx", "onnx", 2),
        )
    ]  # fmt: skip
    suite = results.Suite(nets.machine, nets.settings, [*rows, {"name": "IMDN ×4", "engine": "eager", "skipped": "x"}])
    texts = report.engine_tables({"engines": [suite]})
    times = [["onnx", "250", "2,000"], ["openvino", "1,000", ""], ["openvino int8", "125", ""]]
    assert lines_of(texts["times.md"])[2:] == times
    assert lines_of(texts["folded.md"])[2:] == [["onnx", "250"], ["folded, onnx", "500"], ["openvino", "1,000"]]
    found = lines_of(texts["precision.md"])
    assert ["MREN ×4", "openvino int8", "125"] in [line[:3] for line in found]
    assert all(abs(float(line[-1].replace("−", "-"))) < 0.3 for line in found[2:])  # what each loses, in dB
    assert list(report.engine_tables({"engines": [results.Suite(nets.machine, nets.settings, rows[1:])]})) == [
        "precision.md", "times.md"
    ]  # fmt: skip


def test_a_suite_of_which_everything_was_skipped_is_said_to_be_not_measured() -> None:
    (nets,) = made_up()["nets"]
    skipped = {"skipped": "the package openvino is not installed", "size": [1, 3, 16, 16]}
    rows = [
        {"name": "MREN ×4", "form": form, "engine": form.rpartition(", ")[2], "mode": "forward", **skipped}
        for form in ("onnx", "folded, onnx", "openvino")
    ]
    made = results.Suite(nets.machine, nets.settings, rows)
    assert report.NOT_MEASURED in report.engine_tables({"engines": [made]})["times.md"]
    for name in ("nets", "memory", "blocks", "gpu", "engines", "fold", "counts"):
        assert report.tables({name: [made]})["summary.md"]


def test_a_frame_rate_is_compared_by_the_fastest_form() -> None:
    (nets,) = made_up()["nets"]
    rows = [
        {"name": name, "form": form, "size": [1, 3, 180, 320], "rounds": [seconds],
         "seconds": summarise([seconds]).as_dict()}
        for name, form, seconds in (("MREN ×4", "a", 0.5), ("MREN ×4", "b", 0.25), ("IMDN ×4", "a", 0.125))
    ]  # fmt: skip
    texts = report.tables({"gpu": [results.Suite(nets.machine, nets.settings, rows)]})
    assert ["MREN ×4, b / IMDN ×4, a", "1 thread, none", "2.00 (2.00–2.00)"] in lines_of(texts["summary.md"])


def test_a_gpu_table_says_how_large_a_batch_is_and_what_did_not_fit() -> None:
    (nets,) = made_up()["nets"]
    done = {"form": "a", "rounds": [0.5], "seconds": summarise([0.5]).as_dict()}
    fractions = {"fraction_of_measured": 0.5, "fraction_of_data_sheet": 0.25}
    rows = [
        done | {"name": "MREN ×4", "size": [8, 3, 180, 320], "frames_per_second": 16.0, **fractions},
        done | {"name": "MREN ×4, training step", "patches": [64, 48], "steps_per_second": 2.0},
        {"name": "IMDN ×4", "form": "a", "size": [1, 3, 180, 320], "skipped": "no time was left"},
        {"name": "IMDN ×4", "form": "b", "size": [1, 3, 180, 320], "skipped": "not prepared within 0.1 s"},
        {"name": "SPAN ×4", "form": "a", "size": [1, 3, 180, 320], "skipped": "the package spandrel is not installed"},
    ]
    for budget, allowed in ((75.0, "the 75 seconds"), (None, "the time")):
        suite = results.Suite(nets.machine, nets.settings | {"budget": budget}, rows)
        text = report.tables({"gpu": [suite]})["gpu.md"]
        head, _, *lines = lines_of(text)
        assert [line[head.index("batch")] for line in lines] == ["8", "64"]
        assert lines[1][0].endswith("on 48 × 48")
        assert head[-2:] == ["fraction of measured limit", "fraction of data-sheet limit"]
        assert f"not run: 2 did not fit into {allowed}; 1, because the package spandrel is not installed." in text


def test_each_machine_can_lose(tmp_path: Path) -> None:
    (nets,) = made_up()["nets"]
    for file, about in {"a": {}, "b": {"instructions": "other"}}.items():
        suite = {"machine": nets.machine | about, "settings": nets.settings, "rows": nets.rows}
        (tmp_path / f"{file}.json").write_text(results.dumps({"format": results.FORMAT, "suites": {"nets": suite}}))
    texts = report.tables(results.load(tmp_path))
    for name in ("losses.md", "summary.md"):
        assert [cells[1] for cells in lines_of(texts[name])[2:]] == ["1 thread, none", "1 thread, other"]


def test_the_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in (("DOCS", tmp_path / "results" / "benchmarks"), ("README", tmp_path / "README.md")):
        monkeypatch.setattr(report, name, path)
    (tmp_path / "README.md").write_text("no place for a table")
    assert report.main([]) == 1
    (tmp_path / "README.md").write_text(f"{begin(report.COMMAND)}\n{END}\n")
    assert report.main([]) == 0
    assert "| MREN ×4, folded " in (tmp_path / "README.md").read_text()
    written = {path.name for path in (tmp_path / "results").rglob("*.*")}
    assert {"summary.md", "precision.md", "latency.svg"} <= written


def test_plots_show_what_is_known_and_do_not_change(tmp_path: Path) -> None:
    found = plots.points(made_up()["nets"][0], "macs")
    assert [(point.name, point.cost, point.shipped) for point in found] == [
        ("MREN", 45.0, False), ("MREN", 45.0, True), ("IMDN", 30.0, False)
    ]  # fmt: skip
    assert found[0].psnr == 32.24
    (nets,) = made_up()["nets"]
    growth = [
        {"name": "MREN ×4", "form": "eager", "tile": tile, "size": [1, 3, side, side],
         "seconds": {"median": side / 100}, "peak_bytes": 2**20 * side}
        for tile in (None, 32) for side in (32, 64)
    ]  # fmt: skip
    growth.append({"name": "MREN ×4", "form": "eager", "tile": None, "size": [1, 3, 999, 999], "skipped": "too large"})
    for name, draw in plots.PLOTS.items():
        draw(made_up() | {"growth": [results.Suite(nets.machine, nets.settings, growth)]}, tmp_path / name)
    assert all(words in (tmp_path / "memory.svg").read_text() for words in (">MREN ×4, eager<", "tiles of 32"))
    first = (tmp_path / "psnr_macs.svg").read_text()
    plots.PLOTS["psnr_macs.svg"](made_up(), tmp_path / "psnr_macs.svg")
    assert (tmp_path / "psnr_macs.svg").read_text() == first
    assert first.count(">MREN<") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.03512, "0.035"), (0.5, "0.500"), (1.5, "1.50"), (9.999, "10.00"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_numbers_in_tables(value: float, text: str) -> None:
    assert digits(value) == text


def test_columns_without_a_cell_are_left_out() -> None:
    assert table(["", "ms", "never"], [["a", "1", ""], ["b", "", ""]]).count("|") == 4 * 3
    assert table(["", "ms"], []) == ""


def test_the_committed_tables_are_those_that_the_results_give() -> None:
    for file, text in report.pages(results.load()).items():
        assert file.read_text() == text, "run python -m benchmarks.report"
    assert "| MREN ×4, folded " in report.README.read_text()


def test_older_checkouts_are_timed_with_their_own_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Conv2d(3, 3, 1)
    assert own_optimizer(net, 1e-3).param_groups[0]["lr"] == 1e-3
    monkeypatch.setitem(sys.modules, "examples.mren.training.recipes", None)  # as if it were not there
    older = SimpleNamespace(make_optimizer=lambda net, lr: ("its own", net, lr))
    monkeypatch.setitem(sys.modules, "examples.mren.recipes", older)
    assert own_optimizer(net, 1e-3) == ("its own", net, 1e-3)
    monkeypatch.setitem(sys.modules, "examples.mren.recipes", None)
    assert type(own_optimizer(net, 1e-3)) is torch.optim.Adam


@pytest.mark.parametrize("name", plots.PLOTS)
def test_the_committed_plots_show_what_the_results_give(name: str, tmp_path: Path) -> None:
    # Not byte for byte: versions of matplotlib and fonts differ.
    plots.PLOTS[name](results.load(), tmp_path / name)
    drawn, committed = (
        re.findall(r">([^<>]+)</text>", (folder / name).read_text()) for folder in (tmp_path, report.DOCS)
    )
    assert sorted(drawn) == sorted(committed), "run python -m benchmarks.report"


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_committed_summaries_are_those_of_their_rounds(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r'"/|home/|/tmp|/work', text)
    found = results.read(file)
    assert results.dumps(found) == text
    for suite in found["suites"].values():
        for row in suite["rows"]:
            if "rounds" in row:
                assert row["seconds"] == summarise(row["rounds"]).as_dict()


def test_every_generated_file_is_on_a_page() -> None:
    pages = [*(ROOT / "docs").glob("benchmarks*.md"), *(ROOT / "docs" / "how-to").glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    for name in [*report.tables({}), *plots.PLOTS]:
        assert f"results/benchmarks/{name}" in text, name


def test_every_option_in_the_readme_exists() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text().replace("\\\n", "")
    options = set(re.findall(r"--[\w-]+", run.build_parser().format_help()))
    commands = re.findall(r"benchmarks\.run([^\n`]*)", text)
    assert len(commands) >= 3
    for line in commands:
        assert set(re.findall(r"(?<!\S)(--[\w-]+)", line)) <= options, line
