"""The search of the built site: the page that answers comes first."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.site import Site

pytestmark = pytest.mark.browser

ANSWERS = {
    "license": "licence.html",
    "licence": "licence.html",
    "cite": "cite.html",
    "bibtex": "cite.html",
    "dataset": "how-to/fine-tune.html",
    "fine-tune": "how-to/fine-tune.html",
    "video": "how-to/video.html",
    "GPU": "how-to/gpu.html",
    "U-Net": "hosts/unet.html",
    "JPEG": "how-to/photographs.html",
    "artifact": "how-to/photographs.html",
    "FAQ": "faq.html",
    "LPIPS": "faq.html",
    "weights": "models.html",
    "SCACB": "reference/scacb.html",
}


@pytest.mark.parametrize(("query", "page"), ANSWERS.items())
def test_the_page_that_answers_comes_first(query: str, page: str, browser: Any, site: Site) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{site.address}/search.html?q={query}")
    (first, *_) = WebDriverWait(browser, 20).until(
        lambda _: browser.find_elements("css selector", "#search-results ul.search li a")
    )
    assert first.get_attribute("href").partition("#")[0].partition("?")[0] == f"{site.address}/{page}"
