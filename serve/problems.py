"""Errors as application/problem+json (RFC 9457), for every way a request can fail."""

import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TITLES = {
    400: "Bad request",
    401: "Missing or invalid API key",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Body too large",
    415: "Unsupported media type",
    422: "Invalid input",
    429: "Too many requests",
    500: "Internal error",
    503: "Temporarily unavailable",
}
MAX_ECHO = 80  # characters of a bad value that are repeated to the client
MAX_ERRORS = 50  # bad fields that are listed in one answer

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, MAX_ECHO, MAX_ECHO


class Problem(HTTPException):
    """A request that cannot be answered.

    errors: one entry per bad field: {"field", "value", "detail"}. retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        errors: list[dict[str, str]] | None = None,
        retry_after: int | None = None,
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, detail, headers)
        self.errors, self.retry_after = errors or [], retry_after


def invalid(field: str, value: object, detail: str) -> Problem:
    """A 422 for one field; names the field, the value and the remedy."""
    name = _clip(field)
    return Problem(422, f"{name}: {detail}", [{"field": name, "value": echo(value), "detail": detail}])


def echo(value: object) -> str:
    """A bad value as text, short enough to send back."""
    return _clip(_SHORT.repr(value))


def _clip(text: str) -> str:
    # Half a surrogate pair can be read from JSON but not sent.
    sendable = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return sendable if len(sendable) <= MAX_ECHO else sendable[: MAX_ECHO - 1] + "…"


def response(problem: Problem) -> JSONResponse:
    """The problem as an HTTP response."""
    return _response(problem.status_code, str(problem.detail), problem.errors, problem.headers)


def _response(
    status: int, detail: str, errors: list[dict[str, str]], headers: Mapping[str, str] | None
) -> JSONResponse:
    body = _document(status, detail, errors)
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _document(status: int, detail: str, errors: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "errors": errors,
    }


def install(app: FastAPI, max_body_bytes: int) -> None:
    """Answer every error of `app` as a problem, and refuse bodies over the limit."""

    @app.exception_handler(Problem)
    async def _(_: Request, error: Problem) -> JSONResponse:
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [_field_error(entry) for entry in error.errors()[:MAX_ERRORS]]
        detail = "; ".join(f"{e['field']}: {e['detail']}" for e in errors[:3])
        return response(Problem(422, detail, errors))

    @app.exception_handler(HTTPException)
    async def _(_: Request, error: HTTPException) -> JSONResponse:
        return _response(error.status_code, str(error.detail), [], error.headers)

    @app.exception_handler(Exception)
    async def _(_: Request, error: Exception) -> JSONResponse:
        return response(Problem(500, f"{type(error).__name__}: see the server's log"))

    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)


def _field_error(entry: dict[str, Any]) -> dict[str, str]:
    location = [str(part) for part in entry["loc"] if part != "body"]
    field = ".".join(location) or "body"
    return {"field": _clip(field), "value": echo(entry.get("input")), "detail": str(entry["msg"])}


class BodyLimit:
    """ASGI middleware that refuses a body over `max_bytes`, declared or streamed, with a 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on while its body stays within the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                await self._refuse(scope, receive, send)
                return
        await self.app(scope, _replay(bytes(body), receive), send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"body: larger than {self.max_bytes} bytes; send fewer entries per request"
        await response(Problem(413, detail))(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
