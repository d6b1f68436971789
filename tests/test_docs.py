"""The reference: complete for every public name, and true to the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import sc_blocks
from docs.inventories import read, write
from tests.blocks import count_parameters

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
MODULES = [
    importlib.import_module(f"sc_blocks.{path.stem}")
    for path in sorted((ROOT / "sc_blocks").glob("*.py"))
    if not path.stem.startswith("_")
]
BLOCKS = ["SCACB", "DRACB", "DRACBChain", "WSILB", "WSILBV", "RBWA", "MREB"]
CHANNELS = [name for name in sc_blocks.__all__ if name.endswith("Communication")]
FUNCTIONS = [name for name in sc_blocks.__all__ if name.islower()]


def public(module: ModuleType) -> list[tuple[str, object]]:
    """Classes and functions that a module defines for others."""
    return [
        (name, item)
        for name, item in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(item) or inspect.isfunction(item))
        and item.__module__ == module.__name__
    ]


NAMES = [(f"{module.__name__}.{name}", item) for module in MODULES for name, item in public(module)]


def constructor(name: str) -> set[str]:
    """Arguments of a block; of one without a constructor of its own none, and not those of ``nn.Module``."""
    own = vars(getattr(sc_blocks, name)).get("__init__")
    return set(inspect.signature(own).parameters) - {"self"} if own else set()


def sections(text: str) -> set[str]:
    return set(re.findall(r"^([A-Z][a-z ]+):$", inspect.cleandoc(text), re.MULTILINE))


def test_names_are_found() -> None:
    assert {item for _, item in NAMES} >= {getattr(sc_blocks, name) for name in sc_blocks.__all__}
    assert {*BLOCKS, *CHANNELS, *FUNCTIONS} == set(sc_blocks.__all__)


# pytest runs the examples themselves, through --doctest-modules.
@pytest.mark.parametrize(("name", "item"), NAMES, ids=[name for name, _ in NAMES])
def test_every_public_name_has_an_example(name: str, item: object) -> None:
    text = inspect.getdoc(item) or ""
    assert ">>>" in text
    if inspect.isfunction(item):
        assert name.rpartition(".")[2] in text.partition(">>>")[2]


@pytest.mark.parametrize("name", [*BLOCKS, *CHANNELS])
def test_a_block_is_documented_in_full(name: str) -> None:
    text = inspect.getdoc(getattr(sc_blocks, name)) or ""
    arguments = constructor(name)
    wanted = {"Shape", "Number of parameters", "Source", "Example"}
    assert sections(text) >= wanted | ({"Args", "Raises"} if arguments else set())
    described = re.search(r"^Args:\n((?:    .*\n|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^    (\w+(?:, \w+)*): ", described[1] if described else "", re.MULTILINE)
    assert {name for names in entries for name in names.split(", ")} == arguments


def formulas(name: str) -> list[str]:
    """The formulas of a docstring's section on parameters, each with the definition of ``width`` that precedes it."""
    text = inspect.getdoc(getattr(sc_blocks, name)) or ""
    part = re.search(r"^Number of parameters:\n((?:    .*\n|\n)*)", text, re.MULTILINE)
    assert part is not None
    found, definition = [], ""
    for code in re.findall(r"``([^`]+)``", " ".join(part[1].split())):
        if code.startswith("width = "):
            definition = code
        elif not code.isidentifier():
            found.append(f"{definition}\ncounted = {code}")
    return found


def evaluate(name: str, which: int = 0, **given: object) -> object:
    """What a formula gives."""
    values = dict(given)
    exec(formulas(name)[which], values)
    return values["counted"]


def test_formulas_of_parameters_count_them() -> None:
    choose = random.Random(0)
    for _ in range(20):
        c, d, r, n = (choose.randint(*span) for span in ((24, 70), (2, 40), (2, 6), (1, 5)))
        with torch.device("meta"):
            scacb = evaluate("SCACB", channels=c, reduction=r)
            assert scacb == count_parameters(sc_blocks.SCACB(c, reduction=r))
            assert evaluate("DRACB", in_channels=c, out_channels=d) == count_parameters(sc_blocks.DRACB(c, d))
            chain = evaluate("DRACBChain", in_channels=c, out_channels=d, length=n)
            assert chain == count_parameters(sc_blocks.DRACBChain(c, d, n))
            assert evaluate("WSILB", channels=c) == count_parameters(sc_blocks.WSILB(c))
            assert evaluate("WSILBV", channels=c, reduction=r) == count_parameters(sc_blocks.WSILBV(c, reduction=r))
            out = d + 4
            rbwa = evaluate("RBWA", in_channels=c, out_channels=out, reduction=4)
            assert rbwa == count_parameters(sc_blocks.RBWA(c, out))
            mreb = evaluate(
                "MREB",
                channels=c,
                distilled_channels=d,
                num_stages=n,
                scacb=evaluate("SCACB", channels=c, reduction=6),
                wsilbv=evaluate("WSILBV", channels=c, reduction=4),
            )
            assert mreb == count_parameters(sc_blocks.MREB(c, distilled_channels=d, num_stages=n))
            for each in (True, False):
                learnable = evaluate("LearnableCommunication", channels=d, per_channel=each)
                assert learnable == count_parameters(sc_blocks.LearnableCommunication(d, per_channel=each))
            assert evaluate("GatedCommunication", channels=d) == count_parameters(sc_blocks.GatedCommunication(d))
            for before in (c, d):
                adapted = evaluate("AdaptedCommunication", previous_channels=before, channels=d)
                assert adapted == count_parameters(sc_blocks.AdaptedCommunication(before, d))
            for name in ("NoCommunication", "FixedCommunication"):
                assert evaluate(name) == count_parameters(getattr(sc_blocks, name)())


@pytest.mark.parametrize(("which", "parts"), [(1, "spatial"), (2, "channel")])
def test_formulas_of_single_parts_count_them(which: int, parts: sc_blocks.scacb.Parts) -> None:
    for channels, reduction in ((60, 6), (43, 5)):
        block = sc_blocks.SCACB(channels, reduction=reduction, parts=parts)
        assert evaluate("SCACB", which, channels=channels, reduction=reduction) == count_parameters(block)


@pytest.mark.parametrize("name", sc_blocks.__all__)
def test_every_name_is_in_the_reference(name: str) -> None:
    pages = [path.read_text() for path in REFERENCE.glob("*.md")]
    assert sum(bool(re.search(rf"^\.\. auto(class|function):: sc_blocks\.{name}\b", text, re.M)) for text in pages) == 1


def test_every_argument_is_in_the_vocabulary() -> None:
    listed = set(
        re.findall(
            r"`(\w+)`",
            " ".join(re.findall(r"^\| (`[^|]*`) \|", (REFERENCE / "conventions.md").read_text(), re.MULTILINE)),
        )
    )
    taken = {
        argument
        for name in sc_blocks.__all__
        if isinstance(getattr(sc_blocks, name), type)
        for argument in constructor(name)
    }
    assert listed == taken


def test_types_by_name_are_those_of_the_code() -> None:
    listed = dict(
        re.findall(r"^\.\. py:type:: (\S+)\n   :canonical: (.+)$", (REFERENCE / "types.md").read_text(), re.MULTILINE)
    )
    for name, written in listed.items():
        module, _, alias = name.rpartition(".")
        source = inspect.getsource(sys.modules[module])
        (defined,) = (
            ast.unparse(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == alias
        )
        plain = re.sub(
            r"collections\.abc\.|typing\.", "", written.replace("torch.nn.", "nn.").replace("torch.Tensor", "Tensor")
        )
        assert ast.unparse(ast.parse(plain, mode="eval")) == defined, name
    configured = re.search(r"autodoc_type_aliases = ({.*?})", (DOCS / "conf.py").read_text(), re.DOTALL)
    assert configured is not None
    assert set(ast.literal_eval(configured[1]).values()) == set(listed)


@pytest.mark.parametrize("listing", sorted((DOCS / "inventories").glob("*.txt")), ids=lambda path: path.stem)
def test_inventories_are_read_by_sphinx(listing: Path, tmp_path: Path) -> None:
    InventoryFile = pytest.importorskip("sphinx.util.inventory").InventoryFile
    target = Path(write(listing, tmp_path / "objects.inv"))
    loaded = InventoryFile.loads(target.read_bytes(), uri="https://example.org").data
    entries = read(listing)
    assert sum(map(len, loaded.values())) == len(entries)
    for name, role, where in entries:
        assert loaded[role][name].uri == "https://example.org/" + where.replace("$", name)
        assert pkgutil.resolve_name(name) is not None


def test_a_broken_list_is_refused(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("# fine\n\ntorch.Tensor py:class\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 3: must be 'name domain:role where'"):
        read(listing)
    listing.write_text("torch.Tensor py:class a.html#$\n" * 2)
    with pytest.raises(ValueError, match=r"line 2: torch\.Tensor is listed already"):
        read(listing)


def test_the_page_of_commands_has_every_command() -> None:
    sources = [path for path in (ROOT / "examples").rglob("*.py") if path.name != "cli.py"]
    commands = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sources
        if re.search(r"^    .*\brun_command\(", path.read_text(), re.MULTILINE)
    }
    text = (REFERENCE / "commands.md").read_text()
    assert set(re.findall(r"^:module: (\S+)$", text, re.MULTILINE)) == commands
    assert set(re.findall(r"^## (\S+)$", text, re.MULTILINE)) == commands
