"""Map words that readers search for to the pages that answer them, even if these use other words.

Each word becomes a main entry of the index for its page; the search lists pages with such an entry first.
"""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

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


class AddEntries(SphinxTransform):
    """Give a page the index entries of its words; they lead to its first section."""

    default_priority = 800  # before the domains look for entries

    def apply(self, **kwargs: object) -> None:
        words = [word for word, page in WORDS.items() if page == self.env.docname]
        section = next(self.document.findall(nodes.section), None)
        if section is not None and words:
            entries = [("single", word, section["ids"][0], "main", None) for word in words]
            section.insert(1, addnodes.index(entries=entries))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(AddEntries)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
