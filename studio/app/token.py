"""The token of the HTTP interface: a Bearer token, or the password of Basic, which A1111's clients send."""

import base64
import binascii
import hmac

from starlette.responses import JSONResponse, Response

API = ("/api/", "/sdapi/", "/controlnet/")


def is_api(path: str) -> bool:
    """Whether the HTTP interface answers this path."""
    return path.startswith(API)


class Token:
    """Asks clients for the token.

    Args:
        secret: The token; "" = there is none.
        needed: Whether nobody may come in without one: where others reach the server, or a password is set.
    """

    def __init__(self, secret: str, *, needed: bool) -> None:
        self._secret, self._needed = secret, needed

    def refuse(self, authorization: str) -> Response | None:
        """Why a request with this Authorization header may not come in; None = it may."""
        if not self._secret:
            if not self._needed:
                return None
            off = "the HTTP interface: is off where a password is set. Set STUDIO_API_TOKEN to turn it on."
            return JSONResponse({"error": "Forbidden", "detail": off}, 403)
        if hmac.compare_digest(_given(authorization).encode(), self._secret.encode()):
            return None
        wrong = "the HTTP interface: needs the token. Send it as `Authorization: Bearer TOKEN`."
        ask = {"WWW-Authenticate": 'Basic realm="LoRA Studio"'}
        return JSONResponse({"error": "Unauthorized", "detail": wrong}, 401, headers=ask)


def _given(authorization: str) -> str:
    """The token in an Authorization header; any name goes with it in Basic."""
    kind, _, value = authorization.strip().partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
