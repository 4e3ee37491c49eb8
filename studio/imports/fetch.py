"""Adapters by address: from Hugging Face and Civitai, by https, within limits of size and time."""

import os
import re
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import SplitResult, parse_qs, unquote, urljoin, urlsplit, urlunsplit

from registry.errors import BadInput, StudioError
from registry.files import atomic_path, require_space, storage_error
from studio.imports import text
from studio.imports.inbox import inbox_path
from studio.imports.network import Network

if TYPE_CHECKING:
    from studio.workspace import Workspace

NETWORK = Network()
MAX_BYTES = 16 * 2**30
MAX_SECONDS = 4 * 3600.0
MAX_REDIRECTS = 5
CHUNK = 2**20
# Where a person may point to, and the variable with the token that only this host gets.
SITES = {"huggingface.co": "HF_TOKEN", "civitai.com": "CIVITAI_TOKEN"}
# Where these send us for the bytes.
_STORES = re.compile(
    r"([\w-]+\.)*huggingface\.co|([\w-]+\.)*hf\.co|([\w-]+\.)*civitai\.com"
    r"|civitai-[\w-]+\.[0-9a-f]+\.r2\.cloudflarestorage\.com"
)
_CIVITAI_PAGE = re.compile(r"/models/\d+(/[^/]*)?/?")
_AGENT = "LoRA-Studio (adapter import)"


def is_address(source: str) -> bool:
    """Whether a source is meant as an address and not as a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


def check_address(address: str) -> SplitResult:
    """The address, in parts, as it will be asked for; pages of the two sites become the file that they show.

    Raises:
        BadInput: it is not https, not one of the sites, or carries a secret.
    """
    parts = _split(address)
    if parts.hostname not in SITES:
        raise BadInput(_shown(parts), "is not among the sites we load from", f"use {' or '.join(SITES)}")
    if "token" in parse_qs(parts.query):
        do = f"leave it out and set {SITES[parts.hostname]} in the environment"
        raise BadInput(_shown(parts), "carries a token, which would be kept with the adapter", do)
    return parts._replace(**_file_of(parts), fragment="")


def fetch_into_inbox(ws: "Workspace", address: str, *, folder: str, tell: Callable[[], None]) -> Path:
    """Download one file; returns where it lies in the inbox, whole and durable.

    Args:
        ws: The workspace.
        address: As the person gave it.
        folder: Name of the folder in the inbox.
        tell: Called now and then.

    Raises:
        BadInput: the address or one it leads to is not allowed, or there is no such file.
        StudioError: the connection or the disk fails.
    """
    parts, response = _open(check_address(address))
    with response:
        size = _size(response, parts)
        target = inbox_path(ws, folder, _name(response, parts))
        require_space(ws.home, size, "the download")
        with atomic_path(target) as temporary, temporary.open("xb") as stream:
            _write(response, stream, target, parts, size, tell)
    return target


def _open(parts: SplitResult) -> tuple[SplitResult, HTTPResponse]:
    """Follow redirects to an answer with a body."""
    first = parts
    for _ in range(MAX_REDIRECTS + 1):
        host = parts.hostname or ""
        target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        response = NETWORK.get(host, target, _headers(host))
        if response.status == 200:
            return parts, response
        response.close()
        if response.status not in {301, 302, 303, 307, 308}:
            raise _refusal(response.status, parts)
        parts = _split(urljoin(urlunsplit(parts), response.headers.get("Location", "")))
        if not _STORES.fullmatch(parts.hostname or ""):
            raise BadInput(
                _shown(first), f"leads to {_shown(parts)}, where we do not load from", "use another"
            )
        if "login" in parts.path.split("/"):
            raise _refusal(401, first)
    raise BadInput(_shown(first), f"leads on more than {MAX_REDIRECTS} times", "use the file's own address")


def _split(address: str) -> SplitResult:
    """Parts of an https address without user, password and port.

    Raises:
        BadInput: it is no such address.
    """
    shown = text.line(address.partition("?")[0], 200)
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise BadInput(shown, "is no address", "copy it from the browser") from error
    if parts.scheme != "https" or not parts.hostname:
        raise BadInput(
            shown, "is not an https address", "use https://huggingface.co/... or https://civitai.com/..."
        )
    if parts.username or parts.password or port not in {None, 443}:
        raise BadInput(_shown(parts), "has a user, a password or a port", "use a plain https address")
    if not address.isascii() or any(c.isspace() or not c.isprintable() for c in address):
        raise BadInput(shown, "has characters that no address has", "copy it from the browser")
    return parts


def _file_of(parts: SplitResult) -> dict[str, str]:
    """Path and query of the file behind a page: `/blob/` of Hugging Face, a model's page of Civitai."""
    if parts.hostname == "civitai.com" and _CIVITAI_PAGE.fullmatch(parts.path):
        version = parse_qs(parts.query).get("modelVersionId", [""])[0]
        if not version.isdecimal():
            do = "choose a version there, its address ends with ?modelVersionId=..."
            raise BadInput(_shown(parts), "is the page of all versions", do)
        return {"path": f"/api/download/models/{version}", "query": ""}
    return {"path": parts.path.replace("/blob/", "/resolve/", 1)}


def _headers(host: str) -> dict[str, str]:
    token = os.environ.get(SITES.get(host, ""), "")
    secret = {"Authorization": f"Bearer {token}"} if token else {}
    return {"User-Agent": _AGENT, "Accept-Encoding": "identity", **secret}


def _refusal(status: int, parts: SplitResult) -> StudioError:
    variable = SITES.get(parts.hostname or "", "")
    if status in {401, 403}:
        do = f"log in there, make a token and set {variable}" if variable else "ask for another address"
        return BadInput(_shown(parts), f"is not given to everybody ({status})", do)
    if status in {404, 410}:
        return BadInput(_shown(parts), f"is not there ({status})", "check the address")
    return StudioError(_shown(parts), f"answered with {status}", "try again later")


def _size(response: HTTPResponse, parts: SplitResult) -> int:
    """Bytes to come, 0 when it is not said.

    Raises:
        BadInput: too many.
    """
    said = response.headers.get("Content-Length", "")
    size = int(said) if said.isdecimal() else 0
    if size > MAX_BYTES:
        raise BadInput(
            _shown(parts), f"has {size >> 30} GiB, more than {MAX_BYTES >> 30} GiB", "copy it by hand"
        )
    return size


def _name(response: HTTPResponse, parts: SplitResult) -> str:
    """File name from the header, else from the path; foreign until `inbox_path` has cleaned it."""
    message = Message()
    message["Content-Disposition"] = response.headers.get("Content-Disposition", "") or "attachment"
    return message.get_filename("") or unquote(parts.path.rsplit("/", 1)[-1])


def _write(
    response: HTTPResponse,
    stream: IO[bytes],
    target: Path,
    parts: SplitResult,
    size: int,
    tell: Callable[[], None],
) -> None:
    done = 0
    for chunk in _chunks(response, parts):
        done += len(chunk)
        if done > MAX_BYTES:
            raise BadInput(_shown(parts), f"has more than {MAX_BYTES >> 30} GiB", "copy it by hand")
        try:
            stream.write(chunk)
        except OSError as error:
            raise storage_error(target, error) from error
        tell()
    if size and done != size:
        raise StudioError(_shown(parts), f"was cut off: {done} of {size} bytes", "try again")


def _chunks(response: HTTPResponse, parts: SplitResult) -> Iterator[bytes]:
    deadline = time.monotonic() + MAX_SECONDS
    try:
        while chunk := response.read(CHUNK):
            yield chunk
            if time.monotonic() > deadline:
                wrong = f"takes longer than {MAX_SECONDS / 3600:.0f} hours"
                raise StudioError(_shown(parts), wrong, "copy it by hand")
    except (OSError, HTTPException) as error:
        raise StudioError(_shown(parts), f"broke off ({type(error).__name__})", "try again") from error


def _shown(parts: SplitResult) -> str:
    """An address for messages: without its query, which may hold a signature."""
    return text.line(f"{parts.scheme}://{parts.hostname or ''}{parts.path}", 200)
