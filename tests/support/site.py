"""A local https server that stands for the sites that adapters are fetched from."""

import http.server
from pathlib import Path
from typing import ClassVar

from studio.imports.fetch import fetch_into_inbox
from studio.workspace import Workspace

HF = "https://huggingface.co/me/ink/resolve/main/ink.safetensors"


class Site(http.server.BaseHTTPRequestHandler):
    """Answers from a table: (host, path) -> (status, headers, body); remembers what it was asked with.

    A page with `Accept-Ranges` gives ranges of itself, as long as it is still what `If-Range` names. `cuts`
    are the bytes after which the next answers break off.
    """

    pages: ClassVar[dict[tuple[str, str], tuple[int, dict[str, str], bytes]]] = {}
    asked: ClassVar[list[tuple[str, str, str]]] = []
    ranges: ClassVar[list[str]] = []  # that were asked for, "" = all
    cuts: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        host = self.headers["Host"].partition(":")[0]
        self.asked.append((host, self.path, self.headers.get("Authorization", "")))
        status, headers, body = self.pages.get((host, self.path), (404, {}, b""))
        wanted = self.headers.get("Range", "")
        if status == 200:
            self.ranges.append(wanted)
        if status == 200 and wanted and "Accept-Ranges" in headers and self._is_same(headers):
            start, whole = int(wanted.removeprefix("bytes=").rstrip("-")), len(body)
            status, body = (206, body[start:]) if start < whole else (416, b"")
            headers = headers | {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.cuts and status in {200, 206}:
            self.wfile.write(body[: self.cuts.pop(0)])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(body)

    def _is_same(self, headers: dict[str, str]) -> bool:
        return self.headers.get("If-Range") in {headers.get("ETag"), headers.get("Last-Modified")}

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def get(ws: Workspace, address: str = HF) -> Path:
    """Fetch it."""
    return fetch_into_inbox(ws, address, folder="f", tell=lambda: None)


def redirect(to: str) -> tuple[int, dict[str, str], bytes]:
    """A page that leads there."""
    return 302, {"Location": to}, b""
