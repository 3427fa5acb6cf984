"""Bodies read as JSON with one meaning only: UTF-8, no repeated keys, bounded depth (RFC 7493)."""

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serve.problems import Problem, invalid


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


def _check_type(content_type: str) -> None:
    message = Message()
    message["content-type"] = content_type or "none/none"
    kind = message.get_content_type()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        shown = content_type or None
        raise Problem(415, f"Content-Type: {shown!r:.80} is not read; send application/json")
