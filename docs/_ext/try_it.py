"""The page "Try it in the browser": its markup, and the engine and the networks that it loads.

The engine is the npm package onnxruntime-web, pinned in docs/browser; the networks are exported from the shipped
weights while the documentation is built. If one of them is missing, the build warns (``try_it.missing``), the page
says so, and the rest of the site is built.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from examples.mren.shipped import Weights

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "docs" / "browser" / "node_modules" / "onnxruntime-web"
ENGINE = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
FOLD = "--no-fold"  # in WebAssembly the folded form is larger and no faster
WEIGHTS = ROOT / "examples" / "mren" / "weights"
# Shipped weights that visitors can choose; the first, a fast one, is the default.
NETWORKS = ("mren_s_x4", "mren_x4", "mren_s_x4_photo", "mren_s_x2", "mren_x2")
SCRIPT = '<script type="module" src="_static/try/app.js"></script>'

log = logging.getLogger(__name__)


def pinned_version() -> str:
    """The version of onnxruntime-web that docs/browser/package.json names."""
    package = json.loads((ROOT / "docs" / "browser" / "package.json").read_text(encoding="utf-8"))
    return package["dependencies"]["onnxruntime-web"]


def missing_engine() -> str | None:
    """Return why the site has no engine, or ``None``."""
    described = PACKAGE / "package.json"
    if not described.is_file():
        return "the npm package onnxruntime-web is not installed"
    version = json.loads(described.read_text(encoding="utf-8"))["version"]
    if version != pinned_version():
        return f"onnxruntime-web {version} is installed, {pinned_version()} is pinned"
    return None


def write_network(weights: Path, cache: Path) -> Path:
    """Export a network to an ONNX file, again only if its weights or the exporting code have changed.

    Raises:
        RuntimeError: If the export fails; the message says why.
    """
    made_from = [weights, *sorted(ROOT.glob("examples/mren/**/*.py")), *sorted(ROOT.glob("sc_blocks/**/*.py"))]
    key = hashlib.sha256(b"".join([FOLD.encode(), *(file.read_bytes() for file in made_from)])).hexdigest()[:16]
    file = cache / f"{key}.onnx"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        scale = str(Weights(weights).scale)
        command = [sys.executable, "-m", "examples.mren.export", "--scale", scale, "--weights", str(weights), FOLD]
        # In its own process: Sphinx would print hundreds of lines that the exporter logs.
        done = subprocess.run([*command, "--output", str(file.resolve())], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1].removeprefix("error: "))
    return file


def prepare(app: Sphinx) -> None:
    """Find the engine and export the networks, before pages are read."""
    app.env.try_it_missing = []
    app.env.try_it_networks = {}
    if app.builder.name not in ("html", "dirhtml"):
        return
    missing = [reason] if (reason := missing_engine()) else []
    try:
        for name in NETWORKS:
            if (weights := WEIGHTS / f"{name}.safetensors").is_file():
                app.env.try_it_networks[name] = write_network(weights, Path(app.doctreedir) / "try_it")
    except RuntimeError as error:
        missing.append(f"the network could not be exported ({error})")
    app.env.try_it_missing = missing
    if missing:
        log.warning("the site is built without its demo: %s", "; ".join(missing), type="try_it", subtype="missing")


def install(app: Sphinx, exception: Exception | None) -> None:
    """Copy engine and networks next to the scripts of the page."""
    target = Path(app.outdir) / "_static" / "try"
    if exception is not None or not app.env.try_it_networks or app.env.try_it_missing:
        return
    (target / "engine").mkdir(parents=True, exist_ok=True)
    for name in ENGINE:
        shutil.copyfile(PACKAGE / "dist" / name, target / "engine" / name)
    listed = []
    for name, file in app.env.try_it_networks.items():
        shutil.copyfile(file, target / f"{name}.onnx")
        weights = Weights(WEIGHTS / f"{name}.safetensors")
        listed.append({"title": weights.title, "file": f"{name}.onnx", "scale": weights.scale})
    (target / "networks.json").write_text(json.dumps(listed), encoding="utf-8")


class TryIt(SphinxDirective):
    """``{try-it}``: the tool, or a notice that this copy of the site was built without it."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the installation changes independently of the page
        if not self.env.try_it_missing:
            markup = (Path(__file__).parent / "try_it.html").read_text(encoding="utf-8")
            return [nodes.raw("", f"{markup}{SCRIPT}\n", format="html")]
        reasons = "; ".join(self.env.try_it_missing)
        notice = nodes.admonition(classes=["warning"])
        notice += nodes.title("", "Not in this copy of the site")
        text = f"What runs the network was missing: {reasons}. With npm, these commands build the full site:"
        notice += nodes.paragraph("", text)
        commands = (
            'python -m pip install -e ".[docs]"\n'
            "npm ci --prefix docs/browser\n"
            "sphinx-build docs docs/_build/html\n"
            "python -m http.server --directory docs/_build/html"
        )
        notice += nodes.literal_block("", commands, language="bash")
        return [notice]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("try-it", TryIt)
    app.connect("builder-inited", prepare)
    app.connect("build-finished", install)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
