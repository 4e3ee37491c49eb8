"""Who may talk to the server: an allow-list of Host and Origin, a password door, protective headers.

A page in another tab can send requests to 127.0.0.1, and a domain name can be pointed at it (DNS
rebinding). Both carry a foreign Host or Origin header; both are refused here, before Streamlit sees them,
websockets included.
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from studio.app.password import Door
from studio.app.token import Token, is_api

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_PATHS = frozenset({"/login", "/_stcore/health"})
# Streamlit's bundle needs inline styles, eval (charts) and blob modules (components). Nothing from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' ws: wss: data: blob:; frame-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware in front of everything.

    Args:
        app: The application behind it.
        hosts: Host names that are ours.
        any_address: Also take any IP address as Host, for a server beyond this machine (an attack
            by rebinding needs a name, so an address is safe).
        door: The password check; None = no password.
        token: What the HTTP interface asks for.
    """

    def __init__(
        self,
        app: Application,
        *,
        hosts: frozenset[str] = LOOPBACK,
        any_address: bool = False,
        door: Door | None = None,
        token: Token | None = None,
    ) -> None:
        self.app, self.hosts, self.any_address, self.door = app, hosts, any_address, door
        self.token = token or Token("", needed=door is not None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then pass on."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        refusal = self._refuse(scope)
        if refusal is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before accept: the client sees 403
        else:
            await refusal(scope, receive, _with_headers(send))

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse(f"error: host {host[:80]!r}: is not served here.\n", 400)
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return PlainTextResponse(f"error: origin {origin[:80]!r}: may not use this server.\n", 403)
        if is_api(scope["path"]):
            return self.token.refuse(headers.get("authorization", ""))
        if self.door is None or scope["path"] in OPEN_PATHS or self.door.knows(headers.get("cookie", "")):
            return None
        if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return PlainTextResponse(
            "error: this server: needs a password. Open it in a browser and sign in.\n", 401
        )

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name = (parts.hostname or "").lower() if parts.username is None else ""
        except ValueError:  # an address that is none, as [::1
            return False
        if name in self.hosts:
            return True
        if not self.any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sender
