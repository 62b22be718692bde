"""A local HTTP server that behaves as the path asked for says, in every way servers of old links do."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


def picture(kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "teal").save(stream, kind)
    return stream.getvalue()


class Misbehaving(BaseHTTPRequestHandler):
    """The path says how the server behaves."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked[self.path] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            getattr(self, "_" + self.path.strip("/").split("/")[0])()
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.at_once -= 1

    def _send(self, body: bytes, status: int = 200, kind: str = "image/jpeg", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _files(self) -> None:
        self._send(self.server.files[self.path])

    def _good(self) -> None:
        time.sleep(0.02)
        self._send(picture())

    def _png(self) -> None:
        self._send(picture("PNG"))

    def _gif(self) -> None:
        self._send(picture("GIF"))

    def _pixel(self) -> None:
        self._send(picture("JPEG", (1, 1)))

    def _gone(self) -> None:
        self._send(b"", 404)

    def _failing(self) -> None:
        self._send(b"", 500)

    def _recovering(self) -> None:
        self._send(*((picture(),) if self.server.asked[self.path] > 2 else (b"", 503)))

    def _html(self) -> None:
        self._send(b"<html><body>Not found</body></html>", kind="image/jpeg")

    def _half(self) -> None:
        self._send(picture()[:200])  # whole as an answer, half as a picture

    def _truncated(self) -> None:
        body = picture()
        self._send(body[:100], length=len(body))
        self.close_connection = True

    def _stalling(self) -> None:
        self._send(picture()[:50], length=5_000)
        time.sleep(2)
        self.close_connection = True

    def _dripping(self) -> None:
        self._send(b"", length=10_000)
        for _ in range(40):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.1)
        self.close_connection = True

    def _huge(self) -> None:
        self._send(b"x" * 300_000)

    def _circle(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/circle/" + str(self.server.asked[self.path] % 2))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _moved(self) -> None:
        self.send_response(301)
        self.send_header("Location", "/good/moved")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Counts what it was asked, and how much of that at once.

    Attributes:
        url: where it is. asked: path → times. files: what it serves under ``/files/``.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Misbehaving)
        self.asked, self.lock, self.at_once, self.most_at_once = Counter(), threading.Lock(), 0, 0
        self.url, self.files = f"http://127.0.0.1:{self.server_port}", {}
