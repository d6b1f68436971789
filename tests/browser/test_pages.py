"""Pages of the built site: nothing missing, nothing from other hosts, nothing that keeps a reader out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import ROOT, complaints, look, unable
from tests.browser.site import Site

pytestmark = pytest.mark.browser

PAGES = (
    "index.html",
    "404.html",
    "cheat-sheet.html",
    "faq.html",
    "how-to/gpu.html",
    "licence.html",
    "models.html",
    "tutorials/first-block.html",
    "how-to/choose-a-block.html",
    "reference/conventions.html",
    "reference/scacb.html",
    "explanation/blocks.html",
    "explanation/attention-passing.html",
    "results.html",
    "search.html",
    "try.html",
)
AXE = ROOT / "docs" / "browser" / "node_modules" / "axe-core" / "axe.min.js"


def violations(browser: Any, part: str = "html") -> list[str]:
    """What axe-core finds serious or critical on the page, or a part, as it stands, in both themes and two widths."""
    if not AXE.is_file():
        unable("axe-core is missing: npm ci --prefix docs/browser")
    browser.execute_script(Path(AXE).read_text())
    found = []
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            look(browser, width, scheme)
            result = browser.execute_async_script(
                "const [part, done] = arguments, options = {resultTypes: ['violations']};"
                "const run = () => axe.run(part, options).then(done, e => done({error: String(e)}));"
                "setTimeout(run, 300);",
                part,
            )
            assert "error" not in result, result
            for violation in result["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    for node in violation["nodes"]:
                        summary = " ".join(node["failureSummary"].split())
                        found.append(f"{width} {scheme} {violation['id']}: {node['target']} {summary}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_whole_and_from_one_host(page: str, browser: Any, site: Site) -> None:
    browser.get(f"{site.address}/{page}")
    broken = browser.execute_script(
        "return [...document.images].filter(i => !i.naturalWidth && i.loading != 'lazy').map(i => i.src)"
    )
    assert not broken
    assert not complaints(browser, site)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_accessible(page: str, browser: Any, site: Site) -> None:
    browser.get(f"{site.address}/{page}")
    assert not violations(browser)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_a_narrow_window(page: str, browser: Any, site: Site) -> None:
    look(browser, 390, "light")
    browser.get(f"{site.address}/{page}")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_the_divider_moves_by_keyboard_and_pointer(browser: Any, site: Site) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser.get(f"{site.address}/results.html")
    slider = browser.find_element("css selector", ".before-after input[type=range]")
    line = browser.find_element("css selector", ".ba-line")
    assert slider.get_attribute("aria-label") == "Divider between bicubic and MREN ×4"
    before = line.rect["x"]
    slider.send_keys(Keys.ARROW_RIGHT * 10)
    assert slider.get_attribute("aria-valuetext") == "60 % bicubic, 40 % MREN ×4"
    assert line.rect["x"] > before
    view = browser.find_element("css selector", ".ba-view")
    ActionChains(browser).move_to_element_with_offset(view, -view.size["width"] // 4, 0).click().perform()
    assert abs(int(slider.get_attribute("value")) - 25) <= 1
    for button, width in (("100 %", 448), ("200 %", 896)):
        browser.find_element("xpath", f"//button[text()='{button}']").click()
        assert browser.find_element("css selector", ".ba-after").size["width"] == width
    assert view.get_attribute("tabindex") == "0"  # scrolls now
    assert not complaints(browser, site)


def test_without_scripts_there_are_two_pictures(browser: Any, site: Site) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(f"{site.address}/results.html")
        pictures = browser.find_elements("css selector", ".before-after figure img")
        assert [picture.is_displayed() and picture.size["width"] > 200 for picture in pictures] == [True, True]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
