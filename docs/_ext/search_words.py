"""Words that readers search for and pages that answer them, also where a page uses other words.

Each word becomes an index entry below the title of its page; the search lists pages with such an entry first.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

WORDS = {
    "license": "licence",
    "licence": "licence",
    "commercial use": "licence",
    "cite": "cite",
    "citation": "cite",
    "bibtex": "cite",
    "dataset": "how-to/fine-tune",
    "fine-tune": "how-to/fine-tune",
    "finetune": "how-to/fine-tune",
    "training": "tutorials/train",
    "video": "how-to/video",
    "ffmpeg": "how-to/video",
    "GPU": "how-to/gpu",
    "CUDA": "how-to/gpu",
    "U-Net": "hosts/unet",
    "UNet": "hosts/unet",
    "denoising": "hosts/unet",
    "JPEG": "how-to/photographs",
    "artifact": "how-to/photographs",
    "artefact": "how-to/photographs",
    "noise": "how-to/photographs",
    "FAQ": "faq",
    "LPIPS": "faq",
    "weights": "models",
    "pretrained": "models",
    "download": "models",
    "SHA-256": "models",
    "Android": "how-to/phone",
    "iOS": "how-to/phone",
    "ONNX": "how-to/export",
    "PSNR": "how-to/scoring",
    "SSIM": "how-to/scoring",
    "out of memory": "how-to/large-images",
    "tiles": "how-to/large-images",
    "demo": "try",
}
TITLE = re.compile(r"\A# .*\n", re.MULTILINE)


def add_entries(app: Sphinx, page: str, content: list[str]) -> None:
    """Put the index entries of a page below its title."""
    entries = "".join(f"\n```{{index}} single: {word}\n```\n" for word, where in WORDS.items() if where == page)
    content[0] = TITLE.sub(lambda title: f"{title[0]}{entries}", content[0], count=1)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", add_entries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
