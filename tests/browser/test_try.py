"""The page "Try it in the browser": what it computes, and what it says when something is wrong."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from examples.mren.data import imresize
from examples.mren.metrics import psnr, to_uint8
from examples.mren.model import load_mren
from sc_blocks.tiling import tiled
from tests.browser.conftest import complaints, unable
from tests.browser.site import Site
from tests.browser.test_pages import violations
from tests.images import photo

pytestmark = pytest.mark.browser

WORKER = "/try/worker.js"


class Page:
    def __init__(self, browser: Any, site: Site) -> None:
        self.browser = browser
        browser.get(f"{site.address}/try.html")
        self.until(lambda: self.part("app").is_displayed(), "the page did not start")

    def part(self, name: str) -> Any:
        return self.browser.find_element("css selector", f"[data-part={name}]")

    @property
    def status(self) -> str:
        return self.part("status").text

    def until(self, condition: Any, otherwise: str, seconds: float = 300) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, seconds, poll_frequency=0.1).until(lambda _: condition(), otherwise)

    def give(self, file: Path) -> None:
        self.part("file").send_keys(str(file))

    def says(self, text: str) -> None:
        self.until(lambda: text in self.status, f"never said {text!r}", 60)

    def finishes(self) -> None:
        self.until(lambda: self.part("status").get_attribute("data-kind") in ("done", "error"), "did not finish")
        assert self.status.startswith("Done"), self.status

    def result(self) -> Tensor:
        """The picture that the download gives."""
        return self._read("fetch(document.querySelector('[data-part=download]').href).then(r => r.blob())")

    def bicubic(self) -> Tensor:
        return self._read("new Promise(r => document.querySelector('canvas.ba-before').toBlob(r))")

    def _read(self, blob: str) -> Tensor:
        data = self.browser.execute_async_script(
            f"const done = arguments[0]; {blob}.then(blob => {{ const reader = new FileReader();"
            "reader.onload = () => done(reader.result); reader.readAsDataURL(blob); })"
            ".catch(error => done(String(error)));"
        )
        assert data.startswith("data:image/png"), data
        image = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.fixture
def page(browser: Any, site: Site) -> Page:
    return Page(browser, site)


def save(pixels: Tensor, file: Path, **options: Any) -> Path:
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, **options)
    return file


def furthest(first: Tensor, second: Tensor) -> int:
    assert first.shape == second.shape
    return int((first.int() - second.int()).abs().max())


def test_the_result_is_that_of_torch_tiles_included(page: Page, browser: Any, site: Site, tmp_path: Path) -> None:
    small = photo(75, 140)
    page.give(save(small, tmp_path / "my.photo.png"))
    page.finishes()
    expected = tiled(load_mren(4, "mren_s"), small[None].float() / 255, scale=4, tile=128, overlap=32)[0]
    assert furthest(page.result(), to_uint8(expected)) <= 2
    assert furthest(page.bicubic(), imresize(small, 4)) <= 1
    assert page.part("download").get_attribute("download") == "my.photo_x4.png"
    assert not complaints(browser, site)
    assert not violations(browser, ".try")


@pytest.mark.parametrize("isolated", [False, True], ids=["one thread", "threads"])
def test_another_network_restores_a_picture(isolated: bool, browser: Any, site: Site, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import Select

    site.isolated = isolated
    page = Page(browser, site)
    assert browser.execute_script("return crossOriginIsolated") is isolated  # what the worker takes threads by
    Select(page.part("network")).select_by_visible_text("MREN ×2")
    page.part("restore").click()
    original = photo(75, 97)
    page.give(save(original, tmp_path / "picture.png"))
    page.finishes()
    cropped = original[:, :74, :96]
    small = imresize(cropped, 1 / 2)
    with torch.no_grad():
        expected = to_uint8(load_mren(2)(small[None].float() / 255)[0])
    result = page.result()
    assert (result.float() - expected.float()).abs().mean() < 1  # the small pictures differ by 1 here and there
    for name, picture in (("MREN ×2", result), ("bicubic", page.bicubic())):
        (shown,) = re.findall(rf"{name} ([\d.]+) dB", page.status)
        assert float(shown) == pytest.approx(psnr(picture, cropped, 2), abs=0.01)
    assert page.part("download").get_attribute("download") == "picture_restored.png"
    assert not complaints(browser, site)


def test_orientation_is_applied_and_transparency_laid_over_white(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    page.give(save(photo(12, 20), tmp_path / "turned.jpg", exif=exif))
    page.finishes()
    assert page.result().shape == (3, 80, 48)
    clear = torch.zeros(4, 9, 8, dtype=torch.uint8)
    page.give(save(clear, tmp_path / "clear.png"))
    page.says("Done: 32 × 36")
    assert page.result().min() >= 250


def test_a_file_that_is_no_picture(page: Page, browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("not a picture")
    page.give(file)
    page.says("“notes.png” is not a picture that this browser can read")
    assert not violations(browser, ".try")


def test_a_huge_picture_gives_a_choice_and_work_can_be_cancelled(page: Page, browser: Any, tmp_path: Path) -> None:
    page.give(save(torch.zeros(3, 2000, 2500, dtype=torch.uint8), tmp_path / "huge.png"))
    page.says("too large")
    assert "2500 × 2000 pixels, 5.0 megapixels. Here the limit is 4 megapixels" in page.part("why").text
    assert page.part("shrink").text == "All of it, shrunk to 2236 × 1788 first"
    assert page.part("crop").text == "Its middle, 2000 × 2000, as it is"
    assert not violations(browser, ".try")
    page.part("crop").click()
    page.says("2000 × 2000")
    page.part("cancel").click()
    page.says("Cancelled")
    page.give(save(photo(8, 9), tmp_path / "next.png"))
    page.finishes()


@pytest.mark.parametrize(
    ("end", "replacement", "message"),
    [
        (WORKER, (404, ""), "The worker was lost"),
        (WORKER, (200, "onmessage = () => { throw new Error('no memory'); };"), "The worker was lost"),
        ("simd-threaded.wasm", (404, ""), "The engine could not be loaded: the server answered 404"),
        ("mren_s_x4.onnx", (200, "not a network"), "The worker gave up"),
    ],
    ids=["not there", "crashed", "no engine", "no network"],
)
def test_a_lost_worker(
    end: str, replacement: tuple[int, str], message: str, page: Page, site: Site, tmp_path: Path
) -> None:
    picture = save(photo(8, 9), tmp_path / "picture.png")
    site.replaced[end] = replacement
    page.give(picture)
    page.says(message)
    assert "Choose the picture again to retry" in page.status
    site.replaced.clear()
    page.give(picture)
    page.finishes()


def test_a_silent_worker(page: Page, browser: Any, site: Site, tmp_path: Path) -> None:
    site.replaced[WORKER] = (200, "onmessage = () => {};")
    browser.execute_script("document.querySelector('.try').dataset.patience = 0.5")
    page.give(save(photo(8, 9), tmp_path / "picture.png"))
    page.says("has not been heard of")
    page.part("end").click()
    page.says("Cancelled")


def test_a_picture_is_dropped_or_pasted(page: Page, browser: Any) -> None:
    make = (
        "const name = arguments[0], done = arguments[1]; const c = new OffscreenCanvas(8, 9); c.getContext('2d');"
        "c.convertToBlob().then(blob => { const data = new DataTransfer(); data.items.add(new File([blob], name));"
    )
    drop = "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))"
    paste = "document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))"
    for name, event in (("dropped.png", drop), ("pasted.png", paste)):
        browser.execute_async_script(f"{make} {event}; done(); }});", name)
        expected = name.replace(".png", "_x4.png")
        page.until(lambda e=expected: page.part("download").get_attribute("download") == e, f"{name} was not taken")


def test_on_a_graphics_card_and_without_it_after_all(browser_with_webgpu: Any, site: Site, tmp_path: Path) -> None:
    browser = browser_with_webgpu
    browser.get(f"{site.address}/try.html")
    if not browser.execute_async_script("Promise.resolve(navigator.gpu?.requestAdapter()).then(arguments[0])"):
        unable("this Chromium has no software that stands for a graphics card")
    small = photo(24, 20)
    file = save(small, tmp_path / "picture.png")
    expected = to_uint8(tiled(load_mren(4, "mren_s"), small[None].float() / 255, scale=4, tile=128, overlap=32)[0])

    page = Page(browser, site)
    assert page.part("gpu").is_selected()
    page.give(file)
    page.finishes()
    assert page.status.endswith("with WebGPU.")
    assert furthest(page.result(), expected) <= 2
    assert not complaints(browser, site)

    site.replaced["ort.webgpu.bundle.min.mjs"] = (200, "throw new Error('the driver is broken');")
    page = Page(browser, site)
    page.give(file)
    page.finishes()
    assert page.status.endswith("with WebAssembly.")
    assert furthest(page.result(), expected) <= 2
