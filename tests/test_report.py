"""What the documentation prints is what the committed files say."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from docs import models
from examples.compare.cost import count_parameters
from examples.compare.tables import compared, read_runs
from examples.drop_in import report as hosts
from examples.drop_in.variants import build
from examples.mren import report
from examples.mren.ablate import TABLES
from examples.mren.model import MREN, VARIANTS, WEIGHTS, save_weights, weights_path
from examples.mren.shipped import DATASETS, Weights, shipped
from examples.records import read_rows
from sc_blocks.introspect import complexity

SCALES = sorted(int(re.search(r"_x(\d)", file.name)[1]) for file in WEIGHTS.glob("mren_x*.scores.csv"))


def test_the_committed_tables_are_those_that_the_files_give() -> None:
    texts = report.tables() | hosts.tables()
    assert texts
    committed = {file.name: file.read_text() for file in report.DOCS.glob("*.md")}
    assert committed == texts, "run python -m examples.mren.report and python -m examples.drop_in.report"
    for page, text in report.pages().items():
        assert page.read_text() == text, "run python -m examples.mren.report"


def test_the_reports_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = report.tables() | hosts.tables()
    page = tmp_path / "README.md"
    shutil.copytree(report.RESULTS, tmp_path / "results")
    for name, value in {"DOCS": tmp_path / "docs", "RESULTS": tmp_path / "results"}.items():
        monkeypatch.setattr(report, name, value)
    monkeypatch.setattr(hosts, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(report, "pages", lambda: {page: "written"})
    assert report.main([]) == hosts.main([]) == 0
    assert {file.name: file.read_text() for file in (tmp_path / "docs").glob("*.md")} == texts
    assert page.read_text() == "written"
    assert ">MREN ×4<" in (tmp_path / "docs" / "training.svg").read_text()


def test_a_narrow_network_gets_a_row_of_its_own(tmp_path: Path) -> None:
    for name in ("mren_x4.safetensors", "mren_x4.scores.csv"):
        shutil.copy(WEIGHTS / name, tmp_path)
    config = {"scale": 4, **VARIANTS["mren_s"]}
    save_weights(MREN(**config), tmp_path / "mren_s_x4.safetensors", config)
    scores = (WEIGHTS / "mren_x4.scores.csv").read_text().replace(",mren,", ",mren_s,")
    (tmp_path / "mren_s_x4.scores.csv").write_text(scores)
    first, second = (line for line in report.table5(4, tmp_path).splitlines() if "our" in line)
    assert first.startswith("| **MREN, our weights** |")
    assert first.endswith("| 298K |")
    assert second.startswith("| **MREN-S, ours, not the paper's** |")
    assert second.endswith("| 224K |")
    assert first.split("|")[2:-2] == second.split("|")[2:-2]
    assert "| MREN-S ×4 | 224,463 |" in report.files_table(tmp_path)
    for measure in report.MEASURES:
        assert "MREN-S ×4, these weights" in report.scores_table(measure, tmp_path)
        assert "MREN-S ×4, as the paper" not in report.scores_table(measure, tmp_path)


def test_weights_of_another_kind_have_a_row_where_they_were_scored(tmp_path: Path) -> None:
    for name in ("mren_s_x4.safetensors", "mren_s_x4_free.safetensors"):
        shutil.copy(WEIGHTS / name, tmp_path)
    lines = (WEIGHTS / "mren_s_x4.scores.csv").read_text().splitlines()
    (tmp_path / "mren_s_x4.scores.csv").write_text("\n".join(lines))
    worse = [line.replace(",mren_s,", ",mren_s_x4_free,") for line in lines if not line.startswith("Urban100")]
    (tmp_path / "mren_s_x4_free.scores.csv").write_text("\n".join(worse))
    *_, ours, free = report.scores_table(report.MEASURES[0], tmp_path).splitlines()
    assert ours.startswith("| **MREN-S ×4, these weights** | ")
    assert free.startswith("| **MREN-S ×4 from freely licensed images** | ")
    assert free.split("|")[2:5] == ours.split("|")[2:5]
    assert free.split("|")[5].strip() == ""


@pytest.mark.parametrize("scale", SCALES)
def test_table_5_holds_our_scores_and_the_papers(scale: int) -> None:
    text = report.table5(scale)
    with (WEIGHTS / f"mren_x{scale}.scores.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    for method, line in (("bicubic", "bicubic, scored here"), ("mren", "**MREN, our weights**")):
        cells = next(found for found in text.splitlines() if line in found).split("|")[2:-2]
        for dataset, *scores in zip(DATASETS, cells[::2], cells[1::2], strict=True):
            own = [row for row in rows if (row["dataset"], row["method"]) == (dataset, method)]
            psnr = statistics.fmean(float(row["psnr"]) for row in own)
            ssim = statistics.fmean(float(row["ssim"]) for row in own)
            assert [score.strip() for score in scores] == [f"{psnr:.2f}", f"{ssim:.4f}"]
    published = {2: "| 37.98 | 0.9597 |", 3: "| 34.42 | 0.9265 |", 4: "| 32.24 | 0.8947 |"}
    assert f"**MREN, as the paper reports it** {published[scale]}" in text


def test_pages_are_read_as_utf_8_everywhere() -> None:
    program = "from benchmarks import report; from examples.mren import report as ours; report.pages({}); ours.pages()"
    # What asks for the encoding of the system warns then; so do other packages.
    strict = ["-X", "warn_default_encoding", "-W", "default::EncodingWarning"]
    done = subprocess.run(
        [sys.executable, *strict, "-c", program], cwd=WEIGHTS.parents[2], capture_output=True, text=True, check=True
    )
    assert not re.findall(r"(?:examples|benchmarks)/.*: EncodingWarning.*", done.stderr)


def test_every_generated_file_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in report.DOCS.parent.glob("**/*.md") if page.parent != report.DOCS)
    for name in [*report.tables(), *hosts.tables(), "training.svg"]:
        assert f"results/{name}" in text, name


@pytest.mark.parametrize("file", sorted(hosts.RESULTS.glob("*.csv")), ids=lambda file: file.stem)
def test_the_committed_comparisons_are_fair(file: Path) -> None:
    runs = read_runs(file)
    host, task, *_ = file.stem.split("_")
    assert runs[0].name == "plain"
    for name in ("matched", "minutes" if task == "tail" else "steps", "batch_size", "patch_size"):
        assert len({getattr(run, name) for run in runs}) == 1, name
    # Every row with every seed on every test set, once.
    made = [(run.name, run.seed, run.dataset) for run in runs]
    assert sorted(made) == sorted(itertools.product(*(dict.fromkeys(values) for values in zip(*made, strict=True))))
    scale = 1 if task == "denoise" else 4
    for name, channels, parameters in {(run.name, run.channels, run.parameters) for run in runs}:
        assert parameters == count_parameters(partial(build, host, name, scale, channels))
    for run in runs:
        assert abs(getattr(run, run.matched) / getattr(runs[0], run.matched) - 1) < 0.05


@pytest.mark.parametrize(
    ("name", "significant"),
    [
        ("rfdn_sr", {}),
        ("edsr_sr", {}),
        (
            "unet_denoise",
            {
                **dict.fromkeys([("wsilb", "Set5"), ("wsilb", "Set14"), ("wsilbv", "Set14")], "lower"),
                **dict.fromkeys([("wsilbv+chain", "Set5"), ("wsilbv+chain", "Set14")], "lower"),
                ("wsilbv+dracb", "Set5"): "lower",
                **{(f"wsilb{more}+local", "Set14"): "higher" for more in ("", "v", "v+dracb", "v+chain")},
            },
        ),
    ],
)
def test_what_the_readme_says_of_the_hosts_is_measured(name: str, significant: dict[tuple[str, str], str]) -> None:
    runs = read_runs(hosts.RESULTS / f"{name}.csv")
    found = {}
    for dataset in {run.dataset for run in runs}:
        for own in hosts.by_statistics([run for run in runs if run.dataset == dataset]):
            rows = list(dict.fromkeys(run.name for run in own))
            for row, difference in zip(rows[1:], compared(own, rows).differences, strict=True):
                if difference.significant:
                    found[row, dataset] = "lower" if difference.mean < 0 else "higher"
    assert found == significant


def test_what_pages_say_of_local_statistics_is_measured() -> None:
    runs = read_runs(hosts.RESULTS / "unet_denoise.csv")
    psnr = {(run.name, run.dataset, run.seed): run.psnr for run in runs}
    means = {
        (row, dataset): statistics.fmean(run.psnr for run in runs if (run.name, run.dataset) == (row, dataset))
        for row, dataset, _ in psnr
    }
    higher = [means[f"{row}+local", "Set14"] - means["plain", "Set14"] for row in ("wsilb", "wsilbv")]
    said = "{:.2f} and {:.2f} dB higher than".format(*higher)
    unet, local = (words_of(report.DOCS.parent / page) for page in ("hosts/unet.md", "how-to/local-statistics.md"))
    assert f"{said} no attention on Set14" in words_of(report.README)
    assert f"{said} the plain network on Set14" in unet
    attended = ["wsilb", "wsilbv", "wsilbv+dracb", "wsilbv+chain"]
    lower = [means["plain", name] - means[row, name] for row in attended for name in ("Set5", "Set14")]
    assert f"lower than the plain network, by {min(lower):.1f} to {max(lower):.1f} dB" in unet
    assert f"they scored {min(lower[:4]):.1f} to {max(lower[:4]):.1f} dB lower" in words_of(report.README)
    raised = [means[f"{row}+local", name] - means[row, name] for row in attended for name in ("Set5", "Set14")]
    assert f"by {min(raised):.1f} to {max(raised):.1f} dB on average" in unet
    assert all(psnr[f"{row}+local", name, seed] > value for (row, name, seed), value in psnr.items() if row in attended)
    assert max(abs(means[f"{row}+local", "Set5"] - means["plain", "Set5"]) for row in attended[:2]) < 0.05
    for row, words in (
        ("wsilbv", "scores {:.2f} dB on Set5 and {:.2f} dB on Set14 with statistics of the whole map"),
        ("wsilbv+local", "{:.2f} and {:.2f} dB with local ones"),
        ("plain", "without attention, it scores {:.2f} and {:.2f} dB. All six seeds gain."),
    ):
        assert words.format(means[row, "Set5"], means[row, "Set14"]) in local
    whole = [[psnr[row, "Set5", seed] for seed in range(6)] for row in attended]
    assert f"differ by up to {max(max(each) - min(each) for each in whole):.1f} dB on Set5" in unet


def words_of(page: Path) -> str:
    return " ".join(page.read_text().split())


def test_what_the_readme_says_of_trunks_is_measured() -> None:
    for file, sentence in (
        ("trunk.csv", "scored [significantly lower](docs/results.md#trunks) than IMDN's blocks, by {} dB on Set5;"),
        ("trunk_steps.csv", "at equal steps, by {} dB."),
    ):
        runs = [run for run in read_runs(report.RESULTS / file) if run.dataset == "Set5"]
        (difference,) = compared(runs, ["default", "trunk=IMDB"]).differences
        assert difference.significant
        assert sentence.format(f"{difference.mean:.2f}") in words_of(report.README)


def test_what_is_said_of_rfdbs_at_equal_time_is_measured() -> None:
    runs = [run for run in read_runs(report.RESULTS / "trunk_rfdb.csv") if run.dataset == "Set5"]
    (difference,) = compared(runs, ["default", "trunk=RFDB"]).differences
    assert difference.significant
    assert difference.mean < 0
    ours, theirs = ([run for run in runs if run.name == name] for name in ("default", "trunk=RFDB"))
    scores = [run.psnr for run in theirs]
    more = sum(run.steps for run in theirs) / sum(run.steps for run in ours)
    page = words_of(report.DOCS.parent / "results.md")
    assert f"RFDBs complete {more:.1f} times as many steps as MREBs and stay far behind." in page
    assert f"their seeds differ far more, by {max(scores) - min(scores):.2f} dB on Set5" in page


def test_the_narrow_network_is_compared_as_it_was_counted_and_scored() -> None:
    page = models.narrow(shipped(), models.timed())
    ours, all_of_it = (
        complexity(MREN(4, **VARIANTS[name], device="meta"), (1, 3, 180, 320)).macs for name in ("mren_s", "mren")
    )
    for scale in (2, 3, 4):
        wide, narrow = (Weights(weights_path(scale, variant)) for variant in ("mren", "mren_s"))
        gains = [round(narrow.scores[name][0], 2) - round(wide.scores[name][0], 2) for name in DATASETS]
        assert round(max(map(abs, gains)), 2) <= 0.1
        least, most = (f"{gain:+.2f}".replace("-", "−").replace("+0.00", "0.00") for gain in (min(gains), max(gains)))
        row = f"| ×{scale} | {least} to {most} | {narrow.parameters / wide.parameters:.2f} | "
        assert row + f"{ours / all_of_it:.2f} | " * (scale == 4) in page
    readme, guide = words_of(report.README), words_of(report.DOCS.parent / "models.md")
    assert f"its PSNR is within 0.1 dB of that of MREN, with {100 * ours / all_of_it:.0f} % of the MACs at ×4" in readme
    large = "MREN-L ×4 is not better than MREN ×4, which was last trained on larger patches."
    assert large in readme
    assert large in guide
    paper, larger = (Weights(weights_path(4, variant)).scores for variant in ("mren", "mren_l"))
    assert all(round(larger[name][0], 2) <= round(paper[name][0], 2) for name in DATASETS)


def test_what_is_said_of_the_training_images_is_measured() -> None:
    runs = read_runs(report.RESULTS / "images.csv")
    scores: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        scores.setdefault((run.name, run.dataset), []).append(run.psnr)
    free = {name: statistics.fmean(own) for (row, name), own in scores.items() if row.startswith("freely")}
    lower = {
        row: {name: statistics.fmean(scores[row, name]) - mean for name, mean in free.items()}
        for row in ("all images", "BSDS500 and SunHays80")
    }
    assert all(loss > 0 for losses in lower.values() for loss in losses.values())
    old = lower["BSDS500 and SunHays80"]
    own_kind = "20 freely licensed"
    said = (
        f"by {old['Set5']:.2f} dB on Set5; on images of their own kind, they score {old[own_kind]:.2f} dB lower, which"
    )
    assert said in words_of(report.DOCS.parent / "results.md")
    names = sorted({run.name for run in runs}, key=lambda name: name != "BSDS500 and SunHays80")
    place = [name.startswith("freely") for name in names].index(True) - 1
    for dataset in old:
        loss = compared([run for run in runs if run.dataset == dataset], names).differences[place]
        assert loss.significant == (dataset != own_kind)
    losses = [lower["all images"][name] for name in DATASETS]
    assert f"[{min(losses):.2f} to {max(losses):.2f} dB lower than all images]" in words_of(report.CARD)


def test_what_is_said_of_the_loss_and_the_patches_is_measured() -> None:
    runs = read_runs(report.RESULTS / "training.csv")
    names = list(dict.fromkeys(run.name for run in runs))
    assert names == [variant.key for variant in TABLES["training"].variants]
    kept = "20 of BSDS500 and SunHays80"
    gains: dict[str, dict[str, str]] = {name: {} for name in names[1:]}
    for dataset in dict.fromkeys(run.dataset for run in runs):
        differences = compared([run for run in runs if run.dataset == dataset], names).differences
        for name, gain in zip(names[1:], differences, strict=True):
            assert gain.mean > 0
            if gain.significant:
                gains[name][dataset] = f"{gain.mean:.2f}"
    patches, loss, both = gains.values()
    assert sorted(patches) == [kept, "B100", "Urban100"]
    assert len(loss) == len(both) == 6
    page = words_of(report.DOCS.parent / "results.md")
    set5, set14, b100, urban = (both[name] for name in DATASETS)
    assert f"by {set5} dB on Set5, {set14} dB on Set14, {b100} dB on B100 and {urban} dB on Urban100" in page
    assert "alone it gains {}, {}, {} and {} dB".format(*(loss[name] for name in DATASETS)) in page
    assert (
        f"{patches['Urban100']} dB on Urban100, {patches['B100']} dB on B100 and {patches[kept]} dB on the kept" in page
    )
    assert f"together by {set5} dB on Set5" in words_of(report.HERE / "README.md")


def test_what_is_said_of_the_number_of_blocks_is_measured() -> None:
    runs = read_runs(report.RESULTS / "depth.csv")
    score = {(run.name, run.dataset): run for run in runs}
    set5, b100 = (score["num_blocks=8", name].psnr - score["default", name].psnr for name in ("Set5", "B100"))
    longer = score["num_blocks=8", "Set5"].minutes / score["default", "Set5"].minutes
    text = f"{set5:.2f} dB more than six on Set5 and {b100:.2f} dB more on B100, and take {longer:.1f} times as long"
    assert text in words_of(report.DOCS.parent / "results.md")


def test_what_the_page_on_passing_maps_says_of_training_is_measured() -> None:
    runs = [run for run in read_runs(report.RESULTS / "parts.csv") if run.dataset == "Set5"]
    names = ["default", *(f"communication={value}" for value in ("0", "1", "learnable", "gated"))]
    assert not any(difference.significant for difference in compared(runs, names).differences)
    default, nothing, all_of_it, learned, gated = (
        statistics.fmean(run.psnr for run in runs if run.name == name) for name in names
    )
    page = words_of(report.DOCS.parent / "explanation" / "attention-passing.md")
    assert f"get {nothing:.2f}, {default:.2f} and {all_of_it:.2f} dB on Set5." in page
    assert f"gives {learned:.2f} dB and the gate {gated:.2f} dB. No difference is significant." in page


def test_weights_from_freely_licensed_images_score_as_much_lower_as_the_faq_says() -> None:
    ours, free = (Weights(weights_path(4, "mren_s", kind=kind)).scores for kind in (None, "free"))
    losses = [ours[name][0] - free[name][0] for name in DATASETS]
    said = f"{min(losses):.1f} to {max(losses):.1f} dB"
    for page in (report.CARD, *(report.DOCS.parent / name for name in ("faq.md", "models.md"))):
        assert said in page.read_text()


def test_what_is_said_of_a_tail_after_an_hour_is_measured() -> None:
    runs = read_runs(hosts.RESULTS / "imdn_tail_hour.csv")
    plain, rbwa = (next(run for run in runs if (run.name, run.dataset) == (name, "Set5")) for name in ("plain", "rbwa"))
    assert plain.minutes == rbwa.minutes == 60
    said = f"{plain.psnr - rbwa.psnr:.2f} dB"
    assert f"it scores {said} lower on Set5" in words_of(report.DOCS.parent / "how-to" / "rbwa-tail.md")


@pytest.mark.parametrize("log", sorted(WEIGHTS.glob("*.log.csv")), ids=lambda log: log.name.partition(".")[0])
def test_the_card_says_at_which_step_weights_were_selected(log: Path) -> None:
    rows = read_rows(log)
    best = max(rows, key=lambda row: (float(row["psnr"]), int(row["step"])))  # of equals, the later ones are kept
    _, _, section = report.CARD.read_text().partition(f"\n## {log.name.partition('.')[0]}\n")
    said = re.search(r"^\| selected \| at (?:the last step|step ([\d,]+)) ?", section, re.MULTILINE)
    assert said is not None
    assert int((said[1] or rows[-1]["step"]).replace(",", "")) == int(best["step"])
    assert f"{float(best['psnr']):.2f} dB" in section[said.start() :].partition("\n")[0]


def test_the_card_describes_every_file_once() -> None:
    described = re.findall(r"^## (mren\w+)$", report.CARD.read_text(), re.MULTILINE)
    assert sorted(described) == sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))


def test_curves_show_what_each_run_gained(tmp_path: Path) -> None:
    logs = {"a network": 25.0, "another network": 30.0}
    for name, start in logs.items():
        rows = f"10,0.1,{start},1e-3,60\n20,0.1,{start + 1},1e-3,120\n"
        (tmp_path / f"{name}.csv").write_text(f"step,loss,psnr,lr,seconds\n{rows}")
    report.draw_curves({name: tmp_path / f"{name}.csv" for name in logs}, tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    assert all(f">{label}<" in drawn for label in [*logs, "step"])
    lines = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: none; stroke: #(1f77b4|ff7f0e)', drawn)
    assert [colour for _, colour in lines] == ["1f77b4", "ff7f0e"]
    assert lines[0][0] == lines[1][0]  # equal gains, though not equal scores
