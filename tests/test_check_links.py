"""The checker of the built site: it finds what is broken, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.check_links import faults, main


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "index.html").write_text(
        '<h1 id="top">a</h1><a href="part/b.html#here">b</a><a href="#top">up</a><a href="https://example.org/x">x</a>'
        '<img src="a.svg" alt="A picture"/><a href="mailto:a@example.org">m</a>'
        '<a href="part/b.html#%C3%A9t%C3%A9">é</a><a href="/part/b.html">from the root</a>'
    )
    (tmp_path / "part" / "b.html").write_text(
        '<p id="here">b</p><p id="été">c</p><a href="../">up</a><img alt="" src="../a.svg">'
    )
    return tmp_path


def test_a_sound_site_has_no_faults(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(site) == []
    assert main([str(site)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("element", "fault"),
    [
        ('<a href="part/c.html">', "link to a missing file, part/c.html"),
        ('<a href="part/b.html#there">', "link to a missing anchor, part/b.html#there"),
        ('<a href="/c.html">', "link to a missing file, /c.html"),
        ('<a href="#bottom">', "link to a missing anchor, #bottom"),
        ('<a href="../outside.html">', "link out of the site, ../outside.html"),
        ('<img src="b.png" alt="B">', "link to a missing file, b.png"),
        ('<img src="a.svg">', "image without alternative text, a.svg"),
        ('<img src="a.svg" alt="images/a.svg">', "image without alternative text, a.svg"),
        ('<script src="missing.js"></script>', "link to a missing file, missing.js"),
        ('<link rel="stylesheet" href="missing.css"/>', "link to a missing file, missing.css"),
    ],
)
def test_what_is_broken_is_found(site: Path, capsys: pytest.CaptureFixture[str], element: str, fault: str) -> None:
    index = site / "index.html"
    index.write_text(index.read_text() + element)
    assert main([str(site)]) == 1
    assert capsys.readouterr().out == f"index.html: {fault}\n"


def test_an_empty_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no pages" in capsys.readouterr().err
