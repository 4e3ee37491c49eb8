"""One https request to a public address, and nothing else: what a link may reach is decided here.

The name is resolved once, every answer must be a public address, and the connection goes to the address
that was checked: a name that answers differently a moment later gains nothing. Redirects are the caller's to
follow, each through here.
"""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from registry.errors import BadInput, StudioError

SECONDS = 30.0  # to connect, and without a byte
PORT = 443


def resolve(host: str) -> list[tuple[str, int]]:
    """Addresses of a host name, with the port to connect to."""
    answers = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    return [(str(answer[4][0]), PORT) for answer in answers]


def is_public(address: str) -> bool:
    """Whether an address is out in the world: not private, loopback, link-local, shared or reserved."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None)
    return parsed.is_global and not parsed.is_multicast and (mapped is None or mapped.is_global)


@dataclass(frozen=True)
class Network:
    """How names become connections; tests give their own."""

    resolve: Callable[[str], list[tuple[str, int]]] = resolve
    allowed: Callable[[str], bool] = is_public
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def get(self, host: str, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        """The answer to a GET; its body is still to be read.

        Raises:
            BadInput: the host has an address that is not public.
            StudioError: it cannot be reached.
        """
        try:
            return self._ask(host, target, headers)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StudioError(host, f"cannot be reached ({reason})", "check the connection") from error

    def _ask(self, host: str, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        places = self.resolve(host)
        for address, _ in places:
            if not self.allowed(address):
                raise BadInput(host, f"is at {address}, which is no public address", "use another link")
        if not places:
            raise OSError("no address")
        connection = http.client.HTTPSConnection(host, timeout=SECONDS)
        connection.sock = self._connect(host, places)
        connection.request("GET", target, headers=headers)
        return connection.getresponse()

    def _connect(self, host: str, places: list[tuple[str, int]]) -> ssl.SSLSocket:
        """The first of the checked addresses that answers."""
        failed: OSError | None = None
        for place in places:
            try:
                plain = socket.create_connection(place, timeout=SECONDS)
            except OSError as error:
                failed = error
                continue
            if not self.allowed(str(plain.getpeername()[0])):
                plain.close()
                raise BadInput(host, "answers from an address that is not public", "use another link")
            return self.context.wrap_socket(plain, server_hostname=host)
        raise failed or OSError("no address")
