"""Users over HTTP: consent, shop events, erasure; plain services and the routes over them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response

from qiance.domain import EventType, Purpose, ShopEvent
from qiance.ledger import Erasure, EventReceipt, Ledger, Scope
from qiance.privacy import Eraser, ErasureReport
from serve.people_schemas import (
    ConsentRequest,
    ConsentResponse,
    ErasureResponse,
    RejectedEventOut,
    ShopEventIn,
    ShopEventsRequest,
    ShopEventsResponse,
)
from serve.problems import Problem, echo, invalid
from serve.profile import KnownRow, ProfileResponse, profile_out
from serve.schemas import Identifier
from serve.strict_json import StrictRoute

logger = logging.getLogger(__name__)
RETRY_AFTER_S = 2
_AGAIN_AFTER_S = (2.0, 10.0, 60.0, 300.0, 1_800.0)
_PREFIX = b"/v1/users/"


class SessionPublisher(Protocol):
    """Makes what users just did visible to decisions."""

    def publish(self, user_ids: list[str], at: datetime) -> None:
        """Write the session features of the users as of `at`.

        Called in a thread; any error means that they are not visible.
        """
        ...


class PeopleService:
    """Consent, shop events and erasure.

    known_item: whether the catalogue has an item. profile: what is known of a user. unrecorded: the purposes
    that a user who was never asked counts as having agreed to. publish_timeout_s: how long an answer waits
    for the publisher. erase_timeout_s: after that an erasure goes on behind the answer.
    """

    def __init__(
        self,
        ledger: Ledger,
        eraser: Eraser,
        publisher: SessionPublisher,
        *,
        known_item: Callable[[str], bool],
        unrecorded: frozenset[Purpose] = frozenset(),
        profile: Callable[[str], Awaitable[list[KnownRow]]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        publish_timeout_s: float = 1.0,
        erase_timeout_s: float = 3.0,
    ) -> None:
        self._ledger, self._eraser, self._publisher = ledger, eraser, publisher
        self._known_item, self._unrecorded, self._now = known_item, unrecorded, now
        self._profile = profile
        self._publish_timeout_s, self._erase_timeout_s = publish_timeout_s, erase_timeout_s
        self._underway: set[asyncio.Task[None]] = set()

    async def set_consent(self, user_id: str, body: ConsentRequest, by: str) -> ConsentResponse:
        """Records what the user says, and gives what holds now."""
        await asyncio.to_thread(self._ledger.set_consent, user_id, body.purposes, by)
        return await self.consent(user_id)

    async def consent(self, user_id: str) -> ConsentResponse:
        """What holds for the user; makes nothing of a user who was never seen."""
        found = await asyncio.to_thread(self._ledger.consents, [user_id], self._unrecorded)
        return ConsentResponse(purposes={purpose: purpose in found[user_id] for purpose in Purpose})

    async def profile(self, user_id: str) -> ProfileResponse:
        """What a decision would read of the user now."""
        try:
            rows = await self._profile(user_id)
        except Exception as error:  # the online store, or the replica that reads it
            logger.warning("a user cannot be looked up: %s", type(error).__name__)
            raise Problem(
                503, "features: the store does not answer; try again", retry_after=RETRY_AFTER_S
            ) from error
        return profile_out(user_id, rows)

    async def record(self, body: ShopEventsRequest) -> ShopEventsResponse:
        """Stores events durably, then shows them to the next decision; the second may fail, the first not."""
        unknown = [
            RejectedEventOut(index=n, code="unknown_item", detail=f"item_id: {echo(e.item_id)} is not sold")
            for n, e in enumerate(body.events)
            if e.item_id is not None and not self._known_item(e.item_id)
        ]
        skipped = {entry.index for entry in unknown}
        place = [n for n in range(len(body.events)) if n not in skipped]
        events = [_event(body.events[n]) for n in place]
        receipt = await asyncio.to_thread(self._ledger.record_events, events, self._unrecorded)
        visible = await self._publish(list(receipt.users))
        rejected = [*unknown, *_rejected(receipt, place)]
        return ShopEventsResponse(
            accepted=receipt.accepted,
            duplicates=receipt.duplicates,
            without_consent=receipt.without_consent,
            rejected=sorted(rejected, key=lambda entry: entry.index),
            visible=visible,
        )

    async def erase(self, user_id: str, by: str, reason: str) -> ErasureResponse:
        """Erases the user from the ledger, then from the rest, which may go on behind the answer."""
        try:
            begun = await asyncio.to_thread(self._eraser.begin, user_id, by, reason)
        except ValueError as error:
            raise invalid("reason", reason, str(error).partition(": ")[2]) from None
        first: asyncio.Future[ErasureReport] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._finish(begun, user_id, first))
        self._underway.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._underway.discard)
        done, _ = await asyncio.wait([first], timeout=self._erase_timeout_s)
        return _erasure_out(first.result() if done else begun)

    async def erasure(self, erasure_id: str) -> ErasureResponse:
        """How far an erasure is."""
        found = await asyncio.to_thread(self._ledger.erasure, erasure_id)
        if found is None:
            raise Problem(404, f"erasure_id: {echo(erasure_id)} is not known")
        return _erasure_out(found)

    def resume(self) -> None:
        """Finishes what an earlier process left of erasures: for a thread of a replica that starts."""
        for report in self._eraser.resume():
            logger.warning("erasure %s: %s", report.erasure_id, report.state.value)

    async def _finish(self, begun: Erasure, user_id: str, first: asyncio.Future[ErasureReport]) -> None:
        """Erases from everything, again and again until all is done; `first` gets the first report."""
        for pause in (*_AGAIN_AFTER_S, None):
            try:
                report = await asyncio.to_thread(self._eraser.finish, begun, user_id)
                if not first.done():
                    first.set_result(report)
                if report.is_done:
                    return
            except Exception as error:  # the ledger does not answer: the erasure stays pending there
                logger.warning("erasure %s is tried again: %s", begun.erasure_id, type(error).__name__)
            if pause is not None:
                await asyncio.sleep(pause)
        logger.error("erasure %s is left pending: `qiance users erasures resume`", begun.erasure_id)

    async def _publish(self, user_ids: list[str]) -> bool:
        if not user_ids:
            return True
        call = asyncio.to_thread(self._publish_now, user_ids)
        try:
            await asyncio.wait_for(call, self._publish_timeout_s)
        except Exception as error:  # the events are safe: only the next decision does without them
            told = type(error).__name__
            logger.warning("session features of %d users are not visible: %s", len(user_ids), told)
            return False
        return True

    def _publish_now(self, user_ids: list[str]) -> None:
        """Publishes, and takes back the features of who was erased meanwhile; also when nobody waits."""
        before = self._ledger.resolve(user_ids)
        try:
            self._publisher.publish(user_ids, self._now())
        finally:
            after = self._ledger.resolve(user_ids)
            for user_id in user_ids:
                if after.get(user_id) != before.get(user_id):
                    self._eraser.erase_online(user_id)


def _event(entry: ShopEventIn) -> ShopEvent:
    return ShopEvent(
        entry.event_id,
        entry.user_id,
        EventType(entry.type),
        entry.occurred_at,
        entry.item_id,
        entry.query,
        entry.value,
    )


def _rejected(receipt: EventReceipt, place: Sequence[int]) -> Iterable[RejectedEventOut]:
    for entry in receipt.rejected:
        yield RejectedEventOut(index=place[entry.index], code=entry.code, detail=entry.detail)


def _erasure_out(erasure: Erasure | ErasureReport) -> ErasureResponse:
    return ErasureResponse(
        erasure_id=erasure.erasure_id,
        state=erasure.state.value,
        erased_at=erasure.erased_at,
        removed=dict(erasure.removed),
        problems=list(erasure.problems),
    )


def user_in_path(request: Request, user_id: Annotated[Identifier, Path(description="URL-encoded")]) -> str:
    """The user's id; one with a slash must have it encoded, so that no other route can be meant."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    tail = raw.partition(b"?")[0].partition(_PREFIX)[2]
    own = tail if request.method == "DELETE" else tail.removesuffix(b"/consent").removesuffix(b"/features")
    if b"/" in own:
        raise Problem(404, "path: no such route; encode a slash in a user id as %2F")
    return user_id


UserInPath = Annotated[str, Depends(user_in_path)]


def add_people(app: FastAPI, people_of: Callable[[], PeopleService], allow: Callable[[Scope], Any]) -> None:
    """Adds the routes to `app`. allow: the dependency that checks a key's scope and gives its name."""

    router = APIRouter(route_class=StrictRoute, tags=["people"])

    @router.put("/v1/users/{user_id:path}/consent")
    async def set_consent(
        user_id: UserInPath, body: ConsentRequest, by: Annotated[str, allow(Scope.PRIVACY)]
    ) -> ConsentResponse:
        """Record what a user agrees to; from the next decision on it holds."""
        return await people_of().set_consent(user_id, body, by)

    @router.get("/v1/users/{user_id:path}/consent", dependencies=[allow(Scope.PRIVACY)])
    async def consent(user_id: UserInPath) -> ConsentResponse:
        """What a user agrees to."""
        return await people_of().consent(user_id)

    @router.get("/v1/users/{user_id:path}/features", dependencies=[allow(Scope.PRIVACY)])
    async def features(user_id: UserInPath) -> ProfileResponse:
        """What is known of a user, view by view, and what a decision would not use."""
        return await people_of().profile(user_id)

    @router.delete("/v1/users/{user_id:path}", responses={202: {"model": ErasureResponse}})
    async def erase(
        user_id: UserInPath,
        response: Response,
        by: Annotated[str, allow(Scope.PRIVACY)],
        reason: Annotated[str, Query(max_length=200, description="Why; it stays, so it names nobody")] = "",
    ) -> ErasureResponse:
        """Erase a user from every store; 202 while files are still being rewritten."""
        return _answered(await people_of().erase(user_id, by, reason), response)

    @router.get(
        "/v1/erasures/{erasure_id}",
        dependencies=[allow(Scope.PRIVACY)],
        responses={202: {"model": ErasureResponse}},
    )
    async def erasure(erasure_id: str, response: Response) -> ErasureResponse:
        """How far an erasure is; 202 until no byte is left."""
        return _answered(await people_of().erasure(erasure_id), response)

    @router.post("/v1/events", status_code=202, dependencies=[allow(Scope.EVENTS)])
    async def events(body: ShopEventsRequest) -> ShopEventsResponse:
        """What users do in the shop; accepted means durable, a repeated event_id is harmless."""
        return await people_of().record(body)

    app.include_router(router)


def _answered(erasure: ErasureResponse, response: Response) -> ErasureResponse:
    if erasure.state != "done":
        response.status_code = 202
        response.headers["Location"] = f"/v1/erasures/{erasure.erasure_id}"
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return erasure
