"""The built site on localhost, with a record of what was asked for and what it was not allowed to ask for."""

from __future__ import annotations

import json
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

# Whatever a page or its worker wants from another host, the browser refuses and reports.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' blob:; report-uri /report"
)


class Site:
    """A server of a folder. ``replaced`` maps the end of a path to a status and a body that stand in for the file."""

    def __init__(self, folder: Path) -> None:
        self.replaced: dict[str, tuple[int, str]] = {}
        self.isolated = False
        self.failed: list[str] = []
        self.reports: list[dict[str, Any]] = []
        site = self

        class Handler(SimpleHTTPRequestHandler):
            extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                for end, (status, body) in site.replaced.items():
                    if self.path.partition("?")[0].endswith(end):
                        self.send_response(status)
                        self.send_header("Content-Type", self.guess_type(end))
                        self.end_headers()
                        self.wfile.write(body.encode())
                        return
                super().do_GET()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                site.reports.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def end_headers(self) -> None:
                self.send_header("Content-Security-Policy", POLICY)
                self.send_header("Cache-Control", "no-store")
                if site.isolated:  # pages may share memory between threads
                    self.send_header("Cross-Origin-Opener-Policy", "same-origin")
                    self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
                super().end_headers()

            def send_error(self, code: int, *args: Any) -> None:
                site.failed.append(f"{code} {self.path}")
                super().send_error(code, *args)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def forget(self) -> None:
        self.replaced.clear()
        self.isolated = False
        self.failed.clear()
        self.reports.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
