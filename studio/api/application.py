"""The two applications, their one-line errors, and where they are mounted."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.routing import Mount

from registry.errors import BadInput, NotFound, StudioError, WorkspaceBusy
from studio.api import sdapi, v1

MAX_BODY = 256 * 2**20  # bytes; a request with its pictures is held in memory
STATUS = {NotFound: 404, BadInput: 400, WorkspaceBusy: 409}
TITLES = {v1.PREFIX: "LoRA Studio", sdapi.PREFIX: "LoRA Studio, for clients of A1111"}
PREFIXES = tuple(TITLES)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def mounts() -> list[Mount]:
    """Where the interface is; each describes itself under openapi.json."""
    routers = ((v1.PREFIX, v1.router), (sdapi.PREFIX, sdapi.router))
    return [Mount(prefix, _Bounded(_application(TITLES[prefix], router))) for prefix, router in routers]


def _application(title: str, router: APIRouter) -> FastAPI:
    """No pages of documentation: they would be loaded from other people's servers."""
    made = FastAPI(title=title, version="1", docs_url=None, redoc_url=None)
    made.include_router(router)
    made.add_exception_handler(StudioError, _refused)
    made.add_exception_handler(ValidationError, _invalid)
    made.add_exception_handler(RequestValidationError, _invalid)
    return made


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    code = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse({"error": type(error).__name__, "detail": str(error)}, code)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """The first complaint, in one line."""
    assert isinstance(error, RequestValidationError | ValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in {"body", "query"})
    wrong = str(first["msg"]).removeprefix("Value error, ")
    fault = BadInput(field or "request", wrong[:1].lower() + wrong[1:], "see openapi.json")
    return JSONResponse({"error": "BadInput", "detail": str(fault)}, 422)


class _Bounded:
    """Refuses bodies that are larger than `MAX_BODY`, before or while they come in."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, counting."""
        taken = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                fault = BadInput("request", f"is larger than {MAX_BODY // 2**20} MB", "send smaller pictures")
                raise HTTPException(413, str(fault))
            return message

        await self._app(scope, counted, send)
