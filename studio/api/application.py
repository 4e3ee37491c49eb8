"""The two applications, their one-line errors, and where they are mounted."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Mount

from registry.errors import BadInput, NotFound, StudioError, WorkspaceBusy
from studio.api import sdapi, sdapi_control, v1

MAX_BODY = 128 * 2**20  # bytes; a request with its pictures is held in memory
MAX_PARTS = 500_000  # values of a body: each costs 30 bytes of memory or more, and parsing stops all else
STATUS = {NotFound: 404, BadInput: 400, WorkspaceBusy: 409}
TITLES = {
    v1.PREFIX: "LoRA Studio",
    sdapi.PREFIX: "LoRA Studio, for clients of A1111",
    sdapi_control.PREFIX: "LoRA Studio, ControlNet for clients of A1111",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def mounts() -> list[Mount]:
    """Where the interface is; each describes itself under openapi.json."""
    routers = {
        v1.PREFIX: v1.router,
        sdapi.PREFIX: sdapi.router,
        sdapi_control.PREFIX: sdapi_control.router,
    }
    return [
        Mount(prefix, _Bounded(_application(TITLES[prefix], router))) for prefix, router in routers.items()
    ]


def _application(title: str, router: APIRouter) -> FastAPI:
    """No pages of documentation: they would be loaded from other people's servers."""
    made = FastAPI(title=title, version="1", docs_url=None, redoc_url=None)
    made.include_router(router)
    made.add_exception_handler(StudioError, _refused)
    made.add_exception_handler(ValidationError, _invalid)
    made.add_exception_handler(RequestValidationError, _invalid)
    made.add_exception_handler(HTTPException, _http)
    made.add_exception_handler(Exception, _unforeseen)
    return made


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    code = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return _answer(type(error).__name__, str(error), code)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """The first complaint, in one line."""
    assert isinstance(error, RequestValidationError | ValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in {"body", "query"})
    wrong = str(first["msg"]).removeprefix("Value error, ")
    fault = BadInput(field or "request", wrong[:1].lower() + wrong[1:], "see openapi.json")
    if first["type"] == "json_invalid":
        fault = BadInput("request", "is not JSON", "send an object, as openapi.json says")
    elif not field:
        fault = BadInput("request", "is no JSON object", "send one with Content-Type: application/json")
    return _answer("BadInput", str(fault), 422)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    """An unknown address, a wrong method, a body that is too large or no text."""
    assert isinstance(error, HTTPException)
    return _answer("BadInput", str(error.detail), error.status_code)


async def _unforeseen(_request: Request, error: Exception) -> JSONResponse:
    """One line; the terminal of the server has the rest."""
    return _answer("Fault", f"the studio: met a fault of its own ({type(error).__name__}).", 500)


def _answer(kind: str, detail: str, status: int) -> JSONResponse:
    line = " ".join(detail.encode("utf-8", "replace").decode("utf-8").split())
    return JSONResponse({"error": kind, "detail": line}, status)


class _Bounded:
    """Refuses bodies that are larger than `MAX_BODY`, before or while they come in."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, counting."""
        taken = parts = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal taken, parts
            message = await receive()
            body: bytes = message.get("body", b"")
            taken += len(body)
            parts += sum(body.count(sign) for sign in (b",", b"[", b"{"))
            if parts > MAX_PARTS:
                fault = BadInput("request", f"has more than {MAX_PARTS:,} values", "send fewer")
                raise HTTPException(413, str(fault))
            if taken > MAX_BODY:
                fault = BadInput("request", f"is larger than {MAX_BODY // 2**20} MB", "send smaller pictures")
                raise HTTPException(413, str(fault))
            return message

        await self._app(scope, counted, send)
