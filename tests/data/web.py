"""A web server on this machine for tests of downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """Files by path, and how the server treats those who ask for them."""

    files: dict[str, bytes]
    address: str = ""
    ranges: bool = True  # whether parts may be asked for
    cut_after: list[int] = field(default_factory=list)  # bytes; one connection breaks for each
    redirects: dict[str, tuple[str, str]] = field(default_factory=dict)  # to, and a stated hash
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and range of each request
    before: Callable[[], object] = lambda: None  # called before each answer


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    """A server of `files` on a free port of this machine."""
    site = Site(files)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range") or ""
            site.asked.append((self.path, wanted))
            site.before()
            if self.path in site.redirects:
                target, stated = site.redirects[self.path]
                self.send_response(302)
                self.send_header("Location", site.address + target)
                self.send_header("X-Linked-ETag", f'"{stated}"')
                self.end_headers()
                return
            if self.path not in site.files:
                self.send_error(404)
                return
            content = site.files[self.path]
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and site.ranges else 0
            if start and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                whole = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", whole)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            part = content[start:]
            self.wfile.write(part[: site.cut_after.pop(0)] if site.cut_after else part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
