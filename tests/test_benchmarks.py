"""The benchmark: what it computes from rounds, its fixtures, a quick run of it, and its committed tables."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from benchmarks import guide, isolated, plots, precision, report, run
from benchmarks.candidates import BLOCKS, CONVOLUTION, NETS, STEPS, Unavailable, peer, prepare, reason
from benchmarks.fixtures import CCA, IMDN, RFDB, srcnn, vdsr
from benchmarks.gpu import convolution_bytes
from benchmarks.steps import Worker
from benchmarks.timing import Summary, interleave, ratio, stopwatch, summarise
from examples.mren.model import MREN
from sc_blocks.introspect import complexity

ROOT = Path(__file__).parents[1]
RESULTS = sorted(report.RESULTS.glob("*.json"))


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


def test_a_limit_ends_after_whole_rounds() -> None:
    assert interleave({"a": lambda: 1.0, "b": lambda: 2.0}, 5, seed=0, limit=0) == {"a": [1.0], "b": [2.0]}


def test_short_calls_are_repeated_and_long_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: now[0])
    for cost, calls in ((0.02, 4), (0.3, 1)):  # three and one that is not timed
        made = [0]

        def call(made: list[int] = made, cost: float = cost) -> None:
            made[0] += 1
            now[0] += cost

        turn = stopwatch(call, torch.device("cpu"))
        made[0] = 0
        assert turn() == pytest.approx(cost)
        assert made[0] == calls


def test_fixtures_have_the_sizes_of_their_papers() -> None:
    def parameters(net: torch.nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    assert parameters(IMDN(4)) == 715_176
    assert parameters(IMDN(2)) == 694_404  # 694K in table 5
    assert round(parameters(srcnn()) / 1000) == 57
    assert round(parameters(vdsr()) / 1000) in (665, 666)  # 665K without biases
    with torch.device("meta"):
        assert complexity(IMDN(4), (1, 3, 180, 320)).macs == pytest.approx(40.9e9, rel=2e-3)


@pytest.mark.parametrize("net", [IMDN(4), srcnn(), vdsr()], ids=lambda net: type(net).__name__)
def test_fixtures_enlarge_by_four(net: torch.nn.Module) -> None:
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


def test_bytes_of_convolutions() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert convolution_bytes(conv, torch.rand(1, 3, 4, 6)) == 2 * (72 + 120 + 140)


def quick(tmp_path: Path, *arguments: str) -> dict:
    file = tmp_path / "results.json"
    assert run.main(["--quick", "--repeats", "2", "-o", str(file), *arguments]) == 0
    return json.loads(file.read_text())


@pytest.fixture
def threads() -> None:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_quick_run_and_a_second_one_into_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick(tmp_path, "--suite", "blocks")
    results = quick(tmp_path, "--suite", "nets")
    assert list(results["suites"]) == ["blocks", "nets"]
    for suite in results["suites"].values():
        assert suite["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert suite["settings"]["quick"]
        for row in suite["rows"]:
            if "skipped" not in row:
                assert len(row["rounds"]) == 2
                assert math.isclose(row["seconds"]["median"], sum(row["rounds"]) / 2, rel_tol=1e-3)
    assert str(Path.home()) not in json.dumps(results["suites"])
    assert "SCACB, eager, forward: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="--quick, which measures nothing"):
        report.load(tmp_path)


@pytest.mark.skipif(not isolated.CLEAR.exists(), reason="needs Linux's high-water mark")
def test_memory_is_that_of_one_forward() -> None:
    held = torch.zeros(50_000_000)  # 200 MB from before do not count

    def call() -> torch.Tensor:
        return (torch.ones(20_000_000) + 1)[:1]  # two tensors of 80 MB at a time

    found = isolated.peak(call, torch.device("cpu"))
    assert held.numel()
    assert found == pytest.approx(160e6, rel=0.1)


@pytest.mark.slow
def test_a_quick_run_of_what_needs_processes(tmp_path: Path) -> None:
    suites = ["--suite", "memory", "growth", "training", "--against", str(ROOT)]
    results = quick(tmp_path, *suites)["suites"]
    assert all(row["peak_bytes"] > 0 for row in results["memory"]["rows"])
    whole, tiled = ([row for row in results["growth"]["rows"] if bool(row["tile"]) == flag] for flag in (False, True))
    assert [row["size"][-2:] for row in whole] == [[12, 12], [16, 24]]
    assert all("rounds" in row for row in whole + tiled)
    rows = results["training"]["rows"]
    assert len({row["first_loss"] for row in rows if row["form"] == "eager"}) == 1
    assert {row["code"].split()[0] for row in rows} == {"this", "code"}


@pytest.mark.slow
def test_a_worker_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"another sc_blocks|No module named"):
        Worker(tmp_path, "eager", num_blocks=1, patch_size=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], r"--threads must be 1 or more, or 'all' \(\d+ here\); got '0'"),
        (["--threads", "many"], "got 'many'"),
        (["--repeats", "0"], "--repeats must be 1 or more, got 0"),
        (["--limit", "0"], "--limit must be more than 0 minutes, got 0"),
        (["--suite", "gpu"], "--suite gpu needs --device cuda"),
        (["--against", "."], "--against is for --suite training"),
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
        assert "name another file" in capsys.readouterr().err
        assert (tmp_path / "mine.json").read_text() == text


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
    return {"nets": [report.Suite(machine, settings, nets)]}


def test_the_summary_of_made_up_numbers() -> None:
    text = report.summary_table(made_up())
    assert "| MREN ×4 / IMDN ×4, both eager | 1, none | 2.50 (2.25–2.75) |" in text
    # 15 GMACs in 3, 4 and 10 s beside 1 in 0.1, 0.2 and 0.4: 0.5, 0.75 and 0.6
    assert "| arithmetic rate of MREN ×4 eager | 1, none | 0.600 (0.550–0.675) | ≥ 0.55, then 0.8 |" in text
    assert report.summary_table({}) == "Not measured.\n"


def test_what_a_training_step_keeps_is_counted() -> None:
    map_ = 4 * 8 * 6 * 10  # bytes of 8 channels, 6 x 10

    def kept(*layers: torch.nn.Module) -> int:
        return guide.kept_for_backward(torch.nn.Sequential(*layers), (1, 8, 6, 10))

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
    return {"blocks": [report.Suite(nets.machine, nets.settings, rows)]}


def test_costs_are_counted_and_timed_beside_the_convolution() -> None:
    results = of_blocks()
    text = guide.costs_tables(results)
    assert "| SCACB | 8,280 | 0.005 | 2.00 | 2.00 |" in text
    assert "| SCACB, folded |  |  | 0.750 |  |  |" in text, "what is folded is not trained"
    assert "DRACB" not in text
    assert "peak" not in text
    memory = [{"name": "SCACB", "form": "folded", "size": [1, 60, 18, 32], "peak_bytes": 3 * 2**20}]
    (blocks,) = results["blocks"]
    results["memory"] = [report.Suite(blocks.machine, blocks.settings, memory)]
    assert "| SCACB, folded |  |  | 0.750 |  |  | 3.00 |" in guide.costs_tables(results)
    assert guide.costs_tables({}) == guide.forms_tables({}) == ""


def test_forms_are_compared_with_the_same_block_eager() -> None:
    text = guide.forms_tables(of_blocks())
    assert "| SCACB | channels_last | 1.50 |  |" in text
    assert "| SCACB | folded | 0.375 |  |" in text  # a half and a quarter
    assert "| eager | 4,000 | 1.00 |  |" in guide.forms_tables(made_up())


def test_errors_of_each_precision_are_in_order() -> None:
    rows = {row[0]: [float(value) for value in row[1:]] for row in precision.measure([torch.rand(3, 48, 52)
            .mul(255).byte()], say=lambda line: None)}  # fmt: skip
    assert rows["float64"][:3] == [0, 0, 0]
    for kind in ("float32", "float16", "bfloat16"):
        assert rows[kind][0] > 0
    assert rows["float32"][1] < rows["float16"][1] < rows["bfloat16"][1] < 3
    assert precision.table(Path("missing.csv")) == ""


def test_plots_show_what_is_known_and_do_not_change(tmp_path: Path) -> None:
    found = plots.points(made_up()["nets"][0], "macs")
    assert [(name, cost) for name, cost, _ in found] == [
        ("MREN", 45.0), ("MREN, our weights", 45.0), ("IMDN", 30.0)
    ]  # fmt: skip
    assert {name: psnr for name, _, psnr in found}["MREN"] == 32.24
    for name, draw in plots.PLOTS.items():
        draw(made_up(), tmp_path / name)
    first = (tmp_path / "psnr_macs.svg").read_text()
    plots.PLOTS["psnr_macs.svg"](made_up(), tmp_path / "psnr_macs.svg")
    assert (tmp_path / "psnr_macs.svg").read_text() == first
    assert ">MREN, our weights<" in first


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.03512, "0.035"), (0.5, "0.500"), (1.5, "1.50"), (9.999, "10.00"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_numbers_in_tables(value: float, text: str) -> None:
    assert report.digits(value) == text


def test_the_committed_tables_are_those_that_the_results_give() -> None:
    texts = report.tables(report.load())
    committed = {file.name: file.read_text() for file in report.DOCS.glob("*.md")}
    assert committed == texts, "run python -m benchmarks.report"


def test_the_table_in_the_readme_is_what_the_results_give() -> None:
    readme = report.README.read_text()
    assert report.with_table(readme, report.load()) == readme, "run python -m benchmarks.report"
    assert "| MREN ×4, folded |" in readme
    with pytest.raises(ValueError, match="they are not both there"):
        report.with_table(readme.replace(report.END, ""), {})


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_committed_summaries_are_those_of_their_rounds(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r'"/|home/|/tmp|/work', text)
    found = run.read(file)
    assert run.dumps(found) == text
    for suite in found["suites"].values():
        for row in suite["rows"]:
            if "rounds" in row:
                assert row["seconds"] == summarise(row["rounds"]).as_dict()


def test_every_generated_file_is_on_a_page() -> None:
    pages = [ROOT / "docs" / "benchmarks.md", *(ROOT / "docs" / "how-to").glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    for name in [*report.tables({}), *plots.PLOTS]:
        assert f"results/benchmarks/{name}" in text, name


def test_every_option_in_the_readme_exists() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text().replace("\\\n", "")
    options = {option for action in run.build_parser()._actions for option in action.option_strings}
    commands = re.findall(r"benchmarks\.run([^\n`]*)", text)
    assert len(commands) >= 3
    for line in commands:
        assert set(re.findall(r"(?<!\S)(--[\w-]+)", line)) <= options, line
