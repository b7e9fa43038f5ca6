"""A web server on this machine that misbehaves as it is told."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """An answer, and what goes wrong with it.

    Args:
        body: The content.
        kind: Its content type.
        first: Status and headers of the answers before the first good one.
        status: Status of the good answers.
        headers: Further headers.
        length: The content length that is said; -1 for none.
        cut: Every answer ends after so many bytes.
        cuts: Number of answers that are cut, if not all.
        pause: Seconds before each piece of the body.
        piece: Bytes to a piece.
        ranges: Whether a part may be asked for.
        tag: ETag; by content if not given, none if empty.
    """

    body: bytes = b''
    kind: str = 'application/octet-stream'
    first: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    cut: int | None = None
    cuts: int | None = None
    pause: float = 0.0
    piece: int = 1 << 16
    ranges: bool = True
    tag: str | None = None


class Server:
    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ''

    def add(self, path: str, body: bytes = b'', **kwargs) -> str:
        self.pages[path] = Page(body, **kwargs)
        return self.url + path

    def asked(self, path: str) -> list[dict[str, str]]:
        return [headers for asked, headers in self.requests if asked == path]


@contextmanager
def serve() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def log_message(self, *args) -> None:
            pass

        def do_GET(self) -> None:
            with state.lock:
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                self.reply()
            finally:
                with state.lock:
                    state.at_once -= 1

        def reply(self) -> None:
            state.requests.append((self.path, dict(self.headers)))
            page = state.pages.get(self.path)
            if page is None:
                self.send_error(404)
            elif page.first:
                status, headers = page.first.pop(0)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
            else:
                self.answer(page)

        def answer(self, page: Page) -> None:
            tag = page.tag
            if tag is None:
                tag = f'"{hashlib.sha256(page.body).hexdigest()[:8]}"'
            start, status = 0, page.status
            asked = self.headers.get('Range')
            if page.ranges and asked and self.headers.get('If-Range') == tag:
                start, status = int(asked[len('bytes=') : -1]), 206
            body = page.body[start:]
            self.send_response(status)
            self.send_header('Content-Type', page.kind)
            if status == 206:
                total = len(page.body)
                self.send_header('Content-Range', f'bytes {start}-{total - 1}/{total}')
            if tag:
                self.send_header('ETag', tag)
            length = len(body) if page.length is None else page.length
            if length >= 0:
                self.send_header('Content-Length', str(length))
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if page.cut is not None and (page.cuts is None or page.cuts > 0):
                page.cuts = None if page.cuts is None else page.cuts - 1
                body = body[: page.cut]
            try:
                for at in range(0, len(body), page.piece):
                    if page.pause:
                        time.sleep(page.pause)
                    self.wfile.write(body[at : at + page.piece])
                    self.wfile.flush()
            except OSError:
                pass  # the client has gone

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    state.url = f'http://127.0.0.1:{server.server_address[1]}'
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
