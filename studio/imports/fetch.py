"""Adapters by address: from Hugging Face and Civitai, by https, within limits of size and time.

A download that ends early goes on where it was, in the same try or in a later one, when the site says which
file it is (a strong ETag, or Last-Modified) and gives ranges of it (RFC 9110, 14.2 and 13.1.5).
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from studio.imports.partial import EVERY, Partial

if TYPE_CHECKING:
    from studio.workspace import Workspace

NETWORK = Network()
MAX_BYTES = 16 * 2**30
MAX_SECONDS = 4 * 3600.0
MAX_REDIRECTS = 5
CHUNK = 2**20
RETRIES = 4  # times in a row that a connection may break without a byte in between
PAUSE = 2.0  # seconds before the next, times the number of breaks
# Where a person may point to, and the variable with the token that only this host gets.
SITES = {"huggingface.co": "HF_TOKEN", "civitai.com": "CIVITAI_TOKEN"}
# Where these send us for the bytes.
_STORES = re.compile(
    r"([\w-]+\.)*huggingface\.co|([\w-]+\.)*hf\.co|([\w-]+\.)*civitai\.com"
    r"|civitai-[\w-]+\.[0-9a-f]+\.r2\.cloudflarestorage\.com"
)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)")
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
    """Download one file, or the rest of it; returns where it lies in the inbox, whole and durable.

    Args:
        ws: The workspace.
        address: As the person gave it.
        folder: Name of the folder in the inbox.
        tell: Called now and then.

    Raises:
        BadInput: the address or one it leads to is not allowed, or there is no such file.
        StudioError: the connection or the disk fails; what came is kept where it can be gone on with.
    """
    parts, partial = check_address(address), Partial(ws, address)
    deadline = time.monotonic() + MAX_SECONDS
    breaks = 0
    while True:
        before = partial.done
        try:
            name = _some(ws, parts, partial, tell, deadline)
            break
        except _Broken as error:
            breaks = 1 if partial.done > before else breaks + 1
            anew = before > 0 and not partial.validator  # what was here is the beginning of another file
            if not (partial.validator or anew) or breaks > RETRIES:
                raise StudioError(error.thing, error.wrong, _again(partial)) from error
            time.sleep(PAUSE * breaks)
        except BaseException:
            if not partial.validator:
                partial.drop()
            raise
    target = inbox_path(ws, folder, name)
    with atomic_path(target) as temporary:
        shutil.move(partial.path, temporary)
    partial.drop()
    return target


class _Broken(StudioError):
    """The connection ended before the file did."""


def _again(partial: Partial) -> str:
    if partial.done:
        return f"try again; it goes on after {partial.done / 2**20:.1f} MiB"
    partial.drop()
    return "try again"


def _some(
    ws: "Workspace", parts: SplitResult, partial: Partial, tell: Callable[[], None], deadline: float
) -> str:
    """Ask for what is missing and write it down; returns the file's name when it is whole."""
    parts, response = _open(parts, _range(partial))
    with response:
        start = _start(response, parts, partial)
        size = _size(response, parts, start)
        require_space(ws.home, max(0, size - start), "the download")
        with partial.open() as stream:
            _write(response, stream, partial, parts, size, tell, deadline)
        return _name(response, parts)


def _range(partial: Partial) -> dict[str, str]:
    """Headers that ask for the rest, if it is still the same file."""
    if not partial.done:
        return {}
    return {"Range": f"bytes={partial.done}-", "If-Range": partial.validator}


def _start(response: HTTPResponse, parts: SplitResult, partial: Partial) -> int:
    """The byte that an answer begins with; the partial file is made to end there."""
    validator = _validator(response)
    if response.status == 200:  # all of it: the site gives no ranges, or the file is another one now
        partial.restart(validator)
    elif _first_byte(response) != partial.done or validator not in ("", partial.validator):
        partial.drop()
        raise _Broken(_shown(parts), "gave another part of the file than was asked for", "try again")
    return partial.done


def _first_byte(response: HTTPResponse) -> int:
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _validator(response: HTTPResponse) -> str:
    """What tells the file from a later one; a weak ETag says no more than "much the same"."""
    tag = response.headers.get("ETag", "")
    if tag.startswith('"') and tag.endswith('"') and len(tag) > 2:
        return tag
    return response.headers.get("Last-Modified", "")


def _open(parts: SplitResult, wanted: dict[str, str]) -> tuple[SplitResult, HTTPResponse]:
    """Follow redirects to an answer with a body."""
    first = parts
    for _ in range(MAX_REDIRECTS + 1):
        host = parts.hostname or ""
        target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
        response = NETWORK.get(host, target, _headers(host) | wanted)
        if response.status == 200 or (response.status == 206 and wanted):
            return parts, response
        response.close()
        if response.status == 416 and wanted:  # it has become shorter than what is here
            wanted = {}
            continue
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


def _size(response: HTTPResponse, parts: SplitResult, start: int) -> int:
    """Bytes of the whole file, 0 when it is not said.

    Raises:
        BadInput: too many.
    """
    said = response.headers.get("Content-Length", "")
    size = start + int(said) if said.isdecimal() else 0
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
    partial: Partial,
    parts: SplitResult,
    size: int,
    tell: Callable[[], None],
    deadline: float,
) -> None:
    done = partial.done
    try:
        for chunk in _chunks(response, parts, deadline):
            done += len(chunk)
            if done > MAX_BYTES:
                partial.validator = ""  # no try will ever be better
                raise BadInput(_shown(parts), f"has more than {MAX_BYTES >> 30} GiB", "copy it by hand")
            _put(stream, chunk, partial, done)
            tell()
        if size and done != size:
            raise _Broken(_shown(parts), f"was cut off: {done} of {size} bytes", "try again")
    finally:
        with suppress(OSError, StudioError):  # what came is worth keeping, and no failure of its own
            partial.keep(stream)


def _put(stream: IO[bytes], chunk: bytes, partial: Partial, done: int) -> None:
    try:
        stream.write(chunk)
        if done - partial.done >= EVERY:
            partial.keep(stream)
    except OSError as error:
        raise storage_error(partial.path, error) from error


def _chunks(response: HTTPResponse, parts: SplitResult, deadline: float) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
            if time.monotonic() > deadline:
                wrong = f"takes longer than {MAX_SECONDS / 3600:.0f} hours"
                raise StudioError(_shown(parts), wrong, "copy it by hand")
    except (OSError, HTTPException) as error:
        raise _Broken(_shown(parts), f"broke off ({type(error).__name__})", "try again") from error


def _shown(parts: SplitResult) -> str:
    """An address for messages: without its query, which may hold a signature."""
    return text.line(f"{parts.scheme}://{parts.hostname or ''}{parts.path}", 200)
