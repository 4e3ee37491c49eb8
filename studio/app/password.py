"""The password of a server that listens beyond this machine.

`python -m studio.app.password` asks for one and prints the line for studio.toml; STUDIO_PASSWORD in the
environment works too. The session cookie is an expiry time signed with HMAC-SHA256; it holds nothing else.
"""

import asyncio
import getpass
import hashlib
import hmac
import html
import os
import secrets
import sys
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from registry.errors import BadInput
from studio.settings import PASSWORD

COOKIE = "lora_studio"
DAYS = 14
WORK = {"n": 2**14, "r": 8, "p": 1}  # scrypt: 16 MiB and about 50 ms a try
MIN_LENGTH = 8
MAX_FORM = 4096  # bytes
PAUSE = 1.0  # seconds after a wrong password


def hash_password(password: str) -> str:
    """`scrypt$salt$hash`, both hex.

    Raises:
        BadInput: shorter than 8 characters.
    """
    if len(password) < MIN_LENGTH:
        raise BadInput("password", f"is shorter than {MIN_LENGTH} characters", "choose a longer one")
    salt = secrets.token_bytes(16)
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **WORK).hex()}"


def check_password(password: str, stored: str) -> bool:
    """Whether `password` is the one that was hashed; constant time."""
    try:
        kind, salt, digest = stored.split("$")
        expected, salt_bytes = bytes.fromhex(digest), bytes.fromhex(salt)
    except ValueError:
        return False
    given = hashlib.scrypt(password.encode(), salt=salt_bytes, **WORK)
    return kind == "scrypt" and hmac.compare_digest(given, expected)


class Door:
    """Signs people in and knows them again.

    Args:
        stored: Result of `hash_password`.
        key: Secret of the workspace; sessions end when the password or the key changes.
    """

    def __init__(self, stored: str, key: bytes) -> None:
        self._stored = stored
        self._key = hashlib.sha256(b"session" + key + stored.encode()).digest()
        self._turn = asyncio.Lock()  # one try at a time, so that PAUSE bounds guessing over all connections

    def knows(self, cookies: str) -> bool:
        """Whether the Cookie header carries a session that we signed and that has not ended."""
        try:
            morsel = SimpleCookie(cookies).get(COOKIE)
        except CookieError:
            return False
        until, _, signature = (morsel.value if morsel else "").partition(".")
        if not until.isdigit() or int(until) < time.time():
            return False
        return hmac.compare_digest(signature, self._sign(until))

    def session(self) -> str:
        """A new cookie value."""
        until = str(int(time.time()) + DAYS * 86400)
        return f"{until}.{self._sign(until)}"

    def routes(self) -> list[Route]:
        """GET and POST /login, GET /logout."""
        return [
            Route("/login", self._page, methods=["GET"]),
            Route("/login", self._sign_in, methods=["POST"]),
            Route("/logout", self._sign_out, methods=["GET"]),
        ]

    def _sign(self, until: str) -> str:
        return hmac.new(self._key, until.encode(), "sha256").hexdigest()

    async def _page(self, request: Request) -> Response:
        if self.knows(request.headers.get("cookie", "")):
            return RedirectResponse("/", 303)
        return HTMLResponse(_form(""))

    async def _sign_in(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM:
                return HTMLResponse(_form("That is too long."), 413)
        given = parse_qs(body.decode("utf-8", "replace")).get("password", [""])[0]
        async with self._turn:
            right = await asyncio.to_thread(check_password, given, self._stored)
            if not right:
                await asyncio.sleep(PAUSE)
        if not right:
            return HTMLResponse(_form("That is not the password."), 401)
        response = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE, self.session(), max_age=DAYS * 86400, httponly=True, samesite="lax", secure=secure
        )
        return response

    async def _sign_out(self, _request: Request) -> Response:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE)
        return response


def _form(complaint: str) -> str:
    note = f'<p role="alert">{html.escape(complaint)}</p>' if complaint else ""
    return _PAGE.replace("<!--note-->", note)


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>LoRA Studio</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
:root { --ink: #1d1d1b; --paper: #f8f8f6; --card: #fff; --line: #dedeDA; --accent: #2b59c3; --on: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececE8; --paper: #171716; --card: #1c1c1b; --line: #3a3a38; --accent: #8fb0ff;
    --on: #171716; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0;
  min-height: 100vh; display: grid; place-items: center; }
form { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 2.25rem;
  width: min(20rem, calc(100vw - 2rem)); box-sizing: border-box; display: grid; gap: .9rem; }
h1 { font: 600 1.5rem/1.2 Georgia, serif; margin: 0 0 .5rem; } label { font-size: .9rem; }
input, button { font: inherit; padding: .6rem .75rem; border-radius: 8px; border: 1px solid var(--line); }
input { background: var(--paper); color: inherit; }
button { background: var(--accent); color: var(--on); border: 0; font-weight: 600; cursor: pointer; }
p { margin: 0; color: #c0392b; font-size: .9rem; }
</style></head><body><form method="post" action="/login">
<h1>LoRA Studio</h1><label for="password">Password of this server</label>
<input id="password" name="password" type="password" autocomplete="current-password" autofocus required>
<!--note--><button type="submit">Sign in</button></form></body></html>"""


def main() -> int:
    """Ask for a password twice and print the line for studio.toml."""
    first = os.environ.get(PASSWORD) or getpass.getpass("New password: ")
    if PASSWORD not in os.environ and first != getpass.getpass("Again: "):
        sys.stderr.write("error: password: the two differ. Run it again.\n")
        return 2
    try:
        sys.stdout.write(f'password_hash = "{hash_password(first)}"\n')
    except BadInput as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
