"""Briefs over HTTP: asked for, followed, and given up."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse

from qiance.domain import Brief, BriefState, Catalogue, Money
from qiance.ledger import BriefRecord, Ledger, Scope
from serve.problems import Problem, echo, invalid
from serve.schemas import BriefRequest, BriefResponse, strategy_out
from serve.strict_json import StrictRoute

LOOK_S = 0.5  # between looks at the ledger while somebody follows a brief
# Longest answer to who follows one: shorter than the time limits of proxies. Clients of server-sent events
# ask again by themselves, after as many milliseconds as the answer says.
STREAM_S = 20.0
AGAIN_MS = 1_000
FULL_RETRY_S = 30
CANCELLED = "cancelled; nothing was proposed"


class BriefService:
    """Answers about briefs; the work is done elsewhere.

    catalogue_of: the catalogue as it is now; wake: tells who works on briefs that one came.
    most_waiting: briefs that may wait to be begun.
    """

    def __init__(
        self,
        ledger: Ledger,
        currency: str,
        catalogue_of: Callable[[], Catalogue],
        wake: Callable[[], None],
        most_waiting: int,
    ) -> None:
        self._ledger, self._currency, self._catalogue_of = ledger, currency, catalogue_of
        self._wake, self._most_waiting = wake, most_waiting

    async def accept(self, body: BriefRequest) -> BriefResponse:
        """Queues a brief; 429 where too many wait."""
        brief = new_brief(body, self._currency, self._catalogue_of())
        await asyncio.to_thread(self._put, brief)
        self._wake()
        return BriefResponse(brief_id=brief.brief_id, state="queued", progress=0.0, message="queued")

    async def show(self, brief_id: str) -> BriefResponse:
        """A brief, and its strategies when they are there."""
        record = await asyncio.to_thread(self._ledger.brief, brief_id)
        if record is None:
            raise _unknown(brief_id)
        found = await asyncio.to_thread(self._ledger.strategies, None, brief_id)
        return _response(record).model_copy(update={"strategies": [strategy_out(s) for s in found]})

    async def cancel(self, brief_id: str) -> BriefResponse:
        """Gives a brief up; 409 where it has ended another way."""
        record = await asyncio.to_thread(self._ledger.cancel_brief, brief_id, CANCELLED)
        if record is None:
            raise _unknown(brief_id)
        if record.state is not BriefState.CANCELLED:
            raise Problem(409, f"brief_id: {echo(brief_id)} is {record.state.value} already")
        return _response(record)

    async def follow(self, brief_id: str) -> StreamingResponse:
        """Its state whenever that changes, as server-sent events."""
        record = await asyncio.to_thread(self._ledger.brief, brief_id)
        if record is None:
            raise _unknown(brief_id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(record), media_type="text/event-stream", headers=headers)

    async def _events(self, record: BriefRecord) -> AsyncIterator[str]:
        until, told = time.monotonic() + STREAM_S, None
        yield f"retry: {AGAIN_MS}\n\n"
        while True:
            if record != told:
                name = "end" if record.state.is_final else "progress"
                yield f"event: {name}\ndata: {_response(record).model_dump_json(exclude={'strategies'})}\n\n"
                told = record
            if record.state.is_final or time.monotonic() > until:
                return
            await asyncio.sleep(LOOK_S)
            found = await asyncio.to_thread(self._ledger.brief, record.brief.brief_id)
            record = found or record

    def _put(self, brief: Brief) -> None:
        waiting = self._ledger.waiting_briefs()
        if waiting >= self._most_waiting:
            raise Problem(
                429, f"briefs: {waiting} wait to be begun; try again later", retry_after=FULL_RETRY_S
            )
        self._ledger.put_brief(brief)


def _response(record: BriefRecord) -> BriefResponse:
    return BriefResponse(
        brief_id=record.brief.brief_id,
        state=record.state.value,
        progress=record.progress,
        message=record.message,
    )


def _unknown(brief_id: str) -> Problem:
    return Problem(404, f"brief_id: {echo(brief_id)} is not known")


def add_briefs(app: FastAPI, service_of: Callable[[], BriefService], allow: Callable[[Scope], Any]) -> None:
    """The routes of briefs."""
    router = APIRouter(route_class=StrictRoute, tags=["planning"])

    @router.post("/v1/briefs", status_code=202, dependencies=[allow(Scope.WRITE)])
    async def briefs(body: BriefRequest) -> BriefResponse:
        """Ask for strategies; the work goes on after the answer."""
        return await service_of().accept(body)

    @router.get("/v1/briefs/{brief_id}", dependencies=[allow(Scope.READ)])
    async def brief(brief_id: str) -> BriefResponse:
        """State, progress and strategies of a brief."""
        return await service_of().show(brief_id)

    @router.get(
        "/v1/briefs/{brief_id}/events",
        dependencies=[allow(Scope.READ)],
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {}}, "description": "`progress` events, then `end`"}
        },
    )
    async def events(brief_id: str) -> StreamingResponse:
        """State and progress of a brief whenever they change, as server-sent events."""
        return await service_of().follow(brief_id)

    @router.delete("/v1/briefs/{brief_id}", dependencies=[allow(Scope.WRITE)])
    async def cancel(brief_id: str) -> BriefResponse:
        """Give a brief up, begun or not."""
        return await service_of().cancel(brief_id)

    app.include_router(router)


def new_brief(body: BriefRequest, currency: str, catalogue: Catalogue) -> Brief:
    """A brief with a fresh id; Problem for what the schema alone cannot see."""
    if body.budget.currency != currency:
        raise invalid("budget.currency", body.budget.currency, f"this server works in {currency}")
    if body.ends <= body.starts:
        raise invalid("ends", body.ends.isoformat(), "must be later than starts")
    for item in body.items:
        if item not in catalogue.index:
            raise invalid("items", item, "is not in the catalogue")
    return Brief(
        brief_id=f"brief-{secrets.token_hex(6)}",
        objective=body.objective,
        budget=Money.of(body.budget.amount, currency),
        starts=body.starts,
        ends=body.ends,
        audience=body.audience,
        items=tuple(body.items),
        channels=tuple(body.channels),
        languages=tuple(body.languages),
        max_depth=body.constraints.max_depth,
        min_margin=body.constraints.min_margin,
        n=body.n,
    )
