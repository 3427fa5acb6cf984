"""Bodies read as JSON with one meaning only: UTF-8, no repeated keys, bounded depth (RFC 7493)."""

import json
from collections.abc import Awaitable, Callable, Coroutine
from email.message import Message
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from serve.problems import Problem, invalid

BEARER = HTTPBearer(auto_error=False, description="An API key made by `qiance keys create`")


def parse(body: bytes) -> Any:
    """The value in `body`; Problem 400 that says where it is not JSON, 422 for a repeated key.

    NaN and the infinities pass, so that the check of the field they stand in can name it.
    """
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise _refused(f"byte {error.start} is not UTF-8; send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _refused(f"is not JSON at {place} ({error.msg})") from None
    except RecursionError:
        raise _refused("is nested too deeply") from None
    except ValueError:  # Python refuses integers of more than 4,300 digits
        raise _refused("holds a number with too many digits") from None


def _refused(detail: str) -> Problem:
    return Problem(400, f"body: {detail}", [{"field": "body", "value": "", "detail": detail}])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, value in pairs:
            if name in seen:
                raise invalid(name, value, "is given twice; send it once")
            seen.add(name)
    return found


class StrictRequest(Request):
    """A request whose body is read by `parse`."""

    async def json(self) -> Any:
        """The body; Problem if it is not JSON with one meaning."""
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A route whose body must be declared as JSON and is read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route, given a strict request."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if request.method in ("POST", "PUT"):
                _check_type(request.headers.get("content-type", ""))
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


class HotRoute(StrictRoute):
    """A strict route that is asked often: declared as any other, answered past FastAPI's general machinery.

    That takes more time than all the rest at the door. The endpoint takes one body, and gives a response;
    dependencies take the request and its credentials.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        (self._model,) = (hint for name, hint in get_type_hints(endpoint).items() if name != "return")
        self._checks = [_callable(check) for check in self.dependencies]
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        _check_type(request.headers.get("content-type", ""))
        for check in self._checks:
            await check(request, await BEARER(request))
        response = await self.endpoint(self._read(await request.body()))
        await response(scope, receive, send)

    def _read(self, body: bytes) -> Any:
        try:
            return self._model.model_validate(parse(body) if body else None)
        except ValidationError as error:
            told = error.errors(include_url=False)
            raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in told]) from None


def _callable(check: Depends) -> Callable[..., Awaitable[Any]]:
    """What the dependency calls; without that a route would be open, so it is refused when it is declared."""
    if check.dependency is None:
        raise ValueError("dependencies: one names nothing to call; give Depends a function")
    return check.dependency


def _check_type(content_type: str) -> None:
    if content_type == "application/json":
        return
    message = Message()
    message["content-type"] = content_type or "none/none"
    kind = message.get_content_type()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        shown = content_type or None
        raise Problem(415, f"Content-Type: {shown!r:.80} is not read; send application/json")
