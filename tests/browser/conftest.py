"""Chromium without a window, and the site that it looks at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.browser.site import Site

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "docs" / "_build" / "html"

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root there is none
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def unable(reason: str) -> NoReturn:
    """Skip, or fail where these tests have to run."""
    if os.environ.get("SC_BLOCKS_BROWSER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def served() -> Iterator[Site]:
    if not (BUILT / "_static" / "try" / "engine").is_dir():
        unable(f"no site with an engine at {BUILT.relative_to(ROOT)}: npm ci --prefix docs/browser, then sphinx-build")
    site = Site(BUILT)
    yield site
    site.close()


@pytest.fixture
def site(served: Site) -> Site:
    served.forget()
    return served


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    browser = start("--disable-gpu")
    yield browser
    browser.quit()


@pytest.fixture
def browser_with_webgpu() -> Iterator[Any]:
    """A Chromium that has a graphics card, made of software: slow, but WebGPU all through."""
    browser = start("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
    yield browser
    browser.quit()


def start(*flags: str) -> Any:
    """A Chromium of its own."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        unable('selenium is missing: python -m pip install -e ".[dev]"')
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        unable("chromium or chromedriver is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    browser.set_script_timeout(120)
    return browser


@pytest.fixture
def browser(chromium: Any) -> Any:
    """One Chromium for all tests, each of which begins on an empty page of a wide light window."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    look(chromium, 1280, "light")
    return chromium


def look(browser: Any, width: int, scheme: str) -> None:
    """Set the width of the window and the preferred colours."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)


def complaints(browser: Any, site: Site) -> list[str]:
    """Errors on the console, requests that failed, and what was asked of other hosts."""
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return errors + site.failed + [str(report) for report in site.reports]
