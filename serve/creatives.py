"""The bank of words over HTTP: see it, add, approve, retire; a plain service and the routes over it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Query, Response

from qiance.domain import Catalogue, Channel, CreativeState
from qiance.guard import Guard
from qiance.guard.gate import relint_creative
from qiance.ledger import BankEntry, Ledger, Scope
from serve.creative_schemas import CreativeEntry, CreativeRequest, MoveRequest, entry_out
from serve.problems import Problem, echo, invalid
from serve.schemas import Identifier
from serve.strict_json import StrictRoute

CreativeId = Annotated[Identifier, Path(description="As the list shows it")]


class CreativeService:
    """What may be done with the bank; every way in goes through the guard."""

    def __init__(self, ledger: Ledger, guard: Guard, catalogue: Catalogue) -> None:
        self._ledger, self._guard, self._catalogue = ledger, guard, catalogue

    def listed(
        self,
        state: CreativeState | None,
        segment: str | None,
        channel: Channel | None,
        language: str | None,
    ) -> list[CreativeEntry]:
        """Entries that match what is given, oldest first."""
        return [entry_out(entry) for entry in self._ledger.creatives(state, segment, channel, language)]

    def add(self, body: CreativeRequest, by: str) -> tuple[CreativeEntry, bool]:
        """Lints words and keeps them as a draft, blocked or not; whether they are new.

        Words that are known stay in their state, with a fresh result.
        """
        subject = body.subject()
        if subject.item_id is not None:
            if subject.item_id not in self._catalogue.index:
                raise invalid("item_id", subject.item_id, "is not sold; use an id of the catalogue")
            subject = replace(subject, item=self._catalogue[subject.item_id])
        linted = self._guard.lint(subject)
        known = self._ledger.creative(linted.creative_id) is not None
        self._ledger.put_creatives([linted], by)
        return entry_out(self._entry(linted.creative_id)), not known

    def approve(self, creative_id: str, by: str, reason: str) -> CreativeEntry:
        """Lints words under the rules and facts of now, and approves them if they pass."""
        self._entry(creative_id)
        linted = relint_creative(self._ledger, self._guard, self._catalogue, creative_id)
        if linted.result.blocked:
            self._ledger.put_creatives([linted], by)
            raise Problem(409, f"creative {creative_id!r} is blocked: {linted.result.why()}")
        try:
            self._ledger.approve_creative(linted, by, reason)
        except ValueError as error:
            raise Problem(409, str(error)) from None
        return entry_out(self._entry(creative_id))

    def retire(self, creative_id: str, by: str, reason: str) -> CreativeEntry:
        """Takes words out of service for good."""
        self._entry(creative_id)
        try:
            self._ledger.retire_creative(creative_id, by, reason)
        except ValueError as error:
            raise Problem(409, str(error)) from None
        return entry_out(self._entry(creative_id))

    def _entry(self, creative_id: str) -> BankEntry:
        entry = self._ledger.creative(creative_id)
        if entry is None:
            raise Problem(404, f"creative_id: {echo(creative_id)} is not in the bank")
        return entry


def add_creatives(
    app: FastAPI, creatives_of: Callable[[], CreativeService], allow: Callable[[Scope], Any]
) -> None:
    """Adds the routes to `app`. allow: the dependency that checks a key's scope and gives its name."""
    router = APIRouter(route_class=StrictRoute, tags=["planning"])

    @router.get("/v1/creatives", dependencies=[allow(Scope.READ)])
    async def listed(
        state: Annotated[CreativeState | None, Query()] = None,
        segment: Annotated[str | None, Query()] = None,
        channel: Annotated[Channel | None, Query()] = None,
        language: Annotated[str | None, Query()] = None,
    ) -> list[CreativeEntry]:
        """The bank of words, oldest first."""
        return await asyncio.to_thread(creatives_of().listed, state, segment, channel, language)

    @router.post("/v1/creatives", status_code=201, responses={200: {"model": CreativeEntry}})
    async def add(
        body: CreativeRequest, response: Response, by: Annotated[str, allow(Scope.WRITE)]
    ) -> CreativeEntry:
        """Lint words and keep them as a draft; 200 if they were known."""
        entry, new = await asyncio.to_thread(creatives_of().add, body, by)
        if not new:
            response.status_code = 200
        return entry

    @router.post("/v1/creatives/{creative_id}/approve")
    async def approve(
        creative_id: CreativeId, body: MoveRequest, by: Annotated[str, allow(Scope.ADMIN)]
    ) -> CreativeEntry:
        """Approve words that pass the lint now; live strategies that use them may then serve them."""
        return await asyncio.to_thread(creatives_of().approve, creative_id, by, body.reason)

    @router.post("/v1/creatives/{creative_id}/retire")
    async def retire(
        creative_id: CreativeId, body: MoveRequest, by: Annotated[str, allow(Scope.ADMIN)]
    ) -> CreativeEntry:
        """Take words out of service for good."""
        return await asyncio.to_thread(creatives_of().retire, creative_id, by, body.reason)

    app.include_router(router)
