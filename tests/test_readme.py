"""What the documentation promises: its code runs, its numbers are what the library counts, its links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import sc_blocks
from examples.mren.model import MREN
from sc_blocks.introspect import complexity
from tests.printed import alike, as_shown

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    if "node_modules" not in path.parts
)


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


# Their scripts need files: test_export.py, test_engines.py and test_tutorials.py run them where those are.
ELSEWHERE = {
    Path(f"docs/{page}.md")
    for page in (
        *("how-to/export", "how-to/ncnn", "how-to/openvino", "how-to/phone"),
        *("tutorials/train", "tutorials/export"),
    )
}


def run_python(code: str, printed: str, namespace: dict[str, object], page: Path) -> None:
    """Run a block; where a block of text follows it directly, that is what it must print."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, str(page), "exec"), namespace)
    if printed:
        assert as_shown(printed, output.getvalue()), f"{page} shows\n{printed}\nand prints\n{output.getvalue()}"


def blocks_with_output(page: Path) -> list[tuple[str, str, str]]:
    """Language, code, and what stands below it as its output, of all blocks that can be run."""
    pattern = r"^```(python|bash)\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    return re.findall(pattern, (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if code_blocks(page, "python") and page not in ELSEWHERE], ids=str
)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)  # some write files
    namespace: dict[str, object] = {}
    for language, code, printed in blocks_with_output(page):
        if language == "python":
            run_python(code, printed, namespace, page)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[0] == "docs"], ids=str)
def test_code_on_the_site_does_not_scroll(page: Path) -> None:
    for language in ("python", "bash", "sh", "text"):
        assert max((len(line) for code in code_blocks(page, language) for line in code.splitlines()), default=0) <= 88


def included_code(page: Path) -> list[str]:
    """The objects that a page includes from source files."""
    found = []
    pattern = r"^```{literalinclude} (\S+)\n:pyobject: (\S+)\n(:dedent:)?"
    for file, name, dedent in re.findall(pattern, (ROOT / page).read_text(), re.MULTILINE):
        source = (ROOT / page).parent.joinpath(file).read_text()
        node: ast.AST = ast.parse(source)
        for part in name.split("."):
            (node,) = (child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part)
        code = ast.get_source_segment(source, node, padded=True) or ""
        found.append(textwrap.dedent(code) if dedent else code)
    return found


def test_included_code_does_not_scroll() -> None:
    included = [(page, code) for page in PAGES for code in included_code(page)]
    assert included
    for page, code in included:
        assert max(len(line) for line in code.splitlines()) <= 88, page


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link:
            assert (ROOT / page).parent.joinpath(link).exists(), link


def test_the_table_of_costs_is_what_is_counted() -> None:
    rows = re.findall(
        r"^\| (`\w+\(.*?\)`|MREN ×4) \|.*\| ([\d,]+) \| ([\d.]+) G \|$", (ROOT / "README.md").read_text(), re.M
    )
    assert len(rows) == 7
    for name, parameters, macs in rows:
        with torch.device("meta"):
            if name == "MREN ×4":
                model: nn.Module = MREN(4)
                size = (1, 3, 180, 320)
            else:
                model = eval(name.strip("`"), vars(sc_blocks))
                size = (1, 60, 180, 320)
        cost = complexity(model, size)
        assert (f"{cost.parameters:,}", f"{cost.macs / 1e9:.3f}") == (parameters, macs), name


def test_readme_has_the_commands_that_ci_runs() -> None:
    commands = [line for block in code_blocks(Path("README.md"), "bash") for line in block.splitlines()]
    for run, install in {
        "&& .venv/bin/python -m examples.mren.upscale": "python3 -m venv .venv && .venv/bin/pip install -e ",
        "&& .venv/bin/python -m pytest -n": "python3 -m venv .venv && .venv/bin/pip install -e ",
        "sphinx-build docs docs/_build/html": 'python -m pip install -e ".[docs]" && ',
    }.items():
        (command,) = (line for line in commands if run in line)
        assert command.startswith(install)
        assert run in (ROOT / ".ci" / "run").read_text()


def options_of(command: str) -> set[str]:
    # Not in a process of its own: to start a dozen takes a minute.
    shown = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        importlib.import_module(f"examples.{command}").main(["--help"])
    return set(re.findall(r"(?<![\w-])--[\w-]+", shown.getvalue()))


MREN_COMMANDS = ["train", "evaluate", "upscale", "compare", "ablate", "attention", "report", "export", "onnxfile"]
COMMANDS = [*(f"mren.{name}" for name in MREN_COMMANDS), "drop_in.compare", "drop_in.report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_in_the_docs_exists(command: str) -> None:
    options = options_of(command)
    for page in PAGES:
        text = (ROOT / page).read_text().replace("\\\n", "")  # a command over several lines is one
        for line in re.findall(rf"examples\.{re.escape(command)}([^\n`]*)", text):
            assert set(re.findall(r"(?<!\S)(--[\w-]+)", line)) <= options, (page, line)


def test_every_host_has_a_page() -> None:
    files = {
        path.stem for path in (ROOT / "examples" / "drop_in").glob("*.py") if "def main() -> None" in path.read_text()
    }
    shown = {
        match
        for page in (ROOT / "docs" / "hosts").glob("*.md")
        for match in re.findall(r"literalinclude\} \.\./\.\./examples/drop_in/(\w+)\.py", page.read_text())
    }
    assert files == shown


def test_what_counts_as_printed_alike() -> None:
    assert alike("bicubic 29.08  gain -2.85", "bicubic 29.09 gain -2.86")
    assert alike("error 3e-04, (1, 60)", "error 2e-04, (1, 60)")
    assert not alike("bicubic 29.08", "bicubic 29.18")
    assert not alike("bicubic 29.08", "MREN 29.08")
    assert not alike("1,875 parameters", "1,975 parameters")
    assert not alike("1 2", "1")
